"""`espalier init`: a first file of options, from a few questions.

`command` asks; `recipe` says which keys the answers make, and `comments` what each key is, in two languages.
"""
