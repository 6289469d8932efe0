"""A record that the template refuses: said with its place, so that it can be counted and left out as any other bad record."""

from __future__ import annotations

from typing import Any

from espalier.errors import UserError


class RefusedRecordError(UserError):
    """A template that refuses a record, with the record's place in front.

    Attributes:
        reason: without the place.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.reason = reason


def located(render: Any, record: Any, encoder: Any) -> Any:
    """What `render` makes of a record; a template's complaint is raised as `RefusedRecordError`."""
    try:
        return render(record, encoder)
    except UserError as error:
        raise RefusedRecordError(record.source, str(error)) from None
