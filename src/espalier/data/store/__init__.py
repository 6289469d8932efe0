"""Records tokenised once, kept on disk, and read from there tree by tree.

`blocks` turns a stretch of a file into arrays, `crew` does that in several processes, `build` writes what they give
and `stored` reads it; `key` says what a store depends on, and `cache` finds or makes it, one process at a time (`lock`).
"""
