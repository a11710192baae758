"""Load on a server: so many calls with so many in flight, and how they went.

The generator is h2load (Debian: nghttp2-client), which costs some 15 us of processor a call, so that the server is what
is measured; where it is not installed, a client of grpcio's in a process of its own, which costs more than the server.
"""

# ruff: noqa: S603 - it starts the load generator
from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks import children
from benchmarks.bodies import frame

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_SUMMARY = re.compile(
    r"finished in [\d.]+\w+, (?P<rate>[\d.]+) req/s.*?(?P<ok>\d+) succeeded.*?\((?P<data>\d+)\) data"
    r".*?time for request:\s+\S+\s+\S+\s+(?P<mean>[\d.]+)(?P<unit>us|ms|s)\s",
    re.DOTALL,
)
_PROBE = 64  # calls that tell how many fit into the time


class LoadFailed(Exception):
    """Not every call was answered with what was asked for."""


@dataclass(frozen=True, slots=True)
class Load:
    """Calls a second, and the mean time of one."""

    rate: float
    mean_s: float


@dataclass(frozen=True, slots=True)
class Target:
    """What is called: its port, path, the message, and how many bytes a good reply has at least."""

    port: int
    path: str
    message: bytes
    reply_bytes: int
    http1: str = ""  # the content type, of a server that is no gRPC server

    @property
    def url(self) -> str:
        """On this machine."""
        return f"http://127.0.0.1:{self.port}{self.path}"


def has_h2load() -> bool:
    """Whether the load generator that figures are meant to come from is installed."""
    return shutil.which("h2load") is not None


def press(target: Target, in_flight: int, seconds: float, place: Path) -> Load:
    """As many calls as take about so many seconds. `place` is a folder for the request's file. Raises `LoadFailed`."""
    probed = calls(target, in_flight, max(_PROBE, 2 * in_flight) if target.reply_bytes < 1 << 20 else 8, place)
    return calls(target, in_flight, max(in_flight, int(probed.rate * seconds)), place)


def calls(target: Target, in_flight: int, count: int, place: Path) -> Load:
    """So many calls. Raises `LoadFailed` unless every one was answered in full."""
    body = place / f"body-{target.port}.bin"
    body.write_bytes(target.message if target.http1 else frame(target.message))
    if target.http1 or has_h2load():
        return _h2load(target, in_flight, count, body)
    command = children.python("benchmarks.client_load", "bytes", target.url, count, in_flight, body)
    return read_load(subprocess.run(command, capture_output=True, text=True, cwd=children.ROOT, check=False))


def read_load(done: subprocess.CompletedProcess[str]) -> Load:
    """What a `client_load` printed; raises `LoadFailed`."""
    if done.returncode:
        raise LoadFailed(done.stderr[-2000:])
    return Load(**json.loads(done.stdout.splitlines()[-1]))


def connections_of(in_flight: int) -> int:
    """Over how many connections calls go: several clients, so that several front ends on one port get work."""
    return in_flight if in_flight < 4 else 4 if in_flight < 64 else 8


def _h2load(target: Target, in_flight: int, count: int, body: Path) -> Load:
    connections = connections_of(in_flight)
    count = max(count, in_flight)
    mode = ["-c", str(connections), "-m", str(in_flight // connections)]
    mode += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    if target.http1:
        mode = ["--h1", "-c", str(in_flight), "-H", f"content-type: {target.http1}"]
    command = ["h2load", "-n", str(count), *mode, "-d", str(body), target.url]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    except subprocess.TimeoutExpired as late:
        raise LoadFailed(f"{count} calls took more than 120 s") from late
    return read_summary(said, count, target.reply_bytes)


def read_summary(said: str, count: int, reply_bytes: int) -> Load:
    """What h2load printed. A refused gRPC call is an HTTP 200 without a message, so the bytes must be there too.

    Raises `LoadFailed`.
    """
    found = _SUMMARY.search(said)
    if found is None or int(found["ok"]) != count or int(found["data"]) < count * reply_bytes:
        raise LoadFailed(f"{count} calls of {reply_bytes} bytes: {said[-1200:]}")
    return Load(float(found["rate"]), float(found["mean"]) * _UNITS[found["unit"]])
