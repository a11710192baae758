"""What one call learns on its way: which model it is for, how large it is, what took how long.

The record travels in the context of the call's task. Whoever knows something adds it; the interceptor hands it to
metrics, request log and traces at the end. Knows nothing of any of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from serving.batches import Run

INTERACTIVE, BACKGROUND = "interactive", "background"  # priorities
_MOST_STAGES = 256  # that are kept for a trace


@dataclass(slots=True)
class Stage:
    """Something that took time: `codec_in`, `queue`, `inference` or `codec_out`, from `started_ns` of the wall clock.

    `graph` (encoder, decoder, prior or density) and `batch`, which other calls may share, are those of `queue` and
    `inference`.
    """

    name: str
    started_ns: int
    seconds: float
    graph: str = ""
    batch: Run | None = None


@dataclass(slots=True)
class Call:
    """The record of one call."""

    rpc: str
    request_id: str = ""
    identity: str = ""
    peer: str = ""
    model: str = ""
    version: str = ""
    items: int = 0
    request_bytes: int = 0
    reply_bytes: int = 0
    priority: str = INTERACTIVE
    deadline: float | None = None  # on the loop's clock
    stages: list[Stage] = field(default_factory=list)  # the first of them: a stream may have any number
    seconds: dict[str, float] = field(default_factory=dict)  # of all of them, by their names
    started_ns: int = field(default_factory=time.time_ns)
    begun: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add a stage that lasts as long as the block."""
        wall, started = time.time_ns(), time.perf_counter()
        try:
            yield
        finally:
            self._add(Stage(name, wall, time.perf_counter() - started))

    def ran(self, graph: str, queue_s: float, run: Run) -> None:
        """A batch with rows of this call has run, after they had waited `queue_s` seconds."""
        self._add(Stage("queue", run.started_ns - int(queue_s * 1e9), queue_s, graph))
        self._add(Stage("inference", run.started_ns, run.seconds, graph, run))

    def _add(self, stage: Stage) -> None:
        self.seconds[stage.name] = self.seconds.get(stage.name, 0.0) + stage.seconds
        if len(self.stages) < _MOST_STAGES:
            self.stages.append(stage)


_current: ContextVar[Call] = ContextVar("call")


def begin(rpc: str) -> Call:
    """The record of the call that this task answers from now on."""
    call = Call(rpc)
    _current.set(call)
    return call


def current() -> Call:
    """The record of this task's call; one that nobody reads where there is none, as in tests of single parts."""
    return _current.get(None) or Call("")
