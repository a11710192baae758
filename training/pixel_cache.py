"""Decoded pixels on the disk, for sets larger than memory: written once, then mapped, and read as arrays are.

    CACHE/<key>/train.pixels    uint8 [N, H, W, C], nothing else
    CACHE/<key>/test.pixels     the same of the images held out
    CACHE/<key>/about.json      shapes, labels, names, and the digests that the files are held against

The key stands for the source's files and for all that decides what becomes of them, so that another source or another
size is another folder. A folder is whole or absent, and of several processes one writes it. Knows nothing of formats.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.disk import sync_folder, write_synced
from training.errors import DataError
from training.images import Allocate, Images, Split, digest

_FORMAT = 2
_ABOUT = "about.json"
_CHUNK_BYTES = 2 << 20

Read = Callable[[Allocate], list[Images]]
HoldOut = Callable[[int], tuple[NDArray[np.intp], NDArray[np.intp]]]


class _Damaged(Exception):
    """A cache that is not what it says."""


def load(cache: Path, source: Path, settings: Mapping[str, Any], read: Read, hold_out: HoldOut) -> Split:
    """The parts of `source`, mapped from `cache`; they are first written there if they are not there, or damaged.

    `settings` are all that `read` and `hold_out` depend on besides the source. `read` gives one set, which `hold_out`
    splits (both results in growing order), or two; it may fill the arrays that it is given a way to allocate.

    Raises `DataError` if the disk has no room for the pixels, or does not take them, or if `cache` is inside `source`.
    """
    if cache.resolve().is_relative_to(source.resolve()):
        raise DataError(f"cache: got {cache}, which is among the images of {source}; wanted it elsewhere")
    key = {"format": _FORMAT, "source": _fingerprint(source), **settings}
    folder = cache / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    notes: tuple[str, ...] = ()
    try:
        with contextlib.suppress(FileNotFoundError):
            try:
                return _open(folder)
            except _Damaged as damage:
                notes = (f"{folder}: {damage}; written anew",)
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f".{folder.name}.lock", folder):
            try:  # another process may have written it while this one waited
                return _open(folder)
            except (FileNotFoundError, _Damaged):
                _write(folder, read, hold_out)
        return _open(folder, notes)
    except OSError as error:
        raise DataError(f"{folder}: the cache cannot be used: {error.strerror or error}") from error
    except _Damaged as damage:
        raise DataError(f"{folder}: damaged as soon as it was written: {damage}; is the disk sound?") from damage


def _fingerprint(source: Path) -> str:
    """Of a file, or of all files of a folder: names, sizes and times of the last change."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    sha256 = hashlib.sha256()
    for file in files:
        status = file.stat()
        name = file.relative_to(source if source.is_dir() else source.parent).as_posix()
        sha256.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode())
    return sha256.hexdigest()


def _open(folder: Path, notes: tuple[str, ...] = ()) -> Split:
    """The parts in `folder`. Raises `FileNotFoundError` if it is not there, `_Damaged` if it is not what it was."""
    text = (folder / _ABOUT).read_bytes()
    check, _, body = text.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != check:
        raise _Damaged(f"{_ABOUT} is not what was written")
    about = json.loads(body)
    train, test = (_part(folder / f"{name}.pixels", about[name], about) for name in ("train", "test"))
    if digest(train, test) != about["sha256"]:
        raise _Damaged("the pixels are not what was written")
    return Split(train, test, about["sha256"], own=about["own"], notes=notes)


def _part(path: Path, part: Mapping[str, Any], about: Mapping[str, Any]) -> Images:
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        pixels = np.frombuffer(mapped, np.uint8).reshape(part["shape"])
    except (FileNotFoundError, ValueError) as error:  # gone, empty, or of another size
        raise _Damaged(f"{path.name}: {error}") from error
    labels = None if part["labels"] is None else np.array(part["labels"], np.int64)
    return Images(pixels, labels, tuple(about["class_names"]), tuple(part["names"]), tuple(about["unreadable"]))


