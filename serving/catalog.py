"""The models that are loaded: which one a request means, what its versions are called, and which were refused.

Changed by the reloader only, in the event loop, so that every call sees one state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serving.errors import Conflict, ModelNotFound
from serving.model import Model
from serving.repository import Fingerprint


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version is not served: `reason` names no path of the machine; tried again when `folder` changes."""

    reason: str
    folder: Fingerprint
    retry_at: float  # on the loop's clock, for what may mend itself
    tries: int = 1


class Catalog:
    """The loaded versions of each model. `changed` is called after every change.

    `default` is the model that an empty name means. It is set once, so that a new model takes nobody's place.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._models: dict[str, dict[int, Model]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._unasked: dict[str, set[int]] = {}  # versions that are here for their labels only
        self.default = ""
        self.max_message_bytes = 0  # of the model whose messages may be the largest
        self._changed = changed
        self.refused: dict[str, dict[int, Refusal]] = {}

    def all(self) -> list[Model]:
        """Every loaded version, by name and number."""
        return [model for _, versions in sorted(self._models.items()) for _, model in sorted(versions.items())]

    def versions(self, name: str) -> Mapping[int, Model]:
        """The loaded versions of a model."""
        return self._models.get(name, {})

    def labels(self, name: str) -> Mapping[str, int]:
        """What versions of a model are called."""
        return self._labels.get(name, {})

    def get(self, name: str = "", version: int | None = None, label: str | None = None) -> Model:
        """The model that a request names; without version or label the newest whose engine works, but none that is
        here only because a label names it. Raises `ModelNotFound`.
        """
        name = name or self.default
        versions = self._models.get(name, {})
        if version is None and label is None and len(versions) == 1:
            (model,) = versions.values()
            return model
        if label is not None:
            version = self.labels(name).get(label)
        if version is None and label is None and versions:
            asked = versions.keys() - self._unasked.get(name, set()) or versions.keys()
            version = max(asked, key=lambda number: (versions[number].up, number))
        named = versions.get(version) if version is not None else None
        if named is None:
            revision = f"label {label!r}" if label is not None else f"version {version}" if version is not None else ""
            known = [f"{m.manifest.name} version {m.manifest.version}" for m in self.all()]
            raise ModelNotFound(name, revision, known)
        return named

    def _weigh(self) -> None:
        self.max_message_bytes = max((model.limits.max_message_bytes for model in self.all()), default=0)

    def put(self, model: Model) -> Model | None:
        """From now on this model answers for its name and version; returns the one that did before."""
        name, version = model.manifest.name, model.manifest.version
        before = self._models.setdefault(name, {}).get(version)
        self._models[name][version] = model
        self._weigh()
        self.accept(name, version)
        self._changed()
        return before

    def remove(self, name: str, version: int) -> Model:
        """From now on nothing answers for it; returns the model that did."""
        model = self._models[name].pop(version)
        if not self._models[name]:
            del self._models[name]
        self._weigh()
        self._changed()
        return model

    def unasked(self, name: str) -> set[int]:
        """The versions of a model that are here only because a label names them."""
        return self._unasked.get(name, set())

    def set_unasked(self, name: str, versions: set[int]) -> None:
        """These versions of a model answer only who names them."""
        if versions != self.unasked(name):
            self._unasked[name] = versions
            self._changed()

    def set_label(self, name: str, label: str, version: int | None) -> None:
        """Requests for `label` mean `version` from now on, or nothing. Raises `Conflict` if it is not loaded."""
        if version is None:
            self._labels.get(name, {}).pop(label, None)
        elif version not in self.versions(name):
            raise Conflict(f"label {label!r}: version {version} of {name!r} is not loaded; load it first")
        else:
            self._labels.setdefault(name, {})[label] = version
        self._changed()

    def labels_of(self, name: str, version: int) -> list[str]:
        """What this version is called."""
        return [label for label, labelled in self.labels(name).items() if labelled == version]

    def refusals(self, name: str) -> Mapping[int, Refusal]:
        """The refused versions of a model."""
        return self.refused.get(name, {})

    def refuse(self, name: str, version: int, refusal: Refusal) -> None:
        """This version cannot be served; what is loaded stays."""
        self.refused.setdefault(name, {})[version] = refusal
        self._changed()

    def accept(self, name: str, version: int) -> None:
        """Forget that it was refused."""
        if self.refused.get(name, {}).pop(version, None) is None:
            return
        if not self.refused[name]:
            del self.refused[name]
        self._changed()
