"""Tasks that go on by themselves, which nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks(set["asyncio.Task[Any]"]):
    """Keeps each until it has ended: the loop alone would forget it."""

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin it."""
        task = asyncio.get_running_loop().create_task(work)
        self.add(task)
        task.add_done_callback(self.discard)

    def cancel(self) -> None:
        """End those that run still."""
        for task in list(self):
            task.cancel()
