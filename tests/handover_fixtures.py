"""A model in the hands of an engine side, and a front end's side that is connected to it, in one process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loaded_models import loaded

from serving.batcher import Engine
from serving.batches import Array, Results
from serving.catalog import Catalog
from serving.handover import Back, Remote
from serving.handover.arena import Arena
from serving.model import Model

SOON_S = 20.0


@dataclass
class Ends:
    """Both sides. `here` is the front end's catalog, `there` the engine's."""

    there: Catalog
    back: Back
    here: Catalog = field(default_factory=Catalog)
    serving: list[asyncio.Task[None]] = field(default_factory=list)
    remotes: list[Remote] = field(default_factory=list)

    @property
    def remote(self) -> Remote:
        """The one that was connected first."""
        return self.remotes[0]

    @property
    def model(self) -> Model:
        """The default model as the front end sees it."""
        return self.here.get()

    @property
    def arena(self) -> Arena:
        """That of the first front end."""
        arena = self.remote._arena
        assert arena is not None
        return arena

    async def connect(self, catalog: Catalog | None = None, **options: Any) -> Remote:
        """Another front end, which keeps to this catalog."""
        remote = Remote(self.socket(), self.here if catalog is None else catalog, **{"arena_bytes": 1 << 20, **options})
        await asyncio.wait_for(remote.start(), SOON_S)
        self.remotes.append(remote)
        return remote

    def socket(self) -> socket.socket:
        """One whose other end is served."""
        ours, theirs = socket.socketpair()
        self.serving.append(asyncio.ensure_future(self.back.serve(theirs)))
        return ours

    async def close(self) -> None:
        """All front ends go."""
        for remote in self.remotes:
            remote.close()
        self.back.close()
        for each in self.serving:
            await asyncio.wait_for(each, SOON_S)


@asynccontextmanager
async def ends(*models: Model, **options: Any) -> AsyncIterator[Ends]:
    """An engine side that serves these, the first as the default."""
    there = Catalog(lambda: back.changed())
    back = Back(there, 1, **options)
    for model in models:
        there.put(model)
    there.default = models[0].manifest.name if models else ""
    both = Ends(there, back)
    try:
        yield both
    finally:
        await both.close()


@asynccontextmanager
async def connected(folder: Path, *, arena_bytes: int = 1 << 20, **settings: Any) -> AsyncIterator[Ends]:
    """The model of a folder in an engine side's hands, and one front end."""
    async with loaded(folder, **settings) as model, ends(model) as both:
        await both.connect(arena_bytes=arena_bytes)
        yield both


class Held:
    """An engine that waits for the test before it runs what the real one runs, and fails if it is told to."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.go = threading.Event()
        self.begun = threading.Event()
        self.fails = False

    def run(self, rows: Array, outputs: frozenset[str]) -> Results:
        self.begun.set()
        assert self.go.wait(SOON_S)
        if self.fails:
            raise RuntimeError("out of memory")
        return self._engine.run(rows, outputs)

    def bucket(self, rows: int) -> int:
        return rows

    def restart(self) -> None:
        self.fails = False


def hold(model: Model, graph: str = "decoder") -> Held:
    """The engine of a loaded model's graph, from now on in the test's hands."""
    batcher: Any = model.batchers[graph]
    held = Held(batcher._engines[0])
    batcher._engines = [held]
    return held


async def until(true: Callable[[], bool]) -> None:
    """Let the loop turn until something is so."""

    async def wait() -> None:
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)

    await asyncio.wait_for(wait(), SOON_S)
