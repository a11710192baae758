"""The model repository on disk: finds `<root>/<name>/<version>/` and notices when a folder changes.

Reads names and times only; what a folder holds is verified by `latentry.manifest.read`. Knows not what is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latentry import manifest
from latentry.manifest import ManifestError
from serving.errors import NoModel

Fingerprint = tuple[tuple[str, int, int], ...]  # name, size and time of change of each file


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
            numbers = versions.setdefault(model.name, {})
            for folder in _folders(model):
                try:
                    numbers[manifest.parse_version(folder.name)] = folder
                except ManifestError as error:
                    misnamed[f"{model.name}/{folder.name}"] = str(error)
    except OSError as error:
        raise NoModel(f"model repository {root}: {error.strerror}") from error
    return Found({name: numbers for name, numbers in versions.items() if numbers}, misnamed)


def fingerprint(folder: Path) -> Fingerprint:
    """Changes when a file of the folder is added, removed or written; empty if the folder is not there."""
    try:
        files = sorted(folder.iterdir())
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _folders(parent: Path) -> list[Path]:
    """The folders in it that may be meant: not hidden (an export that is under way, or was cut off), and not what the
    root of a disk has.
    """
    return sorted(p for p in parent.iterdir() if not p.name.startswith(".") and p.name != "lost+found" and p.is_dir())
