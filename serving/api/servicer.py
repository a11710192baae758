"""The calls of `latentry.v1.VaeService`: each reads its request, computes, builds its reply.

Nothing is caught here: what is raised becomes a status in the interceptor.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import grpc
import numpy as np

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving import call
from serving.api import codec, edits, replies, requests, streams, surroundings
from serving.api.codec_threads import CodecThreads
from serving.api.key_frames import read_key_frames
from serving.api.reconstructions import reconstruct
from serving.api.wire import Reply
from serving.api.work import Work
from serving.catalog import Catalog
from serving.errors import InvalidArgument
from serving.latents import draws
from serving.latents.draws import Draw
from serving.latents.paths import Path
from serving.quotas import Accounts

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class VaeServicer(vae_pb2_grpc.VaeServiceServicer):
    """Answers from `catalog`; image files are read and written in `codec_threads`, beside the event loop. Parts of
    streams have `chunk_items`, what fills a batch, unless asked otherwise."""

    def __init__(self, catalog: Catalog, codec_threads: CodecThreads, quotas: Accounts, chunk_items: int) -> None:
        self._catalog = catalog
        self._codec_threads = codec_threads
        self._quotas = quotas
        self._chunk_items = chunk_items

    async def Encode(self, request: pb.EncodeRequest, context: Context) -> Reply:  # noqa: N802
        with self._work(request.model) as work:
            temperature = requests.read_temperature(request)
            images = await work.read_images(request.images, request.resize)
            spans = requests.read_encode_spans(request, len(images))
            classes = requests.read_classes(request.classes, len(images), work.about)
            mean, logvar = await work.encode(images, classes)
        with call.current().timed("codec_out"):
            drawn = {"latents": draws.of_posterior(mean, logvar, spans, temperature)} if spans else {}
        message = pb.EncodeResponse(
            model=replies.ref(work.model),
            seed=request.seed if request.HasField("seed") else None,
            provenance=replies.provenance(work.model),
        )
        return Reply(message, mean=mean, logvar=logvar, **drawn)

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> Reply:  # noqa: N802
        with self._work(request.model) as work:
            codec.check_output(request.output)
            z = work.read_latents(request.latents)
            classes = requests.read_classes(request.classes, len(z), work.about)
            await work.admit(len(z))
            images = await work.decode(z, request.output, classes)
        message = pb.DecodeResponse(model=replies.ref(work.model))
        replies.tell_provenance(message.provenance, work.model, work.record)
        return Reply(message, images=images)

    async def Sample(self, request: pb.SampleRequest, context: Context) -> Reply:  # noqa: N802
        with self._work(request.model) as work:
            codec.check_output(request.output)
            draw = requests.read_draw(request, work.model, work.most)
            await work.admit(draw.count)
            return await _sample(draw, 0, draw.count, request.output, work)

    async def StreamSample(  # noqa: N802
        self, request: pb.StreamSampleRequest, context: Context
    ) -> AsyncGenerator[Reply, None]:
        sample = request.sample
        with self._work(sample.model) as work:
            codec.check_output(sample.output)
            chunk = requests.read_chunk(request.chunk_items, work.most)
            draw = requests.read_draw(sample, work.model, requests.MAX_STREAM_ITEMS, streamed=True)

            async def part(at: int, count: int) -> Reply:
                reply = await _part(work, count, at == 0, lambda: _sample(draw, at, count, sample.output, work))
                return reply.within(pb.StreamSampleResponse(first_index=draw.first + at), "part")

            sizes = streams.parts(0, draw.count, chunk, min(self._chunk_items, work.most))
            async with _in_parts(part, sizes) as made:
                async for reply in made:
                    yield reply

    async def Interpolate(self, request: pb.InterpolateRequest, context: Context) -> Reply:  # noqa: N802
        with self._work(request.model) as work:
            codec.check_output(request.output, animated=True)
            path = await read_key_frames(request, work, work.most)
            await work.admit(len(path))
            return await _interpolate(path, 0, len(path), request, work)

    async def StreamInterpolate(  # noqa: N802
        self, request: pb.StreamInterpolateRequest, context: Context
    ) -> AsyncGenerator[Reply, None]:
        whole = request.interpolate
        with self._work(whole.model) as work:
            codec.check_output(whole.output)
            chunk = requests.read_chunk(request.chunk_items, work.most)
            path = await read_key_frames(whole, work, requests.MAX_STREAM_ITEMS)
            if not 0 <= request.first_frame < len(path):
                raise InvalidArgument("first_frame", request.first_frame, f"0 to {len(path) - 1}")

            async def part(at: int, count: int) -> Reply:
                first = at == request.first_frame
                reply = await _part(work, count, first, lambda: _interpolate(path, at, count, whole, work))
                return reply.within(pb.StreamInterpolateResponse(first_frame=at, frames=len(path)), "part")

            sizes = streams.parts(request.first_frame, len(path), chunk, min(self._chunk_items, work.most))
            async with _in_parts(part, sizes) as made:
                async for reply in made:
                    yield reply

    async def Reconstruct(self, request: pb.ReconstructRequest, context: Context) -> Reply:  # noqa: N802
        with self._work(request.model) as work:
            return await reconstruct(request, work)

    async def Edit(self, request: pb.EditRequest, context: Context) -> Reply:  # noqa: N802
        with self._work(request.model) as work:
            return await edits.edit(request, work)

    async def Neighbours(self, request: pb.NeighboursRequest, context: Context) -> Reply:  # noqa: N802
        with self._work(request.model) as work:
            return await surroundings.explore(request, work)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        models = [replies.info(model, self._catalog) for model in self._catalog.all()]
        return pb.ListModelsResponse(models=models, default_model=self._catalog.default)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: N802
        with self._work(request.model) as work:
            return pb.GetModelResponse(model=replies.info(work.model, self._catalog))

    def _work(self, selector: pb.ModelSelector) -> Work:
        """Work on the model that is meant, which stays loaded as long as the call is in here."""
        kind = selector.WhichOneof("revision")
        model = self._catalog.get(
            selector.name,
            selector.version if kind == "version" else None,
            selector.label if kind == "label" else None,
        )
        record = call.current()
        record.model, record.version = model.manifest.name, model.version
        return Work(model, self._codec_threads, self._quotas)


def _in_parts(
    part: Callable[[int, int], Coroutine[Any, Any, T]], sizes: Iterable[tuple[int, int]]
) -> contextlib.aclosing[AsyncGenerator[T, None]]:
    """The parts of these places and sizes, made one ahead of the reader of this call."""
    return contextlib.aclosing(streams.one_ahead((part(*each) for each in sizes), call.current().room))


async def _part(work: Work, items: int, first: bool, make: Callable[[], Awaitable[T]]) -> T:
    """A part of a stream of so many items: charged once, and made when there is room; the first at once or not."""
    charged = False

    async def attempt() -> T:
        nonlocal charged
        if not charged:
            await work.admit(items)
            charged = True
        return await make()

    return await (attempt() if first else streams.patiently(attempt))


async def _sample(draw: Draw, at: int, count: int, output: pb.ImageOutput, work: Work) -> Reply:
    """The images `at` to `at + count` of a draw."""
    model = work.model
    with call.current().timed("codec_in"):
        z = draw.noise(at, count, model.noise_dim(draw.fitted), model.selectors(draw.fitted))
    if draw.fitted:
        z = await model.draw(z, call.current().deadline, fitted=True)
    images = await work.decode(z, output, draw.classes_of(at, count))
    message = pb.SampleResponse(model=replies.ref(model), seed=draw.seed, provenance=replies.provenance(model))
    return Reply(message, images=images, latents=z)


async def _interpolate(path: Path, at: int, count: int, request: pb.InterpolateRequest, work: Work) -> Reply:
    """The points `at` to `at + count` of a path."""
    z = path.points(at, count)
    classes = requests.read_classes(request.classes, 1, work.about)
    images = await work.decode(z, request.output, None if classes is None else np.repeat(classes, count))
    message = pb.InterpolateResponse(model=replies.ref(work.model), provenance=replies.provenance(work.model))
    return Reply(message, images=images, latents=z)
