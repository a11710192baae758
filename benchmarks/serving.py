"""How fast the service is, held against what bounds it and against other servers. `make bench` runs this.

    python -m benchmarks.serving                            # at most ten minutes
    python -m benchmarks.serving --peers HOME               # with mosec, LitServe, PyTriton, MLServer and Ray Serve
    python -m benchmarks.serving --only calls,streams --rounds 1 --seconds 0.5

Sections, each a module that says what it does: calls, large, streams, footprint. All that is compared takes turns in
one run, round by round, and what is told is the median of the rounds' ratios: what else the machine does falls on all
of it. Times are of two-ended work, server and load on the same machine. HOME/venvs/NAME are the peers' environments.

The figures go to --out as JSON too, with when, where and with which versions they were made. Exit status 0 whatever
they say: `benchmarks.regression` is what fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks import calls, figures, footprint, large_calls, load, long_streams
from benchmarks.figures import Figure
from benchmarks.plan import Plan

SECTIONS: Mapping[str, Callable[[Plan], Iterator[Figure]]] = {
    "calls": calls.measure,
    "large": large_calls.measure,
    "streams": long_streams.measure,
    "footprint": footprint.measure,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    args = _arguments(arguments)
    if not load.has_h2load():
        print(
            "h2load is not installed (Debian: apt install nghttp2-client): a client in Python makes the load instead, "
            "which takes more processor than the server. These figures hold against none that h2load made.",
            file=sys.stderr,
        )
    began = time.monotonic()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as place:
        plan = Plan(Path(place), args.rounds, args.seconds, args.peers)
        for name in args.only:
            print(f"\n{name}: {SECTIONS[name].__module__}", flush=True)
            for figure in SECTIONS[name](plan):
                found.append(figure)
                print(figure.line(), flush=True)
    taken = time.monotonic() - began
    with_h2load = "h2load" if load.has_h2load() else "grpcio client"
    figures.save(args.out, found, load_generator=with_h2load, seconds=round(taken), rounds=args.rounds)
    missed = [figure.name for figure in found if figure.met is False]
    met = sum(figure.met is True for figure in found)
    print(f"\n{met} targets met, {len(missed)} missed, {taken:.0f} s; {args.out}")
    return 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peers", type=Path, metavar="HOME", help="measure the servers whose environments are in HOME/venvs")
    add("--only", type=_sections, default=list(SECTIONS), metavar="NAMES", help=f"of {', '.join(SECTIONS)}")
    add("--rounds", type=int, default=3, help="of each comparison (default: %(default)s)")
    add("--seconds", type=float, default=1.5, help="of each measurement in it (default: %(default)g)")
    add("--out", type=Path, default=Path("out/bench.json"), help="(default: %(default)s)")
    return parser.parse_args(arguments)


def _sections(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]}, wanted one of {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
