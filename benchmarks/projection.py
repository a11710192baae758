"""From what each stage of a call costs to the calls a second of N front ends on a machine of so many processors.

The model. Of a process with Python in it one thread runs at a time, and nearly all of the time that is its event
loop: a front end answers at most one call in `front_loop_us`, and the engine's process hands on at most one in
`engine_us`. gRPC's own threads and inference run beside them, without the interpreter. All of it, and the load, shares
the processors evenly, and nothing else waits. Costs a call are those at 64 in flight: with more load more calls share
each wake-up and each batch, so that they fall rather than rise. Knows nothing of how the costs were measured.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

FRONT_ENDS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of processor a call."""

    single_us: float  # one process that does all, without the inference
    single_loop_us: float  # its event loop
    front_us: float  # a front end, its part of the hand-over with it
    front_loop_us: float  # its event loop
    engine_us: float  # the engine's process without the inference
    inference_us: float
    load_us: float = 0.0  # of whoever calls, on the same machine

    def divided(self, by: float) -> Costs:
        """All of them, on processors that are faster by this factor."""
        return Costs(*(cost / by for cost in astuple(self)))


@dataclass(frozen=True, slots=True)
class Projection:
    """Calls a second, and what bounds them."""

    rate: float
    bound: str


def project(costs: Costs, front_ends: int, processors: int) -> Projection:
    """With `--frontends`; 1 is one process that does all."""
    if front_ends == 1:
        working = costs.single_us + costs.inference_us + costs.load_us
        bounds = {"the one process": 1e6 / costs.single_loop_us, "processors": processors * 1e6 / working}
    else:
        working = costs.front_us + costs.engine_us + costs.inference_us + costs.load_us
        bounds = {
            "front ends": front_ends * 1e6 / costs.front_loop_us,
            "the engine's process": 1e6 / costs.engine_us,
            "processors": processors * 1e6 / working,
        }
    bound = min(bounds, key=lambda name: bounds[name])
    return Projection(bounds[bound], bound)


def table(costs: Costs, processors: int) -> str:
    """The projection for each number of front ends."""
    lines = [f"{'--frontends':>11}  {'calls/s':>9}  bound by"]
    for front_ends in FRONT_ENDS:
        projected = project(costs, front_ends, processors)
        lines.append(f"{front_ends:>11}  {projected.rate:>9,.0f}  {projected.bound}")
    return "\n".join(lines)
