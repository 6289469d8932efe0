"""The folder of stores: what is asked for is found there or made once, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from espalier.data.store.build import MANIFEST
from espalier.data.store.key import key_of
from espalier.data.store.lock import held
from espalier.data.store.stored import Store
from espalier.errors import UserError

Make = Callable[[Path, Callable[[str], None]], dict[str, Any]]
"""(an empty folder, told what is being done) -> the manifest, once everything else is in the folder."""


def find_or_make(folder: Path, said: Mapping[str, Any], make: Make, say: Callable[[str], None]) -> Store:
    """The store that depends on `said`, from `folder` or made there.

    Of several processes that ask for the same one makes it, and the others wait and say for whom. It is written under
    another name and renamed when it is whole and on the disk; what a killed process has left behind is removed.

    Raises:
        UserError: the folder cannot be written to, the disk is full, or what `make` raises.
    """
    name = key_of(said)
    final = folder / name

    def found() -> Store | None:
        try:
            store = Store(final)
        except (OSError, ValueError, KeyError):
            return None
        return store if store.manifest.get("depends_on") == said else None

    store = found()
    if store is not None:
        return store
    doing = ["begins to tokenise"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error}); tokenised data is kept there. Choose another folder with "
            "`tokenized_path`"
        ) from None
    with held(
        folder / name,
        done=lambda: found() is not None,
        waiting=lambda who: say(f"waiting for {who}"),
        doing=lambda: doing[0],
    ) as owner:
        if owner:
            _make(final, said, make, doing)
    store = found()
    if store is None:
        raise UserError(f"{final}: the tokenised data cannot be read back; is the disk sound?")
    return store


def _make(final: Path, said: Mapping[str, Any], make: Make, doing: list[str]) -> None:
    for left in final.parent.glob(f".{final.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")

    def tell(what: str) -> None:
        doing[0] = what

    try:
        temporary.mkdir()
        manifest = {"depends_on": said, **make(temporary, tell)}
        with (temporary / MANIFEST).open("w", encoding="utf-8") as stream:
            json.dump(manifest, stream, ensure_ascii=False)
            stream.flush()
            os.fsync(stream.fileno())
        if final.exists():  # damaged, or it would have been found
            shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and final.exists():
            return  # another process took this one for dead, and was faster
        free = shutil.disk_usage(final.parent).free
        raise UserError(
            f"{final.parent}: tokenised data could not be written ({error}); {free:,} bytes are free there. Make room, "
            "or choose another disk with `tokenized_path`"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
