"""Notices that files are no longer what they were when somebody last looked. Knows nothing of what is in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

_EVERY_S = 1.0

Marks = tuple[tuple[int, ...], ...]


def marks(paths: Sequence[Path]) -> Marks:
    """What changes when a file is written or replaced; a file that is not there has a mark too."""
    return tuple(_mark(path) for path in paths)


class FileChanges:
    """Watches `paths`, looking at most once a second however often it is asked."""

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = tuple(paths)
        self._clock = clock
        self._looked = clock()
        self._seen = marks(self._paths)

    def noticed(self) -> bool:
        """Whether the files have changed since this last said so (at first: since it was made)."""
        now = self._clock()
        if now - self._looked < _EVERY_S:
            return False
        self._looked = now
        before, self._seen = self._seen, marks(self._paths)
        return self._seen != before


def _mark(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
