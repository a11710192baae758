"""How much dearer work is while the machine's other processors are busy: two threads of one core share what it has.

What a call costs is measured with all processors busy, and so is what it costs on a machine whose processors share
cores like that. On one where each has its own it would cost less by this factor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
import time

from benchmarks import children

_ROUNDS = 15
_STEPS = 200_000
_SETTLE_S = 0.02


def factor() -> float:
    """Processor time of Python's work beside busy processors, by that of the same work alone: a median of rounds. 1 if
    there is one processor only."""
    allowed = os.sched_getaffinity(0)
    here, *others = sorted(allowed)
    with contextlib.ExitStack() as stack:
        os.sched_setaffinity(0, {here})
        stack.callback(os.sched_setaffinity, 0, allowed)
        busy = [children.Child(children.python("benchmarks.neighbours", other)) for other in others]
        for child in busy:
            stack.enter_context(children.running(child))
            child.wait(lambda: bool(child.said()))  # noqa: B023 - called at once
        return statistics.median(_once([child.pid for child in busy]) for _ in range(_ROUNDS))


def _once(busy: list[int]) -> float:
    _signal(busy, signal.SIGSTOP)
    alone = _work()
    _signal(busy, signal.SIGCONT)
    return _work() / alone


def _signal(processes: list[int], number: int) -> None:
    for pid in processes:
        os.kill(pid, number)
    time.sleep(_SETTLE_S)


def _work() -> float:
    """Seconds of processor for some calls, dictionaries and numbers."""
    began = time.process_time()
    table: dict[int, tuple[int, int]] = {}
    for step in range(_STEPS):
        table[step & 255] = (step, len(table))
    return time.process_time() - began


def main(processor: str) -> None:
    """Work on this processor until ended."""
    os.sched_setaffinity(0, {int(processor)})
    print("busy", flush=True)
    while True:
        _work()


if __name__ == "__main__":
    main(sys.argv[1])
