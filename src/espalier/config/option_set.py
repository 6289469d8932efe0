"""What a user has chosen for one stage: an instance of each of its option classes, found by its class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from espalier.config.option import Options

T = TypeVar("T", bound=Options)


@dataclass(frozen=True)
class OptionSet:
    """The options of one stage; iterating gives them in the order of help pages.

    Example: ``OptionSet((RunOptions(seed=7),))[RunOptions].seed == 7``
    """

    instances: tuple[Options, ...]

    def __getitem__(self, kind: type[T]) -> T:
        """The instance of this very class; `KeyError` where the stage does not have it."""
        for instance in self.instances:
            if type(instance) is kind:
                return instance
        raise KeyError(kind)

    def __contains__(self, kind: type[Options]) -> bool:
        return any(type(instance) is kind for instance in self.instances)

    def __iter__(self) -> Iterator[Options]:
        return iter(self.instances)

    def replaced(self, new: Options) -> OptionSet:
        """The same options with another instance of one class."""
        return OptionSet(tuple(new if type(old) is type(new) else old for old in self.instances))
