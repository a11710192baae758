"""How many requests each model of the protocol has answered, and where their time went. Counts are exact."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from serving.batches import Run
from serving.call import Stage
from serving.inference import grpc_service_pb2 as oip

_STAGES = {
    "queue": "queue",
    "codec_in": "compute_input",
    "inference": "compute_infer",
    "codec_out": "compute_output",
}
_MANY = 1024


@dataclass(slots=True)
class _Sum:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def message(self) -> oip.StatisticDuration:
        return oip.StatisticDuration(count=self.count, ns=self.ns)


@dataclass(slots=True)
class Answer:
    """What is known of a request once it is answered: its items, what took how long, and each batch with rows of it."""

    items: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    stages: Sequence[Stage] = ()


@dataclass(slots=True)
class Figures:
    """Those of one version of one model of the protocol."""

    success: _Sum = field(default_factory=_Sum)
    fail: _Sum = field(default_factory=_Sum)
    parts: dict[str, _Sum] = field(default_factory=lambda: {name: _Sum() for name in _STAGES.values()})
    batches: defaultdict[int, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    items: int = 0
    runs: int = 0
    last_ms: int = 0
    _begun: dict[int, int] = field(default_factory=dict)  # requests that are being answered: when each came
    _numbered: int = 0
    _counted: set[Run] = field(default_factory=set)  # that such a request may still bring
    _too_many: int = _MANY

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
            self.fail.add(time.perf_counter_ns() - started)
            raise
        else:
            self.success.add(time.perf_counter_ns() - started)
            self._add(answer)
        finally:
            del self._begun[number]
            self._forget()

    def message(self, name: str, version: str) -> oip.ModelStatistics:
        """As the protocol tells it."""
        stats = oip.InferStatistics(
            success=self.success.message(),
            fail=self.fail.message(),
            **{part: total.message() for part, total in self.parts.items()},
        )
        batches = [
            oip.InferBatchStatistics(batch_size=rows, compute_infer=total.message())
            for rows, total in sorted(self.batches.items())
        ]
        return oip.ModelStatistics(
            name=name,
            version=version,
            last_inference=self.last_ms,
            inference_count=self.items,
            execution_count=self.runs,
            inference_stats=stats,
            batch_stats=batches,
        )

    def _add(self, answer: Answer) -> None:
        self.last_ms = time.time_ns() // 1_000_000
        self.items += answer.items
        for stage_name, part in _STAGES.items():
            self.parts[part].add(round(answer.seconds.get(stage_name, 0.0) * 1e9))
        for stage in answer.stages:
            run = stage.batch
            if run is not None and run not in self._counted:  # requests share batches
                self._counted.add(run)
                self.runs += 1
                self.batches[run.rows].add(round(run.seconds * 1e9))

    def _forget(self) -> None:
        """Batches that began before the oldest request that is being answered cannot have rows of one that is."""
        if not self._begun:
            self._counted.clear()
        elif len(self._counted) > self._too_many:
            oldest = next(iter(self._begun.values()))
            self._counted = {run for run in self._counted if run.started_ns >= oldest}
            self._too_many = max(_MANY, 2 * len(self._counted))


class Statistics:
    """The figures of each model by name and version, from when the server started."""

    def __init__(self) -> None:
        self._figures: defaultdict[tuple[str, str], Figures] = defaultdict(Figures)

    def of(self, name: str, version: str) -> Figures:
        """Those of one."""
        return self._figures[name, version]