@contextlib.contextmanager
def _lock(path: Path, folder: Path) -> Iterator[None]:
    """Hold the lock file, waiting for the process that has it; the kernel lets go of it when a process ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"{folder}: another process is writing this cache; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(folder: Path, read: Read, hold_out: HoldOut) -> None:
    """Make `folder`, in place of what is there, or leave nothing."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # a process that was killed left it
    partial.mkdir()
    try:
        files = _Files(partial)
        parts = read(files.allocate)
        train, test = parts if len(parts) == 2 else _split(parts[0], hold_out, files)
        files.keep(train.pixels, "train.pixels")
        files.keep(test.pixels, "test.pixels")
        write_synced(partial / _ABOUT, _about(train, test, own=len(parts) == 2))
        files.remove_rest()
        sync_folder(partial)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one; who has it mapped keeps its files
        partial.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _split(whole: Images, hold_out: HoldOut, files: _Files) -> tuple[Images, Images]:
    """`whole` in its two parts. Those to train on move to the front of where they are, so that the disk needs no room
    for them twice."""
    pixels = files.own(whole.pixels)
    kept, held = hold_out(len(pixels))
    test = files.allocate((len(held), *pixels.shape[1:]))
    step = max(1, _CHUNK_BYTES // pixels[0].nbytes)
    for start in range(0, len(held), step):
        test[start : start + step] = pixels[held[start : start + step]]
    for start in range(0, len(kept), step):  # in growing order, so that nothing is overwritten that is still to move
        moved = pixels[kept[start : start + step]]
        pixels[start : start + len(moved)] = moved
    return _rest(whole, kept, pixels[: len(kept)]), _rest(whole, held, test)


def _rest(whole: Images, chosen: NDArray[np.intp], pixels: NDArray[np.uint8]) -> Images:
    """Labels and names of the `chosen` of `whole`, with the pixels that are theirs."""
    labels = None if whole.labels is None else whole.labels[chosen]
    names = tuple(whole.names[index] for index in chosen) if whole.names else ()
    return Images(pixels, labels, whole.class_names, names, whole.unreadable)


def _about(train: Images, test: Images, *, own: bool) -> bytes:
    about = {
        "sha256": digest(train, test),
        "own": own,
        "class_names": train.class_names,
        "unreadable": train.unreadable,
        **{
            name: {
                "shape": part.pixels.shape,
                "labels": None if part.labels is None else part.labels.tolist(),
                "names": part.names,
            }
            for name, part in (("train", train), ("test", test))
        },
    }
    body = json.dumps(about).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@dataclass(slots=True)
class _Files:
    """Arrays that are files of `folder`: mapped to be written, their room on the disk taken beforehand."""

    folder: Path
    made: dict[Path, NDArray[np.uint8]] = field(default_factory=dict)

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array in a new file. Raises `DataError` if there is no room: later, a full disk would kill the process."""
        size = int(np.prod(shape, dtype=object))
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise DataError(
                f"cache: got {free} bytes free in {self.folder.parent}, wanted {size} for pixels {list(shape)}"
            )
        path = self.folder / str(len(self.made))
        with path.open("w+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                os.truncate(file.fileno(), size)
            mapped = mmap.mmap(file.fileno(), size)
        self.made[path] = np.frombuffer(mapped, np.uint8).reshape(shape)
        return self.made[path]

    def own(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """`pixels` if they lie in a file, else a copy that does."""
        if self._file(pixels) is None:
            copy = self.allocate(pixels.shape)
            copy[...] = pixels
            return copy
        return pixels

    def keep(self, pixels: NDArray[np.uint8], name: str) -> None:
        """Put the file that begins with `pixels` on the disk as `name`, and nothing but `pixels` in it."""
        pixels = self.own(pixels)
        path = self._file(pixels)
        assert path is not None  # noqa: S101 - they were just made so
        with path.open("r+b") as file:
            file.truncate(pixels.nbytes)
            os.fsync(file.fileno())
        path.rename(self.folder / name)

    def remove_rest(self) -> None:
        """Remove the files that were not kept."""
        for path in self.made:
            path.unlink(missing_ok=True)

    def _file(self, pixels: NDArray[np.uint8]) -> Path | None:
        starts = {array.ctypes.data: path for path, array in self.made.items()}
        return starts.get(pixels.ctypes.data)
