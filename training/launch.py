"""Starts a run's processes on this machine, waits for them, and ends them all as soon as one fails.

    latentry train --devices 2  ->  process 0 (writes; speaks)   process 1 (trains along)

Each gets the environment variables that torchrun would give it, so that a process need not know who started it.
Knows nothing of training, nor of torch.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from training.config import RunConfig
from training.errors import ConfigError, RunError

EXIT_ALONE = 75  # of a process that ended because another did: not the cause
_OURS = "LATENTRY_LAUNCHED"
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_GRACE_S = 10.0  # for the others to end by themselves, once one has failed or all were told to stop
_LAST_LINES = 20
_LOCALHOST = "127.0.0.1"


@dataclass(slots=True)
class _Process:
    rank: int
    process: subprocess.Popen[bytes]
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    reader: threading.Thread | None = None


def launched() -> bool:
    """Whether torchrun or `launch` started this process, as one of several."""
    return all(name in os.environ for name in _VARIABLES)


def is_first() -> bool:
    """Whether this is the process that writes and speaks: the one of rank 0, or the only one."""
    return not launched() or os.environ["RANK"] == "0"


def placed(run: RunConfig) -> RunConfig:
    """`run` with as many devices and nodes as were started, where it leaves both at one.

    Raises `ConfigError` if it asks for others than there are.
    """
    if not launched():
        return run
    devices, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if run.devices * run.nodes == 1:
        run = replace(run, devices=devices, nodes=world // devices)
    if (run.devices, run.devices * run.nodes) != (devices, world):
        raise ConfigError(
            f"run.devices, run.nodes: got {run.devices}, {run.nodes}, wanted {devices}, {world // devices}: "
            f"{world} processes were started"
        )
    return run


def needed(run: RunConfig) -> bool:
    """Whether `run` wants several processes and this is not one of them."""
    return run.devices * run.nodes > 1 and not launched()


def launch(command: Sequence[str], run: RunConfig) -> int:
    """Run `command` in `run.devices` processes; returns 0, the exit status of the one that failed first, or 130 after
    Ctrl-C.

    The first process has this one's stderr; of the others the last lines are shown, if they were the first to fail.
    With `run.nodes` above one it is called on each machine, with MASTER_ADDR, MASTER_PORT and NODE_RANK set.
    Raises `ConfigError` if they are not, and `RunError` if a process was killed.
    """
    environment = _environment(run)
    processes: list[_Process] = []
    try:
        for local_rank in range(run.devices):
            processes += [_start(command, environment, local_rank, run.devices)]  # each known at once, to be ended
        failed = _first_to_fail(processes)
    except KeyboardInterrupt:
        _interrupt(processes)
        return 130
    finally:
        _kill(processes)
    if failed is None:
        return 0
    first = processes[0].process.returncode
    return _status(failed, run.devices * run.nodes, told=first > 0 and first != EXIT_ALONE)


def _environment(run: RunConfig) -> dict[str, str]:
    """What all processes of this machine are told."""
    node = 0
    meeting = {"MASTER_ADDR": _LOCALHOST, "MASTER_PORT": str(_free_port())}
    if run.nodes > 1:
        node, meeting = _node(run), {name: os.environ[name] for name in meeting}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "OMP_NUM_THREADS": str(max(1, cores // run.devices)),
        **os.environ,
        **meeting,
        "GROUP_RANK": str(node),
        "LOCAL_WORLD_SIZE": str(run.devices),
        "WORLD_SIZE": str(run.devices * run.nodes),
        _OURS: "1",
    }


def _node(run: RunConfig) -> int:
    """This machine's number; raises `ConfigError` unless it knows that and where the first one is."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"run.nodes: got {run.nodes}, wanted {', '.join(missing)} set on each machine, or torchrun to start it: "
            f"torchrun --nnodes {run.nodes} --nproc-per-node {run.devices} --rdzv-backend c10d "
            "--rdzv-endpoint FIRST_MACHINE:29400 -m latentry train ..."
        )
    node = os.environ["NODE_RANK"]
    if not node.isdecimal() or int(node) >= run.nodes:
        raise ConfigError(f"NODE_RANK: got {node}, wanted 0 to {run.nodes - 1}")
    return int(node)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((_LOCALHOST, 0))
        return int(listener.getsockname()[1])


