"""`AsyncClient`: what `Client` does, for asyncio. What the calls say and promise is written there, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy.typing as npt

from latentry import asks, plans, streams
from latentry.async_coalescing import AsyncCoalescer
from latentry.choices import ClassInput, Dtype
from latentry.inputs import ImageInput, Input, at_hand
from latentry.pictures import Edited, Pictures, Posterior, Reconstruction
from latentry.pieces import Piece
from latentry.plaintext import insecure_options
from latentry.target import LatentryError, Target
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from latentry.words import Easing, Path, Prior, Resize, TruncationMode

T = TypeVar("T")


class AsyncClient(Target):
    """`Client` for asyncio: the same calls, awaited; streams with `async for`. For one event loop at a time: under
    another it connects again.

        async with latentry.AsyncClient("localhost:50051") as client:
            samples, walk = await asyncio.gather(client.sample(64), client.interpolate(["a.png", "b.png"]))
            async for part in client.stream_sample(500):
                print(len(part.images), "more")

    A stream that is left early is cancelled when its generator is closed: `contextlib.aclosing` does that at once.
    """

    _channel: grpc.aio.Channel | None = None
    _loop: asyncio.AbstractEventLoop | None = None  # that the channel belongs to
    _stub: Any = None  # of the channel
    _coalescer: AsyncCoalescer | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection: what still waits for an answer raises `LatentryError` with CANCELLED. A later call
        opens it again."""
        self._closed += 1
        if self._coalescer is not None and self._coalescer.loop is asyncio.get_running_loop():
            self._coalescer.close()
        channel, self._channel = self._channel, None
        if channel is not None and self._loop is asyncio.get_running_loop():
            await channel.close(None)

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
        self,
        images: ImageInput,
        *,
        classes: ClassInput | None = None,
        seed: int | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        resize: Resize | None = None,
    ) -> Posterior:
        """See `Client.encode`."""
        model = await self._model()
        return await self._drive(
            model,
            plans.encode(
                model,
                images,
                classes=classes,
                seed=seed,
                first_index=first_index,
                temperature=temperature,
                resize=resize,
            ),
            at_once=at_hand(images),
        )

    async def decode(
        self, latents: npt.ArrayLike, *, classes: ClassInput | None = None, dtype: Dtype = "uint8"
    ) -> Pictures:
        """See `Client.decode`."""
        model = await self._model()
        return await self._drive(
            model, plans.decode(model, latents, classes=classes, dtype=dtype), at_once=at_hand(latents)
        )

    async def sample(
        self,
        count: int = 1,
        *,
        classes: ClassInput | None = None,
        seed: int | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        truncation: float | None = None,
        truncation_mode: TruncationMode = "resample",
        prior: Prior | None = None,
        dtype: Dtype = "uint8",
    ) -> Pictures:
        """See `Client.sample`."""
        ask = asks.samples(
            count,
            classes=classes,
            seed=seed,
            first_index=first_index,
            temperature=temperature,
            truncation=truncation,
            truncation_mode=truncation_mode,
            prior=prior,
            dtype=dtype,
        )
        model = await self._model()
        return await self._drive(model, plans.sample(model, ask), at_once=True)

    def stream_sample(
        self,
        count: int,
        *,
        chunk_items: int = 0,
        classes: ClassInput | None = None,
        seed: int | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        truncation: float | None = None,
        truncation_mode: TruncationMode = "resample",
        prior: Prior | None = None,
        dtype: Dtype = "uint8",
    ) -> AsyncGenerator[Pictures, None]:
        """See `Client.stream_sample`."""
        ask = asks.samples(
            count,
            classes=classes,
            seed=seed,
            first_index=first_index,
            temperature=temperature,
            truncation=truncation,
            truncation_mode=truncation_mode,
            prior=prior,
            dtype=dtype,
        )
        return self._stream(lambda model: streams.SampleStream(model, ask, chunk_items))

    async def interpolate(
        self,
        key_frames: Input,
        *,
        classes: ClassInput | None = None,
        steps: int = 8,
        path: Path = "linear",
        easing: Easing = "none",
        loop: bool = False,
        ends: bool = True,
        resize: Resize | None = None,
        dtype: Dtype = "uint8",
    ) -> Pictures:
        """See `Client.interpolate`."""
        ask = asks.walk(
            key_frames,
            classes=classes,
            steps=steps,
            path=path,
            easing=easing,
            loop=loop,
            ends=ends,
            resize=resize,
            dtype=dtype,
        )
        model = await self._model()
        return await self._drive(model, plans.interpolate(model, ask), at_once=at_hand(key_frames))

    def stream_interpolate(
        self,
        key_frames: Input,
        *,
        chunk_items: int = 0,
        first_frame: int = 0,
        classes: ClassInput | None = None,
        steps: int = 8,
        path: Path = "linear",
        easing: Easing = "none",
        loop: bool = False,
        ends: bool = True,
        resize: Resize | None = None,
        dtype: Dtype = "uint8",
    ) -> AsyncGenerator[Pictures, None]:
        """See `Client.stream_interpolate`."""
        ask = asks.walk(
            key_frames,
            classes=classes,
            steps=steps,
            path=path,
            easing=easing,
            loop=loop,
            ends=ends,
            resize=resize,
            dtype=dtype,
        )
        return self._stream(lambda model: streams.InterpolateStream(model, ask, chunk_items, first_frame))

    async def reconstruct(
        self,
        images: ImageInput,
        *,
        classes: ClassInput | None = None,
        seed: int | None = None,
        first_index: int = 0,
        resize: Resize | None = None,
        dtype: Dtype = "uint8",
        scores_only: bool = False,
    ) -> Reconstruction:
        """See `Client.reconstruct`."""
        model = await self._model()
        return await self._drive(
            model,
            plans.reconstruct(
                model,
                images,
                classes=classes,
                seed=seed,
                first_index=first_index,
                resize=resize,
                dtype=dtype,
                scores_only=scores_only,
            ),
            at_once=at_hand(images),
        )

    async def edit(
        self,
        base: Input,
        *,
        attributes: Mapping[str, float] | None = None,
        plus: Input | None = None,
        minus: Input | None = None,
        amount: float | None = None,
        classes: ClassInput | None = None,
        resize: Resize | None = None,
        dtype: Dtype = "uint8",
    ) -> Edited:
        """See `Client.edit`."""
        model = await self._model()
        return await self._drive(
            model,
            plans.edit(
                model,
                base,
                attributes=attributes,
                plus=plus,
                minus=minus,
                amount=amount,
                classes=classes,
                resize=resize,
                dtype=dtype,
            ),
            at_once=at_hand(base, plus, minus),
        )

    async def neighbours(
        self,
        base: Input,
        *,
        grid: tuple[int, int] | None = None,
        spacing: float | None = None,
        directions: npt.ArrayLike | None = None,
        walk: int | None = None,
        step: float | None = None,
        seed: int | None = None,
        classes: ClassInput | None = None,
        resize: Resize | None = None,
        dtype: Dtype = "uint8",
    ) -> Pictures:
        """See `Client.neighbours`."""
        model = await self._model()
        return await self._drive(
            model,
            plans.neighbours(
                model,
                base,
                grid=grid,
                spacing=spacing,
                directions=directions,
                walk=walk,
                step=step,
                seed=seed,
                classes=classes,
                resize=resize,
                dtype=dtype,
            ),
            at_once=at_hand(base, directions),
        )

    async def _model(self) -> asks.Model:
        return asks.Model(self._selector, self._info or await self.info())

    async def _drive(self, model: asks.Model, plan: plans.Plan[T], *, at_once: bool = False) -> T:
        """The result of a plan. It begins in a thread, where files are read and large ones fitted, or `at_once`."""
        try:
            closed = self._closed
            call = next(plan) if at_once else await asyncio.to_thread(_begin, plan)
            digest = model.digest()
            while True:
                try:
                    self._check_open(closed)
                    if isinstance(call, Piece):
                        reply: Any = await self._coalescing().ask(call, model.info, self.timeout_s)
                    else:
                        reply = await self._call(await self._open(), *call)
                    digest = self._same_model(digest, reply)
                except LatentryError as error:
                    call = plan.throw(error)  # which says it of what the caller gave
                else:
                    call = plan.send(reply)
        except ValueError:
            self._info = None  # whose limits may be those of a model that is there no more
            raise
        except StopIteration as done:
            result: T = done.value
            return result

    async def _stream(self, make: Callable[[asks.Model], streams.Stream]) -> AsyncGenerator[Pictures, None]:
        closed = self._closed
        model = await self._model()
        stream = await asyncio.to_thread(make, model)
        digest = model.digest()
        while (request := stream.request()) is not None:
            self._check_open(closed)
            rpc = getattr(await self._open(), stream.rpc)
            call = rpc(request, timeout=self.timeout_s, metadata=self._metadata)
            try:
                while (reply := await _unless_closed(call.read())) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                    digest = self._same_model(digest, reply.part)
                    yield stream.take(reply)
                if stream.tries.ended_early():
                    raise LatentryError(grpc.StatusCode.DATA_LOSS, "the stream ended before its last image")
            except grpc.aio.AioRpcError as error:
                pause = stream.tries.pause(error.code().name)
                if pause is None:
                    raise self._refusal(error.code(), stream.said(error.details() or "")) from error
                await asyncio.sleep(pause)
            finally:
                call.cancel()

    async def _open(self) -> Any:
        """The stub of a channel with the limits of the model."""
        most = (self._info or await self.info()).limits.max_message_bytes
        loop = asyncio.get_running_loop()
        if self._channel is None or self._channel_bytes != most or self._loop is not loop:
            self._channel, self._channel_bytes, self._loop = self._connect(self._options(most)), most, loop
            self._stub = vae_pb2_grpc.VaeServiceStub(self._channel)
        return self._stub

    def _coalescing(self) -> AsyncCoalescer:
        """Of this event loop."""
        loop = asyncio.get_running_loop()
        if self._coalescer is None or self._coalescer.loop is not loop:
            self._coalescer = AsyncCoalescer(self._send, self._refusal, merge=self._coalesce)
        return self._coalescer

    async def _send(self, together: Sequence[Piece], timeout_s: float) -> Any:
        rpc = getattr(await self._open(), together[0].rpc)
        request = together[0].request(self._selector, together)
        return await rpc(request, timeout=timeout_s, metadata=self._metadata)

    def _connect(self, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, options + insecure_options(self.target))
        return grpc.aio.secure_channel(self.target, self._credentials, options)

    async def _call(self, stub: Any, rpc: str, request: Any) -> Any:
        try:
            call = getattr(stub, rpc)(request, timeout=self.timeout_s, metadata=self._metadata)
            return await _unless_closed(call)
        except grpc.aio.AioRpcError as error:
            raise self._refusal(error.code(), error.details() or "") from error


def _begin(plan: plans.Plan[Any]) -> Piece | tuple[str, Any]:
    """The first call of a plan; every plan has one."""
    return next(plan)


async def _unless_closed(answer: Awaitable[Any]) -> Any:
    """What is awaited. gRPC cancels it when the channel is closed, which is not to look as if the caller's own task
    was cancelled: that one awaits this task, and is told apart by it."""
    task = asyncio.ensure_future(answer)
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()
    if task.cancelled():
        raise LatentryError(grpc.StatusCode.CANCELLED, "the client was closed")
    return task.result()
