"""Seeds are addresses: three replicas of different make give the same latents byte for byte, however they are asked.

The replicas are processes of their own. They differ in threads, in the size of batches, in the precision of their
graphs, and one is restarted on the way; a fourth client keeps all of them busy, so that batches are mixed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from server_process import ROOT, ServerProcess
from test_servicer import array

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc

FIRST, LAST = 0, 40
MODELS = ROOT / "models"
FLAGS = (
    ("--threads", "1"),
    ("--threads", "2", "--max-batch-size", "7", "--max-queue-delay-ms", "3"),
    ("--threads", "1", "--precision", "int8"),
)


@dataclass(frozen=True)
class Asked:
    """A way to ask for some images of seed 11."""

    model: str
    fields: dict[str, Any]

    def request(self, first: int, count: int) -> pb.SampleRequest:
        return pb.SampleRequest(
            model=pb.ModelSelector(name=self.model), seed=11, first_index=first, count=count, **self.fields
        )


WAYS = {
    "plain": Asked("fashion", {}),
    "truncated": Asked("fashion", {"truncation": 0.8, "temperature": 0.9}),
    "clamped": Asked("fashion", {"truncation": 1.5, "truncation_mode": pb.TRUNCATION_CLAMP}),
    "flow": Asked("mnist-binary", {}),
}


def pieces(size: int) -> Iterator[tuple[int, int]]:
    for first in range(FIRST, LAST, size):
        yield first, min(size, LAST - first)


def unary(stub: Any, asked: Asked, size: int) -> tuple[bytes, Any]:
    """Latents and images, asked for in calls of `size` that run at the same time."""
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda piece: stub.Sample(asked.request(*piece), timeout=60), pieces(size)))
    return _joined(replies)


def streamed(stub: Any, asked: Asked, size: int) -> tuple[bytes, Any]:
    request = pb.StreamSampleRequest(sample=asked.request(FIRST, LAST - FIRST), chunk_items=size)
    return _joined([each.part for each in stub.StreamSample(request, timeout=60)])


def _joined(replies: list[Any]) -> tuple[bytes, Any]:
    images = np.concatenate([array(each.images.tensor) for each in replies])
    return b"".join(each.latents.data for each in replies), images.astype(int)


@contextmanager
def busy(stubs: list[Any]) -> Iterator[None]:
    """Other calls of other seeds, all the while."""
    stop = threading.Event()

    def call(stub: Any) -> None:
        k = 0
        while not stop.is_set():
            k += 1
            stub.Sample(pb.SampleRequest(count=1 + k % 5, seed=k), timeout=60)

    threads = [threading.Thread(target=call, args=(stub,)) for stub in stubs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def start(flags: tuple[str, ...], models: Any) -> ServerProcess:
    server = ServerProcess(models, *flags)
    server.wait_until_serving()
    return server


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """All shipped models; and only the one that comes in int8."""
    only = tmp_path_factory.mktemp("only")
    (only / "fashion").symlink_to(MODELS / "fashion")
    return MODELS, only


def test_any_replica_gives_the_same_latents_in_any_chunks(repositories: tuple[Any, Any]) -> None:
    everything, only = repositories
    servers = [start(FLAGS[0], everything), start(FLAGS[1], everything), start(FLAGS[2], only)]
    try:
        channels = [server.channel() for server in servers]
        stubs = [vae_pb2_grpc.VaeServiceStub(channel) for channel in channels]
        precisions = [stub.GetModel(pb.GetModelRequest()).model.precision for stub in stubs]
        assert precisions == ["fp32", "fp32", "int8"]
        wanted = {name: unary(stubs[0], asked, LAST) for name, asked in WAYS.items()}
        with busy(stubs):
            for name, asked in WAYS.items():
                for number, stub in enumerate(stubs if asked.model == "fashion" else stubs[:2]):
                    for ask, size in ((unary, LAST), (unary, 13), (unary, 1), (streamed, 0), (streamed, 7)):
                        latents, images = ask(stub, asked, size)
                        case = f"{name} in {size} from replica {number}"
                        assert latents == wanted[name][0], case
                        if precisions[number] == "fp32":
                            assert np.abs(images - wanted[name][1]).max() <= 1, case
        for channel in channels:
            channel.close()
        servers[0].process.terminate()
        assert servers[0].process.wait(30) == 0
        servers.append(start(FLAGS[0], everything))
        with servers[-1].channel() as channel:
            again = vae_pb2_grpc.VaeServiceStub(channel)
            for name, asked in WAYS.items():
                assert unary(again, asked, 20)[0] == wanted[name][0], f"{name} after a restart"
    finally:
        for server in servers:
            server.close()


def test_what_a_seed_means_stays_what_it_was(repositories: tuple[Any, Any]) -> None:
    """The bytes of one request, kept here: a release that changes them changes everybody's pictures."""
    server = start(FLAGS[0], repositories[1])
    try:
        with server.channel() as channel:
            stub = vae_pb2_grpc.VaeServiceStub(channel)
            digests = {
                name: hashlib.sha256(stub.Sample(WAYS[name].request(0, 100)).latents.data).hexdigest()[:16]
                for name in ("plain", "truncated", "clamped")
            }
    finally:
        server.close()
    assert digests == {"plain": "c687779b5e15b8ba", "truncated": "52028dea2435fae3", "clamped": "942323c13c4f88ce"}
