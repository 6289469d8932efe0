"""The folder of stores: what is asked for is found there or made once, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from espalier.data.store.build import MANIFEST, REJECTED
from espalier.data.store.key import key_of
from espalier.data.store.lock import held
from espalier.data.store.stack import Store
from espalier.disk.checksums import sum_of_file, sum_of_json
from espalier.disk.temporary import remove_left, temporary_name
from espalier.errors import UserError

FORMAT = 2
"""Of a store's folder; one of another format (0.1.0 had no checksums) is made again."""

Make = Callable[[Path, Callable[[str], None]], dict[str, Any]]
"""(an empty folder, told what is being done) -> the manifest, once everything else is in the folder."""


def find_or_make(
    folder: Path, depends_on: Mapping[str, Any], make: Make, say: Callable[[str], None]
) -> Store:
    """The store of the data that `depends_on` describes, from `folder` or made there.

    Of several processes that ask for the same one makes it, and the others wait and say for whom. It is written under
    another name and renamed when it is whole and on the disk; what a killed process has left behind is removed.

    Raises:
        UserError: the folder cannot be written to, the disk is full, or what `make` raises.
    """
    name = key_of(depends_on)
    final = folder / name
    told: set[str] = set()

    def existing() -> Store | None:
        if not (final / MANIFEST).is_file():
            return None
        try:
            manifest = _manifest(final)
            if manifest["depends_on"] != depends_on:
                return None
            _check(final, manifest)
            return Store(final, manifest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{final}: this tokenised data is damaged ({error}) and is made again"
            if problem not in told:
                say(problem)
            told.add(problem)
            return None

    store = existing()
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
        done=lambda: existing() is not None,
        waiting=lambda who: say(f"waiting for {who}"),
        doing=lambda: doing[0],
    ) as owner:
        if owner:
            _make(final, depends_on, make, doing)
    store = existing()
    if store is None:
        raise UserError(f"{final}: the tokenised data cannot be read back; is the disk sound?")
    return store


def _manifest(folder: Path) -> dict[str, Any]:
    """What `_make` has written. Raises ValueError where it is another format's or damaged, and what reading raises."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
    if manifest.get("format") != FORMAT:
        raise ValueError(f"its format is {manifest.get('format', 1)}, and this version's {FORMAT}")
    if manifest.pop("checksum", None) != sum_of_json(manifest):
        raise ValueError("the checksum of its manifest is another than when it was written")
    return manifest


_checked: dict[tuple[Any, ...], None] = {}
"""Files that this process has read through: (path, size, times, inode, checksum)."""


def _check(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Read every column once in a process and compare its checksum; a file that has not changed since is not read again.

    It costs what reading costs: measured 8 GB/s on one core from the page cache, else the disk's own speed. A store
    of a billion tokens has 4 GB. What a run reads later, piece by piece, it then finds in the page cache.

    Raises:
        OSError, ValueError: a file is missing, or is not what was written.
    """
    names = {f"{name}.bin": checksum for name, checksum in manifest["sums"].items()} | {
        REJECTED: manifest["rejected_sum"]
    }
    for name, checksum in names.items():
        path = folder / name
        state = path.stat()
        mark = (
            str(path.resolve()),
            state.st_size,
            state.st_mtime_ns,
            state.st_ctime_ns,
            state.st_ino,
            checksum,
        )
        if mark in _checked:
            continue
        if sum_of_file(path) != checksum:
            raise ValueError(f"the checksum of {name} is another than when it was written")
        _checked[mark] = None


def _make(final: Path, depends_on: Mapping[str, Any], make: Make, doing: list[str]) -> None:
    remove_left(final.parent, final.name, of_anyone=True)
    remove_left(final.parent)
    temporary = temporary_name(final)

    def tell(what: str) -> None:
        doing[0] = what

    try:
        temporary.mkdir()
        manifest = {"format": FORMAT, "depends_on": depends_on, **make(temporary, tell)}
        manifest["rejected_sum"] = sum_of_file(temporary / REJECTED)
        manifest["checksum"] = sum_of_json(manifest)
        with (temporary / MANIFEST).open("w", encoding="utf-8", errors="backslashreplace") as stream:
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
