"""What a server spends on a call: processor time by thread, kernel's share, wake-ups. Read from /proc around a load."""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.children import Child, thread_seconds
from benchmarks.load import Load, Target

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Spent:
    """Microseconds of processor a call, of the processes that were asked about."""

    main_us: float  # the first thread of each process, where the event loop is
    others_us: float  # gRPC's threads, devices' threads, ONNX Runtime's
    kernel_us: float  # of both, inside the kernel: to the tick, 10 ms in all
    wake_ups: float  # times that a thread had waited and went on
    generator_us: float  # what the load generator spent meanwhile

    @property
    def total_us(self) -> float:
        """Of all threads."""
        return self.main_us + self.others_us


@dataclass(frozen=True, slots=True)
class Reading:
    """What processes have used since they began."""

    main_s: float
    others_s: float
    kernel_s: float
    wake_ups: int


def spend(child: Child, target: Target, in_flight: int, count: int, place: Path) -> tuple[Load, dict[int, Spent]]:
    """Press so many calls, and say what each process of the server spent on one."""
    pids = child.pids()
    before = {pid: read(pid) for pid in pids}
    generator = resource.getrusage(resource.RUSAGE_CHILDREN)
    pressed = load.calls(target, in_flight, count, place)
    after_generator = resource.getrusage(resource.RUSAGE_CHILDREN)
    generator_s = sum(getattr(after_generator, at) - getattr(generator, at) for at in ("ru_utime", "ru_stime"))
    spent = {pid: difference(before[pid], read(pid), count, generator_s) for pid in pids}
    return pressed, spent


def together(spent: dict[int, Spent]) -> Spent:
    """Of all processes of a server."""
    each = list(spent.values())
    main, others, kernel, wake_ups = (
        sum(getattr(one, name) for one in each) for name in ("main_us", "others_us", "kernel_us", "wake_ups")
    )
    return Spent(main, others, kernel, wake_ups, each[0].generator_us)


def difference(before: Reading, after: Reading, calls: int, generator_s: float) -> Spent:
    """A call's part of what was used in between."""
    scale = 1e6 / calls
    return Spent(
        (after.main_s - before.main_s) * scale,
        (after.others_s - before.others_s) * scale,
        (after.kernel_s - before.kernel_s) * scale,
        (after.wake_ups - before.wake_ups) / calls,
        generator_s * scale,
    )


def read(pid: int) -> Reading:
    """Of one process, its living threads."""
    seconds = thread_seconds(pid)
    kernel, wake_ups = 0, 0
    for thread in seconds:
        place = Path("/proc", str(pid), "task", str(thread))
        try:
            kernel += int((place / "stat").read_text().rpartition(")")[2].split()[12])
            found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (place / "status").read_text(), re.MULTILINE)
        except OSError:  # it has just ended
            continue
        wake_ups += int(found[1]) if found else 0
    main = seconds.pop(pid, 0.0)
    return Reading(main, sum(seconds.values()), kernel / _TICKS, wake_ups)
