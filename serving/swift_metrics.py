"""Counters and histograms of prometheus_client that cost a call less: what they are told is not checked again, and goes
into its cell without a lock, so that one thread alone, the event loop's, may tell them.

Only what is called for every call is replaced; what they hold, and how they are rendered, is the library's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, TypeAlias

import prometheus_client
from prometheus_client import values

Doubles: TypeAlias = "memoryview[float]"
Cell = tuple[Doubles, int]  # where a value is: float64s, and the index of its own
Place = Callable[[str, str, Mapping[str, str]], Cell]  # of a series: by its family, its name and its labels


def keep_in(place: Place) -> None:
    """From now on new metrics keep the values of counters and histograms where `place` says; those of gauges are of
    this process only."""
    values.ValueClass = _value_class(place)


def _anywhere(family: str, sample: str, labels: Mapping[str, str]) -> Cell:
    return memoryview(bytearray(8)).cast("d"), 0


def _value_class(place: Place) -> type:
    lock = Lock()

    class Value:
        """The interface of `prometheus_client.values.MutexValue`."""

        _multiprocess = False

        def __init__(
            self,
            typ: str,
            metric_name: str,
            name: str,
            labelnames: Sequence[str],
            labelvalues: Sequence[str],
            help_text: str,
            **more: Any,
        ) -> None:
            labels = dict(zip(labelnames, labelvalues, strict=True))
            self.cell = (_anywhere if typ == "gauge" else place)(metric_name, name, labels)

        def inc(self, amount: float) -> None:
            doubles, at = self.cell
            with lock:
                doubles[at] += amount

        def set(self, value: float, timestamp: float | None = None) -> None:
            doubles, at = self.cell
            with lock:
                doubles[at] = value

        def get(self) -> float:
            doubles, at = self.cell
            return float(doubles[at])

        def set_exemplar(self, exemplar: object) -> None:
            """There are none."""

        def get_exemplar(self) -> None:
            """There are none."""

    return Value


class Counter(prometheus_client.Counter):
    """For callers that add what is not negative."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._doubles, self._at = self._value.cell

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Add `amount`; the metric has its labels."""
        self._doubles[self._at] += amount


class Histogram(prometheus_client.Histogram):
    """Finds the bucket by bisection."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._cells: list[Cell] = [each.cell for each in (*self._buckets, self._sum)]

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count `amount`; the metric has its labels."""
        cells = self._cells
        doubles, at = cells[bisect_left(self._upper_bounds, amount)]
        doubles[at] += 1
        doubles, at = cells[-1]
        doubles[at] += amount


keep_in(_anywhere)
