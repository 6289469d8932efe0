"""Names of what is not finished yet, and removing what dead processes have left of it.

A name carries its process and its machine: ``.NAME.HOST.PID.tmp`` beside NAME, ``espalier-HOST-PID-…`` in the folder
for temporary files. After SIGKILL such a thing stays behind, and the next one that writes in the same place removes it.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_FOREIGN = 86400.0
"""Seconds without a change after which what another machine has left is taken for dead; its processes are unseen."""
_NAME = re.compile(r"\..+?(?:\.(?P<host>[\w-]+))?\.(?P<pid>\d+)\.tmp")
_FOLDER = re.compile(r"espalier-(?P<host>[\w-]+)-(?P<pid>\d+)-\w+")


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())


def temporary_name(path: Path) -> Path:
    """Beside `path`, so that a rename stays on one disk; machine and process keep two writers apart."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for what is needed only now, in the machine's place for such; those of the dead are removed first."""
    with suppress(OSError):
        for path in Path(tempfile.gettempdir()).glob("espalier-*"):
            if (match := _FOLDER.fullmatch(path.name)) and _is_dead(match, path):
                shutil.rmtree(path, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"espalier-{_host()}-{os.getpid()}-")


def remove_left(folder: Path, name: str = "*", *, of_anyone: bool = False) -> None:
    """Remove the temporaries that dead processes have left directly in a folder.

    Args:
        folder: need not exist.
        name: of what they were to become, as a pattern.
        of_anyone: also those whose process is unknown or seems to live: right where the caller alone may write.
    """
    with suppress(OSError):
        for path in folder.glob(f".{name}.*.tmp"):
            match = _NAME.fullmatch(path.name)
            if of_anyone or (match is not None and _is_dead(match, path)):
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_dead(name: re.Match[str], path: Path) -> bool:
    if name["host"] in (None, _host()):
        return not is_alive(int(name["pid"]))
    with suppress(OSError):
        newest = max(p.stat().st_mtime for p in (path, *path.rglob("*")))
        return time.time() - newest > _FOREIGN
    return False


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
