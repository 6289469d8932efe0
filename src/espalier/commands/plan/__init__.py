"""`espalier plan`: memory and time of a run before it starts.

`command` is what the command line reads, without torch; `loads` makes of a stage's options what `espalier.plan` reckons
with, and `show` shows it.
"""
