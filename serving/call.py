"""What one call learns on its way: which model it is for, how large it is, what took how long.

The record travels in the context of the call's task. Whoever knows something adds it; the interceptor hands it to
metrics, request log and traces at the end. Knows nothing of any of them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from serving.batches import Run

INTERACTIVE, BACKGROUND = "interactive", "background"  # priorities


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
    deadline: float | None = None  # on the monotonic clock
    room: Callable[[], Awaitable[None]] | None = None  # of a stream: until its connection may have more to read
    stages: list[Stage] = field(default_factory=list)
    most_stages: int | None = None  # that are kept: a stream may have any number
    # Of all stages, by their names. Those of batches that overlap count once: what ran, and else what waited.
    seconds: dict[str, float] = field(default_factory=dict)
    started_ns: int = field(default_factory=time.time_ns)
    begun: float = field(default_factory=time.perf_counter)
    _told_ns: int = 0  # until when queues and batches are in `seconds`

    def timed(self, name: str) -> _Timed:
        """Adds a stage that lasts as long as the block."""
        return _Timed(self, name)

    def ran(self, graph: str, queue_s: float, run: Run) -> None:
        """A batch with rows of this call has run, after they had waited `queue_s` seconds."""
        started_ns = run.started_ns
        submitted_ns, ended_ns = started_ns - int(queue_s * 1e9), started_ns + int(run.seconds * 1e9)
        if self.most_stages is None or len(self.stages) < self.most_stages:
            self.stages.append(Stage("queue", submitted_ns, queue_s, graph))
            self.stages.append(Stage("inference", started_ns, run.seconds, graph, run))
        for name, begun_ns, until_ns in (("queue", submitted_ns, started_ns), ("inference", started_ns, ended_ns)):
            self.seconds[name] = self.seconds.get(name, 0.0) + max(0, until_ns - max(begun_ns, self._told_ns)) / 1e9
            self._told_ns = max(self._told_ns, until_ns)

    def took(self, name: str, started_ns: int, seconds: float) -> None:
        """A stage began at `started_ns` of the wall clock, and has ended."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self.most_stages is None or len(self.stages) < self.most_stages:
            self.stages.append(Stage(name, started_ns, seconds))


class _Timed:
    """The block of `Call.timed`; a class, which costs a call a third of what a generator does."""

    __slots__ = ("_call", "_name", "_started", "_wall")

    def __init__(self, call: Call, name: str) -> None:
        self._call = call
        self._name = name

    def __enter__(self) -> None:
        self._wall, self._started = time.time_ns(), time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        self._call.took(self._name, self._wall, time.perf_counter() - self._started)


_current: ContextVar[Call] = ContextVar("call")


def begin(rpc: str) -> Call:
    """The record of the call that this task answers from now on."""
    call = Call(rpc)
    _current.set(call)
    return call


def current() -> Call:
    """The record of this task's call; one that nobody reads where there is none, as in tests of single parts."""
    return _current.get(None) or Call("")
