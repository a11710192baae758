"""What a front end is told of the engine process's models, as JSON.

    {"default": name, "models": [[number, {graph: [whether each device's engine works]}], ...], "new": {number: about},
     "labels": {name: {label: version}}, "unasked": {name: [version]}, "refused": {name: {version: reason}}}

A model's number is never used again, so that what is new is told once to each front end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from latentry.manifest import parse
from serving.catalog import Catalog, Refusal
from serving.handover.calls import Calls
from serving.handover.plans import Plan
from serving.handover.remote_batcher import RemoteBatcher
from serving.model import DECODER, DENSITY, ENCODER, PRIOR, Limits, Model
from serving.tasks import Tasks

State = dict[str, Any]
GRAPHS = (ENCODER, DECODER, PRIOR, DENSITY)  # queue number: 4 times that of the model, and the place in here


def state_of(catalog: Catalog, devices: int, number: Callable[[Model], int]) -> State:
    """All but what is new."""
    models = catalog.all()
    names = sorted({model.manifest.name for model in models})
    return {
        "default": catalog.default,
        "models": [
            [number(model), {kind: [q.works_on(k) for k in range(devices)] for kind, q in model.batchers.items()}]
            for model in models
        ],
        "labels": {name: dict(catalog.labels(name)) for name in names},
        "unasked": {name: sorted(catalog.unasked(name)) for name in names},
        "refused": {name: {v: refusal.reason for v, refusal in each.items()} for name, each in catalog.refused.items()},
    }


def about(model: Model) -> State:
    """What does not change of a model."""
    return {
        "manifest": model.manifest.to_json(),
        "digest": model.digest,
        "limits": [model.limits.max_items, model.limits.max_message_bytes],
        "provider": model.provider,
        "precision": model.precision,
        "parameters": model.parameters,
        "graphs": list(model.batchers),
    }


class Replica:
    """Makes `catalog` what the engine process says that it has. `release` is called with the number of a model that has
    left it, once no call uses it any more.
    """

    def __init__(self, catalog: Catalog, calls: Calls, release: Callable[[int], None]) -> None:
        self._catalog = catalog
        self._calls = calls
        self._release = release
        self._models: dict[int, Model] = {}
        self._queues: dict[int, dict[str, RemoteBatcher]] = {}
        self._retiring = Tasks()

    def follow(self, state: State) -> None:
        """The engine process has this now."""
        for number, about_it in state["new"].items():
            self._add(int(number), about_it)
        there = {number: self._models[number] for number, _ in state["models"]}
        for number, up in state["models"]:
            for graph, devices_up in up.items():
                self._queues[number][graph].devices_up = devices_up
        gone = [each for each in self._catalog.all() if each not in there.values()]
        self._follow_models(there)
        self._follow_names(state, {model.manifest.name for model in gone})
        self._catalog.default = state["default"]
        for model in gone:
            self._retiring.start(model.retire(None))

    def end(self) -> None:
        """The engine process has gone, and has nothing to free any more."""
        self._retiring.cancel()

    def _add(self, number: int, about: State) -> None:
        manifest = parse(about["manifest"].encode())
        queues = {
            kind: RemoteBatcher(
                self._calls, len(GRAPHS) * number + GRAPHS.index(kind), Plan(manifest, kind, about["parameters"])
            )
            for kind in about["graphs"]
        }
        self._queues[number] = queues
        self._models[number] = Model(
            manifest,
            about["digest"],
            Limits(*about["limits"]),
            about["provider"],
            about["precision"],
            queues,
            lambda: self._freed(number),
            parameters=about["parameters"],
        )

    def _freed(self, number: int) -> None:
        del self._models[number], self._queues[number]
        self._release(number)

    def _follow_models(self, there: Mapping[int, Model]) -> None:
        wanted = {(model.manifest.name, model.manifest.version): model for model in there.values()}
        for (name, version), model in wanted.items():
            if self._catalog.versions(name).get(version) is not model:
                self._catalog.put(model)
        for model in self._catalog.all():
            name, version = model.manifest.name, model.manifest.version
            if (name, version) not in wanted:
                self._catalog.remove(name, version)

    def _follow_names(self, state: State, gone: set[str]) -> None:
        catalog = self._catalog
        for name in gone | state["labels"].keys():
            labels = state["labels"].get(name, {})
            for label in {*catalog.labels(name)} - {*labels}:
                catalog.set_label(name, label, None)
            for label, version in labels.items():
                if catalog.labels(name).get(label) != version:
                    catalog.set_label(name, label, version)
            catalog.set_unasked(name, set(state["unasked"].get(name, ())))
        refused = {name: {int(v): why for v, why in each.items()} for name, each in state["refused"].items()}
        for name in {*catalog.refused, *refused}:
            for version in {*catalog.refusals(name)} - {*refused.get(name, {})}:
                catalog.accept(name, version)
            for version, why in refused.get(name, {}).items():
                before = catalog.refusals(name).get(version)
                if before is None or before.reason != why:
                    catalog.refuse(name, version, Refusal(why, (), float("inf")))
