"""The model repository on disk: finds `<root>/<name>/<version>/` and notices when a folder changes.

Reads names and times only; what a folder holds is verified by `latentry.manifest.read`. Knows not what is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latentry import manifest
from latentry.manifest import ManifestError
from serving.errors import NoModel

Fingerprint = tuple[tuple[str | int, ...], ...]  # of each file: its name, size, times of change and number


@dataclass(frozen=True, slots=True)
class Found:
    """What a scan found: the version folders of each model, by name and number; and folders whose names no model or
    version can have, each with the reason.
    """

    versions: Mapping[str, Mapping[int, Path]]
    misnamed: Mapping[str, str] = field(default_factory=dict)


def scan(root: Path) -> Found:
    """The folders under `root`. Hidden entries and files are passed over; raises `NoModel` if it cannot be read."""
    versions: dict[str, dict[int, Path]] = {}
    misnamed: dict[str, str] = {}
    try:
        for model in _folders(root):
            try:
                manifest.check_name(model.name)
            except ManifestError as error:
                misnamed[model.name] = str(error)
                continue
            versions[model.name], bad = _versions(model)
            misnamed.update({f"{model.name}/{version}": problem for version, problem in bad.items()})
    except OSError as error:
        raise NoModel(f"model repository {root}: {error.strerror}") from error
    return Found({name: numbers for name, numbers in versions.items() if numbers}, misnamed)


def versions_of(root: Path, name: str) -> dict[int, Path]:
    """The version folders of one model, none if it is not there; raises `NoModel` if the repository cannot be read."""
    try:
        return _versions(root / name)[0]
    except FileNotFoundError as error:
        if root.is_dir():
            return {}
        raise NoModel(f"model repository {root}: {error.strerror}") from error
    except OSError as error:
        raise NoModel(f"model repository {root}: {error.strerror}") from error


def fingerprint(folder: Path) -> Fingerprint:
    """Changes when a file of the folder is added, removed or written; empty if the folder is not there."""
    try:
        files = sorted(folder.iterdir())
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return ()
    # Copies that keep times (tar, rsync -t) still show in the inode and in its own time of change.
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stats)


def _versions(model: Path) -> tuple[dict[int, Path], dict[str, str]]:
    """Folders by number, and what is wrong with the names of others."""
    numbers: dict[int, Path] = {}
    misnamed: dict[str, str] = {}
    for folder in _folders(model):
        try:
            numbers[manifest.parse_version(folder.name)] = folder
        except ManifestError as error:
            misnamed[folder.name] = str(error)
    return numbers, misnamed


def _folders(parent: Path) -> list[Path]:
    """The folders in it that may be meant: not hidden (an export that is under way, or was cut off), and not what the
    root of a disk has. Listing a folder says what is a folder too: no version is looked at.
    """
    with os.scandir(parent) as entries:
        names = [each.name for each in entries if _may_be_meant(each.name) and _is_folder(each)]
    return [parent / name for name in sorted(names)]


def _may_be_meant(name: str) -> bool:
    return not name.startswith(".") and name != "lost+found"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir(follow_symlinks=False)
