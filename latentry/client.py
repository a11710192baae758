"""`Client` and `AsyncClient`: numpy and Pillow in, numpy and Pillow out.

    with latentry.Client("localhost:50051") as client:
        client.sample(64, seed=7).grid().save("samples.png")

The channel's message limits come from the model (GetModel), larger inputs are split to fit, and a server that is not
there yet, or going away, is tried again with growing pauses. Knows nothing of how a server works.
"""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any, Literal, TypeVar

import grpc
import numpy.typing as npt

from latentry import plans
from latentry.messages import ImageInput
from latentry.pictures import Pictures, Posterior
from latentry.plaintext import check_token, insecure_options
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc

T = TypeVar("T")
Resize = Literal["crop", "stretch"]
Path = Literal["linear", "spherical"]
Dtype = Literal["uint8", "float32"]
Priority = Literal["interactive", "background"]

DEFAULT_TARGET = "localhost:50051"
_ATTEMPTS = 5  # as many as gRPC allows: pauses of about 0.2, 0.4, 0.8 and 1.6 s between them
_RETRY = {
    "methodConfig": [
        {
            "name": [{"service": "latentry.v1.VaeService"}],
            "retryPolicy": {
                "maxAttempts": _ATTEMPTS,
                "initialBackoff": "0.2s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class LatentryError(Exception):
    """A call that the server did not answer: `code` is the gRPC status, the message says what was wrong."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        self.code = code
        super().__init__(f"{code.name}: {message}")


class _Target:
    """What both clients know: where the server is and which model is meant."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "",
        version: int | None = None,
        label: str | None = None,
        priority: Priority = "interactive",
        token: str | None = None,
        tls: grpc.ChannelCredentials | bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        """Connect to `target` ("host:port") when first called; `timeout_s` bounds each call, retries included.

        `model`, and `version` or `label`, choose among the server's models; by default its default model, newest
        version. `background` calls run when no interactive ones wait. `tls` is True to trust the authorities that gRPC
        trusts, or what `grpc.ssl_channel_credentials` makes of others and of a certificate of one's own. A `token`
        goes with every call, and over TLS only, unless the target is this machine. Raises `ValueError` for what cannot
        be.
        """
        if version is not None and label is not None:
            raise ValueError(f"version and label: got {version} and {label!r}, wanted one of them")
        if token is not None:
            check_token(token, target, secure=bool(tls))
        self.target = target
        self.timeout_s = timeout_s
        self._selector = pb.ModelSelector(name=model, version=version, label=label)
        self._metadata: list[tuple[str, str]] = [("latentry-priority", priority)] if priority != "interactive" else []
        self._metadata += [("authorization", f"Bearer {token}")] if token is not None else []
        self._credentials = grpc.ssl_channel_credentials() if tls is True else tls or None
        self._info: pb.ModelInfo | None = None
        self._lock = threading.Lock()
        self._channel_bytes = 0  # the message limit that the channel was opened with

    @staticmethod
    def _options(most: int | None = None) -> list[tuple[str, Any]]:
        """The channel's options; without `most`, gRPC's own limits: what describes a model is small."""
        options: list[tuple[str, Any]] = [("grpc.service_config", json.dumps(_RETRY))]
        if most is not None:
            options += [
                ("grpc.max_receive_message_length", most),
                ("grpc.max_send_message_length", most),
                ("grpc.per_rpc_retry_buffer_size", most),
            ]
        return options

    def _same_model(self, digest: str, reply: Any) -> str:
        """The digest of the model that answered; `digest` is that of the parts before, or empty.

        Raises `LatentryError` if another model answered them. A model that is not the one that `info` described is
        asked about again before the next call.
        """
        answered: str = reply.model.digest
        if digest and answered != digest:
            raise LatentryError(grpc.StatusCode.ABORTED, "the server changed its model between parts of this call")
        if self._info is not None and answered != self._info.model.digest:
            self._info = None
        return answered


class Client(_Target):
    """Calls a Latentry server; for threads to share. A context manager, or `close` it.

    Every call raises `LatentryError` when the server refuses it, and `ValueError` for what cannot be sent.
    """

    _channel: grpc.Channel | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def info(self) -> pb.ModelInfo:
        """The model: its shapes, limits, likelihood, figures. Asked once, then remembered."""
        info = self._info
        if info is None:
            with self._connect(self._options()) as channel:
                reply = self._call(
                    vae_pb2_grpc.VaeServiceStub(channel), "GetModel", pb.GetModelRequest(model=self._selector)
                )
            info = self._info = reply.model
        return info

    def models(self) -> list[pb.ModelInfo]:
        """Every model that the server has loaded."""
        with self._connect(self._options()) as channel:
            return list(self._call(vae_pb2_grpc.VaeServiceStub(channel), "ListModels", pb.ListModelsRequest()).models)

    def encode(
        self, images: ImageInput, *, seed: int | None = None, temperature: float = 1.0, resize: Resize | None = None
    ) -> Posterior:
        """q(z|x) of images: an array [N, H, W, C] (uint8, or floats in [0, 1]), Pillow images, paths or file bytes.

        With a `seed` also a draw, its noise scaled by `temperature`. `resize` fits images of other sizes.
        """
        return self._drive(plans.encode(self.info(), self._selector, images, seed, temperature, resize))

    def decode(self, latents: npt.ArrayLike, *, dtype: Dtype = "uint8") -> Pictures:
        """Images of latents [N, Z]: the mean of p(x|z), as uint8 or as float32 in [0, 1]."""
        return self._drive(plans.decode(self.info(), self._selector, latents, dtype))

    def sample(
        self,
        count: int = 1,
        *,
        seed: int | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        dtype: Dtype = "uint8",
    ) -> Pictures:
        """`count` images from the prior. Image k of a seed is always the same; `first_index` says where to begin."""
        return self._drive(plans.sample(self.info(), self._selector, count, seed, first_index, temperature, dtype))

    def interpolate(
        self,
        key_frames: ImageInput,
        *,
        steps: int = 8,
        path: Path = "linear",
        resize: Resize | None = None,
        dtype: Dtype = "uint8",
    ) -> Pictures:
        """A walk from key frame to key frame, `steps` images from each to the next, both included.

        `key_frames` are latents, an array [K, Z], or images as `encode` takes them; two or more.
        """
        return self._drive(plans.interpolate(self.info(), self._selector, key_frames, steps, path, resize, dtype))

    def _drive(self, plan: plans.Plan[T]) -> T:
        stub, digest = vae_pb2_grpc.VaeServiceStub(self._open()), ""
        try:
            call = next(plan)
            while True:
                reply = self._call(stub, *call)
                digest = self._same_model(digest, reply)
                call = plan.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result

    def _open(self) -> grpc.Channel:
        most = self.info().limits.max_message_bytes
        with self._lock:
            if self._channel is None or self._channel_bytes != most:
                self._channel, self._channel_bytes = self._connect(self._options(most)), most
            return self._channel

    def _connect(self, options: list[tuple[str, Any]]) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self.target, options + insecure_options(self.target))
        return grpc.secure_channel(self.target, self._credentials, options)

    def _call(self, stub: Any, rpc: str, request: Any) -> Any:
        try:
            return getattr(stub, rpc)(request, timeout=self.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise LatentryError(error.code(), error.details() or "") from error


class AsyncClient(_Target):
    """`Client` for asyncio: the same calls, awaited. For one event loop."""

    _channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; a later call opens it again."""
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    async def info(self) -> pb.ModelInfo:
        """See `Client.info`."""
        info = self._info
        if info is None:
            async with self._connect(self._options()) as channel:
                stub = vae_pb2_grpc.VaeServiceStub(channel)
                reply = await self._call(stub, "GetModel", pb.GetModelRequest(model=self._selector))
            info = self._info = reply.model
        return info

    async def models(self) -> list[pb.ModelInfo]:
        """See `Client.models`."""
        async with self._connect(self._options()) as channel:
            reply = await self._call(vae_pb2_grpc.VaeServiceStub(channel), "ListModels", pb.ListModelsRequest())
            return list(reply.models)

    async def encode(
        self, images: ImageInput, *, seed: int | None = None, temperature: float = 1.0, resize: Resize | None = None
    ) -> Posterior:
        """See `Client.encode`."""
        return await self._drive(plans.encode(await self.info(), self._selector, images, seed, temperature, resize))

    async def decode(self, latents: npt.ArrayLike, *, dtype: Dtype = "uint8") -> Pictures:
        """See `Client.decode`."""
        return await self._drive(plans.decode(await self.info(), self._selector, latents, dtype))

    async def sample(
        self,
        count: int = 1,
        *,
        seed: int | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        dtype: Dtype = "uint8",
    ) -> Pictures:
        """See `Client.sample`."""
        info = await self.info()
        return await self._drive(plans.sample(info, self._selector, count, seed, first_index, temperature, dtype))

    async def interpolate(
        self,
        key_frames: ImageInput,
        *,
        steps: int = 8,
        path: Path = "linear",
        resize: Resize | None = None,
        dtype: Dtype = "uint8",
    ) -> Pictures:
        """See `Client.interpolate`."""
        info = await self.info()
        return await self._drive(plans.interpolate(info, self._selector, key_frames, steps, path, resize, dtype))

    async def _drive(self, plan: plans.Plan[T]) -> T:
        stub, digest = vae_pb2_grpc.VaeServiceStub(await self._open()), ""
        try:
            call = next(plan)
            while True:
                reply = await self._call(stub, *call)
                digest = self._same_model(digest, reply)
                call = plan.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _open(self) -> grpc.aio.Channel:
        most = (await self.info()).limits.max_message_bytes
        if self._channel is None or self._channel_bytes != most:
            self._channel, self._channel_bytes = self._connect(self._options(most)), most
        return self._channel

    def _connect(self, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, options + insecure_options(self.target))
        return grpc.aio.secure_channel(self.target, self._credentials, options)

    async def _call(self, stub: Any, rpc: str, request: Any) -> Any:
        try:
            return await getattr(stub, rpc)(request, timeout=self.timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise LatentryError(error.code(), error.details() or "") from error
