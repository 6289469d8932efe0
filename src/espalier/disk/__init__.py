"""Files that others rely on: written whole or not at all, owned by one process, and checked when they are read.

`writing` puts files and folders into their place by a rename, `temporary` names what is not finished and removes what
the dead have left, `lock` keeps two processes apart, `checksums` finds damage. No torch in here.
"""
