"""A model as a tree of its modules, with like blocks shown once.

`layers.0-31` stands for 32 blocks whose modules and shapes agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from espalier.models.quantise.cpm_linear import CpmLinear


@dataclass
class Node:
    """A module, or several that are alike.

    Attributes:
        name: its last part; a range of numbers for several.
        kind: its class.
        tensors: names and shapes of its own parameters and saved buffers; what is stored in few bits by its real shape.
        total: numbers in it and below it, in all copies.
        trainable: those that are trained.
        copies: how many modules this stands for.
    """

    name: str
    kind: str
    tensors: list[tuple[str, str]]
    total: int
    trainable: int
    copies: int = 1
    children: list[Node] = field(default_factory=list)

    @property
    def shape(self) -> Any:
        """Equal for modules that are alike; their own names do not count."""
        below = tuple((child.name, child.copies, child.shape) for child in self.children)
        return self.kind, tuple(self.tensors), self.trainable, below

    def as_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"name": self.name, "kind": self.kind, "parameters": self.total}
        if self.trainable:
            facts["trainable"] = self.trainable
        if self.copies > 1:
            facts["copies"] = self.copies
        if self.tensors:
            facts["tensors"] = dict(self.tensors)
        if self.children:
            facts["children"] = [child.as_dict() for child in self.children]
        return facts


def module_tree(module: nn.Module, name: str = "model", seen: set[int] | None = None) -> Node:
    """The modules below one that have tensors; a tensor that two share counts where it comes first."""
    seen = set() if seen is None else seen
    tensors, own, trained = _own(module, seen)
    children = [module_tree(child, key, seen) for key, child in module.named_children()]
    children = _together([child for child in children if child.total or child.tensors])
    total = own + sum(child.total for child in children)
    trainable = trained + sum(child.trainable for child in children)
    return Node(name, type(module).__name__, tensors, total, trainable, 1, children)


def _own(module: nn.Module, seen: set[int]) -> tuple[list[tuple[str, str]], int, int]:
    if isinstance(module, CpmLinear):
        shape = (module.out_features, module.in_features)
        tensors = [("weight", f"{list(shape)} int{module.bits}")]
        count = shape[0] * shape[1]
    elif type(module).__module__.startswith("bitsandbytes.") and isinstance(module, nn.Linear):
        packed: Any = module.weight
        bits = 4 if str(packed.dtype) == "torch.uint8" else 8
        tensors = [("weight", f"{[module.out_features, module.in_features]} int{bits}")]
        count = module.out_features * module.in_features
    else:
        tensors, count = [], 0
    trained = 0
    for key, parameter in module._parameters.items():
        if parameter is None or (tensors and key == "weight"):
            continue
        if id(parameter) in seen:
            tensors.append((key, f"{list(parameter.shape)} (tied)"))
            continue
        seen.add(id(parameter))
        tensors.append((key, str(list(parameter.shape))))
        count += parameter.numel()
        trained += parameter.numel() * parameter.requires_grad
    return tensors, count, trained


def _together(children: list[Node]) -> list[Node]:
    """Neighbours with numbers for names that are alike, as one node each run."""
    nodes: list[Node] = []
    for child in children:
        last = nodes[-1] if nodes else None
        if last is not None and child.name.isdigit() and last.name[0].isdigit() and _alike(last, child):
            last.name = f"{last.name.split('-')[0]}-{child.name}"
            last.copies += 1
            last.total += child.total
            last.trainable += child.trainable
        else:
            nodes.append(child)
    return nodes


def _alike(run: Node, other: Node) -> bool:
    one = (run.kind, tuple(run.tensors), run.trainable // run.copies, run.shape[3])
    return bool(one == other.shape) and run.total // run.copies == other.total
