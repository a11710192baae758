"""Has a call become dearer? A short check for every change, against figures that are kept in regression.json.

    python -m benchmarks.regression             # exit status 1 if it has
    python -m benchmarks.regression --write     # keep what is measured now, after a change that is meant

What is compared does not move with what else the machine does:

instructions   Python instructions that the service executes for a call, one call at a time. A count: ten runs on a busy
               machine differ by parts of a percent, so 3 % more is a regression. It sees no work inside C.
processor      processor time of a call by that of grpcio's echo, both in turns of some 50 ms. Caches, memory and
               hyper-threads that others use move it by a fifth, so only half as much again is a regression, and only
               if three tries in a row say so. It sees all work, if there is much of it.

Instructions are kept for each minor version of Python; one that is not there is measured and not judged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from benchmarks import bodies, children, figures, instructions
from benchmarks.plan import Plan

BASELINE = Path(__file__).with_suffix(".json")
PROCESSOR = "processor"
MARGINS = {"instructions": 0.03, PROCESSOR: 0.5}
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_IN_FLIGHT, _CALLS, _TURNS, _TRIES = 8, 100, 25, 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure beside the one that was kept; none was, if `kept` is None."""

    name: str
    measured: float
    kept: float | None
    margin: float

    @property
    def worse(self) -> bool:
        """Whether it is a regression."""
        return self.kept is not None and self.measured > self.kept * (1 + self.margin)

    def line(self) -> str:
        """A row of the table."""
        if self.kept is None:
            return f"{self.name:<28}{self.measured:>12,.2f}   not kept for Python {_PYTHON}: not judged"
        change = 100 * (self.measured / self.kept - 1)
        word = "REGRESSION" if self.worse else "ok" if change > -100 * self.margin else "better: --write"
        return (
            f"{self.name:<28}{self.measured:>12,.2f}{self.kept:>12,.2f}{change:>+8.1f} %  (+{self.margin:.0%})  {word}"
        )


def judge(measured: Mapping[str, float], ratio: float, baseline: Mapping[str, Any]) -> list[Verdict]:
    """Instructions by call, and the processor's ratio, beside a baseline."""
    kept = baseline.get("instructions", {}).get(_PYTHON, {})
    verdicts = [Verdict(name, count, kept.get(name), MARGINS["instructions"]) for name, count in measured.items()]
    return [*verdicts, Verdict(PROCESSOR, ratio, baseline.get(PROCESSOR), MARGINS[PROCESSOR])]


def main(arguments: list[str] | None = None) -> int:
    """Measure, compare; 1 for a regression."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep these figures instead of comparing with those kept")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    baseline: dict[str, Any] = json.loads(args.baseline.read_text()) if args.baseline.exists() else {}
    counts = instructions.measure()
    if args.write:
        tries = [processor_ratio() for _ in range(_TRIES)]
        _keep(args.baseline, baseline, counts, statistics.median(tries))
        return 0
    verdicts = judge(counts, _least_ratio(baseline.get(PROCESSOR)), baseline)
    print("\n".join(verdict.line() for verdict in verdicts))
    for package, version in figures.versions().items():
        kept = baseline.get("versions", {}).get(package)
        if kept not in (None, version):
            print(f"{package} is {version}; the figures kept are of {kept}")
    return 1 if any(verdict.worse for verdict in verdicts) else 0


def _least_ratio(kept: float | None) -> float:
    """The first of so many tries that is good enough, else the least of them."""
    tries = []
    for _ in range(_TRIES):
        tries.append(processor_ratio())
        if kept is None or not Verdict(PROCESSOR, tries[-1], kept, MARGINS[PROCESSOR]).worse:
            break
    return min(tries)


def _keep(path: Path, baseline: dict[str, Any], counts: Mapping[str, float], ratio: float) -> None:
    kept = baseline.setdefault("instructions", {})
    kept[_PYTHON] = {name: round(count, 1) for name, count in counts.items()}
    baseline |= {PROCESSOR: round(ratio, 2), "versions": figures.versions()}
    path.write_text(json.dumps(baseline, indent=2, sort_keys=True) + "\n")
    print(f"wrote {path}")


def processor_ratio(turns: int = _TURNS) -> float:
    """Processor time of a Decode by an echo's: the medians of so many turns of each, side by side."""
    spent: dict[str, list[float]] = {"echo": [], "ours": []}
    with tempfile.TemporaryDirectory() as place, _both(Plan(Path(place))) as servers:
        for turn in range(turns + 1):
            for name, (pid, call, message) in servers.items():
                before = sum(children.thread_seconds(pid).values())
                _press(call, message)
                if turn:
                    spent[name].append(sum(children.thread_seconds(pid).values()) - before)
    return statistics.median(spent["ours"]) / statistics.median(spent["echo"])


@contextlib.contextmanager
def _both(plan: Plan) -> Iterator[dict[str, tuple[int, Any, bytes]]]:
    """The two servers: their processes, what calls them, with which message."""
    port = children.free_port()
    echo = children.Child(children.python("benchmarks.echo_server", port))
    flags = ("--threads", "1", "--reload-s", "0")
    with children.running(echo), plan.latentry(plan.repository("linear"), *flags) as (ours, our_port, _ready):
        echo.wait(partial(children.listens, port))
        with _channel(port) as to_echo, _channel(our_port) as to_ours:
            yield {
                "echo": (echo.pid, to_echo.unary_unary(bodies.ECHO + "Image", None, None), bodies.latents(1)),
                "ours": (ours.pid, to_ours.unary_unary(bodies.SERVICE + "Decode", None, None), bodies.decode(1)),
            }


def _channel(port: int) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{port}")


def _press(call: Any, message: bytes) -> None:
    running: deque[Any] = deque()
    for _ in range(_CALLS):
        if len(running) == _IN_FLIGHT:
            running.popleft().result()
        running.append(call.future(message))
    for each in running:
        each.result()


if __name__ == "__main__":
    sys.exit(main())