def _start(command: Sequence[str], environment: dict[str, str], local_rank: int, devices: int) -> _Process:
    rank = int(environment["GROUP_RANK"]) * devices + local_rank
    process = subprocess.Popen(  # noqa: S603 - our own command
        command,
        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(local_rank)},
        stdin=subprocess.PIPE,  # closed when this process ends, however it ends: see `within`
        stderr=subprocess.PIPE if local_rank else None,
        start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on once
    )
    started = _Process(rank, process)
    if local_rank:
        started.reader = threading.Thread(target=_read, args=(started,), daemon=True)
        started.reader.start()
    return started


def _read(started: _Process) -> None:
    if started.process.stderr is not None:
        for line in started.process.stderr:
            started.last_lines.append(line.decode("utf-8", "replace").rstrip("\n"))


def _first_to_fail(processes: Sequence[_Process]) -> _Process | None:
    """Wait for all to end; returns the one whose failure ended the others.

    Once one has failed, or the first has done its work, the others have `_GRACE_S` to see it.
    """
    ended: queue.Queue[_Process] = queue.Queue()

    def wait_for(one: _Process) -> None:
        one.process.wait()
        ended.put(one)

    for each in processes:
        threading.Thread(target=wait_for, args=(each,), daemon=True).start()
    failed: _Process | None = None
    until: float | None = None
    for _ in processes:
        try:
            one = ended.get(timeout=until and max(0.0, until - time.monotonic()))
        except queue.Empty:
            return failed
        if until is None and (one.process.returncode or one is processes[0]):
            until = time.monotonic() + _GRACE_S
        if one.process.returncode and (
            failed is None or failed.process.returncode == EXIT_ALONE
        ):  # that one only saw another's end
            failed = one
    return failed


def _interrupt(processes: Sequence[_Process]) -> None:
    """Pass Ctrl-C on and let them end; another Ctrl-C does not wait."""
    for each in processes:
        with contextlib.suppress(ProcessLookupError):
            each.process.send_signal(signal.SIGTERM)  # SIGINT may be ignored, as `&` in scripts has it
    until = time.monotonic() + _GRACE_S
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        for each in processes:
            each.process.wait(max(0.0, until - time.monotonic()))


def _kill(processes: Sequence[_Process]) -> None:
    for each in processes:
        each.process.kill()
        each.process.wait()
        if each.reader is not None:
            each.reader.join(timeout=1.0)
        for pipe in (each.process.stdin, each.process.stderr):
            if pipe is not None:
                pipe.close()


def _status(failed: _Process, world: int, *, told: bool) -> int:
    """`told`: the first process has failed as well, and has said why."""
    status = failed.process.returncode
    if failed.reader is not None and not told:
        sys.stderr.writelines(f"{line}\n" for line in failed.last_lines)
    if status < 0:
        name = signal.Signals(-status).name
        raise RunError(f"process {failed.rank} of {world} was ended by {name}, and the others with it")
    return int(status)


def leave(status: int) -> NoReturn:
    """End this process now."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def within(command: Callable[[], int]) -> int:
    """Run `command` and return its exit status; one of several processes ends with it instead.

    At once, without Python's own farewell: that takes gloo's threads down while it holds the interpreter's lock, which
    they may be waiting for (seen with torch 2.13). Ends too when the launcher does, however that ends.
    """
    if not launched():
        return command()
    status = 1
    try:
        if _OURS in os.environ:
            threading.Thread(target=_end_with_launcher, daemon=True).start()
        status = command()
    except BaseException:  # whatever it is, the others must not wait for this process
        traceback.print_exc()
    leave(status)


def _end_with_launcher() -> None:
    while os.read(0, 1):
        pass
    os._exit(EXIT_ALONE)
