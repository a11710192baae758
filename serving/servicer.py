"""The calls of `latentry.v1.VaeService`: each reads its request, computes, builds its reply.

Nothing is caught here: what is raised becomes a status in the interceptor.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving import call, codec, latents
from serving.batches import Array
from serving.catalog import Catalog
from serving.codec_threads import CodecThreads
from serving.errors import InvalidArgument
from serving.model import Float32s, Model
from serving.quotas import Quotas

Context = grpc.aio.ServicerContext[Any, Any]


class VaeServicer(vae_pb2_grpc.VaeServiceServicer):
    """Answers from `catalog`; image files are read and written in `codec_threads`, beside the event loop."""

    def __init__(self, catalog: Catalog, codec_threads: CodecThreads, quotas: Quotas) -> None:
        self._catalog = catalog
        self._codec_threads = codec_threads
        self._quotas = quotas

    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:  # noqa: N802
        with self._model(request.model) as model:
            temperature = codec.read_temperature(request)
            images = await self._read_images(request.images, model, request.resize)
            first = codec.read_first_index(request.first_index, len(images))
            mean, logvar = await model.encode(images, call.current().deadline)
        with call.current().timed("codec_out"):
            reply = pb.EncodeResponse(
                model=_ref(model), mean=codec.write_tensor(mean), logvar=codec.write_tensor(logvar)
            )
            if request.HasField("seed"):
                noise = latents.standard_normals(request.seed, first, *mean.shape)
                draw = mean + np.float32(temperature) * np.exp(0.5 * logvar) * noise
                reply.latents.CopyFrom(codec.write_tensor(draw))
                reply.seed = request.seed
        return reply

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> pb.DecodeResponse:  # noqa: N802
        with self._model(request.model) as model:
            with call.current().timed("codec_in"):
                codec.check_output(request.output)
                z = codec.read_latents(request.latents, model.manifest.latent_dim, model.limits.max_items)
            self._admit(len(z))
            images = await self._decode(z, model, request.output, context)
        return pb.DecodeResponse(model=_ref(model), images=images)

    async def Sample(self, request: pb.SampleRequest, context: Context) -> pb.SampleResponse:  # noqa: N802
        with self._model(request.model) as model:
            with call.current().timed("codec_in"):
                codec.check_output(request.output)
                count = codec.read_count(request.count, model.limits.max_items)
                first = codec.read_first_index(request.first_index, count)
                temperature = np.float32(codec.read_temperature(request))
                self._admit(count)
                seed = request.seed if request.HasField("seed") else secrets.randbits(64)
                noise = temperature * latents.standard_normals(seed, first, count, model.noise_dim)
            z = await model.draw(noise, call.current().deadline)
            images = await self._decode(z, model, request.output, context)
        return pb.SampleResponse(model=_ref(model), images=images, latents=codec.write_tensor(z), seed=seed)

    async def Interpolate(self, request: pb.InterpolateRequest, context: Context) -> pb.InterpolateResponse:  # noqa: N802
        with self._model(request.model) as model:
            codec.check_output(request.output)
            if request.path not in pb.InterpolationPath.values():
                wanted = "INTERPOLATION_PATH_LINEAR (1) or INTERPOLATION_PATH_SPHERICAL (2)"
                raise InvalidArgument("path", request.path, wanted)
            keys = await self._key_frames(request, model, context)
            steps = codec.read_steps(request.steps, len(keys), model.limits.max_items)
            z = _walk(keys, steps, request.path)
            self._admit(len(z))
            images = await self._decode(z, model, request.output, context)
        return pb.InterpolateResponse(model=_ref(model), images=images, latents=codec.write_tensor(z))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        models = [self._info(model) for model in self._catalog.all()]
        return pb.ListModelsResponse(models=models, default_model=self._catalog.default)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: N802
        with self._model(request.model) as model:
            return pb.GetModelResponse(model=self._info(model))

    @contextlib.contextmanager
    def _model(self, selector: pb.ModelSelector) -> Iterator[Model]:
        """The model that is meant, which stays loaded as long as the call is in here."""
        kind = selector.WhichOneof("revision")
        model = self._catalog.get(
            selector.name,
            selector.version if kind == "version" else None,
            selector.label if kind == "label" else None,
        )
        record = call.current()
        record.model, record.version = model.manifest.name, str(model.manifest.version)
        with model.used():
            yield model

    def _admit(self, items: int) -> None:
        """Count the items of this call, and charge them to its caller; raises `QuotaExceeded`."""
        record = call.current()
        record.items += items
        self._quotas.spend(record.identity or _host(record.peer), items)

    def _info(self, model: Model) -> pb.ModelInfo:
        about = model.manifest
        height, width, channels = about.image_shape
        labels = self._catalog.labels(about.name)
        refused = sorted(self._catalog.refusals(about.name).items())
        return pb.ModelInfo(
            model=_ref(model),
            state=pb.MODEL_STATE_READY if model.up else pb.MODEL_STATE_FAILED,
            image_shape=pb.ImageShape(height=height, width=width, channels=channels),
            latent_dim=about.latent_dim,
            limits=pb.Limits(max_items=model.limits.max_items, max_message_bytes=model.limits.max_message_bytes),
            likelihood=pb.Likelihood(name=about.likelihood.name, parameters=about.likelihood.parameters),
            class_labels=about.labels,
            version_labels=sorted(label for label, version in labels.items() if version == about.version),
            evaluation=about.evaluation,
            provider=model.provider,
            precision=model.precision,
            precisions=about.precisions,
            provenance_json=json.dumps(about.provenance, sort_keys=True, ensure_ascii=False),
            refused_versions=[pb.RefusedVersion(version=v, reason=each.reason) for v, each in refused],
        )

    async def _read_images(self, images: pb.Images, model: Model, resize: int) -> Array:
        shape, most = model.manifest.image_shape, model.limits.max_items
        self._admit(min(codec.count_images(images), most))
        with call.current().timed("codec_in"):
            if not codec.needs_time(images, resize):
                return codec.read_images(images, shape, most, resize)
            return await self._codec_threads.run(
                lambda stopped: codec.read_images(images, shape, most, resize, stopped), images.ByteSize()
            )

    async def _key_frames(self, request: pb.InterpolateRequest, model: Model, context: Context) -> Float32s:
        kind = request.WhichOneof("key_frames")
        if kind is None:
            raise InvalidArgument("key_frames", "none", "latents or images, two or more")
        if kind == "latents":
            keys = codec.read_latents(request.latents, model.manifest.latent_dim, model.limits.max_items)
        else:
            images = await self._read_images(request.images, model, request.resize)
            if len(images) > 1:
                keys, _ = await model.encode(images, call.current().deadline)
            else:
                keys = np.empty((1, 0), np.float32)
        if len(keys) < 2:
            raise InvalidArgument(kind, "one key frame", "two or more")
        return keys

    async def _decode(self, z: Float32s, model: Model, output: pb.ImageOutput, context: Context) -> pb.Images:
        images = await model.decode(z, codec.wants_floats(output), call.current().deadline)
        with call.current().timed("codec_out"):
            if not codec.wants_files(output):
                return codec.write_images(images, output)
            return await self._codec_threads.run(
                lambda stopped: codec.write_images(images, output, stopped), images.nbytes
            )


def _walk(keys: Float32s, steps: int, path: int) -> Float32s:
    if path != pb.INTERPOLATION_PATH_SPHERICAL:
        return latents.linear_path(keys, steps)
    try:
        return latents.spherical_path(keys, steps)
    except ValueError as error:
        at = error.args[0]
        got = f"key frames {at} and {at + 1} in opposite directions"
        raise InvalidArgument("path", f"SPHERICAL with {got}", "LINEAR, or a key frame between them") from error


def _ref(model: Model) -> pb.ModelRef:
    return pb.ModelRef(name=model.manifest.name, version=model.manifest.version, digest=model.digest)


def _host(peer: str) -> str:
    """The address of `context.peer()` without its port, which is another for each connection."""
    return peer.rpartition(":")[0] or peer
