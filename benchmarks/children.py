"""Servers as processes of their own, and what can be seen of them from outside: memory, threads, processor time.

A child, what it has started, and whatever is of its session count as one server. Linux only: it reads /proc.
"""

# ruff: noqa: S603 - it starts our own servers
from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PATIENCE_S = 120.0


class Child:
    """A server that runs. `pid` is that of its first process."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`
        self._command = list(command)
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self._command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.pid = self.process.pid

    def wait(self, ready: Callable[[], bool], pause_s: float = 0.005) -> float:
        """Seconds from its start until it is ready; raises `RuntimeError` with what it said if that does not happen."""
        while not ready():
            if self.process.poll() is not None or time.monotonic() - self.started > _PATIENCE_S:
                raise RuntimeError(f"{self._command[:6]} did not start: {self.said()[-2000:]}")
            time.sleep(pause_s)
        return time.monotonic() - self.started

    def said(self) -> str:
        """Its output so far."""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")

    def pids(self) -> list[int]:
        """Its processes that live: of its session, and those that one of them has started."""
        there = _processes()
        found = {pid for pid, (_, session) in there.items() if session == self.pid}
        while more := {pid for pid, (parent, _) in there.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def rss_mib(self) -> float:
        """Resident memory; pages that processes share count once for each."""
        return sum(_status(pid, "VmRSS") for pid in self.pids()) / 1024

    def threads(self) -> int:
        """Of all its processes."""
        return sum(_status(pid, "Threads") for pid in self.pids())

    def cpu_s(self) -> dict[int, dict[int, float]]:
        """Seconds of processor that each thread that lives has used, by process, by thread."""
        return {pid: thread_seconds(pid) for pid in self.pids()}

    def stop(self) -> None:
        """End all of it: politely, the first process before the others, then not."""
        known = set(self.pids())
        steps = (({self.pid}, signal.SIGTERM, 8.0), (known, signal.SIGTERM, 2.0), (known, signal.SIGKILL, 2.0))
        for whom, number, patience_s in steps:
            known |= set(self.pids())
            for pid in whom & set(_processes()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            give_up = time.monotonic() + patience_s
            while time.monotonic() < give_up and whom & set(_processes()):
                self.process.poll()
                time.sleep(0.02)
        self.process.wait()
        self._log.close()


@contextlib.contextmanager
def running(child: Child) -> Iterator[Child]:
    """The child, gone at the end."""
    try:
        yield child
    finally:
        child.stop()


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of this repository."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def latentry(repository: Path, port: int, metrics_port: int, *flags: str) -> Child:
    """`latentry serve` on the processor."""
    places = ["--models", str(repository), "--port", str(port), "--metrics-port", str(metrics_port)]
    return Child(python("latentry", "serve", *places, "--device", "cpu", *flags))


def is_ready(metrics_port: int) -> bool:
    """Whether `latentry serve` says so on its pages."""
    connection = http.client.HTTPConnection("127.0.0.1", metrics_port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def listens(port: int) -> bool:
    """Whether something on this machine takes connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


def free_port() -> int:
    """A port that nothing listens on, with two more behind it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        with contextlib.suppress(OSError, OverflowError):
            for other in (port + 1, port + 2):
                socket.create_server(("127.0.0.1", other)).close()
            return port


def thread_seconds(pid: int) -> dict[int, float]:
    """Seconds of processor by thread, to the nanosecond (the scheduler's own account, not ticks)."""
    seconds = {}
    with contextlib.suppress(OSError):
        for task in Path("/proc", str(pid), "task").iterdir():
            with contextlib.suppress(OSError):
                seconds[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def listening(port: int, pids: Iterable[int]) -> set[int]:
    """Those of these processes that have a socket which takes connections on the port."""
    tables = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    sockets = {
        f"socket:[{line[9]}]" for line in tables if line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port
    }
    return {pid for pid in pids if sockets & _open_files(pid)}


def _open_files(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for path in Path("/proc", str(pid), "fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(path.readlink()))
    return found


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and session of every process that lives."""
    there = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
                if state != "Z":
                    there[int(path.name)] = int(parent), int(session)
    return there


def _status(pid: int, key: str) -> int:
    with contextlib.suppress(OSError):
        found = re.search(rf"^{key}:\s+(\d+)", Path("/proc", str(pid), "status").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0
