"""Old Chinese checkpoints on today's transformers: read from their original folders, without remote code.

`families` tells what a folder is, `weights` reads it, and one module a family says how it converts: to an
architecture that transformers has where that is exact, else to one of ours.
"""
