"""Records tokenised once, kept on disk, and read from there tree by tree.

`table` turns a stretch of records into arrays (`job` says which), `build` has that done, by several processes where
it pays (`crew`), and writes what they give into `columns`; `stack` reads several stores as one and makes their trees.
`key` says what a store depends on, and `cache` finds or makes it, one process at a time (`lock`).
"""
