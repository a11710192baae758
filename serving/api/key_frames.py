"""From the key frames of an Interpolate to its path through latent space."""

from __future__ import annotations

from latentry.v1 import vae_pb2 as pb
from serving.api import requests
from serving.api.work import Work, check_kind
from serving.errors import InvalidArgument
from serving.latents.paths import Path


async def read_key_frames(request: pb.InterpolateRequest, work: Work, most: int) -> Path:
    """The path that the request asks for, of at most so many points; key frames that are images are encoded."""
    requests.check_path(request)
    classes = requests.read_classes(request.classes, 1, work.about)
    kind = check_kind(request, "key_frames", "latents or images, two or more")
    if kind == "latents":
        keys = work.read_latents(request.latents)
        _check_two(kind, len(keys))
    else:
        images = await work.read_images(request.images, request.resize)
        _check_two(kind, len(images))
        keys, _ = await work.encode(images, None if classes is None else classes.repeat(len(images)))
    return requests.read_path(request, keys, most)


def _check_two(kind: str, keys: int) -> None:
    if keys < 2:
        raise InvalidArgument(kind, "one key frame", "two or more")
