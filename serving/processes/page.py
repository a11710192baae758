"""The metrics of all processes as one page: counts are summed over the children's ledgers; what is measured now, the
gauges, is what each child that lives says of itself.

Exact however many children have been killed: what a ledger holds stays, and the successor goes on in it.
"""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.processes import ledger

Labels = tuple[tuple[str, str], ...]
# What a child says of its gauges: family, sample, labels, value; JSON makes lists of it.
Gauge = Sequence[Any]

_OF_ALL = {  # what processes use adds up
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_cpu_seconds",
}
_CPU = "process_cpu_seconds"


def gauges(registry: CollectorRegistry, names: Collection[str] = (), without: Collection[str] = ()) -> list[Gauge]:
    """The gauges of a child: those of these names, or all `without` some."""
    return [
        (family.name, sample.name, sorted(sample.labels.items()), sample.value)
        for family in registry.collect()
        if family.type == "gauge" and (family.name in names if names else family.name not in without)
        for sample in family.samples
    ]


class Page(Collector):
    """All families of the supervisor's `own` registry, which names each that any child has. `ledgers` and `pids` are
    the descriptors and processes of the children; `heard` are their gauges, as they said last.
    """

    def __init__(self, own: CollectorRegistry, ledgers: Sequence[int], pids: Callable[[], Iterable[int]]) -> None:
        self.heard: Sequence[Gauge] = ()
        self._own = own
        self._ledgers = ledgers
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        """One family after another, its series in the order of their labels."""
        sums = self._sums()
        for family in self._own.collect():
            values = sums[family.name]
            for sample in family.samples:
                values[sample.name, tuple(sorted(sample.labels.items()))] += sample.value
            whole = Metric(family.name, family.documentation, family.type)
            add = _add_buckets if family.type == "histogram" else _add
            add(whole, values)
            yield whole

    def _sums(self) -> defaultdict[str, defaultdict[tuple[str, Labels], float]]:
        sums: defaultdict[str, defaultdict[tuple[str, Labels], float]] = defaultdict(lambda: defaultdict(float))
        for fd in self._ledgers:
            for (family, sample, labels), value in ledger.read(fd):
                sums[family][sample, labels] += value
        for family, sample, pairs, value in self.heard:
            sums[family][sample, tuple((name, text) for name, text in pairs)] += value
        for pid in self._pids():
            for used in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                if used.name in _OF_ALL:
                    for each in used.samples:
                        sums[used.name][each.name, ()] += each.value
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        sums[_CPU][f"{_CPU}_total", ()] += ended.ru_utime + ended.ru_stime
        return sums


def _add(family: Metric, values: dict[tuple[str, Labels], float]) -> None:
    for (sample, labels), value in sorted(values.items()):
        family.add_sample(sample, dict(labels), value)


def _add_buckets(family: Metric, values: dict[tuple[str, Labels], float]) -> None:
    """Ledgers have what fell into each bucket; the page has what fell into it and those below."""
    series: defaultdict[Labels, dict[str, float]] = defaultdict(dict)
    totals: dict[Labels, float] = {}
    for (sample, labels), value in values.items():
        if sample.endswith("_sum"):
            totals[labels] = value
        else:
            rest = tuple(pair for pair in labels if pair[0] != "le")
            series[rest][dict(labels)["le"]] = value
    for labels, buckets in sorted(series.items()):
        below = 0.0
        for bound in sorted(buckets, key=float):
            below += buckets[bound]
            family.add_sample(f"{family.name}_bucket", {**dict(labels), "le": bound}, below)
        family.add_sample(f"{family.name}_count", dict(labels), below)
        family.add_sample(f"{family.name}_sum", dict(labels), totals.get(labels, 0.0))
