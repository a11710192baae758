"""Peers that mean ill, or die badly: others are served meanwhile, and nothing of them is left over afterwards."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import io
import os
import random
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import http2_frames as http2
import linear_model
import pytest
from conftest import settings_for
from linear_model import LinearModel
from PIL import Image
from server_process import FRONTENDS, ROOT, ServerProcess, server_process

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving.api import requests
from serving.server import Service

SAMPLE = "/latentry.v1.VaeService/Sample"
SMALL = pb.SampleRequest(count=2, seed=1)
# With one row a batch this takes about a tenth of a second: long enough to be caught in the middle of.
LONG = pb.SampleRequest(count=1024, seed=1)
LONG_FLOATS = pb.SampleRequest(count=1024, seed=1, output=pb.ImageOutput(format=pb.IMAGE_FORMAT_RAW_FLOAT32))
# A client that keeps calling until it is killed.
CALLER = """
import grpc, sys
from latentry.v1 import vae_pb2 as pb, vae_pb2_grpc
stub = vae_pb2_grpc.VaeServiceStub(grpc.insecure_channel(sys.argv[1]))
while True:
    calls = [stub.Sample.future(pb.SampleRequest(count=64, seed=1)) for _ in range(8)]
    calls[0].result()
    print("called", flush=True)
"""


@pytest.fixture(scope="module")
def server(linear_repository: Path) -> Iterator[ServerProcess]:
    """One server for the peers that only talk."""
    with server_process(linear_repository, "--max-batch-size", "1") as running, running.channel() as channel:
        for _ in range(3):  # so that what comes up with the first calls and pages is there before
            vae_pb2_grpc.VaeServiceStub(channel).Sample(SMALL)
            running.metrics()
        yield running


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[Any]:
    """A well-behaved client, and a check that nothing is left over when the test is done."""
    with server.channel() as channel:
        well_behaved = vae_pb2_grpc.VaeServiceStub(channel)
        well_behaved.Sample(SMALL, timeout=10)
        before = server.state()
        yield well_behaved
        assert len(well_behaved.Sample(SMALL, timeout=10).images.tensor.data) == 240
        server.settle(before)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"this system lets a process have {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def served(stub: Any, times: int = 20) -> None:
    """Others get their answers, each within two seconds."""
    for _ in range(times):
        stub.Sample(SMALL, timeout=2)


def reset(peer: socket.socket) -> None:
    """Close as a host does that lost its memory: with RST."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def wait_for(condition: Any, what: str, timeout_s: float = 15.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)


# ---- peers that take their time ----


def test_a_thousand_idle_connections_stand_in_nobodys_way(
    server: ServerProcess, stub: Any, many_descriptors: None
) -> None:
    """Half of them say nothing, half the first words of HTTP/2."""
    before = server.rss_mib()
    with contextlib.ExitStack() as stack:
        for i in range(1000):
            stack.enter_context(http2.connection(server.port, http2.PREFACE + http2.settings() if i % 2 else b""))
        served(stub)
        assert server.rss_mib() - before < 100
    served(stub)


def test_idle_connections_to_the_metrics_page_stand_in_nobodys_way(server: ServerProcess, stub: Any) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(http2.connection(server.metrics_port, b"GET /met"))
        served(stub)
        assert server.metrics()["latentry_in_flight"] == 0


def test_a_preface_byte_by_byte_holds_up_nobody(server: ServerProcess, stub: Any) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(http2.connection(server.port, b"")) for _ in range(20)]
        for byte in http2.PREFACE:
            for peer in peers:
                peer.sendall(bytes([byte]))
            served(stub, 1)


def test_headers_that_never_end_hold_up_nobody_and_no_memory(server: ServerProcess, stub: Any) -> None:
    """The block is continued for ever; the server stops listening to it at some point."""
    more = http2.header_block(SAMPLE, (("x-more", "y" * 10_000),))
    memory = [server.rss_mib()]
    for _ in range(6):
        with http2.connection(server.port) as peer, contextlib.suppress(OSError):
            peer.sendall(http2.frame(http2.HEADERS, http2.header_block(SAMPLE), stream=1))
            for i in range(5000):  # 50 MB
                peer.sendall(http2.frame(http2.CONTINUATION, more, stream=1))
                if i % 250 == 0:
                    served(stub, 1)
        memory.append(server.rss_mib())
    # Of 300 MB that came meanwhile. A process keeps some 85 at most, however many more rounds there are.
    assert memory[-1] - memory[0] < 110 * FRONTENDS, memory


