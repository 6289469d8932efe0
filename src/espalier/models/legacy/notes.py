"""What a model must remember of its prompts between the steps of sampling, kept with the cache: a number a row."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

_notes: WeakKeyDictionary[Cache, dict[str, Tensor]] = WeakKeyDictionary()


def note(cache: Cache | None, **values: Tensor) -> None:
    """Keep tensors, whose first axis is the cache's rows, with a cache; None keeps nothing."""
    if cache is not None:
        _notes.setdefault(cache, {}).update(values)


def noted(cache: Cache | None, name: str) -> Tensor | None:
    """What was kept under this name with a cache that is not empty; None where nothing was."""
    if cache is None or not cache.get_seq_length():
        return None
    return _notes.get(cache, {}).get(name)


class NotedCache(DynamicCache):
    """Transformers' cache, whose notes follow when rows are chosen.

    Any cache takes notes. In others the rows stay, or change places within one prompt (beams), where it does
    not matter.
    """

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        for name, note in _notes.get(self, {}).items():
            if len(note) > 1:
                _notes[self][name] = note[indices.to(note.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for name, note in _notes.get(self, {}).items():
            if len(note) > 1:
                _notes[self][name] = note.repeat_interleave(repeats, 0)
