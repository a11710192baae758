"""A thread that runs one piece of work after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class DeviceThread:
    """Runs what it is given, in order. Nothing waits for a result here, which is half of what an executor's future
    costs: work tells whom it concerns itself, and raises nothing."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._go, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], None]) -> None:
        """Run it when all that came before has run."""
        self._work.put(work)

    def close(self) -> None:
        """Wait for what was given, then end the thread."""
        self._work.put(None)
        self._thread.join()

    def _go(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # and with it the batch, while the next one is waited for
