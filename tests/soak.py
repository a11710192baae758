"""A soak: a real server under every kind of call, dying clients and reloads, watched for wrong answers and for leaks.

    python tests/soak.py --minutes 10              all of it; exit status 0 if every check holds
    python tests/soak.py --minutes 1 --overload    only more load than the server can do; memory has to stay flat
    python tests/soak.py --minutes 1 --unbounded   the same with a queue without bound, which must fail that check

Model `a` is called and reloaded, `b` called in peace; their calls end in the client's sight, so the server must have
counted each as the client did. `c` is for calls that are cancelled, late, or made by clients that are killed.
"""

# ruff: noqa: T201 - a program of its own, which prints
from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import linear_model
import numpy as np
from server_process import ROOT, ServerProcess, server_process
from soak_calls import CALLS, SHAPES, Caller, Code, Truth

from latentry.messages import write_tensor
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc

WORKERS = 4
RELOAD_S = 4.0  # these two in a soak of half a minute or longer; in a shorter one as many times
KILL_S = 3.0
FLAT = 0.05  # how far memory may be from its mean in the second half
KEPT = 2  # versions of `a` in the repository

# A client that keeps calling until it is killed.
CALLER = """
import grpc, sys
from latentry.v1 import vae_pb2 as pb, vae_pb2_grpc
stub = vae_pb2_grpc.VaeServiceStub(grpc.insecure_channel(sys.argv[1]))
while True:
    sample = pb.SampleRequest(model=pb.ModelSelector(name="c"), count=64)
    calls = [stub.Sample.future(sample) for _ in range(4)]
    parts = stub.StreamSample(pb.StreamSampleRequest(sample=sample, chunk_items=1))
    calls[0].result()
    next(parts)
    print("called", flush=True)
"""


def overload(server: ServerProcess, ended: Counter[tuple[str, Code]], stop: threading.Event) -> None:
    """More calls than the server can do, whatever comes back: 60 a second of 1,024 rows each, one row a batch."""
    images = np.zeros((1024, 12, 10, 1), np.uint8)
    request = pb.EncodeRequest(model=pb.ModelSelector(name="a"), images=pb.Images(tensor=write_tensor(images)))
    with server.channel() as channel:
        encode = vae_pb2_grpc.VaeServiceStub(channel).Encode
        while not stop.wait(1 / 60):
            call = encode.future(request)
            call.add_done_callback(lambda done: ended.update([("overload", done.code())]))


# ---- trouble ----


