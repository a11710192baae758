"""The bytes of a file once more, for as long as somebody may need them, without holding them in memory.

The file is held open, so that it may be moved or removed meanwhile; what is read is what it was, or an error. Knows
nothing of what is in it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path

from latentry.manifest import sha256


def reader(path: Path, data: bytes, digest: str) -> Callable[[], bytes]:
    """A function that gives `data`, of this SHA-256, which was read from the file at `path`.

    It raises `ValueError` if the file has been written over since, or cannot be read any more. A file that is gone
    already, or another by now, costs the memory: `data` itself is kept.
    """
    try:
        held = _Held(path, digest)
        held.read()
    except (OSError, ValueError):
        return lambda: data
    return held.read


class _Held:
    def __init__(self, path: Path, digest: str) -> None:
        self._path = path
        self._digest = digest
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def read(self) -> bytes:
        try:
            with os.fdopen(os.dup(self._file), "rb") as file:
                file.seek(0)
                data = file.read()
        except OSError as error:
            raise ValueError(f"its file cannot be read again: {error.strerror}") from error
        if sha256(data) != self._digest:
            raise ValueError("its file was written over since it was loaded")
        return data
