"""A branch, tag or commit of a hub id: fetched once, and from then on a folder like any other.

The hub's cache keeps each commit's files in ``models--OWNER--NAME/snapshots/COMMIT/``, and under ``refs/`` which commit
a branch or tag is. So a folder of the cache still says which id and commit it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from espalier.errors import UserError
from espalier.models.quiet import first_line

MAIN = "main"
"""What the hub gives where no revision is asked for."""

_FILES = ["*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py", "*.safetensors"]
_BELOW = ["*/*.safetensors", "*/*.bin", "*/*.pt"]
"""Other forms of the same weights, which many models keep in folders of their own."""


def at_revision(name: str, revision: str) -> str:
    """The folder of a hub id's files as they were at a branch, tag or commit.

    Args:
        name: a hub id; or a folder of the hub's cache, which is at its commit already.
        revision: a branch, a tag, or a commit's whole hash; of any other folder "main" is allowed, which says nothing.

    Raises:
        UserError: a folder has no revisions, or the hub has not this one.
    """
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if revision == MAIN or _is_at(Path(name), revision):
            return name
        raise UserError(
            f"`model_revision` is {revision}, and {name} is a folder, which has no revisions. Remove model_revision, or "
            "name the model by its hub id."
        )
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=_FILES, ignore_patterns=_BELOW)
        if not any(Path(folder).glob("*.safetensors")):
            # Whether they may be read is decided where they are.
            folder = snapshot_download(
                name, revision=revision, allow_patterns=[*_FILES, "*.bin"], ignore_patterns=_BELOW
            )
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f"{name}: revision {revision} cannot be fetched ({first_line(error)}). Give a branch, a tag or a commit's "
            "whole hash of this model, or remove model_revision."
        ) from error
    return folder


def on_the_hub(folder: str) -> tuple[str, str] | None:
    """The id and the commit that a folder of the hub's cache holds; None of any other."""
    path = Path(folder)
    if path.parent.name != "snapshots" or not path.parents[1].name.startswith("models--"):
        return None
    return path.parents[1].name.removeprefix("models--").replace("--", "/"), path.name


def base_in(settings: Mapping[str, Any]) -> str | None:
    """The model that an adapter's settings say it was made for, at the revision that they say; None where they say none.

    Raises:
        UserError: that revision cannot be fetched.
    """
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not base:
        return None
    if not revision or revision == MAIN or Path(str(base)).exists():
        return str(base)
    return at_revision(str(base), str(revision))


def _is_at(folder: Path, revision: str) -> bool:
    known = on_the_hub(str(folder))
    if known is None:
        return False
    reference = folder.parents[1] / "refs" / revision
    return known[1] == revision or (reference.is_file() and reference.read_text("utf-8").strip() == known[1])
