"""One writer at a time: a lock file that the kernel lets go of when its process ends, even by kill -9.

The file holds who has it, so that the one who is refused can say so. Knows nothing of what it guards.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from training.errors import TrainingError

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN)
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_MAX_HOLDER_BYTES = 200


@contextlib.contextmanager
def held(
    path: Path, guarded: Path, doing: str, error: type[TrainingError], warn: Callable[[str], None]
) -> Iterator[None]:
    """Hold the lock file `path` for the life of the block; it is gone afterwards.

    Raises `error`, saying that another `doing` (as "training") is writing to `guarded`, if another process holds it.
    A network file system without locks is said through `warn`, and the block runs without one.
    """
    try:
        descriptor = _locked(path)
    except OSError as failure:
        if failure.errno in _TAKEN:
            raise error(f"{guarded}: another {doing} ({_holder(path)}) is writing here") from failure
        if failure.errno not in _NOT_SUPPORTED:
            raise error(f"{guarded}: cannot be locked: {failure.strerror}") from failure
        warn(f"{guarded}: its file system has no locks; see to it that only one {doing} writes here")
        yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is let go, so that nobody's file is taken away
        os.close(descriptor)


def _locked(path: Path) -> int:
    """A descriptor that holds the lock of the file that is now at `path`; raises `OSError`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder took the file away between our two calls: try the one that is there now


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """Who holds the lock, as its file says; the file may be gone, or not written yet."""
    with contextlib.suppress(OSError):
        text = path.read_bytes()[:_MAX_HOLDER_BYTES].decode("utf-8", "replace").strip()
        if text and text.isprintable():
            return text
    return "a process that has only begun"
