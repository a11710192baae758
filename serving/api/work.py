"""The work of one call on one model: its images and latents are read, encoded, decoded and written, its items counted
and charged to the caller. Between messages and the model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latentry.v1 import vae_pb2 as pb
from serving import call
from serving.api import codec
from serving.api.codec_threads import CodecThreads
from serving.api.image_files import Allowance
from serving.batches import Array
from serving.errors import InvalidArgument
from serving.model import Float32s, Model
from serving.quotas import Accounts

Int64s = npt.NDArray[np.int64]


class Work:
    """What the calls of `VaeService` are made of."""

    def __init__(self, model: Model, codec_threads: CodecThreads, quotas: Accounts) -> None:
        self.model = model
        self.about = model.manifest
        self.most = model.limits.max_items
        self.codec_threads = codec_threads
        self.record = call.current()
        self._quotas = quotas
        self._allowance: Allowance | None = None

    def __enter__(self) -> Work:
        """The model stays loaded until the block ends."""
        self.model.enter()
        return self

    def __exit__(self, *raised: object) -> None:
        self.model.leave()

    async def admit(self, items: int) -> None:
        """Count the items of this call, and charge them to its caller; raises `QuotaExceeded`."""
        record = self.record
        await self._quotas.charge(record.identity or _host(record.peer), items)
        record.items += items

    async def read_images(self, images: pb.Images, resize: int, field: str = "images") -> Array:
        """Images as uint8 [N, H, W, C] of the model's shape; charged."""
        await self.admit(min(codec.count_images(images), self.most))
        shape = self.about.image_shape
        allowance = self._allowance = self._allowance or Allowance()
        with self.record.timed("codec_in"):
            if not codec.needs_time(images, resize):
                return codec.read_images(images, shape, self.most, resize, field=field)
            return await self.codec_threads.run(
                lambda stopped: codec.read_images(images, shape, self.most, resize, stopped, field, allowance),
                images.ByteSize(),
            )

    def read_latents(self, tensor: pb.Tensor, field: str = "latents") -> Float32s:
        """Latents [N, Z]; not charged."""
        with self.record.timed("codec_in"):
            return codec.read_latents(tensor, self.about.latent_dim, self.most, field)

    async def encode(self, images: Array, classes: Int64s | None) -> tuple[Float32s, Float32s]:
        """Mean and logvar of q(z|x), [N, Z] each."""
        return await self.model.encode(images, self.record.deadline, classes)

    async def decode(self, z: Float32s, output: pb.ImageOutput, classes: Int64s | None) -> pb.Images | Array:
        """Images of latents in the form that the caller asked for; the caller of this has charged them."""
        images = await self.model.decode(z, codec.wants_floats(output), self.record.deadline, classes)
        return await self.write_images(images, output)

    async def write_images(self, images: Array, output: pb.ImageOutput) -> pb.Images | Array:
        """Images [N, H, W, C] in that form, as a field of a `Reply`."""
        with self.record.timed("codec_out"):
            if not codec.wants_files(output):
                return images
            return await self.codec_threads.run(
                lambda stopped: codec.write_files(images, output, stopped), images.nbytes
            )


def check_kind(message: pb.InterpolateRequest | pb.EditRequest | pb.NeighboursRequest, oneof: str, wanted: str) -> str:
    """Which of the fields of `oneof` the request has."""
    kind = message.WhichOneof(oneof)
    if kind is None:
        raise InvalidArgument(oneof, "none", wanted)
    return str(kind)


def _host(peer: str) -> str:
    """The address of `context.peer()` without its port, which is another for each connection."""
    return peer.rpartition(":")[0] or peer
