"""Reconstruct: images through the model and back, and how far each came back from where it was."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from latentry.v1 import vae_pb2 as pb
from serving import call, likelihoods, scores
from serving.api import codec, replies, requests
from serving.api.codec_threads import Stopped
from serving.api.wire import Reply
from serving.api.work import Work
from serving.batches import Array
from serving.latents import draws
from serving.latents.draws import Span
from serving.model import Float32s

Float64s = npt.NDArray[np.float64]

_AT_ONCE = 1 << 16  # pixel values whose scores take less time than passing them to a thread


async def reconstruct(request: pb.ReconstructRequest, work: Work) -> Reply:
    """Answers one request."""
    codec.check_output(request.output)
    model, deadline = work.model, call.current().deadline
    images = await work.read_images(request.images, request.resize)
    first = requests.read_first_index(request.first_index, len(images))
    classes = requests.read_classes(request.classes, len(images), work.about)
    seed = request.seed if request.HasField("seed") else None
    mean, logvar = await work.encode(images, classes)
    z = mean if seed is None else draws.of_posterior(mean, logvar, [Span(seed, first, len(mean))], 1.0)
    needed = likelihoods.outputs(work.about.likelihood, model.has_parameters)
    pixels = "mean" if codec.wants_floats(request.output) else "images"
    wanted = {"mean", *([needed] if needed else []), *([] if request.omit_images else [pixels])}
    await work.admit(len(z))
    outputs = await model.decode_outputs(z, frozenset(wanted), deadline, classes)
    errors, likelihood = await _held_against(images, outputs, needed, work)
    fields: dict[str, Message | Array] = {"latents": z, "squared_error": errors.astype(np.float32)}
    kl = await _kl(mean, logvar, None if seed is None else z, work)
    if kl is not None:
        fields["kl"] = kl.astype(np.float32)
        if likelihood is not None:
            fields["elbo"] = (likelihood - kl).astype(np.float32)
    if not request.omit_images:
        fields["images"] = await work.write_images(outputs[pixels], request.output)
    message = pb.ReconstructResponse(model=replies.ref(model), seed=seed, provenance=replies.provenance(model))
    return Reply(message, **fields)


async def _kl(mean: Float32s, logvar: Float32s, draw: Float32s | None, work: Work) -> Float64s | None:
    """KL(q(z|x) || p(z)) [N]. Of a learnt prior its estimate at the draw of each q, or at their means if there is none;
    None if the prior's density is not known."""
    if not work.model.fitted_by_default:
        return scores.kl_to_standard_normal(mean, logvar)
    z = mean if draw is None else draw
    log_prior = await work.model.log_prior(z, call.current().deadline)
    if log_prior is None:
        return None
    log_posterior = -scores.entropy(logvar) if draw is None else scores.log_density(draw, mean, logvar)
    return np.asarray(log_posterior - log_prior)


async def _held_against(
    images: Array, outputs: Mapping[str, Array], needed: str | None, work: Work
) -> tuple[Float64s, Float64s | None]:
    """The squared error [N] of each image, and log p(x|z) [N] if it can be told; beside the event loop if that takes
    long."""
    likelihood = work.about.likelihood

    def measure(stopped: Stopped = lambda: False) -> tuple[Float64s, Float64s | None]:
        errors = scores.squared_errors(images, outputs["mean"]).astype(np.float64)
        return errors, None if needed is None else likelihoods.log_prob(likelihood, images, outputs[needed])

    with call.current().timed("codec_out"):
        if math.prod(images.shape) <= _AT_ONCE:
            return measure()
        return await work.codec_threads.run(measure, sum(each.nbytes for each in outputs.values()))
