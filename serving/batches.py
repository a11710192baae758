"""What a batcher handles: jobs that wait, batches that run, and the room that waiting takes. Plain data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Results = Mapping[str, Array]


@dataclass(slots=True, eq=False)
class Run:
    """One run of a graph on a batch: its rows and the padding beside them, when it began (wall clock) and how long it
    took. `trace` is the tracer's, shared by all calls of the batch.
    """

    rows: int
    padding: int
    started_ns: int
    seconds: float
    trace: object | None = None


Tell = Callable[[float, Run], None]  # seconds that rows waited, and the run that they were in


def tell_nobody(queue_s: float, run: Run) -> None:
    """For rows that no call's record is about."""


@dataclass(slots=True)
class Room:
    """How many rows may wait in a group of queues, and how many do."""

    limit: int
    rows: int = 0

    def lacks(self, rows: int, background: bool) -> bool:
        """Whether so many more would be too many. Into an empty room any one call goes; the last quarter is for
        interactive calls.
        """
        limit = self.limit * 3 // 4 if background else self.limit
        return self.rows > 0 and self.rows + rows > limit


@dataclass(slots=True, eq=False)
class Job:
    """The rows of one call, wholly or partly waiting. `future` has the results, `tell` hears of each run."""

    rows: Array
    outputs: frozenset[str]
    deadline: float | None
    tell: Tell
    future: asyncio.Future[Results]
    submitted: float
    begun: int = 0  # rows that have been put into a batch
    parts: list[Results | None] = field(default_factory=list)  # in the order of the rows; None: runs still

    @property
    def left(self) -> int:
        """Rows that have not been put into a batch."""
        return len(self.rows) - self.begun


@dataclass(slots=True)
class Batch:
    """What an engine is given."""

    jobs: list[tuple[Job, int]]  # each with its number of rows in this batch
    parts: list[int]  # of each job, which of its parts these rows are
    rows: Array
    outputs: frozenset[str]


def gather(chosen: list[tuple[Job, int]]) -> Batch:
    """The rows that were chosen of each job, as one batch; raises if they do not fit together."""
    pieces, parts = [], []
    for job, n in chosen:
        pieces.append(job.rows[job.begun : job.begun + n])
        job.begun += n
        parts.append(len(job.parts))
        job.parts.append(None)
    rows = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return Batch(chosen, parts, rows, frozenset().union(*(job.outputs for job, _ in chosen)))


def join(parts: list[Results]) -> Results:
    """The results of a job's rows, from those of its parts."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
