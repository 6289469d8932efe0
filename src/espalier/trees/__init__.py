"""Token trees: what they are, how they are laid out in rows, and who sees whom.

Imports torch and numpy and nothing of ours above this room.
"""

from espalier.trees.batch import Batch, lay_out_padded, lay_out_tree, unrolled
from espalier.trees.packing import pack
from espalier.trees.tree import Path, Tree

__all__ = ["Batch", "Path", "Tree", "lay_out_padded", "lay_out_tree", "pack", "unrolled"]
