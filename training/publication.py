"""A model folder put where it belongs, whole or not at all.

    destination(path)   ->  where to, if that is free
    publish(where, files):  hidden sibling, every file synced  ->  renamed into place

Killed at any moment, the folder is whole, with what was there before or with what is new. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from latentry import manifest as manifests
from latentry.manifest import ManifestError
from training import lock
from training.disk import sync_folder, write_synced
from training.errors import ExportError
from training.progress import say

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2(2)


def destination(path: Path, *, overwrite: bool = False) -> tuple[Path, str, int]:
    """Where to publish, absolute, and the name and the version that `path` ends in.

    Finishes first what a killed export left half done. Raises `ExportError` if the path does not end in NAME/VERSION,
    is no folder, or is taken and `overwrite` is false.
    """
    path = path.absolute()
    try:
        name = manifests.check_name(path.parent.name)
        version = manifests.parse_version(path.name)
    except ManifestError as error:
        raise ExportError(f"{path}: wanted a path that ends in NAME/VERSION: {error}") from error
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ExportError(f"{path}: got a link or a file, wanted a folder or nothing")
    if _retired(path).exists():
        with _writing(path):
            _recover(path)
    if path.exists() and not overwrite:
        raise ExportError(_taken(path))
    return path, name, version


def publish(
    destination: Path, files: Mapping[str, bytes], *, overwrite: bool = False, instead_of: str | None = None
) -> None:
    """Make `destination` hold exactly `files`; with `overwrite` in place of what is there. With `instead_of` only if
    the manifest there has this SHA-256.

    Raises `ExportError` if the disk says no, or if `destination` has come to be or has changed meanwhile; nothing
    changes then.
    """
    if destination.is_symlink():
        raise ExportError(f"{destination}: got a link, wanted a folder or nothing; nothing was published")
    made = [folder for folder in (destination.parent, destination.parent.parent) if not folder.exists()]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _writing(destination), _sibling(destination) as partial:
            if instead_of is not None:
                _check_still(destination, instead_of)
            for name, data in files.items():
                write_synced(partial / name, data)
            sync_folder(partial)
            if overwrite and destination.exists():
                _exchange(partial, destination)
            else:
                partial.rename(destination)  # fails if it exists and holds anything
            sync_folder(destination.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ExportError(_taken(destination)) from error
        raise ExportError(f"{destination}: cannot be written: {error.strerror}; nothing was published") from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty, as it should be
                folder.rmdir()


def _check_still(destination: Path, digest: str) -> None:
    manifest = destination / manifests.MANIFEST_FILE
    if not manifest.is_file() or manifests.sha256(manifest.read_bytes()) != digest:
        raise ExportError(f"{destination}: has changed meanwhile; nothing was published: run the command again")


def _writing(destination: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the version for the one export that writes it; raises `ExportError` naming the other."""
    path = destination.with_name(f".{destination.name}.lock")
    return lock.held(path, destination, "export", ExportError, say)


def _taken(destination: Path) -> str:
    return f"{destination} exists already: choose another version, or add --replace"


def _retired(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.retired")


def _exchange(partial: Path, destination: Path) -> None:
    """Put `partial` where `destination` is: at once where the system can. Elsewhere there are two renames, and killed
    between them, `_recover` brings the old one back."""
    if exchange_at_once(partial, destination):
        return
    retired = _retired(destination)
    destination.rename(retired)
    try:
        partial.rename(destination)
    except BaseException:
        retired.rename(destination)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def exchange_at_once(one: Path, other: Path) -> bool:
    """Exchange two names in one step. False if the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # not in every C library
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _recover(destination: Path) -> None:
    """Finish what a killed `_exchange` began."""
    retired = _retired(destination)
    if retired.exists() and not destination.exists():
        retired.rename(destination)
    shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def _sibling(destination: Path) -> Iterator[Path]:
    """An empty hidden folder beside `destination`, gone afterwards."""
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # an export that was killed left it
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
