"""A real server as a process of its own, and what can be seen of it from outside: its metrics, its entry in /proc."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent
# How many front ends the servers of tests have that do not say it themselves; with 1, all is one process.
FRONTENDS = int(os.environ.get("LATENTRY_TEST_FRONTENDS") or 1)
_AT_ONCE = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
_SAMPLE = re.compile(r"^(\w+(?:\{.*\})?) (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class State:
    """What has to be as it was before, once a peer is gone."""

    in_flight: float
    queue_items: float
    threads: int
    descriptors: int


class ServerProcess:
    """`latentry serve`, up and SERVING, with so many `frontends` if that is said. `log` is all that it wrote to stderr,
    unless that went elsewhere.

    `first` is what a shell does before it becomes the server. (Python's `preexec_fn` would fork this process instead,
    which gRPC's threads do not always survive: some three in a hundred children end with SIGABRT.)
    """

    def __init__(
        self,
        repository: Path,
        *flags: str,
        stderr: IO[Any] | int | None = None,
        first: str = "true",
        frontends: int | None = None,
    ) -> None:
        self.port, self.metrics_port = free_ports(2)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        ports = ["--port", str(self.port), "--metrics-port", str(self.metrics_port)]
        command = [sys.executable, "-m", "latentry", "serve", "--models", str(repository), "--device", "cpu", *ports]
        several = FRONTENDS if frontends is None else frontends
        if several > 1:
            command += ["--frontends", str(several)]
        shell = ["/bin/sh", "-c", f'{first} && exec "$@"', "sh"]
        self.process = subprocess.Popen(
            [*shell, *command, *flags], cwd=ROOT, stderr=self._log if stderr is None else stderr
        )

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def wait_until_serving(self, timeout_s: float = 60.0) -> None:
        """Until health says so; raises `AssertionError` with the log if that does not happen."""
        give_up = time.monotonic() + timeout_s
        with self.channel(*_AT_ONCE) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            while self.process.poll() is None and time.monotonic() < give_up:
                try:
                    reply = check(health_pb2.HealthCheckRequest(), timeout=1, wait_for_ready=True)
                except grpc.RpcError:
                    continue
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
        raise AssertionError(f"exit status {self.process.poll()}: {self.log}")

    def channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        """A connection of its own, that tries nothing twice."""
        own = ("grpc.use_local_subchannel_pool", 1)
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.enable_retries", 0), own, *options])

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by name with labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as page:
            return {name: float(value) for name, value in _SAMPLE.findall(page.read().decode())}

    def metric(self, name: str) -> float:
        """The sum of a metric over all its labels."""
        return sum(value for key, value in self.metrics().items() if key.partition("{")[0] == name)

    def children(self) -> dict[str, int]:
        """The processes that the supervisor of several has, by what they call themselves: `latentry-engine`,
        `latentry-fe-0`, ...; none if all is one process."""
        found = {}
        for child in Path("/proc", str(self.process.pid), "task").glob("*/children"):
            for pid in child.read_text().split():
                with suppress(OSError):  # gone again
                    found[Path("/proc", pid, "comm").read_text().strip()] = int(pid)
        return {name: pid for name, pid in found.items() if name.startswith("latentry-")}

    @property
    def engine(self) -> int:
        """The process that runs the models."""
        return self.children().get("latentry-engine", self.process.pid)

    def rss_mib(self) -> float:
        """Resident memory; what several processes share counts once."""
        pids = list(self._pids())
        if len(pids) == 1:
            return self._status(pids[0], "VmRSS") / 1024
        rollups = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
        return sum(int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]) for text in rollups) / 1024  # type: ignore[index]

    def threads(self) -> int:
        return sum(self._status(pid, "Threads") for pid in self._pids())

    def descriptors(self) -> int:
        return sum(len(list(Path("/proc", str(pid), "fd").iterdir())) for pid in self._pids())

    def state(self) -> State:
        metrics = self.metrics()
        queued = sum(value for name, value in metrics.items() if name.startswith("latentry_queue_items{"))
        return State(metrics["latentry_in_flight"], queued, self.threads(), self.descriptors())

    def settle(self, before: State, timeout_s: float = 15.0) -> None:
        """Until nothing is left over from what came after `before`; raises `AssertionError` if something stays.

        Threads that gRPC and the metrics page keep for the next peer are not left over, as long as they are few.
        """
        give_up = time.monotonic() + timeout_s
        while True:
            now = self.state()
            idle = now.in_flight == now.queue_items == 0
            processes = len(self._pids())
            few = now.descriptors <= before.descriptors + 2 * processes
            if idle and few and now.threads <= before.threads + 4 * processes:
                return
            assert time.monotonic() < give_up, f"before: {before}, {timeout_s:g} s after: {now}"
            time.sleep(0.05)

    def signal_all(self, number: int) -> None:
        """Signal every process of it."""
        for pid in self._pids():
            os.kill(pid, number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it; its exit status, within half a minute."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def close(self) -> None:
        """End it however it is."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._log.close()

    def _pids(self) -> list[int]:
        return [self.process.pid, *self.children().values()]

    def _status(self, pid: int, key: str) -> int:
        text = Path("/proc", str(pid), "status").read_text()
        found = re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)
        assert found, text
        return int(found[1])


@contextmanager
def server_process(repository: Path, *flags: str, **options: Any) -> Iterator[ServerProcess]:
    """A server that is SERVING, and gone at the end."""
    server = ServerProcess(repository, *flags, **options)
    try:
        server.wait_until_serving()
        yield server
    finally:
        server.close()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on. They lie below those that the system gives to whoever asks for any, so that
    nothing else that runs meanwhile, such as another worker's tests, gets one of them.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randint(10_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports += {port} - {*ports}
    return ports
