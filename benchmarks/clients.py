"""Clients in Python as load, as people use them: ours, which may put calls together, and the quickest for HTTP."""

# ruff: noqa: S603 - it starts our own modules
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import children, servers
from benchmarks.load import Load, LoadFailed, Target, read_load

NAMES = {
    "async": "AsyncClient",
    "threads": "Client in 64 threads",
    "stub": "grpcio's bare stub",
    "http aiohttp": "aiohttp",
    "http threads": "http.client in 64 threads",
    "http pycurl": "pycurl in 64 threads",
    "http protocol": "bare asyncio transports",
}
KINDS = {  # by server
    servers.OURS: ("async", "threads", "stub"),
    servers.MOSEC: ("http aiohttp", "http threads", "http pycurl", "http protocol"),
}
BOUND = "http protocol"  # not a client that people use


def press(kind: str, target: Target, in_flight: int, seconds: float, peers: Path | None = None) -> Load | None:
    """So many calls at a time for so long, each of one latent; None where the client is not installed. Those for HTTP
    run in the environment `peers`/venvs/clients if there is one. Raises `LoadFailed`."""
    interpreter = sys.executable
    if kind.startswith("http ") and peers is not None and (peers / "venvs" / "clients" / "bin" / "python").exists():
        interpreter = str(peers / "venvs" / "clients" / "bin" / "python")
    place = target.url if target.http1 else f"127.0.0.1:{target.port}"
    module = "benchmarks.http_load" if kind.startswith("http ") else "benchmarks.client_load"
    command = [interpreter, "-m", module, kind.removeprefix("http "), place, str(seconds), str(in_flight)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=children.ROOT, timeout=120, check=False)
    if "ModuleNotFoundError" in done.stderr:
        return None
    return read_load(done)


def best(rounds: dict[str, list[float]]) -> list[float]:
    """The best client's rate in each round, of those that people use. Raises `LoadFailed` without any."""
    each = [rates for kind, rates in rounds.items() if kind != BOUND and rates]
    if not each:
        raise LoadFailed("no client for HTTP is installed")
    return [max(rates) for rates in zip(*each, strict=True)]
