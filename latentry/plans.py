"""What the client's calls say and in what order, apart from how they travel: `Client` and `AsyncClient` share this.

A plan is a generator: it yields the name of a call and its request, is sent the reply, and returns the result. What is
larger than the model's limits is split into several calls, which the caller does not notice.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from latentry import messages
from latentry.messages import ImageInput
from latentry.pictures import Pictures, Posterior
from latentry.v1 import vae_pb2 as pb

T = TypeVar("T")

_OVERHEAD_BYTES = 32 << 10  # names, shapes and tags of a request
_ITEM_OVERHEAD_BYTES = 8  # tag and length of one image
Plan: TypeAlias = Generator[tuple[str, Any], Any, T]


def encode(
    info: pb.ModelInfo,
    selector: pb.ModelSelector,
    images: ImageInput,
    seed: int | None,
    temperature: float,
    resize: str | None,
) -> Plan[Posterior]:
    """Encode any number of images."""
    items = messages.image_items(images)
    fit = messages.choice("resize", resize, messages.RESIZES)
    replies: list[pb.EncodeResponse] = []
    for at, end in _parts(items, info):
        part = messages.write_images(items[at:end])
        request = pb.EncodeRequest(model=selector, images=part, resize=fit, first_index=at)
        if seed is not None:
            request.seed, request.temperature = messages.check_seed(seed), temperature
        replies.append((yield "Encode", request))
    mean, logvar = ([messages.read_tensor(getattr(r, name)) for r in replies] for name in ("mean", "logvar"))
    draws = [messages.read_tensor(r.latents) for r in replies] if seed is not None else None
    return Posterior(
        np.concatenate(mean),
        np.concatenate(logvar),
        None if draws is None else np.concatenate(draws),
        seed,
        messages.model_ref(replies[0].model),
    )


def decode(info: pb.ModelInfo, selector: pb.ModelSelector, latents: npt.ArrayLike, dtype: str) -> Plan[Pictures]:
    """Decode any number of latents [N, Z]."""
    z = messages.latent_array(latents)
    output = _output(dtype)
    replies: list[pb.DecodeResponse] = []
    for at in _starts(len(z), info):
        part = messages.write_tensor(z[at : at + info.limits.max_items])
        replies.append((yield "Decode", pb.DecodeRequest(model=selector, latents=part, output=output)))
    return Pictures(_images(replies), z, None, messages.model_ref(replies[0].model))


def sample(
    info: pb.ModelInfo,
    selector: pb.ModelSelector,
    count: int,
    seed: int | None,
    first_index: int,
    temperature: float,
    dtype: str,
) -> Plan[Pictures]:
    """Draw any number of images; without a seed the server chooses one, for all of them."""
    output = _output(dtype)
    replies: list[pb.SampleResponse] = []
    for at in _starts(count, info):
        request = pb.SampleRequest(
            model=selector,
            count=min(count - at, info.limits.max_items),
            seed=None if seed is None else messages.check_seed(seed),
            first_index=first_index + at,
            temperature=temperature,
            output=output,
        )
        replies.append((yield "Sample", request))
        seed = replies[0].seed
    z = np.concatenate([messages.read_tensor(r.latents) for r in replies])
    return Pictures(_images(replies), z, seed, messages.model_ref(replies[0].model))


def interpolate(
    info: pb.ModelInfo,
    selector: pb.ModelSelector,
    key_frames: ImageInput,
    steps: int,
    path: str,
    resize: str | None,
    dtype: str,
) -> Plan[Pictures]:
    """Walk from key frame to key frame; an array of two dimensions is latents, all else is images."""
    request = pb.InterpolateRequest(
        model=selector,
        steps=steps,
        path=messages.choice("path", path, messages.PATHS),
        resize=messages.choice("resize", resize, messages.RESIZES),
        output=_output(dtype),
    )
    if isinstance(key_frames, np.ndarray) and key_frames.ndim == 2:
        request.latents.CopyFrom(messages.write_tensor(messages.latent_array(key_frames)))
    else:
        request.images.CopyFrom(messages.write_images(messages.image_items(key_frames)))
    reply: pb.InterpolateResponse = yield "Interpolate", request
    z = messages.read_tensor(reply.latents)
    return Pictures(_images([reply]), z, None, messages.model_ref(reply.model))


def _starts(n: int, info: pb.ModelInfo) -> range:
    """Where each call's part begins; at least one call, so that the server can say what is wrong with none."""
    return range(0, max(n, 1), info.limits.max_items)


def _parts(items: npt.NDArray[Any] | list[bytes], info: pb.ModelInfo) -> list[tuple[int, int]]:
    """Where each call's part begins and ends, within the limits in items and in bytes.

    Raises `ValueError` for one image that is too large for a message of its own.
    """
    most = info.limits.max_message_bytes - _OVERHEAD_BYTES
    item_bytes = 1 if isinstance(items, list) or items.dtype == np.uint8 else 4
    sizes = [len(i) if isinstance(i, bytes) else i.size * item_bytes for i in items]
    parts, start, total = [], 0, 0
    for at, size in enumerate(sizes):
        if size > most:
            raise ValueError(f"images[{at}]: got {size} bytes, wanted at most {most}; make it smaller first")
        if at - start == info.limits.max_items or total + size > most:
            parts.append((start, at))
            start, total = at, 0
        total += size + _ITEM_OVERHEAD_BYTES
    return [*parts, (start, len(sizes))]


def _output(dtype: str) -> pb.ImageOutput:
    return pb.ImageOutput(format=messages.choice("dtype", dtype, messages.FORMATS))


def _images(replies: list[Any]) -> npt.NDArray[Any]:
    return np.concatenate([messages.read_tensor(r.images.tensor) for r in replies])
