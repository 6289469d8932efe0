"""`espalier inspect`: a model's parts, a data file's trained text, a config as it will run.

`command` is what the command line reads, without torch; `look` finds out what something is and shows it.
"""
