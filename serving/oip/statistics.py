"""How many requests each model of the protocol has answered, and where their time went. Counts are exact."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serving.batches import Run
from serving.call import Stage
from serving.inference import grpc_service_pb2 as oip

_STAGES = {
    "queue": "queue",
    "codec_in": "compute_input",
    "inference": "compute_infer",
    "codec_out": "compute_output",
}
_BATCH = "batch_"
_OF_BATCH = re.compile(r"batch_[0-9]+_count")
_MANY = 1024
LAST_MS = "last_ms"


@dataclass(slots=True)
class Answer:
    """What is known of a request once it is answered: its items, what took how long, and each batch with rows of it."""

    items: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    stages: Sequence[Stage] = ()


class Totals(Protocol):
    """What the figures of one model are written into, by names such as `success_count`; 0 before that."""

    def add(self, name: str, amount: int) -> None:
        """So much more."""

    def set(self, name: str, value: int) -> None:
        """So much now; of several values the largest is told."""


class Counted(Counter[str]):
    """Totals in this process's memory."""

    def add(self, name: str, amount: int) -> None:
        """So much more."""
        self[name] += amount

    def set(self, name: str, value: int) -> None:
        """So much now."""
        self[name] = value


class Figures:
    """Those of one version of one model of the protocol, kept in `totals`."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._begun: dict[int, int] = {}  # requests that are being answered: when each came
        self._numbered = 0
        self._counted: set[Run] = set()  # that such a request may still bring
        self._too_many = _MANY

    @contextlib.contextmanager
    def answering(self) -> Iterator[Answer]:
        """One request, which succeeds if the block ends without an error."""
        self._numbered += 1
        number, started = self._numbered, time.perf_counter_ns()
        self._begun[number] = time.time_ns()
        answer = Answer()
        try:
            yield answer
        except BaseException:
            self._add("fail", time.perf_counter_ns() - started)
            raise
        else:
            self._add("success", time.perf_counter_ns() - started)
            self._succeed(answer)
        finally:
            del self._begun[number]
            self._forget()

    def _add(self, part: str, ns: int) -> None:
        self._totals.add(f"{part}_count", 1)
        self._totals.add(f"{part}_ns", ns)

    def _succeed(self, answer: Answer) -> None:
        self._totals.set(LAST_MS, time.time_ns() // 1_000_000)
        self._totals.add("items", answer.items)
        for stage_name, part in _STAGES.items():
            self._add(part, round(answer.seconds.get(stage_name, 0.0) * 1e9))
        for stage in answer.stages:
            run = stage.batch
            if run is not None and run not in self._counted:  # requests share batches
                self._counted.add(run)
                self._totals.add("runs", 1)
                self._add(f"{_BATCH}{run.rows}", round(run.seconds * 1e9))

    def _forget(self) -> None:
        """Batches that began before the oldest request that is being answered cannot have rows of one that is."""
        if not self._begun:
            self._counted.clear()
        elif len(self._counted) > self._too_many:
            oldest = next(iter(self._begun.values()))
            self._counted = {run for run in self._counted if run.started_ns >= oldest}
            self._too_many = max(_MANY, 2 * len(self._counted))


class Statistics(Protocol):
    """The figures of each model by name and version, from when the server started."""

    def of(self, name: str, version: str) -> Figures:
        """Those of one, to be added to."""

    async def message(self, name: str, version: str) -> oip.ModelStatistics:
        """Those of one, as the protocol tells them."""


class OwnStatistics:
    """Those that are in this process alone."""

    def __init__(self) -> None:
        self._totals: defaultdict[tuple[str, str], Counted] = defaultdict(Counted)
        self._figures: dict[tuple[str, str], Figures] = {}

    def of(self, name: str, version: str) -> Figures:
        """Those of one, to be added to."""
        return self._figures.setdefault((name, version), Figures(self._totals[name, version]))

    async def message(self, name: str, version: str) -> oip.ModelStatistics:
        """Those of one, as the protocol tells them."""
        return message(name, version, self._totals[name, version])


def message(name: str, version: str, totals: Mapping[str, int]) -> oip.ModelStatistics:
    """The totals as the protocol tells them."""

    def duration(part: str) -> oip.StatisticDuration:
        return oip.StatisticDuration(count=totals.get(f"{part}_count", 0), ns=totals.get(f"{part}_ns", 0))

    parts = {part: duration(part) for part in ("success", "fail", *_STAGES.values())}
    sizes = sorted(int(key[len(_BATCH) : -len("_count")]) for key in totals if _OF_BATCH.fullmatch(key))
    return oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=totals.get(LAST_MS, 0),
        inference_count=totals.get("items", 0),
        execution_count=totals.get("runs", 0),
        inference_stats=oip.InferStatistics(**parts),
        batch_stats=[
            oip.InferBatchStatistics(batch_size=rows, compute_infer=duration(f"{_BATCH}{rows}")) for rows in sizes
        ],
    )
