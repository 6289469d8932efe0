"""``python -m espalier``: the same as the command ``espalier``."""

from espalier.cli import main

main()
