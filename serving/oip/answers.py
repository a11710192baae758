"""Replies of our own API as replies of the protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from latentry.v1 import vae_pb2 as pb
from serving.errors import InvalidArgument
from serving.inference import grpc_service_pb2 as oip
from serving.oip import faces
from serving.oip.faces import Face
from serving.oip.questions import ATTRIBUTE, Question
from serving.oip.tensors import BYTES, Tensor, add_output

_DATATYPES = {pb.DATA_TYPE_UINT8: "UINT8", pb.DATA_TYPE_FLOAT32: "FP32"}
_PLAIN = ("mean", "logvar", "latents")
_SCORES = ("squared_error", "kl", "elbo")
_MAX_INT64 = 2**63 - 1


def write(reply: Any, question: Question, face: Face, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
    """The reply to a request, in the order in which outputs were asked for, or else in that of the face."""
    response = oip.ModelInferResponse(
        model_name=request.model_name, model_version=str(reply.model.version), id=request.id
    )
    there = {tensor.name: tensor for tensor in _tensors(reply, question, face)}
    for name in question.outputs or there:
        if name not in there:  # the model was replaced, under its version, by one that gives less
            raise InvalidArgument("outputs", name, ", ".join(there))
        add_output(response, there[name])
    _tell(reply, response)
    return response


def items(reply: Any) -> int:
    """Images or latents that a reply of ours has."""
    if isinstance(reply, pb.EncodeResponse):
        return int(reply.mean.shape[0])
    if isinstance(reply, pb.DecodeResponse):
        return _count(reply.images)
    return int(reply.latents.shape[0])


def _count(images: pb.Images) -> int:
    return int(images.tensor.shape[0]) if images.HasField("tensor") else len(images.encoded.images)


def _tensors(reply: Any, question: Question, face: Face) -> Iterator[Tensor]:
    present = {field.name for field, _ in reply.ListFields()}
    if "images" in present:
        yield from _images(reply.images, question, face)
    for name in _PLAIN:
        if name in present:
            yield _tensor(name, getattr(reply, name))
    for name in _SCORES:
        if name in present:
            scores = getattr(reply, name)
            yield Tensor(name, "FP32", (scores.shape[0], 1), scores.data)


def _images(images: pb.Images, question: Question, face: Face) -> Iterator[Tensor]:
    if images.HasField("encoded"):
        files = images.encoded.images
        yield Tensor("images", BYTES, (len(files),), elements=files)
        return
    found = _tensor("images", images.tensor)
    if face.kind != faces.DECODER or found.datatype != "FP32":
        yield found
        return
    if question.form.format != pb.IMAGE_FORMAT_RAW_FLOAT32 and (not question.outputs or "images" in question.outputs):
        # The graph rounds its mean in the same way: the pixels are those of a request for images alone.
        levels = np.rint(np.frombuffer(found.data, "<f4") * np.float32(255))
        pixels = levels.clip(0, 255).astype(np.uint8)
        yield Tensor("images", "UINT8", found.shape, pixels.tobytes())
    else:
        yield found
    yield Tensor("mean", "FP32", found.shape, found.data)


def _tensor(name: str, tensor: pb.Tensor) -> Tensor:
    return Tensor(name, _DATATYPES[tensor.dtype], tuple(tensor.shape), tensor.data)


def _tell(reply: Any, response: oip.ModelInferResponse) -> None:
    """Which model answered and how, as parameters of types that every client of the protocol knows."""
    made, to = reply.provenance, response.parameters
    to["digest"].string_param = reply.model.digest
    to["provider"].string_param = made.provider
    to["precision"].string_param = made.precision
    for name in ("queue", "inference", "codec", "total"):
        to[f"{name}_ns"].int64_param = round(getattr(made.timings, f"{name}_s") * 1e9)
    if isinstance(reply, pb.SampleResponse) or ("seed" in reply.DESCRIPTOR.fields_by_name and reply.HasField("seed")):
        kind = "int64_param" if reply.seed <= _MAX_INT64 else "uint64_param"
        setattr(to["seed"], kind, reply.seed)
    if isinstance(reply, pb.EditResponse):
        for each in reply.attributes:
            to[f"{ATTRIBUTE}{each.name}"].double_param = each.amount
