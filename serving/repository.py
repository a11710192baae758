"""The model repository: finds `<root>/<name>/<version>/`, and knows which loaded model a request means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from latentry import manifest
from latentry.manifest import ManifestError, ModelFolder
from serving.errors import ModelNotFound, StartError
from serving.model import Model


def find(root: Path) -> list[Path]:
    """The version folders under `root`, by name and number; of each model the newest version.

    Hidden entries and files are passed over. Raises `StartError` if there is no model, or a folder's name is none
    that a model or a version can have.
    """
    newest = []
    try:
        for model in sorted(p for p in root.iterdir() if p.is_dir() and not _is_system(p)):
            manifest.check_name(model.name)
            versions = [p for p in model.iterdir() if p.is_dir() and not _is_system(p)]
            if versions:
                newest.append(max(versions, key=lambda p: manifest.parse_version(p.name)))
    except OSError as error:
        raise StartError(f"model repository {root}: {error.strerror}") from error
    except ManifestError as error:
        raise StartError(f"model repository {root}: {error}") from error
    if not newest:
        raise StartError(f"model repository {root}: no model, wanted <name>/<version>/manifest.json")
    return newest


def _is_system(path: Path) -> bool:
    """Not a model: hidden (an export that is under way, or was cut off), or what the root of a disk has."""
    return path.name.startswith(".") or path.name == "lost+found"


def load_all(root: Path, load: Callable[[ModelFolder], Model]) -> Models:
    """Read, verify and load every model under `root`; raises `StartError` with the first that is bad."""
    try:
        return Models(load(manifest.read(path)) for path in find(root))
    except ValueError as error:  # ManifestError, BadGraph
        raise StartError(f"bad model: {error}") from error


class Models:
    """The loaded models. The first by name is the default."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._by_name = {model.manifest.name: model for model in models}
        self.default = next(iter(self._by_name))

    def all(self) -> list[Model]:
        """Every loaded model, by name."""
        return list(self._by_name.values())

    def get(self, name: str = "", version: int | None = None, label: str | None = None) -> Model:
        """The model that a request names; raises `ModelNotFound`."""
        model = self._by_name.get(name or self.default)
        revision = f"version {version}" if version is not None else f"label {label!r}" if label is not None else ""
        if model is None or label is not None or version not in (None, model.manifest.version):
            known = [f"{m.manifest.name} version {m.manifest.version}" for m in self.all()]
            raise ModelNotFound(name or self.default, revision, known)
        return model
