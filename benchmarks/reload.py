"""What do callers notice of a reload? A real server under constant load, first in peace, then with new versions coming.

    python benchmarks/reload.py
    python benchmarks/reload.py --seconds 60 --reload-every 3 --in-flight 16 --flags --max-batch-size 32

Two kinds of callers at once: `load`, so many Sample calls in flight all the time (the next begins when one ends), and
`probe`, one call for one image every so many milliseconds whatever the others do, timed from when it should have begun,
so that a stall is counted once for every call that it held up. A reload is a new version of the shipped model, copied
beside the last one and renamed into place, its manifest's version rewritten; the oldest is removed. The phases last as
long as each other, so that their tails can be compared. Exit status 1 if any call failed.

Reading it: `ratio` is reload over quiet. p99 near 1 means that nobody noticed; p99.9 and `max` are the calls around the
switch. With few calls a p99.9 is one call: take more --seconds. The client shares the machine's processors with the
server, in both phases alike.
"""

# ruff: noqa: S603 - it starts our own server
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentry.manifest import MANIFEST_FILE, embedded_models
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc

MODEL = "fashion"
KEPT = 2  # versions that stay in the repository
_SERVING = re.compile(r"gRPC on [^\s\"]+:(\d+), metrics on port (\d+)")


@dataclass
class Phase:
    """What happened in a phase: seconds of each answered call, by kind of caller, and how the others ended."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"load": [], "probe": []})
    failures: Counter[str] = field(default_factory=Counter)
    versions: set[int] = field(default_factory=set)

    def percentile(self, kind: str, percent: float) -> float:
        """In milliseconds."""
        return 1000 * float(np.percentile(self.seconds[kind], percent)) if self.seconds[kind] else float("nan")


async def load(stub: Any, phase: Phase, items: int, until: float) -> None:
    """One call after another."""
    while time.perf_counter() < until:
        await _timed(stub, phase, "load", items, time.perf_counter())


async def probe(stub: Any, phase: Phase, every_s: float, until: float) -> None:
    """One call at a time, each due at its own moment; those that come late have waited since then."""
    due = time.perf_counter()
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await _timed(stub, phase, "probe", 1, due)
        due += every_s


async def _timed(stub: Any, phase: Phase, kind: str, items: int, due: float) -> None:
    try:
        reply = await stub.Sample(pb.SampleRequest(count=items, seed=1), timeout=30)
    except grpc.aio.AioRpcError as error:
        phase.failures[f"{kind} {error.code().name}: {error.details()}"] += 1
    else:
        phase.seconds[kind].append(time.perf_counter() - due)
        phase.versions.add(reply.model.version)


async def run_phase(stub: Any, phase: Phase, args: argparse.Namespace, repository: Path | None) -> int:
    """Both kinds of callers for as long as a phase lasts, and reloads if there is a `repository`; how many came."""
    until = time.perf_counter() + args.seconds
    callers = [load(stub, phase, args.items, until) for _ in range(args.in_flight)]
    work = asyncio.gather(*callers, probe(stub, phase, args.probe_ms / 1000, until))
    reloads = 0
    while repository is not None and time.perf_counter() + args.reload_every < until:
        await asyncio.sleep(args.reload_every)
        await asyncio.to_thread(add_version, repository)
        reloads += 1
    await work
    return reloads


def add_version(repository: Path) -> None:
    """The newest version again under the next number, whole at once; the oldest goes."""
    versions = sorted(int(path.name) for path in (repository / MODEL).iterdir())
    staging = repository / ".staging"
    shutil.copytree(repository / MODEL / str(versions[-1]), staging)
    manifest = json.loads((staging / MANIFEST_FILE).read_text())
    manifest["version"] = versions[-1] + 1
    (staging / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    staging.rename(repository / MODEL / str(versions[-1] + 1))
    for old in [*versions, versions[-1] + 1][:-KEPT]:
        (repository / MODEL / str(old)).rename(repository / ".old")
        shutil.rmtree(repository / ".old")


@contextlib.contextmanager
def server(repository: Path, flags: list[str]) -> Any:
    """`latentry serve` on free ports; gives the ports of gRPC and metrics."""
    command = [sys.executable, "-m", "latentry", "serve", "--models", str(repository), "--port", "0", "--metrics-port"]
    command += ["0", "--reload-s", "0.5", *flags]
    with tempfile.TemporaryFile("w+b") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield _ports(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _ports(process: subprocess.Popen[bytes], log: Any) -> tuple[int, int]:
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and process.poll() is None:
        said = os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")
        found = _SERVING.search(said)
        if found:
            return int(found[1]), int(found[2])
        time.sleep(0.05)
    sys.exit(f"the server did not start:\n{os.pread(log.fileno(), 1 << 20, 0).decode(errors='replace')}")


async def measure(args: argparse.Namespace, repository: Path, ports: tuple[int, int]) -> list[Phase]:
    """A warm-up, then both phases; prints each as it ends."""
    quiet, reload = Phase("quiet"), Phase("reload")
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}", options) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        await run_phase(stub, Phase("warm-up"), argparse.Namespace(**{**vars(args), "seconds": 2.0}), None)
        await run_phase(stub, quiet, args, None)
        print_phase(quiet)
        came = await run_phase(stub, reload, args, repository)
        print_phase(reload)
    print(f"{came} versions came, {len(reload.versions)} answered, {_loaded(ports[1]):g} were loaded in all")
    return [quiet, reload]


def _loaded(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        found = re.findall(r'^latentry_reloads_total\{.*"loaded".*\} (\S+)$', page.read().decode(), re.MULTILINE)
    return sum(map(float, found))


def print_phase(phase: Phase) -> None:
    """Its table's rows."""
    if phase.name == "quiet":
        print(
            f"{'phase':8}{'caller':8}{'calls':>9}{'failed':>8}{'p50 ms':>9}{'p99 ms':>9}{'p99.9 ms':>10}{'max ms':>9}"
        )
    for kind, seconds in phase.seconds.items():
        failed = sum(count for what, count in phase.failures.items() if what.startswith(kind))
        p50, p99, p999, most = (phase.percentile(kind, percent) for percent in (50, 99, 99.9, 100))
        print(f"{phase.name:8}{kind:8}{len(seconds):9,}{failed:8}{p50:9.2f}{p99:9.2f}{p999:10.2f}{most:9.2f}")
    for what, count in phase.failures.items():
        print(f"  {count} x {what}")


