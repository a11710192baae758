"""The queue of one graph in the engine process, as a front end sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from serving.batches import Array, Results, Tell, tell_nobody
from serving.errors import EngineFailed, Unloaded
from serving.handover.calls import Calls
from serving.handover.plans import Plan


class RemoteBatcher:
    """Like `serving.batcher.Batcher`, for callers. `queue` is its number; `devices_up` says of each device whether its
    engine works, as was heard last.
    """

    def __init__(self, calls: Calls, queue: int, plan: Plan) -> None:
        self.devices_up: Sequence[bool] = ()
        self._calls = calls
        self._queue = queue
        self._plan = plan
        self._closed = False

    @property
    def up(self) -> bool:
        """Whether at least one engine works."""
        return self._calls.alive and any(self.devices_up)

    def works_on(self, device: int) -> bool:
        """Whether the engine of this device works."""
        return self._calls.alive and self.devices_up[device]

    async def submit(
        self,
        rows: Array,
        outputs: frozenset[str],
        deadline: float | None = None,
        *,
        background: bool = False,
        tell: Tell = tell_nobody,
    ) -> Results:
        """What `Batcher.submit` does, and raises. The results may not be written to."""
        plan = self._plan
        if rows.dtype != plan.dtype or rows.shape[1:] != plan.item or not len(rows):
            got, wanted = f"{rows.dtype} {list(rows.shape)}", f"{plan.dtype} {['n', *plan.item]}"
            raise ValueError(f"rows: got {got}, wanted {wanted}")
        if self._closed:
            raise Unloaded
        if not self._calls.alive:
            raise EngineFailed
        waiting = self._calls.submit(self._queue, rows, plan.named(outputs), deadline, background, tell)
        del rows  # they are on their way: what is raised here must not keep them
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self._calls.withdraw(waiting)
            raise

    def close(self) -> None:
        """Take nothing any more."""
        self._closed = True
