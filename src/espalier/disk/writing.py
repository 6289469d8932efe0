"""Writing that happens whole or not at all.

Everything is written under a temporary name beside its place, flushed to the disk, and renamed. When that fails in
the middle (a full disk, a signal), the temporary goes away and what stood there before is untouched. After SIGKILL a
temporary may stay behind (`temporary`); nothing reads it, and the next writer of the same name removes it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from espalier.disk.temporary import remove_left, temporary_name
from espalier.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (*_NO_ROOM, errno.EROFS)
_SQLITE = ("disk I/O error", "database or disk is full", "unable to open database file")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text. Raises UserError (path, free bytes, remedy) when the disk refuses it."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with indents. Numbers must be finite: NaN is no JSON, so its caller decides what stands for it."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def replace_folder(temporary: Path, final: Path) -> None:
    """Puts a finished folder into its place, in place of what stood there.

    Two renames when `final` exists; `restore_folder` mends a run that was killed between them.

    Raises:
        UserError: a rename failed; the earlier folder stands where it stood and `temporary` is removed.
    """
    old = _old(final)
    restore_folder(final)
    try:
        for file in sorted(temporary.rglob("*")):
            _flush(file)
        _flush(temporary)
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        _flush(final.parent)
    except BaseException as error:
        restore_folder(final)
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_error(final, error) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(final: Path) -> None:
    """After a kill in the middle of `replace_folder`: the earlier folder comes back unless the new one is there."""
    old = _old(final)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        with suppress(FileNotFoundError):  # another process has just done the same
            old.rename(final)


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def check_new_folder(path: Path) -> None:
    """Whether a folder may be written here. Raises UserError where something stands there already."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file. Choose the name of a folder that is not there yet.")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path}: exists and is not empty. Choose another folder.")


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder to fill, which replaces `final` when the block ends, and is removed when it fails.

    ``with new_folder(run / "model") as folder: model.save_pretrained(folder)``
    """
    temporary = temporary_name(final)
    remove_left(final.parent, final.name)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # A file that failed inside has named the temporary; the user knows the folder by its own name.
        cause = error.__cause__ if isinstance(error, UserError) else error
        if isinstance(cause, OSError | SafetensorError):
            raise disk_error(final, cause) from cause
        raise
    replace_folder(temporary, final)


def is_refusal(error: BaseException) -> bool:
    """Whether a disk that takes nothing (more) is behind an error; libraries in Rust and SQLite say it in words."""
    if isinstance(error, OSError):
        return error.errno in _REFUSED
    message = str(error)
    in_rust = any(f"os error {number})" in message for number in _REFUSED)
    return in_rust or (isinstance(error, sqlite3.Error) and message in _SQLITE)


def disk_error(path: Path, error: BaseException) -> UserError:
    """The message about a failed write: what was written where, how much room is left, and what to do."""
    existing = next((place for place in (path, *path.absolute().parents) if place.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    # safetensors reports a full disk as its own error, with the number only in the text.
    full = any(f"os error {number})" in str(error) for number in _NO_ROOM) or str(error) in _SQLITE[:2]
    if full or (isinstance(error, OSError) and error.errno in _NO_ROOM):
        remedy = "Make room, lower `save_total_limit`, or choose an `output_dir` (or --out) on another disk"
    else:
        remedy = (
            "Check that the folder exists and may be written to, or choose another `output_dir` (or --out)"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UserError(
        f"{path}: could not be written ({reason}); {free:,} bytes are free on its disk. {remedy}, and start "
        "again: what was saved before is untouched."
    )


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Whatever the disk refuses inside is one message about `path`, which the user knows."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def write_whole(path: Path, fill: Callable[[Path], Any]) -> None:
    """Has `fill` write a temporary file, and puts it into its place.

    Raises:
        UserError: the disk refuses it (path, free bytes, remedy); what stood there is untouched.
    """
    temporary = temporary_name(path)
    try:
        fill(temporary)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except BaseException as error:
        with suppress(OSError):  # a read-only disk refuses this too
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | SafetensorError):
            raise disk_error(path, error) from error
        raise


def _flush(path: Path) -> None:
    """To the disk itself: a rename that survives a power cut must not point at data that did not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
