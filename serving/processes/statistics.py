"""The Open Inference Protocol's statistics where several processes answer: each counts in its ledger, and who is asked
for them asks the supervisor, who has all ledgers.

A batch with rows that came through several front ends is counted once by each.
"""

from __future__ import annotations

from collections.abc import Iterable

from serving.inference import grpc_service_pb2 as oip
from serving.oip import statistics
from serving.oip.statistics import LAST_MS, Figures
from serving.processes import ledger
from serving.processes.control import Body, Control
from serving.processes.ledger import Ledger

_FAMILY = "oip"  # of no metric: it is not on the page


class AskedStatistics:
    """Counts in `book`, asks over `control`."""

    def __init__(self, control: Control, book: Ledger) -> None:
        self._control = control
        self._book = book
        self._figures: dict[tuple[str, str], Figures] = {}

    def of(self, name: str, version: str) -> Figures:
        """Those of one, to be added to."""
        key = name, version
        if key not in self._figures:
            self._figures[key] = Figures(_Booked(self._book, {"model": name, "version": version}))
        return self._figures[key]

    async def message(self, name: str, version: str) -> oip.ModelStatistics:
        """Those of one in all processes, as the protocol tells them."""
        totals = await self._control.ask("statistics", {"model": name, "version": version})
        return statistics.message(name, version, totals)


def totals(ledgers: Iterable[int], of: Body) -> Body:
    """The sums over all ledgers; `of` is the model and the version."""
    sums: dict[str, int] = {}
    wanted = tuple(sorted(of.items()))
    for fd in ledgers:
        for (family, sample, labels), value in ledger.read(fd):
            if family == _FAMILY and labels == wanted:
                known = sums.get(sample, 0)
                sums[sample] = max(known, int(value)) if sample == LAST_MS else known + int(value)
    return sums


class _Booked:
    def __init__(self, book: Ledger, labels: dict[str, str]) -> None:
        self._book = book
        self._labels = labels

    def add(self, name: str, amount: int) -> None:
        """So much more."""
        values, at = self._book.place(_FAMILY, name, self._labels)
        values[at] += amount

    def set(self, name: str, value: int) -> None:
        """So much now."""
        values, at = self._book.place(_FAMILY, name, self._labels)
        values[at] = value