@pytest.mark.parametrize(
    "frame",
    [
        http2.frame(http2.WINDOW_UPDATE, b"\0\0\0\1"),
        http2.frame(http2.DATA, b"", stream=1),
        http2.frame(77, b"x" * 100),
        http2.settings(initial_window_size=100),
    ],
    ids=["windows", "empty data", "unknown frames", "settings"],
)
def test_a_flood_of_frames_that_ask_for_nothing(server: ServerProcess, stub: Any, frame: bytes) -> None:
    before = server.rss_mib()
    with http2.connection(server.port) as peer, contextlib.suppress(OSError):  # it may be sent away
        peer.settimeout(2)
        peer.sendall(http2.headers(SAMPLE, 1))
        for _ in range(20):
            peer.sendall(frame * 10_000)
            served(stub, 1)
    assert server.rss_mib() - before < 50


def test_a_message_that_never_ends_waits_without_holding_up_others(server: ServerProcess, stub: Any) -> None:
    """Its length is announced, its bytes do not come."""
    beginning = http2.frame(http2.DATA, struct.pack(">BI", 0, 10 << 20) + b"x" * 100, stream=1)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            peer = stack.enter_context(http2.connection(server.port))
            peer.sendall(http2.headers(SAMPLE, 1) + beginning)
        served(stub)


def test_a_client_that_never_reads_its_replies_costs_others_nothing_and_little_memory(linear_repository: Path) -> None:
    """500 replies of half a megabyte each are asked for, and no window is opened for any of them."""
    body = LONG_FLOATS.SerializeToString()
    with server_process(linear_repository) as server, server.channel() as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        served(stub)
        before, memory, most = server.state(), server.rss_mib(), 0.0
        with http2.connection(server.port, http2.PREFACE + http2.settings(initial_window_size=0)) as peer:
            over = threading.Event()
            reader = threading.Thread(target=_discard, args=(peer, over))
            reader.start()
            for i in range(500):
                peer.sendall(http2.call(SAMPLE, body, 1 + 2 * i))
                if i % 4 == 3:  # more would be too much for the queue
                    wait_for(lambda: server.metric("latentry_queue_items") == 0, "what was accepted runs")
                    most = max(most, server.rss_mib() - memory)
            served(stub)
            over.set()
            reader.join()
            reset(peer)
        served(stub)
        server.settle(before)
        # Several processes have memory beside it through which results come.
        assert most < (200 if FRONTENDS == 1 else 264), f"{most:.0f} MiB for 250 MB of replies that nobody takes"


def test_streams_that_are_not_read_hold_little_memory(tmp_path: Path) -> None:
    """Each has its first image, which is small: the parts of 3 MiB after it are not made ahead. Nor are they for all of
    them when each first image is read, and nothing else.
    """
    linear_model.write(tmp_path, shape=(64, 64, 3))
    floats = pb.SampleRequest(count=1 << 20, output=pb.ImageOutput(format=pb.IMAGE_FORMAT_RAW_FLOAT32))
    body = pb.StreamSampleRequest(sample=floats).SerializeToString()
    one = struct.pack(">I", 49_500)  # bytes: an image, its latents and what goes with them
    with server_process(tmp_path) as server, server.channel() as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        served(stub)
        before, memory = server.state(), server.rss_mib()
        with http2.connection(server.port, http2.PREFACE + http2.settings(initial_window_size=0)) as peer:
            over = threading.Event()
            reader = threading.Thread(target=_discard, args=(peer, over))
            reader.start()
            rows = server.metric("latentry_items_total")
            for i in range(200):
                peer.sendall(http2.call(SAMPLE.replace("Sample", "StreamSample"), body, 1 + 2 * i))
            wait_for(lambda: server.metric("latentry_items_total") >= rows + 200, "the first images are made")
            time.sleep(0.5)
            assert server.metric("latentry_items_total") == rows + 200, "nothing is made ahead"
            assert server.rss_mib() - memory < 100
            peer.sendall(http2.frame(http2.WINDOW_UPDATE, struct.pack(">I", 1 << 30)))
            for i in range(200):
                peer.sendall(http2.frame(http2.WINDOW_UPDATE, one, stream=1 + 2 * i))
                if i % 8 == 7:
                    time.sleep(0.02)
                    wait_for(lambda: server.metric("latentry_queue_items") == 0, "what was begun is made")
            more = server.rss_mib() - memory
            served(stub)
            over.set()
            reader.join()
            reset(peer)
        server.settle(before)
        assert more < 600, f"{more:.0f} MiB for 200 streams, whose parts would be 2 GiB"


