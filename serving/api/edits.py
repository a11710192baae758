"""Edit: latents moved along named attributes and along differences between examples, and decoded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latentry.v1 import vae_pb2 as pb
from serving.api import codec, replies, requests
from serving.api.requests import MAX_DIFFERENCES
from serving.api.tensors import check_reach
from serving.api.wire import Reply
from serving.api.work import Int64s, Work, check_kind
from serving.errors import InvalidArgument
from serving.model import Float32s

Float64s = npt.NDArray[np.float64]


async def edit(request: pb.EditRequest, work: Work) -> Reply:
    """Answers one request."""
    codec.check_output(request.output)
    attributes = requests.read_attributes(request.attributes, work.about)
    if len(request.differences) > MAX_DIFFERENCES:
        raise InvalidArgument("differences", f"{len(request.differences)} of them", f"at most {MAX_DIFFERENCES}")
    kind = check_kind(request, "base", "latents or images to edit")
    base, classes = await _base(request, kind, work)
    move = np.zeros(work.about.latent_dim)
    for name, _, length in attributes:
        move += length * np.asarray(work.about.attributes[name])
    for i, difference in enumerate(request.differences):
        move += await _difference(difference, f"differences[{i}]", request, work)
    z = (base.astype(np.float64) + move).astype(np.float32)
    check_reach(z, kind)
    await work.admit(len(z))
    images = await work.decode(z, request.output, classes)
    message = pb.EditResponse(
        model=replies.ref(work.model),
        attributes=[pb.AttributeAmount(name=name, amount=amount) for name, amount, _ in attributes],
        provenance=replies.provenance(work.model),
    )
    return Reply(message, images=images, latents=z)


async def _base(request: pb.EditRequest, kind: str, work: Work) -> tuple[Float32s, Int64s | None]:
    """What is edited, and its classes."""
    if kind == "latents":
        z = work.read_latents(request.latents)
        return z, requests.read_classes(request.classes, len(z), work.about)
    images = await work.read_images(request.images, request.resize)
    classes = requests.read_classes(request.classes, len(images), work.about)
    mean, _ = await work.encode(images, classes)
    return mean, classes


async def _difference(difference: pb.Difference, field: str, request: pb.EditRequest, work: Work) -> Float64s:
    amount = requests.read_difference_amount(difference, field)
    ends = []
    for side in ("plus", "minus"):
        kind = difference.WhichOneof(side)
        if kind is None:
            raise InvalidArgument(f"{field}.{side}", "none", "latents or images, one or more")
        ends.append(await _examples(getattr(difference, kind), f"{field}.{kind}", request, work))
    return np.asarray(amount * (ends[0] - ends[1]))


async def _examples(given: pb.Tensor | pb.Images, field: str, request: pb.EditRequest, work: Work) -> Float64s:
    """The mean of the latents of some examples, [Z]."""
    if isinstance(given, pb.Tensor):
        return np.asarray(work.read_latents(given, field).mean(0, dtype=np.float64))
    classes = requests.read_classes(request.classes, 1, work.about)
    images = await work.read_images(given, request.resize, field)
    mean, _ = await work.encode(images, None if classes is None else classes.repeat(len(images)))
    return np.asarray(mean.mean(0, dtype=np.float64))
