"""Clients of ours as load, in a process of their own; prints calls a second and their mean time as JSON.

    python -m benchmarks.client_load async   HOST:PORT SECONDS IN_FLIGHT        # latentry.AsyncClient
    python -m benchmarks.client_load threads HOST:PORT SECONDS IN_FLIGHT        # latentry.Client, as many threads
    python -m benchmarks.client_load stub    HOST:PORT SECONDS IN_FLIGHT        # the bare asyncio stub
    python -m benchmarks.client_load bytes   URL       CALLS   IN_FLIGHT BODY   # any gRPC call: BODY is its frame

All but the last decode one latent of 32 numbers a call to one image of 784 bytes, and fail if they get anything else.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np

from benchmarks import bodies, pacing
from benchmarks.echo_server import run
from benchmarks.load import connections_of
from latentry import AsyncClient, Client
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc

_OWN = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


def _latent() -> Any:
    return np.frombuffer(bodies.latents(1), np.float32).reshape(1, 32)


async def through_async_client(target: str, seconds: float, in_flight: int) -> str:
    """`latentry.AsyncClient`: concurrent `decode()`."""
    z = _latent()
    async with AsyncClient(target) as client:

        async def call() -> int:
            return int((await client.decode(z)).images.nbytes)

        return await pacing.in_coroutines([call] * in_flight, seconds)


async def through_stub(target: str, seconds: float, in_flight: int) -> str:
    """What grpcio generates, and nothing around it."""
    request = pb.DecodeRequest.FromString(bodies.decode(1))
    async with grpc.aio.insecure_channel(target) as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)

        async def call() -> int:
            return len((await stub.Decode(request)).images.tensor.data)

        return await pacing.in_coroutines([call] * in_flight, seconds)


def through_threads(target: str, seconds: float, in_flight: int) -> str:
    """`latentry.Client`, shared by as many threads."""
    z = _latent()
    with Client(target) as client:
        return pacing.in_threads([lambda: int(client.decode(z).images.nbytes)] * in_flight, seconds)


async def of_bytes(url: str, calls: int, in_flight: int, message: bytes) -> str:
    """So many calls of one message, spread over as many connections as h2load would make."""
    at = urlsplit(url)
    channels = [grpc.aio.insecure_channel(at.netloc, _OWN) for _ in range(connections_of(in_flight))]
    stubs = [channel.unary_unary(at.path, None, None) for channel in channels]
    left, spent = iter(range(calls)), 0.0

    async def worker(stub: Any) -> None:
        nonlocal spent
        for _ in left:
            started = time.perf_counter()
            await stub(message)
            spent += time.perf_counter() - started

    started = time.perf_counter()
    await asyncio.gather(*(worker(stubs[i % len(stubs)]) for i in range(in_flight)))
    rate = calls / (time.perf_counter() - started)
    for channel in channels:
        await channel.close(None)
    return json.dumps({"rate": rate, "mean_s": spent / calls})


def main() -> None:
    """Press, and say how it went."""
    kind, target, amount, in_flight = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    message = Path(sys.argv[5]).read_bytes()[5:] if kind == "bytes" else b""
    said: list[str] = []

    async def work() -> None:
        if kind == "bytes":
            said.append(await of_bytes(target, int(amount), in_flight, message))
        else:
            said.append(await {"async": through_async_client, "stub": through_stub}[kind](target, amount, in_flight))

    if kind == "threads":
        said.append(through_threads(target, amount, in_flight))
    else:
        run("uvloop", work())
    print(said[0])


if __name__ == "__main__":
    main()