def kill_clients(server: ServerProcess, stop: threading.Event, every_s: float) -> int:
    """Start clients and kill them in the middle of their calls; how many."""
    killed = 0
    while not stop.wait(every_s):
        command = [sys.executable, "-c", CALLER, f"127.0.0.1:{server.port}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
            assert client.stdout is not None
            client.stdout.readline()
            client.kill()
            killed += 1
    return killed


def reload_models(
    server: ServerProcess, repository: Path, truth: Truth, stop: threading.Event, every_s: float
) -> Counter[str]:
    """New versions of `a` come, old ones go; every third time one comes that is bad. What was done, counted."""
    done: Counter[str] = Counter()
    version = 1
    while not stop.wait(every_s):
        if done["new"] % 3 == 2 and not done["bad"] * 3 > done["new"]:
            bad = repository / "a" / str(10**9 + version)
            shutil.copytree(repository / "a" / str(version), repository / ".bad")
            (repository / ".bad" / "decoder.onnx").write_bytes(b"not what the manifest vouches for")
            (repository / ".bad").rename(bad)
            server.process.send_signal(signal.SIGHUP)
            if _until(lambda: server.metric("latentry_refused_versions") > 0, stop):
                done["bad"] += 1
            bad.rename(repository / ".bad")
            shutil.rmtree(repository / ".bad")
        version += 1
        truth.write(repository, "a", version)
        if done["new"] % 2:  # the others are found by polling
            server.process.send_signal(signal.SIGHUP)
        if _until(lambda: f'version="{version}"' in _serving_a(server), stop):  # noqa: B023 - called at once
            done["new"] += 1
        for old in sorted(map(int, (path.name for path in (repository / "a").iterdir())))[:-KEPT]:
            (repository / "a" / str(old)).rename(repository / ".old")
            shutil.rmtree(repository / ".old")
            done["removed"] += 1
    return done


def _serving_a(server: ServerProcess) -> str:
    return " ".join(key for key in server.metrics() if key.startswith("latentry_model_info{") and 'model="a"' in key)


def _until(condition: Callable[[], bool], stop: threading.Event) -> bool:
    """Whether it came true before the end, and within half a minute."""
    give_up = time.monotonic() + 30
    while not stop.wait(0.1):
        if condition():
            return True
        if time.monotonic() > give_up:
            raise AssertionError("the server did not take notice of a change of the repository within 30 s")
    return False


# ---- watching ----


@dataclass
class Watch:
    """What /proc says of the server, second by second."""

    rss_mib: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def run(self, server: ServerProcess, stop: threading.Event, every_s: float) -> None:
        while not stop.wait(every_s):
            self.rss_mib.append(server.rss_mib())
            self.threads.append(server.threads())
            self.descriptors.append(server.descriptors())

    def unevenness(self) -> float:
        """How far the second half's memory rises above its mean, as a share of it, without the highest and the lowest
        twentieth: zero for a level line, a quarter of the growth for a straight one that starts near nothing.
        """
        half = sorted(self.rss_mib[len(self.rss_mib) // 2 :])
        cut = len(half) // 20
        kept = half[cut : len(half) - cut]
        return (kept[-1] - sum(kept) / len(kept)) / (sum(kept) / len(kept))


@contextmanager
def _running(*works: Callable[[threading.Event], Any]) -> Iterator[list[Any]]:
    """Each in a thread until the block ends; then what each returned, or the first error that one raised."""
    stop = threading.Event()
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            results[i] = works[i](stop)
        except BaseException as error:  # handed on below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


# ---- the soak ----


def soak(seconds: float) -> list[str]:
    """All of it. Prints what was seen; returns the checks that failed."""
    with tempfile.TemporaryDirectory() as place:
        repository, truth = Path(place, "models"), Truth()
        repository.mkdir()
        for name in SHAPES:
            truth.write(repository, name, 1)
        with server_process(repository, "--reload-s", "1") as server:
            return _soak(server, repository, truth, seconds)


def _soak(server: ServerProcess, repository: Path, truth: Truth, seconds: float) -> list[str]:
    _warm(server, truth)
    callers = [Caller(server, truth, seed) for seed in range(WORKERS)]
    first, watch = callers[0], Watch()
    counted = _counted(server)
    before = server.state()
    often = min(1.0, seconds / 30)
    with _running(
        *(caller.run for caller in callers),
        lambda stop: kill_clients(server, stop, KILL_S * often),
        lambda stop: reload_models(server, repository, truth, stop, RELOAD_S * often),
        lambda stop: watch.run(server, stop, min(1.0, seconds / 60)),
    ) as results:
        time.sleep(seconds)
    for caller in callers[1:]:
        first.ended += caller.ended
        first.seen += caller.seen
        first.wrong += caller.wrong
    print_calls(first.ended)
    print(f"{results[WORKERS]} clients killed; versions of a: {dict(results[WORKERS + 1])}")
    print_watch(watch)
    failed = [f"wrong: {each}" for each in first.wrong[:20]]
    failed += [] if watch.unevenness() <= FLAT else [f"memory: {watch.unevenness():.1%} above its mean"]
    try:
        server.settle(before)
    except AssertionError as error:
        failed.append(f"left over: {error}")
    print(f"before: {before}\nafter:  {server.state()}")
    counted = _counted(server) - counted
    if counted != first.seen:
        failed.append(f"counts: the server's less the client's {counted - first.seen}, and {first.seen - counted}")
    failed += [f"log: {line[:300]}" for line in server.log.splitlines() if "Traceback" in line]
    status = server.stop()
    return failed + ([] if status == 0 else [f"exit status {status}"])


def soak_memory(seconds: float, queue_items: int) -> list[str]:
    """Nothing but overload. Prints what was seen; returns the failed check, if memory is not flat."""
    with tempfile.TemporaryDirectory() as place:
        linear_model.write(Path(place), "a", 1, *SHAPES["a"])
        limits = ["--max-batch-size", "1", "--max-queue-items", str(queue_items)]
        with server_process(Path(place), *limits) as server:
            watch, ended = Watch(), Counter[tuple[str, Code]]()
            with _running(lambda stop: overload(server, ended, stop)):
                _fill(server, min(queue_items, 4096))
                with _running(lambda stop: watch.run(server, stop, min(1.0, seconds / 60))):
                    time.sleep(seconds)
            queued = server.metric("latentry_queue_items")
            print_calls(ended)
            print(f"{queued:g} items were waiting at the end")
            print_watch(watch)
            return [] if watch.unevenness() <= FLAT else [f"memory: {watch.unevenness():.1%} above its mean"]


def _warm(server: ServerProcess, truth: Truth) -> None:
    """One of each call before anything is measured: what is made at first use is no leak."""
    caller = Caller(server, truth, seed=99)
    with server.channel() as channel:
        for _, call in CALLS.values():
            with suppress(grpc.RpcError, grpc.FutureCancelledError):
                call(caller, vae_pb2_grpc.VaeServiceStub(channel))
    server.settle(server.state())


def _fill(server: ServerProcess, items: int) -> None:
    """Until nearly so many items have waited: what the first of them need is no growth."""
    give_up = time.monotonic() + 30
    while server.metric("latentry_queue_items") < items - 1024:
        assert time.monotonic() < give_up, "the server could do it all: this is no overload"
        time.sleep(0.05)


def _counted(server: ServerProcess) -> Counter[tuple[str, str]]:
    """Calls by rpc and code, as /metrics has them; without those for model c, whose ends the client may not see."""
    counts: Counter[tuple[str, str]] = Counter()
    for key, value in server.metrics().items():
        if key.startswith("latentry_requests_total{"):
            labels = dict(part.split("=", 1) for part in key.partition("{")[2].rstrip("}").replace('"', "").split(","))
            # A call that ends before its model is known has none: the late and the cancelled among them do not count.
            if labels["model"] != "c" and labels["code"] not in ("CANCELLED", "DEADLINE_EXCEEDED"):
                counts[labels["rpc"], labels["code"]] += int(value)
    return counts


def print_calls(ended: Counter[tuple[str, Code]]) -> None:
    for (kind, code), count in sorted(ended.items(), key=lambda item: (item[0][0], item[0][1].name)):
        print(f"{kind:24}{code.name:20}{count:10,}")
    print(f"{'all':44}{sum(ended.values()):10,}")


def print_watch(watch: Watch) -> None:
    print(f"{'':14}{'start':>8}{'quarter':>8}{'half':>8}{'3 qu.':>8}{'end':>8}{'least':>8}{'most':>8}")
    for name, values in (("RSS MiB", watch.rss_mib), ("threads", watch.threads), ("descriptors", watch.descriptors)):
        at = [values[int(share * (len(values) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]
        print(f"{name:14}" + "".join(f"{value:8.0f}" for value in (*at, min(values), max(values))))
    print(f"second half's memory at most {watch.unevenness():.2%} above its mean, of {FLAT:.0%}")


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 if every check holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: %(default)g)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--overload", action="store_true", help="only overload, on a queue of the default bound")
    only.add_argument("--unbounded", action="store_true", help="only overload, on a queue without bound")
    args = parser.parse_args(arguments)
    seconds = 60 * args.minutes
    if args.overload or args.unbounded:
        failed = soak_memory(seconds, 2**24 if args.unbounded else 4096)
    else:
        failed = soak(seconds)
    for each in failed:
        print(f"FAILED {each}")
    print("failed" if failed else "every check holds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
