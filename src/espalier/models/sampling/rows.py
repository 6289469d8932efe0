"""Rows that wait for a place, and those that have one.

B rows, C copies of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Present:
    """The rows that are stepped.

    Attributes:
        names: the caller's number of each.
        uniforms: (B, steps) what they are drawn by.
        alive: (B,) whether each goes on; on the CPU.
        written: (B,) steps since each began; on the CPU.
    """

    names: list[int]
    uniforms: Tensor
    alive: Tensor
    written: Tensor

    @classmethod
    def new(cls, names: list[int], uniforms: Tensor) -> Present:
        return cls(
            names,
            uniforms,
            torch.ones(len(names), dtype=torch.bool),
            torch.zeros(len(names), dtype=torch.int64),
        )

    def kept(self, rows: Tensor) -> Present:
        names = [self.names[i] for i in rows.tolist()]
        uniforms = self.uniforms[rows.to(self.uniforms.device)]
        return Present(names, uniforms, self.alive[rows], self.written[rows])

    def joined(self, new: Present) -> Present:
        return Present(
            self.names + new.names,
            torch.cat([self.uniforms, new.uniforms]),
            torch.cat([self.alive, new.alive]),
            torch.cat([self.written, new.written]),
        )


class Queue:
    """Rows in their order, numbered prompt * C + copy, and which of them have had a place.

    Args:
        prompts: token ids.
        copies: of each.
        seeds: of each prompt.
        steps: uniform numbers that a row needs.
        most: rows that have a place at a time; 0: all.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], copies: int, seeds: Sequence[int], steps: int, most: int
    ) -> None:
        self.prompts, self.copies, self.seeds, self.steps = prompts, copies, seeds, steps
        self.total = len(prompts) * copies
        self.most = most if 0 < most < self.total else 0
        self.taken = 0

    @property
    def waits(self) -> bool:
        return self.taken < self.total

    @property
    def cut(self) -> bool:
        """Whether the last prompt has copies that wait."""
        return self.taken % self.copies > 0

    @property
    def unread(self) -> int:
        """The first prompt none of whose rows has had a place."""
        return -(-self.taken // self.copies)

    def first(self) -> tuple[Sequence[Sequence[int]], int]:
        """The prompts that begin, and how many copies of each."""
        if not self.most:
            return self.prompts, self.copies
        return self.prompts[: max(1, self.most // self.copies)], min(self.copies, self.most)

    def take(self, count: int, device: torch.device, likeliest: bool) -> Present:
        """The next rows, `count` at most; `likeliest`: the numbers of the last copy of a prompt are -1."""
        first = self.taken // self.copies
        rows = list(range(self.taken, min(self.total, self.taken + count)))
        seeds = self.seeds[first : rows[-1] // self.copies + 1]
        uniforms = uniforms_of(seeds, self.copies, self.steps)
        if likeliest:
            uniforms[self.copies - 1 :: self.copies] = -1.0
        self.taken += len(rows)
        start = rows[0] - first * self.copies
        return Present.new(rows, uniforms[start : start + len(rows)].to(device))


def uniforms_of(seeds: Sequence[int], copies: int, steps: int) -> Tensor:
    """(P * C, steps) in [0, 1): the numbers of a row follow from its prompt's seed and its copy alone."""
    rows = []
    for seed in seeds:
        maker = torch.Generator().manual_seed(seed)
        # One block a copy, so that the first copies are the same however many there are.
        rows += [torch.rand(steps, generator=maker, dtype=torch.float64) for _ in range(copies)]
    return torch.stack(rows)
