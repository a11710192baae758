"""StreamSample(1000) against Sample: how soon its first image comes, and how fast they all do.

Both through one client of grpcio's in this process, one call at a time, with the model that comes with Latentry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from benchmarks.figures import Figure, ratio
from benchmarks.plan import Plan
from latentry.manifest import embedded_models
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc

IMAGES = 1000
_BATCH = 64
_REPEATS = 20  # lone calls and first images a round


def measure(plan: Plan) -> Iterator[Figure]:
    """In turn, round by round."""
    with plan.latentry(embedded_models()) as (_, port, _ready), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        _unary(stub, IMAGES)  # warm
        rounds = [_round(stub) for _ in range(plan.rounds)]
    single, first, unary, stream = (list(each) for each in zip(*rounds, strict=True))
    yield Figure("Sample(1)", "ms", tuple(1e3 * s for s in single))
    yield Figure(f"StreamSample({IMAGES}): first image", "ms", tuple(1e3 * s for s in first))
    yield Figure(f"Sample({_BATCH}), one after another", "images/s", tuple(IMAGES / s for s in unary))
    yield Figure(f"StreamSample({IMAGES})", "images/s", tuple(IMAGES / s for s in stream))
    yield ratio("stream: first image / a Sample's latency", first, single, at_most=2.0)
    yield ratio("stream: images/s / unary batches'", unary, stream, at_least=0.85)


def _round(stub: Any) -> tuple[float, float, float, float]:
    single = _middle(lambda: _timed(lambda: stub.Sample(pb.SampleRequest(count=1, seed=1))))
    first = _middle(lambda: _first(stub))
    unary = _timed(lambda: _unary(stub, IMAGES))
    stream = _timed(lambda: sum(reply.part.images.tensor.shape[0] for reply in stub.StreamSample(_request())))
    return single, first, unary, stream


def _middle(measure_once: Callable[[], float]) -> float:
    """The median of so many."""
    return sorted(measure_once() for _ in range(_REPEATS))[_REPEATS // 2]


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _first(stub: Any) -> float:
    """Of a stream that nothing is before: what was begun for the last one, which was left, has to end first."""
    stub.Sample(pb.SampleRequest(count=1, seed=1))
    started = time.perf_counter()
    stream = stub.StreamSample(_request())
    next(stream)
    taken = time.perf_counter() - started
    stream.cancel()
    return taken


def _unary(stub: Any, images: int) -> None:
    for at in range(0, images, _BATCH):
        stub.Sample(pb.SampleRequest(count=min(_BATCH, images - at), seed=1, first_index=at))


def _request() -> pb.StreamSampleRequest:
    return pb.StreamSampleRequest(sample=pb.SampleRequest(count=IMAGES, seed=1))
