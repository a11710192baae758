"""Streams over the wire: what their parts are, and that a reader that is slow, stops or goes costs nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_servicer import array, latents, tensor

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving import interceptor
from serving.api import streams
from serving.errors import QuotaExceeded
from serving.server import Service


def stream(count: int, **fields: Any) -> pb.StreamSampleRequest:
    chunk = fields.pop("chunk_items", 0)
    return pb.StreamSampleRequest(sample=pb.SampleRequest(count=count, **{"seed": 3, **fields}), chunk_items=chunk)


def walk(steps: int, first_frame: int = 0, **fields: Any) -> pb.StreamInterpolateRequest:
    whole = pb.InterpolateRequest(latents=tensor(latents()), steps=steps, **fields)
    return pb.StreamInterpolateRequest(interpolate=whole, first_frame=first_frame)


def metric(service: Service, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    from prometheus_client import generate_latest

    families = text_string_to_metric_families(generate_latest(service.metrics.registry).decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(each.value for each in samples if labels.items() <= each.labels.items())


def until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < give_up, "it did not come to pass"
        time.sleep(0.01)


@pytest.fixture
def quiet(linear_service: Service) -> Iterator[Service]:
    """The service of the linear model, which has no call in hand before and after."""
    until(lambda: metric(linear_service, "latentry_in_flight") == 0)
    yield linear_service
    until(lambda: metric(linear_service, "latentry_in_flight") == 0)


# ---- what comes ----


def test_the_parts_are_the_whole_one_image_first(stub: Any) -> None:
    whole = stub.Sample(pb.SampleRequest(count=200, seed=3))
    parts = list(stub.StreamSample(stream(200)))
    sizes = [len(array(each.part.images.tensor)) for each in parts]
    assert sizes == [1, 64, 64, 64, 7]
    assert [each.first_index for each in parts] == [0, 1, 65, 129, 193]
    assert b"".join(each.part.latents.data for each in parts) == whole.latents.data
    assert b"".join(each.part.images.tensor.data for each in parts) == whole.images.tensor.data
    assert {each.part.seed for each in parts} == {3}
    assert {each.part.model.digest for each in parts} == {whole.model.digest}


@pytest.mark.parametrize("chunk", [1, 7, 64, 100, 1024])
def test_chunks_are_as_large_as_asked_for_and_begin_where_asked(stub: Any, chunk: int) -> None:
    whole = array(stub.Sample(pb.SampleRequest(count=100, seed=3, first_index=50)).latents)
    parts = list(stub.StreamSample(stream(100, first_index=50, chunk_items=chunk)))
    assert [len(array(each.part.latents)) for each in parts[:-1]] == [chunk] * (len(parts) - 1)
    assert [each.first_index for each in parts] == list(range(50, 150, chunk))
    assert np.concatenate([array(each.part.latents) for each in parts]).tolist() == whole.tolist()


def test_a_stream_without_a_seed_keeps_to_the_one_that_it_drew(stub: Any) -> None:
    parts = list(stub.StreamSample(pb.StreamSampleRequest(sample=pb.SampleRequest(count=70))))
    (seed,) = {each.part.seed for each in parts}
    whole = stub.Sample(pb.SampleRequest(count=70, seed=seed))
    assert b"".join(each.part.latents.data for each in parts) == whole.latents.data


def test_a_path_comes_in_parts_from_any_frame_on(stub: Any) -> None:
    for fields in ({}, {"loop": True, "path": pb.INTERPOLATION_PATH_CATMULL_ROM, "easing": pb.EASING_IN_OUT}):
        whole = stub.Interpolate(pb.InterpolateRequest(latents=tensor(latents()), steps=100, **fields))
        for first in (0, 77):
            parts = list(stub.StreamInterpolate(walk(100, first, **fields)))
            assert b"".join(each.part.latents.data for each in parts) == whole.latents.data[first * 5 * 4 :]
            assert parts[0].first_frame == first
            assert {each.frames for each in parts} == {len(array(whole.latents))}


def test_a_stream_may_be_longer_than_any_reply(stub: Any) -> None:
    most = stub.GetModel(pb.GetModelRequest()).model.limits.max_items
    parts = stub.StreamSample(stream(3 * most, chunk_items=most))
    assert sum(len(array(each.part.latents)) for each in parts) == 3 * most


def test_image_files_come_in_streams_too(stub: Any) -> None:
    output = pb.ImageOutput(format=pb.IMAGE_FORMAT_PNG)
    whole = stub.Sample(pb.SampleRequest(count=70, seed=3, output=output)).images.encoded.images
    parts = stub.StreamSample(stream(70, output=output))
    assert [file for each in parts for file in each.part.images.encoded.images] == list(whole)


@pytest.mark.parametrize(
    ("call", "request_", "field"),
    [
        ("StreamSample", stream(0), "count"),
        ("StreamSample", stream((1 << 20) + 1), "count"),
        ("StreamSample", stream(-1), "count"),
        ("StreamSample", stream(1, first_index=-1), "first_index"),
        ("StreamSample", stream(1, first_index=2**63 - 1), None),
        ("StreamSample", stream(2, first_index=2**63 - 1), "first_index"),
        ("StreamSample", stream(1, chunk_items=-1), "chunk_items"),
        ("StreamSample", stream(1, chunk_items=1 << 20), "chunk_items"),
        ("StreamSample", stream(1, output=pb.ImageOutput(format=pb.IMAGE_FORMAT_GIF)), "output.format"),
        ("StreamInterpolate", walk(1), "steps"),
        ("StreamInterpolate", walk(1 << 20), "steps"),
        ("StreamInterpolate", walk(5, -1), "first_frame"),
        ("StreamInterpolate", walk(5, 9), "first_frame"),
        ("StreamInterpolate", walk(5, output=pb.ImageOutput(format=pb.IMAGE_FORMAT_GIF)), "output.format"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(stub: Any, call: str, request_: Any, field: str | None) -> None:
    replies = getattr(stub, call)(request_)
    if field is None:
        assert len(list(replies)) == 1
        return
    with pytest.raises(grpc.RpcError) as refused:
        list(replies)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(f"{field}: got ")


def test_streams_are_counted_by_their_kind(quiet: Service, stub: Any) -> None:
    labels = {"grpc_type": "server_stream", "grpc_method": "StreamSample", "grpc_code": "OK"}
    before = metric(quiet, "grpc_server_handled_total", **labels)
    items = metric(quiet, "latentry_items_total", graph="decoder")
    assert len(list(stub.StreamSample(stream(150)))) == 4
    assert metric(quiet, "grpc_server_handled_total", **labels) == before + 1
    assert metric(quiet, "latentry_items_total", graph="decoder") == items + 150


# ---- readers ----


def made(service: Service) -> float:
    return metric(service, "latentry_items_total", graph="decoder")


def test_a_reader_that_waits_makes_no_work(quiet: Service) -> None:
    """What is made ahead is bounded by gRPC's buffers: 64 KiB of flow control and what lies in sockets."""
    before, total = made(quiet), 1 << 20
    options = [("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(f"localhost:{quiet.port}", options) as channel:
        replies = vae_pb2_grpc.VaeServiceStub(channel).StreamSample(stream(total))
        next(replies)
        time.sleep(0.3)
        first = made(quiet)
        time.sleep(0.5)
        assert made(quiet) == first, "work went on though nobody read"
        assert first - before < total / 10
        for _ in range(2000):
            next(replies)
        assert made(quiet) > first
        replies.cancel()


def test_a_stream_that_is_cancelled_ends_its_work(quiet: Service, stub: Any) -> None:
    cancelled = {"rpc": "StreamSample", "code": "CANCELLED"}
    before = metric(quiet, "latentry_requests_total", **cancelled)
    replies = stub.StreamSample(stream(1 << 20))
    for _ in range(3):
        next(replies)
    replies.cancel()
    until(lambda: metric(quiet, "latentry_requests_total", **cancelled) == before + 1)
    until(lambda: metric(quiet, "latentry_in_flight") == 0)
    after = made(quiet)
    time.sleep(0.1)
    assert made(quiet) == after


def test_a_deadline_ends_a_stream_with_what_came_before(quiet: Service, stub: Any) -> None:
    came: list[Any] = []
    with pytest.raises(grpc.RpcError) as ended:
        came.extend(stub.StreamSample(stream(1 << 20), timeout=0.5))
    assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(came) > 1


def test_a_reader_that_has_stopped_is_let_go(quiet: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "_PATIENCE_S", 0.3)
    options = [("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(f"localhost:{quiet.port}", options) as channel:
        replies = vae_pb2_grpc.VaeServiceStub(channel).StreamSample(stream(1 << 20))
        next(replies)
        until(lambda: metric(quiet, "latentry_in_flight") == 0)
        with pytest.raises(grpc.RpcError) as ended:
            list(replies)
        assert ended.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "was not read for 0.3 s" in ended.value.details()
        fresh = vae_pb2_grpc.VaeServiceStub(channel).Sample(pb.SampleRequest(count=1), timeout=5)
        assert len(array(fresh.latents)) == 1


def test_what_nobody_reads_counts_until_the_call_is_over(quiet: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC holds it for as long: a reader that has stopped gets no more on that connection."""
    monkeypatch.setattr(interceptor, "_PATIENCE_S", 0.2)
    options = [("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(f"localhost:{quiet.port}", options) as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        stalled = [stub.StreamSample(stream(1 << 20, chunk_items=256)) for _ in range(3)]
        for replies in stalled:
            next(replies)
        monkeypatch.setattr(interceptor, "_MAX_UNREAD_BYTES", 1_000)  # less than one part: the last to stop is held
        until(lambda: metric(quiet, "latentry_in_flight") == 0)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Sample(pb.SampleRequest(count=1), timeout=5)
        assert "not being read" in refused.value.details()
        for replies in stalled:
            replies.cancel()
        until(lambda: bool(stub.Sample.with_call(pb.SampleRequest(count=1), timeout=5)))


def test_a_stream_keeps_to_its_callers_quota(serve: Any, linear_repository: Any) -> None:
    service = serve(linear_repository, quota_items_per_s=400.0, quota_burst_items=64)
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        began = time.monotonic()
        parts = list(vae_pb2_grpc.VaeServiceStub(channel).StreamSample(stream(300, chunk_items=32)))
        assert sum(len(array(each.part.latents)) for each in parts) == 300
        assert time.monotonic() - began > (300 - 64) / 400 * 0.9
        with pytest.raises(grpc.RpcError) as refused:
            vae_pb2_grpc.VaeServiceStub(channel).Sample(pb.SampleRequest(count=64))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, "others of this caller are told at once"


def test_streams_that_have_begun_wait_for_room_in_the_queue(serve: Any, linear_repository: Any) -> None:
    service = serve(linear_repository, max_queue_items=32, max_batch_size=8, max_request_items=16)
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        begun = [stub.StreamSample(stream(400, chunk_items=16, seed=k)) for k in range(12)]
        came: dict[int, int] = {}

        def read(k: int, replies: Any) -> None:
            try:
                came[k] = sum(len(array(each.part.latents)) for each in replies)
            except grpc.RpcError as error:
                came[k] = -error.code().value[0]

        readers = [threading.Thread(target=read, args=each) for each in enumerate(begun)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        full = -grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert set(came.values()) <= {400, full}, "the first part may find it full; none ends halfway"
        assert 400 in came.values()


def test_small_calls_are_answered_while_streams_run(quiet: Service, stub: Any) -> None:
    stop = threading.Event()

    def read() -> None:
        replies = stub.StreamSample(stream(1 << 20))
        for _ in replies:
            if stop.is_set():
                replies.cancel()
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for k in range(20):
            reply = stub.Sample(pb.SampleRequest(count=1, seed=8, first_index=k), timeout=10)
            assert len(array(reply.latents)) == 1
    finally:
        stop.set()
        for reader in readers:
            reader.join(20)


def test_a_server_that_drains_finishes_streams_that_end_in_time(serve: Any, linear_repository: Any) -> None:
    service = serve(linear_repository, drain_s=10.0, drain_grace_s=0.0)
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        replies = vae_pb2_grpc.VaeServiceStub(channel).StreamSample(stream(2000))
        next(replies)
        loop = service._servers[0]._loop
        drained = asyncio.run_coroutine_threadsafe(service.drain(), loop)
        assert 1 + sum(len(array(each.part.latents)) for each in replies) == 2000
        drained.result(20)


# ---- one ahead ----


async def test_only_one_part_is_worked_on_ahead_of_the_reader() -> None:
    begun: list[int] = []

    async def part(k: int) -> int:
        begun.append(k)
        return k

    work = streams.one_ahead(part(k) for k in range(10))
    assert await anext(work) == 0
    await asyncio.sleep(0.01)
    assert begun == [0], "the second may be many times as large: it waits until the first is taken"
    assert await anext(work) == 1
    await asyncio.sleep(0.01)
    assert begun == [0, 1, 2]
    await work.aclose()
    assert begun == [0, 1, 2]


async def test_a_part_that_fails_ends_the_others() -> None:
    ended: list[str] = []

    async def part(k: int) -> int:
        if k == 1:
            await asyncio.sleep(0.01)
            raise ValueError(k)
        try:
            await asyncio.sleep(10 if k == 2 else 0)
        except asyncio.CancelledError:
            ended.append(f"{k} was cancelled")
            raise
        return k

    work = streams.one_ahead(part(k) for k in range(5))
    assert await anext(work) == 0
    with pytest.raises(ValueError, match="1"):
        await anext(work)
    assert ended == ["2 was cancelled"]


async def test_a_part_waits_for_room_unless_that_takes_too_long() -> None:
    tries = 0

    async def attempt() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise QuotaExceeded("quota", 0.01)
        return tries

    async def too_long() -> int:
        raise QuotaExceeded("quota", 61.0)

    assert await streams.patiently(attempt) == 3
    with pytest.raises(QuotaExceeded):
        await asyncio.wait_for(streams.patiently(too_long), 1)


async def test_what_waits_for_room_is_begun_only_then() -> None:
    begun: list[int] = []
    room = asyncio.Event()

    async def part(k: int) -> int:
        begun.append(k)
        return k

    async def wait() -> None:
        await room.wait()

    work = streams.one_ahead((part(k) for k in range(4)), wait)
    assert await anext(work) == 0
    following = asyncio.ensure_future(anext(work))
    await asyncio.sleep(0.02)
    assert begun == [0]
    room.set()
    assert await following == 1
    assert [k async for k in work] == [2, 3]
