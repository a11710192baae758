"""A servicer between client and server that hands calls on when a test lets it, and keeps what was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

from latentry.v1 import vae_pb2_grpc

PATIENCE_S = 30.0


class Held(vae_pb2_grpc.VaeServiceServicer):
    """Hands on to `behind` while `gate` is set; `old`: as a server that knows no spans."""

    def __init__(self, behind: Any) -> None:
        self.behind = behind
        self.gate = threading.Event()
        self.asked: list[Any] = []
        self.came = threading.Semaphore(0)  # released for each call that has come
        self.left = threading.Semaphore(0)  # for each whose caller did not wait for the reply
        self.old = False
        self.port = 0

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.behind.GetModel(request)

    def Encode(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._hand_on(self.behind.Encode, request, context)

    def Decode(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._hand_on(self.behind.Decode, request, context)

    def Sample(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._hand_on(self.behind.Sample, request, context)

    def wait(self, calls: int) -> None:
        """Until so many more calls have come."""
        for _ in range(calls):
            assert self.came.acquire(timeout=PATIENCE_S)

    def _hand_on(self, rpc: Any, request: Any, context: Any) -> Any:
        ended = threading.Event()
        context.add_callback(ended.set)
        self.asked.append(request)
        self.came.release()
        while not self.gate.wait(0.01):
            if ended.is_set():
                self.left.release()
                context.abort(grpc.StatusCode.CANCELLED, "the caller left")
        if self.old:
            request.ClearField("spans")
        try:
            return rpc(request)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())


@contextmanager
def held(port: int) -> Iterator[Held]:
    """One before the service at `port`, its gate shut."""
    server = grpc.server(futures.ThreadPoolExecutor(40))
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        servicer = Held(vae_pb2_grpc.VaeServiceStub(channel))
        vae_pb2_grpc.add_VaeServiceServicer_to_server(servicer, server)
        servicer.port = server.add_insecure_port("localhost:0")
        server.start()
        try:
            yield servicer
        finally:
            servicer.gate.set()
            server.stop(None).wait()
