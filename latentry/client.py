"""`Client`: numpy and Pillow in, numpy and Pillow out. `AsyncClient` has the same calls for asyncio.

    with latentry.Client("localhost:50051") as client:
        client.sample(64, seed=7).grid().save("samples.png")

The channel's message limits come from the model (GetModel), larger inputs are split to fit, and a server that is not
there yet, or going away, is tried again with growing pauses. Knows nothing of how a server works.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy.typing as npt

from latentry import asks, plans, streams
from latentry.choices import ClassInput, Dtype
from latentry.coalescing import Coalescer
from latentry.inputs import ImageInput, Input
from latentry.pictures import Edited, Pictures, Posterior, Reconstruction
from latentry.pieces import Piece
from latentry.plaintext import insecure_options
from latentry.target import LatentryError, Target
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from latentry.words import Easing, Path, Prior, Resize, TruncationMode

T = TypeVar("T")


class Client(Target):
    """Calls a Latentry server; for threads to share, whose small calls travel together. A context manager, or `close`
    it.

    Every call raises `LatentryError` when the server refuses it, and `ValueError` for what cannot be sent.

    Images are given as an array [N, H, W, C] (uint8, or floats in [0, 1]) or [N, H, W], as Pillow images, paths or
    file bytes; one or several; `resize` ("crop" or "stretch") fits those of another size, large files before they are
    sent. Where images or latents can be given, an array of two dimensions is latents [N, Z]. Images come back as
    uint8, or with `dtype="float32"` as floats in [0, 1]. A conditional model wants `classes`: one for all or one each,
    by name or by number. Every result says its `model` (name, version, digest), its `seed`, and its `provenance`
    (provider, precision, timings).
    """

    _channel: grpc.Channel | None = None
    _stub: Any = None  # of the channel
    _coalescer: Coalescer | None = None
    _pid = 0  # of the process that it is for

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection: what other threads still wait for raises `LatentryError` with CANCELLED. A later call
        opens it again."""
        self._closed += 1
        if self._coalescer is not None:
            self._coalescer.close()
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:  # not under the lock: it waits for gRPC's thread, which may want to send what gathered
            channel.close()

    def info(self) -> pb.ModelInfo:
        """The model: its shapes, limits, likelihood, attributes, figures. Asked once, then remembered.

        print(client.info().image_shape.height, client.info().latent_dim)
        """
        info = self._info
        if info is None:
            with self._connect(self._options()) as channel:
                reply = self._call(
                    vae_pb2_grpc.VaeServiceStub(channel), "GetModel", pb.GetModelRequest(model=self._selector)
                )
            info = self._info = reply.model
        return info

    def models(self) -> list[pb.ModelInfo]:
        """Every model that the server has loaded.

        print([each.model.name for each in client.models()])
        """
        with self._connect(self._options()) as channel:
            return list(self._call(vae_pb2_grpc.VaeServiceStub(channel), "ListModels", pb.ListModelsRequest()).models)

    def encode(
        self,
        images: ImageInput,
        *,
        classes: ClassInput | None = None,
        seed: int | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        resize: Resize | None = None,
    ) -> Posterior:
        """q(z|x) of images.

            posterior = client.encode(["boot.png", "bag.png"], resize="crop")
            client.decode(posterior.mean).save("seen.png")

        With a `seed` also a draw, its noise scaled by `temperature`: image k's is that of `first_index` + k.
        """
        model = self._model()
        return self._drive(
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
        )

    def decode(self, latents: npt.ArrayLike, *, classes: ClassInput | None = None, dtype: Dtype = "uint8") -> Pictures:
        """Images of latents [N, Z]: the mean of p(x|z).

        client.decode(np.zeros((1, client.info().latent_dim))).save("middle.png")
        """
        model = self._model()
        return self._drive(model, plans.decode(model, latents, classes=classes, dtype=dtype))

    def sample(
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
        """`count` images from the prior. Image k of a seed is always the same; `first_index` says where to begin.

            client.sample(64, seed=7).save("samples.png")
            client.sample(64, seed=7, truncation=1.0).save("typical.png")

        `temperature` scales the noise, `truncation` keeps it within so many deviations: drawn again until it is, or
        with `truncation_mode="clamp"` cut there. `prior` is "standard", N(0, I), or "fitted", the model's own; by
        default what the model was trained with.
        """
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
        model = self._model()
        return self._drive(model, plans.sample(model, ask))

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
    ) -> Generator[Pictures, None, None]:
        """`sample` in parts, as they are made: the same images, the first as soon as it exists.

            for part in client.stream_sample(500, seed=7):
                print(len(part.images), "more")

        Parts are of `chunk_items`, by default one and then what fills a batch, and made no faster than they are read.
        Leaving the loop cancels the stream. One that breaks because the server goes away or is full goes on where it
        was, several times if need be; `LatentryError` with ABORTED if it comes back with another model.
        """
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
        model = self._model()
        return self._stream(model, streams.SampleStream(model, ask, chunk_items))

    def interpolate(
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
        """A walk from key frame to key frame, images or latents, `steps` images from each to the next, both included.

            client.interpolate(["boot.png", "bag.png"], steps=24, resize="crop").save("walk.gif", scale=4)
            client.interpolate(latents, path="catmull-rom", loop=True).save("round.webp")

        `path` is "linear", "spherical" or "catmull-rom"; `easing` "none", "in", "out" or "in-out" lets each leg begin
        or end slowly; `loop` goes on to the first key frame; without `ends` the first and the last are left out. A
        conditional model wants one class for all.
        """
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
        model = self._model()
        return self._drive(model, plans.interpolate(model, ask))

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
    ) -> Generator[Pictures, None, None]:
        """`interpolate` in parts as `stream_sample` has them, beginning with image `first_frame`; for long walks.

        for part in client.stream_interpolate(latents, steps=500):
            print(len(part.images), "more")
        """
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
        model = self._model()
        return self._stream(model, streams.InterpolateStream(model, ask, chunk_items, first_frame))

    def reconstruct(
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
        """Images encoded and decoded again, and how far each came back from where it was: anomaly scores.

            seen = client.reconstruct(images)
            print("strangest:", seen.squared_error.argmax(), "in nats:", seen.elbo.min())

        Decoded is the posterior's mean or, with a `seed`, a draw from it as `encode` makes it. `scores_only` leaves
        the images out.
        """
        model = self._model()
        return self._drive(
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
        )

    def edit(
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
        """Images or latents moved through latent space, and decoded.

            client.edit("me.jpg", attributes={"eyeglasses": 1.0}, resize="crop").save("with_glasses.png")
            client.edit("a.png", minus=["b.png"], plus=["c.png"]).save("a-b+c.png")

        `attributes` says how much of which of `info().attributes`: 1 adds it, -1 removes it. `plus` and `minus` are
        examples, images or latents, the difference of whose means is added `amount` times, by default once. The
        result's `attributes` are what was applied: amounts beyond an attribute's limit are cut to it.
        """
        model = self._model()
        return self._drive(
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
        )

    def neighbours(
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
        """What lies around one image or latent: a `grid` of (rows, columns) on a plane, or a random `walk` of images.

            client.neighbours("boot.png", grid=(5, 7), seed=1).save("around.png", columns=7)
            client.neighbours("boot.png", walk=48, seed=1).save("wander.gif", scale=4)

        The base is in the middle of the grid, whose points are `spacing` apart along two `directions` [2, Z] or those
        that the seed draws; or it is where the walk begins, whose steps are of length `step`. Both are 0.5 by default.
        """
        model = self._model()
        return self._drive(
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
        )

    def _model(self) -> asks.Model:
        return asks.Model(self._selector, self.info())

    def _drive(self, model: asks.Model, plan: plans.Plan[T]) -> T:
        try:
            closed = self._closed
            call = next(plan)
            digest = model.digest()
            while True:
                try:
                    self._check_open(closed)
                    if isinstance(call, Piece):
                        reply: Any = self._coalescing().ask(call, model.info, self.timeout_s)
                    else:
                        reply = self._call(self._open(), *call)
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

    def _stream(self, model: asks.Model, stream: streams.Stream) -> Generator[Pictures, None, None]:
        digest, closed = model.digest(), self._closed
        while (request := stream.request()) is not None:
            self._check_open(closed)
            rpc = getattr(self._open(), stream.rpc)
            try:
                call = rpc(request, timeout=self.timeout_s, metadata=self._metadata)
            except ValueError as error:  # what gRPC says of a channel that another thread has closed
                raise LatentryError(grpc.StatusCode.CANCELLED, "the client was closed") from error
            try:
                for reply in call:
                    digest = self._same_model(digest, reply.part)
                    yield stream.take(reply)
                if stream.tries.ended_early():
                    raise LatentryError(grpc.StatusCode.DATA_LOSS, "the stream ended before its last image")
            except grpc.RpcError as error:
                pause = stream.tries.pause(error.code().name)
                if pause is None:
                    raise self._refusal(error.code(), stream.said(error.details() or "")) from error
                time.sleep(pause)
            finally:
                call.cancel()

    def _open(self) -> Any:
        """The stub of a channel with the limits of the model."""
        most = self.info().limits.max_message_bytes
        with self._lock:
            if self._channel is None or self._channel_bytes != most:
                self._channel, self._channel_bytes = self._connect(self._options(most)), most
                self._stub = vae_pb2_grpc.VaeServiceStub(self._channel)
            return self._stub

    def _coalescing(self) -> Coalescer:
        """Of this process: one that was forked waits for nothing that its parent has sent."""
        if self._coalescer is None or self._pid != os.getpid():
            with self._lock:
                if self._coalescer is None or self._pid != os.getpid():
                    self._coalescer = Coalescer(self._send, self._start, self._refusal, merge=self._coalesce)
                    self._pid = os.getpid()
        return self._coalescer

    def _send(self, together: Sequence[Piece], timeout_s: float) -> Any:
        request = together[0].request(self._selector, together)
        return self._call(self._open(), together[0].rpc, request, timeout_s)

    def _start(self, together: Sequence[Piece], timeout_s: float) -> Any:
        """Not with `_open`, which may have to ask about the model first: gRPC's thread is not to wait for that."""
        with self._lock:
            if self._channel is None:
                raise LatentryError(grpc.StatusCode.CANCELLED, "the client was closed")
            rpc = getattr(self._stub, together[0].rpc)
        request = together[0].request(self._selector, together)
        try:
            return rpc.future(request, timeout=timeout_s, metadata=self._metadata)
        except ValueError as error:  # what gRPC says of a channel that another thread has closed
            raise LatentryError(grpc.StatusCode.CANCELLED, "the client was closed") from error

    def _connect(self, options: list[tuple[str, Any]]) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self.target, options + insecure_options(self.target))
        return grpc.secure_channel(self.target, self._credentials, options)

    def _call(self, stub: Any, rpc: str, request: Any, timeout_s: float | None = None) -> Any:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            return getattr(stub, rpc)(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._refusal(error.code(), error.details() or "") from error
        except ValueError as error:  # what gRPC says of a channel that another thread has closed
            raise LatentryError(grpc.StatusCode.CANCELLED, "the client was closed") from error
