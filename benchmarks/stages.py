"""What a call costs and where: microseconds of processor by stage, and what follows for many front ends.

    python -m benchmarks.stages [--in-flight 64] [--calls 6000] [--rounds 3] [--processors 16]

The same load (Decode of one latent to one image, no network but the loopback) goes to servers that do more and more:
an echo of grpcio's that computes nothing; then `latentry serve` in which the call, the batcher or the graph answers
at once (`benchmarks.stage_server`); then the whole. A stage costs what the server with it spends more than the one
without, in the scheduler's own account of its threads (/proc), not by the clock: other work on the machine makes
calls wait, and through caches and hyper-threads a little dearer, never cheaper. So all take turns, and of each server
the least of its rounds counts. A sampling profiler would say less: most of a call runs inside Cython and C, where
Python's own sees nothing.

From that follows calls a second for --frontends 1 to 16 (`benchmarks.projection` says the model): of front ends and
inference by what two of them and their engine's process spent, of the engine's process by what it spends when it is
pressed (`benchmarks.engine_load`).

Two processors are often two threads of one core, on which everything takes longer when both are busy, whatever the
machine says of itself: `benchmarks.neighbours` measures by how much. Costs are those of such processors; the second
projection is for processors with a core each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from timeit import timeit

import numpy as np

from benchmarks import bodies, children, engine_load, figures, load, neighbours, processor_time, projection, raw_onnx
from benchmarks.figures import Figure
from benchmarks.load import Load, Target
from benchmarks.plan import Plan
from benchmarks.processor_time import Spent
from benchmarks.projection import Costs
from latentry.v1 import vae_pb2 as pb

_NAMES = {
    "echo asyncio": "grpcio echo on asyncio's loop",
    "echo": "grpcio echo on uvloop",
    "decode": "latentry, the call answers at once",
    "queue": "latentry, the batcher answers at once",
    "graph": "latentry, the graph answers at once",
    "whole": "latentry",
    "two": "latentry, --frontends 2",
}
_STAGES = (
    ("echo", "", "grpcio: C-core, Cython, event loop"),
    ("decode", "echo", "interceptor, parsing the request, serialising the reply"),
    ("queue", "decode", "model, latents, limits, building the reply"),
    ("graph", "queue", "queue, batch, hand-over to the device's thread and back"),
    ("whole", "graph", "inference"),
)
_REPEATS = 20_000

Spents = Mapping[str, Sequence[Spent]]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    args = _arguments(arguments)
    with tempfile.TemporaryDirectory() as place:
        plan = Plan(Path(place))
        spent: dict[str, list[Spent]] = {level: [] for level in _NAMES}
        apart: list[tuple[float, float, float]] = []
        print(_servers_head(), flush=True)
        for number in range(args.rounds):
            for level in _NAMES:
                pressed, each, engine = _measure(level, plan, args)
                spent[level].append(processor_time.together(each))
                apart += [_front_and_engine(each, engine)] if level == "two" else []
                if number == args.rounds - 1:
                    print(_server_line(level, spent[level], pressed), flush=True)
        raw = raw_onnx.seconds_of(plan.decoder(), (1, 8, 64), 1, 0.4, "images")
    found = list(_stage_figures(spent))
    print(f"\n{'stage (from the cheapest rounds)':<66} {'us a call':>8}")
    for figure in [*found, *_alone(raw)]:
        print(figure.line())
    costs = costs_of(spent, apart, min(engine_load.measure(args.calls * 10)))
    print(f"\ncosts: {_rounded(costs)}")
    shared = neighbours.factor()
    print(f"work here takes {shared:.2f} times as long while the other processors are busy")
    projected: dict[str, dict[int, float]] = {}
    for kind, each in (("such processors", costs), ("cores, a processor each", costs.divided(shared))):
        print(f"projected for {args.processors} {kind}, the load on the same machine:")
        print(projection.table(each, args.processors))
        projected[kind] = {n: projection.project(each, n, args.processors).rate for n in projection.FRONT_ENDS}
    figures.save(
        args.out,
        found,
        costs=_rounded(costs),
        processors=args.processors,
        busy_neighbours_factor=shared,
        projected_calls_per_s=projected,
    )
    return 0


def _measure(level: str, plan: Plan, args: argparse.Namespace) -> tuple[Load, dict[int, Spent], set[int]]:
    """The load, what each process spent, and which of them is the engine's: it is no front end, and started none."""
    port, pages = children.free_port(), children.free_port()
    if level.startswith("echo"):
        loop = level.partition(" ")[2] or "uvloop"
        child = children.Child(children.python("benchmarks.echo_server", port, "--loop", loop))
        ready, target = partial(children.listens, port), Target(port, bodies.ECHO + "Image", bodies.latents(1), 784)
    else:
        flags = ["--models", plan.repository("conv"), "--port", port, "--metrics-port", pages, "--device", "cpu"]
        flags += ["--threads", 1, "--frontends", 2] if level == "two" else ["--threads", 1]
        start = ["benchmarks.stage_server", level] if level != "two" else ["latentry", "serve"]
        child = children.Child(children.python(*map(str, start), *flags))
        ready, target = (
            partial(children.is_ready, pages),
            Target(port, bodies.SERVICE + "Decode", bodies.decode(1), 784),
        )
    with children.running(child):
        child.wait(ready)
        load.calls(target, args.in_flight, args.calls // 4, plan.place)  # warm
        pressed, each = processor_time.spend(child, target, args.in_flight, args.calls, plan.place)
        return pressed, each, set(each) - children.listening(port, each) - {child.pid}


def _front_and_engine(each: Mapping[int, Spent], engine: set[int]) -> tuple[float, float, float]:
    """What the front ends, their event loops, and the threads of the engine's process beside its loop spent on a call:
    the inference."""
    fronts = [spent for pid, spent in each.items() if pid not in engine]
    inference = sum(each[pid].others_us for pid in engine)
    return sum(each.total_us for each in fronts), sum(each.main_us for each in fronts), inference


def least(spents: Sequence[Spent]) -> Spent:
    """The cheapest round."""
    return min(spents, key=lambda spent: spent.total_us)


def _stage_figures(spent: Spents) -> Iterator[Figure]:
    for level, before, name in _STAGES:
        without = least(spent[before]).total_us if before else 0.0
        yield Figure(name, "us", (least(spent[level]).total_us - without,))
    whole = least(spent["whole"])
    yield Figure("whole call, all threads", "us", (whole.total_us,))
    yield Figure("whole call, the event loop's thread", "us", (whole.main_us,))
    yield Figure("whole call, inside the kernel", "us", (whole.kernel_us,))


def costs_of(spent: Spents, apart: Sequence[tuple[float, float, float]], engine_us: float) -> Costs:
    """For the projection. `apart` is what `_front_and_engine` says of each round."""
    graph, whole = least(spent["graph"]), least(spent["whole"])
    front_us, front_loop_us, inference_us = min(apart, key=sum)
    return Costs(graph.total_us, graph.main_us, front_us, front_loop_us, engine_us, inference_us, whole.generator_us)


def _alone(raw: Mapping[int, float]) -> Iterator[Figure]:
    """Parts of stages, each alone in this process, one after another."""
    request, pixels = bodies.decode(1), np.zeros((1, 28, 28, 1), np.uint8)

    def reply() -> bytes:
        tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=pixels.shape, data=pixels.tobytes())
        ref = pb.ModelRef(name="bench", version=1, digest="0" * 64)
        made = pb.Provenance(provider="CPUExecutionProvider", precision="fp32", timings=pb.Timings(total_s=0.001))
        whole = pb.DecodeResponse(model=ref, images=pb.Images(tensor=tensor), provenance=made)
        return whole.SerializeToString()

    alone: dict[str, Callable[[], object]] = {
        "alone: parsing the request with protobuf": partial(pb.DecodeRequest.FromString, request),
        "alone: building the reply with protobuf and serialising it": reply,
    }
    for name, work in alone.items():
        yield Figure(name, "us", tuple(timeit(work, number=_REPEATS) / _REPEATS * 1e6 for _ in range(3)))
    for batch, seconds in raw.items():
        yield Figure(f"alone: an image by ONNX Runtime, one thread, batch {batch}", "us", (seconds / batch * 1e6,))


def _servers_head() -> str:
    columns = ("us a call", "loop", "others", "kernel", "wake-ups", "load", "calls/s")
    return f"{'server':<40}" + "".join(f"{column:>10}" for column in columns)


def _server_line(level: str, spents: Sequence[Spent], pressed: Load) -> str:
    names = ("total_us", "main_us", "others_us", "kernel_us", "wake_ups", "generator_us")
    values = [getattr(least(spents), name) for name in names]
    return f"{_NAMES[level]:<40}" + "".join(f"{value:>10.1f}" for value in values) + f"{pressed.rate:>10,.0f}"


def _rounded(costs: Costs) -> dict[str, float]:
    return {name: round(getattr(costs, name), 1) for name in Costs.__dataclass_fields__}


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--in-flight", type=int, default=64, help="calls at any time (default: %(default)s)")
    add("--calls", type=int, default=6000, help="of each measurement (default: %(default)s)")
    add("--rounds", type=int, default=3, help="(default: %(default)s)")
    add("--processors", type=int, default=16, help="of the machine to project for (default: %(default)s)")
    add("--out", type=Path, default=Path("out/stages.json"), help="(default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
