"""One process writes to a place, and a second one is told who does.

The operating system holds the lock (`flock` on a small file) and releases it when its process ends, in whatever way, so
a lock of the dead is free. The file's text says who has it, for the message; it decides nothing. Each start opens the
file anew, so a second start in the same process is refused too.

On network file systems: Linux's NFS hands `flock` to the server, and it holds between machines; Lustre and some FUSE
file systems need to be mounted with locks. Where a file system has none, the work goes on without one and says so.

filelock 4.3 holds the same lock, and was tried in its place: a second start is told "could not be acquired" and not by
whom, it raises NotImplementedError where there are no locks, and its file stays. It takes 0.1 ms and this 2.6 ms, once
a run.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from espalier.disk.writing import disk_error
from espalier.errors import UserError

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


@contextmanager
def owned(
    path: Path, place: Path, remedy: str, say: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Be the only one that writes to `place` while the block runs.

    Args:
        path: the lock's file; its folder is made when missing, the file goes away in the end.
        place: what it stands for, as the user knows it.
        remedy: what a second one may do instead, as a sentence's end: "choose another output_dir".
        say: told where the file system has no locks.

    Raises:
        UserError: another process (or another start in this one) has it; or the disk refuses the file.
    """
    descriptor = _acquired(path, place, remedy, say)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the lock is let go, so that nobody else's file is removed
        os.close(descriptor)


def _acquired(path: Path, place: Path, remedy: str, say: Callable[[str], None]) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise disk_error(place, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise UserError(
                f"{place}: {owner} writes here. Wait until it ends, stop it, or {remedy}."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise disk_error(place, error) from error
            say(f"{place}: this file system has no locks ({error.strerror}); start no second run here")
        if _is_still(descriptor, path):
            _sign(descriptor)
            return descriptor
        os.close(descriptor)  # its owner has just removed the file; what would be locked has no name any more


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _sign(descriptor: int) -> None:
    owner = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with suppress(OSError):  # a full disk; the lock holds without a text
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _owner(descriptor: int) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['process']} on {owner['host']} (since {owner['since']})"
    return "another process"