def test_an_edit_may_not_have_more_pixels_than_any_other_request(stub: Any) -> None:
    """Of a few kilobytes: each field by itself would be allowed."""
    file = io.BytesIO()
    Image.new("L", (8000, 4000)).save(file, "PNG")
    images = pb.Images(encoded=pb.EncodedImages(images=[file.getvalue()]))
    differences = [pb.Difference(plus_images=images, minus_images=images)] * 16
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as refused:
        stub.Edit(pb.EditRequest(images=images, resize=pb.RESIZE_STRETCH, differences=differences), timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    wanted = "differences[0].minus_images.encoded.images: got 96000000 pixels in all, wanted at most 67108864 a request"
    assert refused.value.details() == wanted
    assert time.monotonic() - began < 5


def test_a_million_classes_by_name_are_read_in_a_moment() -> None:
    """Of a model with many: other calls wait meanwhile."""
    labels = tuple(f"class {i}" for i in range(1000))
    about = dataclasses.replace(linear_model.manifest("linear", 1, (12, 10, 1), 5), classes=1000, labels=labels)
    classes = pb.Classes(names=[labels[-1]] * (1 << 20))
    began = time.monotonic()
    numbers = requests.read_classes(classes, 1 << 20, about)
    assert numbers is not None
    assert set(numbers.tolist()) == {999}
    assert time.monotonic() - began < 3


def _discard(peer: socket.socket, over: threading.Event) -> None:
    """Frames of control have to be read, or TCP stands still before HTTP/2 does."""
    while not over.is_set():
        if select.select([peer], [], [], 0.05)[0] and not peer.recv(1 << 16):
            return


# ---- peers that go away ----


@pytest.mark.parametrize("how", ["close", "half close", "reset"])
def test_a_connection_that_ends_in_the_middle_of_its_calls(server: ServerProcess, stub: Any, how: str) -> None:
    body = LONG.SerializeToString()
    for _ in range(5):
        with http2.connection(server.port) as peer:
            for i in range(4):
                peer.sendall(http2.call(SAMPLE, body, 1 + 2 * i))
            wait_for(lambda: server.metric("latentry_in_flight") > 0, "calls run")
            if how == "half close":
                peer.shutdown(socket.SHUT_WR)
                http2.read_until_closed(peer)
            elif how == "reset":
                reset(peer)
    served(stub)


def test_streams_that_are_reset_as_soon_as_they_are_opened(server: ServerProcess, stub: Any) -> None:
    """Thousands on one connection (CVE-2023-44487): the work of none is left in the queue."""
    body = LONG.SerializeToString()
    with http2.connection(server.port) as peer, contextlib.suppress(OSError):
        for i in range(3000):
            stream = 1 + 2 * i
            peer.sendall(http2.call(SAMPLE, body, stream) + http2.frame(http2.RST_STREAM, bytes(4), stream=stream))
            if i % 300 == 0:
                with contextlib.suppress(grpc.RpcError):
                    stub.Sample(SMALL, timeout=5)
    wait_for(lambda: server.metric("latentry_queue_items") == 0, "the queue empties")
    served(stub)


def test_clients_that_are_killed_in_the_middle_of_their_calls(server: ServerProcess, stub: Any) -> None:
    command = [sys.executable, "-c", CALLER, f"127.0.0.1:{server.port}"]
    callers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for caller in callers:
            assert caller.stdout is not None
            assert caller.stdout.readline() == b"called\n"
    finally:
        for caller in callers:
            caller.kill()
            caller.communicate(timeout=10)
    served(stub)


def test_calls_that_are_cancelled_at_any_moment(server: ServerProcess, stub: Any) -> None:
    rng = random.Random(1)  # noqa: S311 - no secrets here
    for _ in range(20):
        calls = [stub.Sample.future(LONG if i % 3 else SMALL, timeout=20) for i in range(10)]
        time.sleep(rng.random() * 0.02)
        for call in calls:
            if rng.random() < 0.8:
                call.cancel()
        for call in calls:
            with contextlib.suppress(grpc.FutureCancelledError):
                assert call.exception() is None or call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---- the process itself ----


def test_a_server_that_is_stopped_and_continued_serves_again(server: ServerProcess, stub: Any) -> None:
    """Meanwhile a call ends when its caller said, and those that are late do not run afterwards."""
    rows = server.metric("latentry_items_total")
    server.signal_all(signal.SIGSTOP)
    try:
        calls = [stub.Sample.future(LONG, timeout=0.5) for _ in range(8)]
        assert {call.code() for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    finally:
        server.signal_all(signal.SIGCONT)
    served(stub, 3)
    wait_for(lambda: server.metric("latentry_in_flight") == 0, "all calls end")
    assert server.metric("latentry_items_total") - rows < 4 * 1024


def test_a_child_that_is_killed_takes_nothing_with_it(tmp_path: Path) -> None:
    """New versions are rehearsed in a process of their own; the old version serves on, and the reason is told."""
    linear_model.write(tmp_path / "models", "linear", 1)
    with server_process(tmp_path / "models", "--reload-s", "0") as server, server.channel() as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        served(stub)
        newer = linear_model.write(tmp_path / "staging", "linear", 2)
        newer.folder.rename(tmp_path / "models" / "linear" / "2")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: _children(server.engine), "the rehearsal begins")
        for child in _children(server.engine):
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: server.metric("latentry_refused_versions") == 1, "the version is refused")
        assert stub.Sample(SMALL, timeout=5).model.version == 1
        assert "SIGKILL" in server.log
        assert not _children(server.engine)
        assert server.stop() == 0


