"""How far a long measurement has come: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LINE_EVERY_S = 15.0


class Progress:
    """Counts `total` items of `what` on stderr, from entering the block to leaving it."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._terminal = sys.stderr.isatty()
        self._done = 0

    def __enter__(self) -> Progress:
        disabled = not self._terminal
        self._bar = tqdm(
            desc=self._what, total=self._total, unit=f" {self._unit}", leave=False, disable=disabled, smoothing=0.05
        )
        self._start_s = self._line_s = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, items: int) -> None:
        """`items` more are done."""
        self._done += items
        self._bar.update(items)
        now = time.monotonic()
        if not self._terminal and now - self._line_s >= _LINE_EVERY_S:
            self._line_s = now
            left = (now - self._start_s) / self._done * (self._total - self._done)
            say(f"{self._what}: {self._done / self._total:.0%}, {tqdm.format_interval(left)} left")


def say(line: str) -> None:
    """Print a line to stderr, above the bar if there is one."""
    tqdm.write(line, file=sys.stderr)
