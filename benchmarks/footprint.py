"""What a server costs before anybody calls: time until it is ready, memory, threads; of more models and versions."""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks import bench_models, bodies
from benchmarks.children import Child
from benchmarks.figures import Figure, ratio
from benchmarks.load import Target, calls
from benchmarks.plan import Plan
from latentry.manifest import MANIFEST_FILE, embedded_models

_MODELS, _VERSIONS = 10, 100
_READY_S, _RESIDENT_MIB = 1.0, 160.0
_LOOKS_S = 11.0  # idle, in which the repository is looked at twice


def measure(plan: Plan) -> Iterator[Figure]:
    """The shipped model; then ten models, and many versions that are not served."""
    yield from _shipped(plan)
    yield from _models(plan)
    yield from _versions(plan)


def _shipped(plan: Plan) -> Iterator[Figure]:
    forms = {"": (), ", 2 front ends and an engine's process": ("--frontends", "2")}
    for name, flags in forms.items():
        ready, fresh, used = [], [], []
        for _ in range(plan.rounds):
            with plan.latentry(embedded_models(), *flags) as (child, port, seconds):
                ready.append(seconds)
                fresh.append(child.rss_mib())
                calls(Target(port, bodies.SERVICE + "Decode", bodies.decode(1), 784), 16, 1000, plan.place)
                used.append(child.rss_mib())
        about = "the shipped model" + name
        yield Figure(f"{about}: start until ready", "s", tuple(ready), at_most=None if name else _READY_S)
        yield Figure(f"{about}: resident when ready", "MiB", tuple(fresh))
        yield Figure(
            f"{about}: resident after 1,000 calls", "MiB", tuple(used), at_most=None if name else _RESIDENT_MIB
        )


def _models(plan: Plan) -> Iterator[Figure]:
    many = plan.place / "many-models"
    for number in range(_MODELS):
        bench_models.write(many, "conv", f"bench{number}")
    weights = sum(file.stat().st_size for file in (many / "bench0" / "1").glob("*.onnx")) / (1 << 20)
    seen: dict[str, list[float]] = defaultdict(list)
    for _ in range(plan.rounds):
        for name, repository in (("one", plan.repository("conv")), ("ten", many)):
            with plan.latentry(repository) as (child, _port, _ready):
                seen[f"{name} MiB"].append(child.rss_mib())
                seen[f"{name} threads"].append(child.threads())
    each = [(ten - one) / (_MODELS - 1) for one, ten in zip(seen["one MiB"], seen["ten MiB"], strict=True)]
    yield Figure("a further model: resident", "MiB", tuple(each))
    yield ratio("a further model: resident / its files", each, [weights] * plan.rounds)
    more = zip(seen["one threads"], seen["ten threads"], strict=True)
    yield Figure("ten models: threads more than one's", "", tuple(ten - one for one, ten in more), at_most=0)


def _versions(plan: Plan) -> Iterator[Figure]:
    seen: dict[str, list[float]] = defaultdict(list)
    for name, versions in (("few", 1), ("many", _VERSIONS + 1)):
        repository = _with_versions(plan.place / f"{name}-versions", versions)
        for _ in range(plan.rounds):
            with plan.latentry(repository) as (child, _port, ready):
                seen[f"{name} ready"].append(ready)
                seen[f"{name} MiB"].append(child.rss_mib())
        with plan.latentry(repository) as (child, _port, _ready):
            seen[f"{name} idle"].append(_idle_share(child))
    yield ratio(f"{_VERSIONS} idle versions: start until ready / without", seen["many ready"], seen["few ready"])
    more = zip(seen["few MiB"], seen["many MiB"], strict=True)
    yield Figure(f"{_VERSIONS} idle versions: resident beyond none", "MiB", tuple(many - few for few, many in more))
    for name in ("few", "many"):
        about = f"{_VERSIONS if name == 'many' else 0} idle versions: processor while nobody calls"
        yield Figure(about, "permille", tuple(1e3 * share for share in seen[f"{name} idle"]))


def _with_versions(repository: Path, versions: int) -> Path:
    """The shipped model as so many versions, of which the newest is served."""
    shipped = embedded_models() / "fashion" / "1"
    for version in range(1, versions + 1):
        folder = repository / "fashion" / str(version)
        shutil.copytree(shipped, folder)
        about = json.loads((folder / MANIFEST_FILE).read_text())
        about["version"] = version
        (folder / MANIFEST_FILE).write_text(json.dumps(about))
    return repository


def _idle_share(child: Child) -> float:
    """Of one processor."""

    def used() -> float:
        return sum(sum(threads.values()) for threads in child.cpu_s().values())

    time.sleep(1.0)  # what the start left to do
    before, started = used(), time.monotonic()
    time.sleep(_LOOKS_S)
    return (used() - before) / (time.monotonic() - started)