def main() -> int:
    """Measure; 1 if a call failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seconds", type=float, default=30.0, help="of each phase (default: %(default)g)")
    add("--reload-every", type=float, default=5.0, metavar="S", help="seconds between versions (default: %(default)g)")
    add("--in-flight", type=int, default=8, help="calls of `load` at any time (default: %(default)s)")
    add("--items", type=int, default=4, help="images a call of `load` (default: %(default)s)")
    add("--probe-ms", type=float, default=50.0, help="from one call of `probe` to the next (default: %(default)g)")
    add("--flags", nargs=argparse.REMAINDER, default=[], help="all that follows goes to `latentry serve`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        repository = Path(place)
        shutil.copytree(embedded_models() / MODEL, repository / MODEL)
        with server(repository, args.flags) as ports:
            quiet, reload = asyncio.run(measure(args, repository, ports))
    for kind in quiet.seconds:
        ratios = [reload.percentile(kind, percent) / quiet.percentile(kind, percent) for percent in (50, 99, 99.9)]
        print(f"ratio   {kind:8}{'p50':>26}{ratios[0]:6.2f}   p99 {ratios[1]:.2f}   p99.9 {ratios[2]:.2f}")
    return 1 if quiet.failures or reload.failures else 0


if __name__ == "__main__":
    sys.exit(main())