def _children(process: int) -> list[int]:
    lists = Path("/proc", str(process), "task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text().split()]


@pytest.mark.skipif(FRONTENDS > 1, reason="so few are refused where there are several processes")
def test_a_server_without_descriptors_refuses_and_recovers(linear_repository: Path) -> None:
    with server_process(linear_repository, first="ulimit -n 64") as server, server.channel() as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        served(stub)
        server.metrics()
        before = server.state()
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(http2.connection(server.port, b""))
            wait_for(lambda: server.descriptors() >= 62, "all descriptors are used up")
            served(stub)  # whoever is connected
        with server.channel() as another:
            vae_pb2_grpc.VaeServiceStub(another).Sample(SMALL, timeout=20, wait_for_ready=True)
        wait_for(lambda: server.descriptors() <= before.descriptors + 2, "descriptors come back")
        server.settle(before)
        assert server.stop() == 0


def test_a_full_disk_under_the_log_stops_nothing(linear_repository: Path) -> None:
    with Path("/dev/full").open("wb") as full, server_process(linear_repository, stderr=full) as server:
        with server.channel() as channel:
            stub = vae_pb2_grpc.VaeServiceStub(channel)
            served(stub)
            with pytest.raises(grpc.RpcError):
                stub.Sample(pb.SampleRequest(count=-1))
            server.process.send_signal(signal.SIGHUP)
            served(stub)
        assert server.metric("latentry_in_flight") == 0
        assert server.stop() == 0


def test_a_disk_that_was_full_is_written_to_again(linear_repository: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with (
            (disk / "log").open("ab") as log,
            server_process(linear_repository, "--log-level", "debug", stderr=log) as server,
            server.channel() as channel,
        ):
            ballast = disk / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as rest:
                while rest.write(bytes(4096)) == 4096:
                    pass
            stub = vae_pb2_grpc.VaeServiceStub(channel)
            while shutil.disk_usage(disk).free:
                stub.Sample(SMALL, timeout=5)
            served(stub)
            ballast.unlink()
            size = (disk / "log").stat().st_size
            served(stub)
            assert server.stop() == 0
            assert (disk / "log").stat().st_size > size
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=10)  # noqa: S607 - as mount was


def test_metrics_can_be_scraped_from_the_first_moment_on(linear: LinearModel, tmp_path: Path) -> None:
    """While models load and while they are called: a whole page or no connection, never half a page or an error."""
    for name in "abcdefgh":
        linear_model.write(tmp_path, name, 1, (64, 64, 3), 64)
    server = ServerProcess(tmp_path)
    try:
        pages = []
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            starting = pool.submit(server.wait_until_serving)
            while not starting.done():
                with contextlib.suppress(urllib.error.URLError):
                    pages.append(server.metrics())
                time.sleep(0.005)
            starting.result()
        pages.append(server.metrics())
        assert all(page["latentry_ready"] in (0, 1) for page in pages)
        assert pages[-1]["latentry_ready"] == 1
        assert all("latentry_in_flight" in page for page in pages)
    finally:
        server.close()


# ---- in this process ----


async def test_when_the_clock_jumps_calls_and_deadlines_go_on(
    linear_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits and what is measured goes by a clock that does not jump; the wall clock only stamps.

    The caller speaks by hand: gRPC's own client in this process would see the jump as well.
    """
    service = Service(settings_for(linear_repository))
    await service.start()
    try:
        real, real_ns = time.time, time.time_ns
        for jump, jump_s in enumerate((-86400, 86400 * 365, -86400 * 3650)):
            with http2.connection(service.port) as peer:
                body = pb.SampleRequest(count=256).SerializeToString()
                for i in range(10):
                    asked = http2.headers(SAMPLE, 1 + 2 * i, (("grpc-timeout", "20S"),))
                    peer.sendall(asked + http2.message(body, 1 + 2 * i))
                # gRPC itself reads the wall clock when a call arrives, and when it is asked what is left.
                while _started(service) < 10 * (jump + 1):  # noqa: ASYNC110 - a metric has no event
                    await asyncio.sleep(0.001)
                monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
                monkeypatch.setattr(time, "time_ns", lambda jump_s=jump_s: real_ns() + int(jump_s * 1e9))
                await asyncio.get_running_loop().run_in_executor(None, _read_answers, peer, 10)
            monkeypatch.undo()
        for metric in service.metrics.registry.collect():
            if metric.name.endswith("_seconds") and metric.type == "histogram":
                for sample in metric.samples:
                    assert not sample.name.endswith("_sum") or 0 <= sample.value < 60, sample
    finally:
        monkeypatch.undo()
        await service.stop()
    assert _answers(service) == {"OK"}


def _started(service: Service) -> float:
    labels = {"grpc_type": "unary", "grpc_service": "latentry.v1.VaeService", "grpc_method": "Sample"}
    return service.metrics.registry.get_sample_value("grpc_server_started_total", labels) or 0.0


def _answers(service: Service) -> set[str]:
    samples = [sample for metric in service.metrics.registry.collect() for sample in metric.samples]
    return {sample.labels["code"] for sample in samples if sample.name == "latentry_requests_total" and sample.value}


def _read_answers(peer: socket.socket, count: int) -> None:
    """Until so many calls have ended; windows are opened as they fill."""
    received = b""
    peer.sendall(http2.frame(http2.WINDOW_UPDATE, struct.pack(">I", 1 << 30)))
    for i in range(count):
        peer.sendall(http2.frame(http2.WINDOW_UPDATE, struct.pack(">I", 1 << 30), stream=1 + 2 * i))
    while sum(k == http2.HEADERS and bool(f & http2.END_STREAM) for k, f, *_ in http2.frames(received)) < count:
        data = peer.recv(1 << 20)
        assert data, "the server hung up"
        received += data


async def test_no_task_is_left_of_calls_that_end_in_every_way(linear_repository: Path) -> None:
    """Answered, refused, cancelled, late, and of a peer that is gone."""
    service = Service(settings_for(linear_repository, max_batch_size=1))
    await service.start()
    try:
        before = asyncio.all_tasks()
        await asyncio.get_running_loop().run_in_executor(None, _end_in_every_way, service.port)
        for _ in range(500):
            if len(asyncio.all_tasks()) <= len(before):
                break
            await asyncio.sleep(0.02)
        assert len(asyncio.all_tasks()) <= len(before), asyncio.all_tasks() - before
        assert service.metrics.registry.get_sample_value("latentry_in_flight") == 0
    finally:
        await service.stop()


def _end_in_every_way(port: int) -> None:
    for _ in range(5):
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = vae_pb2_grpc.VaeServiceStub(channel)
            stub.Sample(SMALL)
            refused = stub.Sample.future(pb.SampleRequest(count=-1))
            late = stub.Sample.future(LONG, timeout=0.005)
            cancelled = stub.Sample.future(LONG)
            cancelled.cancel()
            assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with http2.connection(port, http2.PREFACE + http2.settings()) as peer:
            peer.sendall(http2.call(SAMPLE, LONG.SerializeToString()))
            reset(peer)
