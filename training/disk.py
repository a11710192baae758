"""Files that are there whole or not at all, whatever stops the process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from training.errors import RunError


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, or leave it as it was. Raises `RunError` if the disk does not take it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_synced(partial, data)
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error.strerror}; what was there before is intact") from error


def write_synced(path: Path, data: bytes) -> None:
    """Write a file through to the disk; raises `OSError`."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the folder's entries, such as a rename, outlast a power cut; raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
