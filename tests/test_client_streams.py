"""Streams as both clients read them: in parts, left early, split, and gone on with where they broke.

Between client and server stands a servicer that hands everything on, and breaks streams as a test tells it to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import ROOT, running_service, settings_for

from latentry import AsyncClient, Client, LatentryError, Pictures
from latentry.v1 import vae_pb2_grpc
from serving.server import Service

Parts = list[Pictures]
Read = Callable[..., Parts]
STALL = grpc.StatusCode.DEADLINE_EXCEEDED  # how a stream ends that stands still
UNAVAILABLE, FULL, INTERNAL = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
)


class Breaking(vae_pb2_grpc.VaeServiceServicer):
    """Hands on to `behind`; `breaks` are the parts after which each stream breaks, and with what."""

    def __init__(self, behind: Any) -> None:
        self.behind = behind
        self.breaks: list[tuple[int, grpc.StatusCode]] = []
        self.asked: list[Any] = []
        self.max_stream_items = 1000
        self.another_model = False
        self.port = 0
        self.cancelled = futures.Future[bool]()

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        reply = self.behind.GetModel(request)
        reply.model.limits.max_stream_items = self.max_stream_items
        return reply

    def StreamSample(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._hand_on(self.behind.StreamSample, request, context)

    def StreamInterpolate(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._hand_on(self.behind.StreamInterpolate, request, context)

    def _hand_on(self, rpc: Any, request: Any, context: Any) -> Iterator[Any]:
        self.asked.append(request)
        context.add_callback(lambda: self.cancelled.done() or self.cancelled.set_result(True))
        most, code = self.breaks.pop(0) if self.breaks else (10**9, UNAVAILABLE)
        for at, reply in enumerate(rpc(request)):
            if at == most and code is STALL:
                self.cancelled.result(timeout=30)
            if at == most:
                context.abort(code, "it broke")
            if self.another_model and len(self.asked) > 1:
                reply.part.model.digest = "another"
            yield reply


@pytest.fixture(scope="module")
def shipped() -> Iterator[Service]:
    with running_service(settings_for(ROOT / "models")) as service:
        yield service


@pytest.fixture
def breaking(shipped: Service) -> Iterator[Breaking]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    with grpc.insecure_channel(f"localhost:{shipped.port}") as channel:
        servicer = Breaking(vae_pb2_grpc.VaeServiceStub(channel))
        vae_pb2_grpc.add_VaeServiceServicer_to_server(servicer, server)
        servicer.port = server.add_insecure_port("localhost:0")
        server.start()
        yield servicer
        server.stop(None).wait()


@pytest.fixture(params=["sync", "async"])
def read(request: pytest.FixtureRequest, breaking: Breaking, impatient: None) -> Read:
    """All parts of a stream, `read("stream_sample", 10, seed=1)`, with one client or the other."""
    target = f"localhost:{breaking.port}"

    async def collected(name: str, *args: Any, timeout_s: float = 60.0, **options: Any) -> Parts:
        async with AsyncClient(target) as client:
            await client.info()
            client.timeout_s = timeout_s
            return [part async for part in getattr(client, name)(*args, **options)]

    def listed(name: str, *args: Any, timeout_s: float = 60.0, **options: Any) -> Parts:
        with Client(target) as client:
            client.info()
            client.timeout_s = timeout_s
            return list(getattr(client, name)(*args, **options))

    return listed if request.param == "sync" else lambda *args, **options: asyncio.run(collected(*args, **options))


@pytest.fixture
def whole(shipped: Service) -> Iterator[Client]:
    with Client(f"localhost:{shipped.port}") as client:
        yield client


def latents(parts: Parts) -> list[list[float]]:
    z: list[list[float]] = np.concatenate([part.latents for part in parts]).tolist()
    return z


def test_a_stream_has_the_images_of_the_call(read: Read, whole: Client) -> None:
    parts = read("stream_sample", 40, seed=3, truncation=1.5, chunk_items=7)
    assert [len(part.images) for part in parts] == [7, 7, 7, 7, 7, 5]
    expected = whole.sample(40, seed=3, truncation=1.5)
    assert latents(parts) == expected.latents.tolist()
    levels = np.concatenate([part.images for part in parts]).astype(int) - expected.images
    assert np.abs(levels).max() <= 1
    for part in parts:
        assert (part.seed, part.model, part.provenance.precision) == (3, expected.model, "fp32")
        assert part.provenance.timings.total_s > 0


def test_the_first_part_is_one_image_unless_asked_otherwise(read: Read) -> None:
    assert len(read("stream_sample", 12, seed=1)[0].images) == 1


def test_a_walk_comes_in_parts_from_any_image_on(read: Read, whole: Client) -> None:
    keys = whole.sample(3, seed=1).latents
    options: dict[str, Any] = {"steps": 9, "path": "catmull-rom", "easing": "in-out", "loop": True}
    expected = whole.interpolate(keys, **options).latents.tolist()
    assert len(expected) == 24
    assert latents(read("stream_interpolate", keys, chunk_items=5, **options)) == expected
    assert latents(read("stream_interpolate", keys, first_frame=11, **options)) == expected[11:]


@pytest.mark.parametrize("code", [UNAVAILABLE, FULL])
def test_a_broken_stream_goes_on_where_it_was(
    read: Read, whole: Client, breaking: Breaking, code: grpc.StatusCode
) -> None:
    breaking.breaks = [(2, code), (0, code), (0, code), (1, code)]
    parts = read("stream_sample", 30, seed=9, first_index=5, chunk_items=4)
    assert latents(parts) == whole.sample(30, seed=9, first_index=5).latents.tolist()
    assert [each.sample.first_index for each in breaking.asked] == [5, 13, 13, 13, 17]
    assert [each.sample.count for each in breaking.asked] == [30, 22, 22, 22, 18]


def test_a_broken_walk_goes_on_where_it_was(read: Read, whole: Client, breaking: Breaking) -> None:
    keys = whole.sample(2, seed=1).latents
    breaking.breaks = [(3, UNAVAILABLE)]
    assert latents(read("stream_interpolate", keys, steps=20, chunk_items=4)) == (
        whole.interpolate(keys, steps=20).latents.tolist()
    )
    assert [each.first_frame for each in breaking.asked] == [0, 12]


def test_the_seed_that_the_server_drew_stays_that_of_all(read: Read, whole: Client, breaking: Breaking) -> None:
    breaking.breaks = [(1, UNAVAILABLE)]
    parts = read("stream_sample", 9, chunk_items=3)
    (seed,) = {part.seed for part in parts}
    assert latents(parts) == whole.sample(9, seed=seed).latents.tolist()


def test_a_stream_beyond_the_limit_is_split_unnoticed(read: Read, whole: Client, breaking: Breaking) -> None:
    breaking.max_stream_items = 16
    parts = read("stream_sample", 40, seed=2, chunk_items=10)
    assert latents(parts) == whole.sample(40, seed=2).latents.tolist()
    assert [each.sample.count for each in breaking.asked] == [16, 16, 8]


def test_a_stream_that_makes_no_progress_is_given_up(read: Read, breaking: Breaking) -> None:
    breaking.breaks = [(1, UNAVAILABLE)] + [(0, UNAVAILABLE)] * 20
    with pytest.raises(LatentryError, match="it broke") as caught:
        read("stream_sample", 9, seed=1)
    assert caught.value.code is UNAVAILABLE
    assert len(breaking.asked) == 8


def test_what_is_no_passing_trouble_is_not_tried_again(read: Read, breaking: Breaking) -> None:
    breaking.breaks = [(1, INTERNAL)]
    with pytest.raises(LatentryError, match="it broke") as caught:
        read("stream_sample", 9, seed=1)
    assert caught.value.code is INTERNAL
    assert len(breaking.asked) == 1


def test_another_model_does_not_go_on_with_the_stream_of_the_first(read: Read, breaking: Breaking) -> None:
    breaking.breaks, breaking.another_model = [(1, UNAVAILABLE)], True
    with pytest.raises(LatentryError, match="changed its model") as caught:
        read("stream_sample", 9, seed=1)
    assert caught.value.code is grpc.StatusCode.ABORTED


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_that_is_none_is_refused_by_the_server(read: Read, count: int) -> None:
    with pytest.raises(LatentryError, match=rf"count: got {count}, wanted"):
        read("stream_sample", count)


def test_leaving_the_loop_cancels_the_stream(breaking: Breaking) -> None:
    with Client(f"localhost:{breaking.port}") as client:
        for _ in client.stream_sample(1000, seed=1, chunk_items=1):
            break
        assert breaking.cancelled.result(timeout=10)


async def test_closing_the_generator_cancels_the_stream(breaking: Breaking) -> None:
    async with AsyncClient(f"localhost:{breaking.port}") as client:
        async with aclosing(client.stream_sample(1000, seed=1, chunk_items=1)) as parts:
            assert len((await anext(parts)).images) == 1
        assert await asyncio.wrap_future(breaking.cancelled)


def test_a_deadline_that_passes_between_parts_ends_no_stream(read: Read, whole: Client, breaking: Breaking) -> None:
    breaking.breaks = [(2, STALL)]
    parts = read("stream_sample", 30, seed=9, chunk_items=4, timeout_s=1.0)
    assert latents(parts) == whole.sample(30, seed=9).latents.tolist()
    assert [each.sample.first_index for each in breaking.asked] == [0, 8]


def test_a_stream_without_a_part_by_the_deadline_is_given_up(read: Read, breaking: Breaking) -> None:
    breaking.breaks = [(0, STALL)]
    with pytest.raises(LatentryError) as caught:
        read("stream_sample", 30, seed=9, timeout_s=0.5)
    assert caught.value.code is STALL
    assert len(breaking.asked) == 1
