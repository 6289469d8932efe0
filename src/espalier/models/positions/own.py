"""What a configuration of ours says of its positions; `rope` asks it before it scales anything."""

from __future__ import annotations


class OwnPositions:
    """A base of our own configurations.

    Attributes:
        unscalable: why no scaling makes its texts longer, and what to do; empty where one does.
        grows_by_itself: which model this is, where its rotary base grows with its texts and `dynamic` turns that on.
        has_slopes: whether it knows distances by ALiBi's slopes.
    """

    unscalable = ""
    grows_by_itself = ""
    has_slopes = False

    def grow(self) -> None:
        """Turn on what `grows_by_itself` is about."""
        raise NotImplementedError


def learned(model_type: str) -> str:
    """`unscalable` of a table with a row a position."""
    return f"{model_type} has learned positions, which no scaling makes longer. Remove it."
