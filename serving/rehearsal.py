"""A new version is tried in a process of its own before the server touches it.

A graph that crashes ONNX Runtime, eats the memory or never returns ends the rehearsal, not the service. It runs on the
CPU at low priority, so that calls go on at their pace; the device itself is tried when the version is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from latentry import manifest, onnx_file
from latentry.manifest import FP32, graph_file
from latentry.printable import plain
from serving import own_python
from serving.bad_graph import BadGraph, NoKernel

TIMEOUT_S = 600.0  # generous: on a busy machine the limit of processor time is the one that counts
CPU_S = 120  # of processor time, in all threads together
_MOST_ROWS = 64  # of a batch: what larger ones cost is the device's affair, and found out when the version is warmed
# A thread at nice 5 gets a quarter of a processor that a busy one wants too; at nice 19 it gets a seventieth, and a
# third of a second of work takes half a minute.
_NICE = 5
_CHANGED = 3  # exit status: the folder is not what the server read
_LAST_LINE_BYTES = 4096
_PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends


class RehearsalFailed(ValueError):
    """The version cannot be served; `transient` if another try may end otherwise."""

    def __init__(self, message: str, *, transient: bool) -> None:
        self.transient = transient
        super().__init__(message)


async def rehearse(
    folder: Path, max_batch: int, digest: str, timeout_s: float | None = None, *, precision: str = FP32
) -> None:
    """Load and run the version in a child process; raises `RehearsalFailed` with what it said.

    `digest` is that of the `ModelFolder` that is to be served, `precision` what it is to be served in: what is in the
    folder has to be that still.
    """
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    # Not by the loop: uvloop's forks, and gRPC's handlers of a fork crash some of these children before they begin.
    process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own Python; returns when it has begun
        _command(folder, max_batch, digest, precision),
        cwd="/",  # nothing is imported from the working directory, where others may put files
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        status, errors = await asyncio.wait_for(_outcome(process), timeout_s)
    except asyncio.TimeoutError:
        raise RehearsalFailed(f"no end of its first run after {timeout_s:g} s", transient=True) from None
    finally:
        process.kill()  # nothing happens if it has ended
        await own_python.end_of(process)
    _judge(status, errors[-_LAST_LINE_BYTES:].decode(errors="replace"))


async def _outcome(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Its exit status, and what it wrote on stderr."""
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stderr
    )
    try:
        errors = await reader.read()
    finally:
        pipe.close()
    return await own_python.end_of(process), errors


def _command(folder: Path, max_batch: int, digest: str, precision: str) -> list[str]:
    arguments = [str(folder.absolute()), str(max_batch), digest, precision, str(os.getpid()), str(CPU_S)]
    return own_python.command("serving.rehearsal", *arguments)


def _judge(status: int, said: str) -> None:
    """Raise `RehearsalFailed` unless the child ended well."""
    if status == -signal.SIGXCPU:
        raise RehearsalFailed(f"no end of its first run after {CPU_S} s of processor time", transient=False)
    if status < 0:
        name = signal.Signals(-status).name
        raise RehearsalFailed(f"loading it ended a process with {name}", transient=True)
    if status:
        lines = said.strip().splitlines()
        raise RehearsalFailed(plain(lines[-1]) if lines else f"exit status {status}", transient=status == _CHANGED)


def main(folder: str, max_batch: str, digest: str, precision: str, server: str, cpu_s: str) -> int:
    """The child: load the graphs and run them once. What is wrong is the last line on stderr."""
    _end_with(int(server))
    _step_back(int(cpu_s))
    try:
        whole = manifest.read(Path(folder))
        if whole.digest != digest:
            return _say(f"{folder}: changed while it was rehearsed", _CHANGED)
        onnx_file.check_folder(whole)
        run(whole, int(max_batch), precision)
    except ValueError as error:
        return _say(plain(str(error)), 1)
    return 0


def run(whole: manifest.ModelFolder, max_batch: int, precision: str = FP32) -> None:
    """Run each graph on the CPU: one row, a batch, rows together and apart, and rows twice; raises `BadGraph`.

    What the CPU has no kernels for (a Conv of bf16 numbers, say) is left to the device: loading it there says whether
    that has.
    """
    from serving import engine  # here, so that asking for a rehearsal does not wait for onnxruntime
    from serving.devices import CPU, Device

    try:
        graphs = engine.load_graphs(whole, Device(CPU), (), precision)
    except NoKernel:
        return
    for kind, graph in graphs.items():
        try:
            for size in graph.warm_up_sizes(min(max_batch, _MOST_ROWS)):
                graph.warm(size)
            graph.check_rows()
            graph.check_repeats()
        except BadGraph as error:
            raise BadGraph(f"{whole.path / graph_file(kind, precision)}: {error}") from error


def _end_with(server: int) -> None:
    """A server that dies leaves nothing behind that runs for ever; where the system cannot see to that, time does."""
    signal.alarm(int(TIMEOUT_S) + 10)
    with contextlib.suppress(OSError, AttributeError):  # no such call, no such library
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:  # it has died already
        sys.exit(1)


def _step_back(cpu_s: int) -> None:
    """Calls go first, and if memory runs out this process does."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it has a lower limit already
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 10))  # after SIGXCPU, SIGKILL
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # nor does a graph that crashes, again and again, fill the disk
    with contextlib.suppress(OSError):
        os.nice(_NICE)
        Path("/proc/self/oom_score_adj").write_text("1000")


def _say(line: str, status: int) -> int:
    print(line, file=sys.stderr)  # noqa: T201 - what the parent reads
    return status
