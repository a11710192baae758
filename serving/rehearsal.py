"""A new version is tried in a process of its own before the server touches it.

A graph that crashes ONNX Runtime, eats the memory or never returns ends the rehearsal, not the service. It runs on the
CPU at low priority, so that calls go on at their pace; the device itself is tried when the version is loaded.

    python -m serving.rehearsal FOLDER MAX_BATCH_SIZE PID_OF_THE_SERVER
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from latentry import manifest

TIMEOUT_S = 120.0
_LAST_LINE_BYTES = 4096
_PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends


class RehearsalFailed(ValueError):
    """The version cannot be served; `transient` if another try may end otherwise."""

    def __init__(self, message: str, *, transient: bool) -> None:
        self.transient = transient
        super().__init__(message)


async def rehearse(folder: Path, max_batch: int, timeout_s: float | None = None) -> None:
    """Load and run the version in a child process; raises `RehearsalFailed` with what it said."""
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    command = [sys.executable, "-m", "serving.rehearsal", str(folder), str(max_batch), str(os.getpid())]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, errors = await asyncio.wait_for(process.communicate(), timeout_s)
    except asyncio.TimeoutError:
        raise RehearsalFailed(f"no end of its first run after {timeout_s:g} s", transient=True) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    status = process.returncode or 0
    if status < 0:
        name = signal.Signals(-status).name
        raise RehearsalFailed(f"loading it ended a process with {name}", transient=True)
    if status:
        lines = errors[-_LAST_LINE_BYTES:].decode(errors="replace").strip().splitlines()
        raise RehearsalFailed(lines[-1] if lines else f"exit status {status}", transient=False)


def main(folder: Path, max_batch: int, server: int) -> int:
    """Load the graphs and run them once; what is wrong is the last line on stderr."""
    from serving import engine  # here, so that asking for a rehearsal does not wait for onnxruntime
    from serving.devices import CPU, Device

    _end_with(server)
    with contextlib.suppress(OSError):
        os.nice(19)
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes first
    try:
        for graph in engine.load_graphs(manifest.read(folder), Device(CPU), ()):
            for size in graph.warm_up_sizes(max_batch):
                graph.warm(size)
    except ValueError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)  # noqa: T201 - what the parent reads
        return 1
    return 0


def _end_with(server: int) -> None:
    """A server that dies leaves nothing behind that runs for ever; where the system cannot see to that, time does."""
    signal.alarm(int(TIMEOUT_S) + 10)
    with contextlib.suppress(OSError, AttributeError):  # no such call, no such library
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:  # it has died already
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
