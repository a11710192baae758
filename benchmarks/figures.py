"""The figures of a benchmark: several rounds each, their median, perhaps a target; as a table and as JSON."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("latentry", "grpcio", "protobuf", "numpy", "onnxruntime-gpu", "onnxruntime", "uvloop", "aiohttp")


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured: a value for each round, and the bound that the median is to keep, if there is one."""

    name: str
    unit: str
    rounds: tuple[float, ...]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.rounds)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps its bound; None without one."""
        if self.at_least is not None:
            return self.median >= self.at_least
        return None if self.at_most is None else self.median <= self.at_most

    def line(self) -> str:
        """A row of the table."""
        rounds = " ".join(_short(value) for value in self.rounds)
        bound = "" if self.at_least is None else f">= {_short(self.at_least)}"
        bound = bound if self.at_most is None else f"<= {_short(self.at_most)}"
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return f"{self.name:<66} {_short(self.median):>8} {self.unit:<9} {bound:<10}{verdict:<8}[{rounds}]"

    def as_json(self) -> dict[str, Any]:
        """All there is to it."""
        bounds = {"at_least": self.at_least, "at_most": self.at_most}
        fields = {"name": self.name, "unit": self.unit, "median": self.median, "rounds": list(self.rounds)}
        return {**fields, **{key: value for key, value in bounds.items() if value is not None}, "met": self.met}


def ratio(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """Ours by theirs, round by round: what the machine did meanwhile fell on both."""
    return Figure(name, "times", tuple(a / b for a, b in zip(ours, theirs, strict=True)), at_least, at_most)


def versions() -> dict[str, str]:
    """Of Python and of what the figures depend on; what is not installed is not named."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Where the figures are from."""
    models = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    processor = models[0].partition(":")[2].strip() if models else platform.processor()
    return {
        "processors": len(os.sched_getaffinity(0)),
        "processor": processor,
        "kernel": platform.release(),
        "load_1_min": os.getloadavg()[0],
    }


def save(path: Path, figures: Iterable[Figure], **more: Any) -> None:
    """Write them with when, where and with which versions they were measured."""
    when = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    whole = {"date": when, "machine": machine(), "versions": versions(), **more}
    whole["figures"] = [figure.as_json() for figure in figures]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=2) + "\n")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
