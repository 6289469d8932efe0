"""Bytes of files as they lie on disks: plain, packed (.gz, .bz2, .xz, .zst), or alone in a zip archive.

What is inside is not looked at here: `lines` knows encodings, `files` kinds of data.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from espalier.errors import UserError


@dataclass(frozen=True)
class Packing:
    """A way to pack one file: how what it makes begins, and the command that writes the content to stdout."""

    magic: bytes
    command: str


PACKINGS = {
    ".gz": Packing(b"\x1f\x8b\x08", "gzip -dc"),
    ".bz2": Packing(b"BZh", "bzip2 -dc"),
    ".xz": Packing(b"\xfd7zXZ\0", "xz -dc"),
    ".zst": Packing(b"\x28\xb5\x2f\xfd", "zstd -dc"),
    ".zip": Packing(b"PK\x03\x04", "unzip -p"),
}
"""By suffix. Zstandard is read by pyarrow, which comes with `datasets`; the others by the standard library."""

ERRORS = (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile)
"""What reading a packed file that is cut or damaged raises; `zlib.error` too."""


def packing_of(path: Path) -> str:
    """The suffix of its packing; "" for a plain file."""
    return suffix if (suffix := path.suffix.lower()) in PACKINGS else ""


def inner_name(path: Path) -> str:
    """The name of what is packed, in small letters; a plain file's own name.

    Raises:
        UserError: a zip archive that holds no file, or several.
    """
    packing = packing_of(path)
    if packing == ".zip":
        return PurePosixPath(_member(path)).name.lower()
    return path.name.lower().removesuffix(packing)


def open_bytes(path: Path) -> BinaryIO:
    """The content of a file, unpacked while it is read.

    Raises:
        UserError: it is packed otherwise than its name says.
        OSError: it cannot be opened.
    """
    packing = packing_of(path)
    _check_magic(path, packing)
    if packing == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if packing == ".bz2":
        return bz2.open(path, "rb")  # type: ignore[return-value]
    if packing == ".xz":
        return lzma.open(path, "rb")  # type: ignore[return-value]
    if packing == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    if packing == ".zip":
        name = _member(path)
        try:
            return zipfile.ZipFile(path).open(name)  # type: ignore[return-value]
        except (RuntimeError, NotImplementedError) as error:  # a password, a method that zipfile lacks
            raise UserError(f"{path}: cannot be unpacked here ({error}); unpack it first") from None
    return path.open("rb")


def unpacked(path: Path) -> str:
    """The beginning of a shell command that writes a packed file's content, with the pipe; "" for a plain file."""
    packing = packing_of(path)
    return f"{PACKINGS[packing].command} {shlex.quote(path.name)} | " if packing else ""


def _check_magic(path: Path, packing: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(6)
    if packing:
        if not head.startswith(PACKINGS[packing].magic[:2]):
            raise UserError(
                f"{path}: is not packed, although its name ends with {packing} (it begins with {head!r}); call it "
                f"{path.name[: -len(packing)]}, or fetch it again"
            )
        return
    for suffix, how in PACKINGS.items():
        # bzip2's sign is three letters, with which a text may begin; the digit and the next sign are no text
        if head.startswith(how.magic) and (suffix != ".bz2" or (head[4:5] == b"1" and head[5:6] == b"A")):
            raise UserError(
                f"{path}: is packed ({suffix}), which its name does not say; call it {path.name}{suffix}"
            )


def _member(path: Path) -> str:
    """The one file of a zip archive, apart from what macOS and hidden files add."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is no whole zip archive ({error}); fetch it again") from None
    kept = [name for name in names if not _hidden(PurePosixPath(name))]
    if len(kept) != 1:
        found = (
            f"{len(kept)} files ({', '.join(kept[:3])}{', …' if len(kept) > 3 else ''})"
            if kept
            else "no file"
        )
        raise UserError(
            f"{path}: holds {found}, wanted one; unpack it into a folder (`unzip {shlex.quote(path.name)} -d DATA`) and "
            "name the folder"
        )
    return kept[0]


def _hidden(name: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
