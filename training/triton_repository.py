"""A Triton model repository on a disk: models put into it together, whole or not at all.

    export(model folder, repository)  ->  files  ->  all written and synced beside  ->  renamed into place, one by one

Triton takes every folder in a repository for a model, hidden ones too, so that unfinished ones lie beside it if they
can. Stopped, what was there before is back. Killed between two renames, every model is whole, but some may be new and
others as before: the next export with `overwrite` mends that. Other models are left alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from latentry import onnx_file
from latentry.manifest import FP32, ModelFolder
from training import lock, publication, triton
from training.disk import sync_folder, write_synced
from training.errors import ExportError
from training.progress import say

_LOCK = ".latentry.lock"  # a file, which Triton passes over
_OLD = "old"  # in the folder for what is unfinished; no model is called so, as all have a `_` in their names


def check(repository: Path, models: Iterable[str], *, overwrite: bool = False) -> None:
    """Raises `ExportError` if the repository is no folder, or has one of the models and `overwrite` is false."""
    if repository.exists() and not repository.is_dir():
        raise ExportError(f"{repository}: got a file, wanted a folder or nothing")
    for place in (repository / model for model in models):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise ExportError(f"{place}: got a link or a file, wanted a folder or nothing")
        if place.exists() and not overwrite:
            raise ExportError(f"{place} exists already: choose another repository, or add --replace")


def export(
    folder: ModelFolder,
    repository: Path,
    *,
    precision: str = FP32,
    max_batch_size: int = triton.MAX_BATCH_SIZE,
    overwrite: bool = False,
) -> list[str]:
    """Put the model of a model folder into the repository; returns the names that Triton serves it under.

    With `overwrite` in place of what an earlier export put there. Raises `ExportError` if the model cannot be served
    so, if a name is taken, or if the disk says no, and `OnnxError` for a graph that no model folder may hold; nothing
    changes then.
    """
    onnx_file.check_folder(folder)
    files = triton.repository(folder.manifest, folder.graphs, precision=precision, max_batch_size=max_batch_size)
    names = [triton.model_name(folder.manifest, graph) for graph in triton.GRAPHS]
    stale = [name for name in names if f"{name}/config.pbtxt" not in files and _is_ours(repository / name)]
    return publish(repository, files, stale if overwrite else (), overwrite=overwrite)


def publish(
    repository: Path, files: Mapping[str, bytes], stale: Iterable[str] = (), *, overwrite: bool = False
) -> list[str]:
    """Add the models that `files` are of, by their paths in the repository, and remove those that are `stale`; returns
    the names of what was added. Raises `ExportError` as `check` does, or if the disk says no; nothing changes then."""
    repository = repository.resolve()
    models = list(dict.fromkeys(path.split("/")[0] for path in files))
    check(repository, models, overwrite=overwrite)
    made = [each for each in (repository, *repository.parents) if not each.exists()]
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _writing(repository), _unfinished(repository) as partial:
            _write(partial, files)
            _put(partial, repository, models, stale, overwrite=overwrite)
            sync_folder(repository)
    except OSError as error:
        raise ExportError(f"{repository}: cannot be written: {error.strerror}; nothing was published") from error
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # not empty, as it should be
                each.rmdir()
    return models


def _is_ours(model: Path) -> bool:
    """Whether an export wrote the model's config."""
    try:
        return (model / "config.pbtxt").read_bytes().startswith(triton.HEADER.encode())
    except OSError:
        return False


def _writing(repository: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the repository for the one export that writes to it; raises `ExportError` naming the other."""
    return lock.held(repository / _LOCK, repository, "export", ExportError, say)


@contextlib.contextmanager
def _unfinished(repository: Path) -> Iterator[Path]:
    """An empty folder on the repository's file system, gone afterwards: beside it, or in it where that cannot be."""
    beside = repository.parent
    apart = os.access(beside, os.W_OK | os.X_OK) and beside.stat().st_dev == repository.stat().st_dev
    partial = beside / f".{repository.name}.partial" if apart else repository / ".partial"
    _recover(partial, repository)
    partial.mkdir()
    try:
        (partial / _OLD).mkdir()
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _recover(partial: Path, repository: Path) -> None:
    """Bring back what a killed export had moved away, and remove what else it left."""
    for old in (partial / _OLD).glob("*"):
        if not (repository / old.name).exists():
            old.rename(repository / old.name)
    shutil.rmtree(partial, ignore_errors=True)


def _write(partial: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        write_synced(partial / path, data)
    for folder in {parent for path in files for parent in (partial / path).parents if parent.is_relative_to(partial)}:
        sync_folder(folder)


def _put(partial: Path, repository: Path, models: list[str], stale: Iterable[str], *, overwrite: bool) -> None:
    """Rename each model into place and the stale ones away; all of them, or none if that is stopped."""
    numbers = {model: (partial / model).stat().st_ino for model in models}  # a folder keeps its own when it is renamed
    try:
        for model in models:
            new, place = partial / model, repository / model
            if not overwrite or not place.exists():
                new.rename(place)  # fails if it has come to be meanwhile
            elif not publication.exchange_at_once(new, place):
                place.rename(partial / _OLD / model)
                new.rename(place)
        for model in stale:
            (repository / model).rename(partial / _OLD / model)
    except BaseException:
        for model in (*models, *stale):
            _take_back(partial, repository, model, numbers.get(model))
        raise


def _take_back(partial: Path, repository: Path, model: str, number: int | None) -> None:
    """Undo what `_put` did, or had begun, for a model whose new folder has this inode number."""
    place, old = repository / model, partial / _OLD / model
    if place.exists() and place.stat().st_ino == number:
        if (partial / model).exists():  # the two were exchanged
            (partial / model).rename(old)
        place.rename(partial / model)
    if old.exists():
        old.rename(place)
