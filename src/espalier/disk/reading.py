"""JSON files: read, or the user's message; and our own, which may be damaged and are forgiven."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from espalier.errors import UserError


def read_json(path: Path, key: str = "") -> Any:
    """What a JSON file holds; a byte order mark is passed over.

    Args:
        key: the option that names the file, for the message.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or is not JSON (with the line).
    """
    named = f"{key}: " if key else ""
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{named}cannot read {path} ({error.strerror}).") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{named}{path}:{error.lineno}: not valid JSON ({error.msg}); is the file whole?"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{named}{path}: not UTF-8 (byte {error.start}). Save the file as UTF-8.") from error


def read_object(path: Path, key: str) -> dict[str, Any]:
    """The JSON object in the file that an option names.

    Raises:
        UserError: it cannot be read, or is none.
    """
    made = read_json(path, key)
    if not isinstance(made, dict):
        raise UserError(f"{key}: {path}: wanted a JSON object.")
    return made


def object_or_nothing(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where it is missing, damaged, or holds something else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
