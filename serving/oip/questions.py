"""Requests of the protocol as requests of our own API. Forms are checked here, what they ask for by `VaeServicer`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from latentry.v1 import vae_pb2 as pb
from latentry.words import EASINGS, PATHS, PRIORS, RESIZES, TRUNCATIONS
from serving.errors import InvalidArgument
from serving.inference import grpc_service_pb2 as oip
from serving.oip import faces
from serving.oip.faces import Face
from serving.oip.given import Given, forms
from serving.oip.given import read as read_given
from serving.oip.parameters import Parameters

_MAX_INT32, _MAX_INT64, _MAX_UINT64 = 2**31 - 1, 2**63 - 1, 2**64 - 1
_MAX_TIMEOUT_US = 10**15
ATTRIBUTE = "attribute."


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked: our own request of the rpc; and the outputs that are wanted, none for all there are; the form of
    images. `fields` says what its caller calls those fields of our request that may be made of several parts of theirs.
    """

    rpc: str
    request: Message
    outputs: Sequence[str]
    form: pb.ImageOutput
    timeout_s: float | None
    fields: Mapping[str, str]


async def read(request: oip.ModelInferRequest, face: Face) -> Question:
    """Raises `InvalidArgument`."""
    rpc, ask, known = _ASK[face.kind]
    given = await read_given(request, face)
    made = ask(given)
    timeout_us = given.parameters.integer("timeout", 0, _MAX_TIMEOUT_US)
    classed = ("class",) if face.model.manifest.classes else ()
    given.parameters.finish((*known, *classed, *forms(face), "timeout"))
    timeout_s = timeout_us / 1e6 if timeout_us else None
    return Question(rpc, made, given.outputs, given.form, timeout_s, _fields(request, given.parameters))


def _fields(request: oip.ModelInferRequest, parameters: Parameters) -> dict[str, str]:
    named = {f"attributes[{i}]": parameters.field(name) for i, name in enumerate(parameters.beginning(ATTRIBUTE))}
    if "class" in parameters:
        named |= dict.fromkeys(("classes[0]", "classes"), parameters.field("class"))
    for output in request.outputs:
        named |= {f"output.{name}": f"outputs[{output.name}].parameters[{name}]" for name in output.parameters}
    return named


# ---- one for each kind of face ----


def _encode(given: Given) -> pb.EncodeRequest:
    parameters = given.parameters
    seed = parameters.integer("seed", 0, _MAX_UINT64)
    if seed is None and "latents" in given.outputs:
        raise InvalidArgument("outputs", "latents", "mean, logvar; or a parameter `seed`, which latents are drawn by")
    request = pb.EncodeRequest(
        model=given.model,
        images=given.images(required=True),
        resize=parameters.choice("resize", RESIZES),
        seed=seed,
        first_index=parameters.integer("first_index", 0, _MAX_INT64),
        temperature=parameters.number("temperature"),
    )
    return given.with_classes(request)


def _decode(given: Given) -> pb.DecodeRequest:
    request = pb.DecodeRequest(model=given.model, latents=given.latents(required=True), output=given.form)
    wants_mean = "mean" in given.outputs or not given.outputs
    if wants_mean and given.form.format in (pb.IMAGE_FORMAT_UNSPECIFIED, pb.IMAGE_FORMAT_RAW_UINT8):
        request.output.format = pb.IMAGE_FORMAT_RAW_FLOAT32  # the images are the mean, rounded
    elif "mean" in given.outputs and given.form.format != pb.IMAGE_FORMAT_RAW_FLOAT32:
        raise InvalidArgument("outputs", "mean beside images as files", "one of them a request")
    return given.with_classes(request)


def _sample(given: Given) -> pb.SampleRequest:
    parameters = given.parameters
    count = given.number("count", 1, given.face.model.limits.max_items)
    seed = given.number("seed", 0, _MAX_UINT64)
    request = pb.SampleRequest(
        model=given.model,
        count=1 if count is None else count,
        seed=secrets.randbits(63) if seed is None else seed,  # one that fits into int64, which all clients know
        first_index=parameters.integer("first_index", 0, _MAX_INT64),
        temperature=parameters.number("temperature"),
        output=given.form,
        truncation=parameters.number("truncation"),
        truncation_mode=parameters.choice("truncation_mode", TRUNCATIONS),
        prior=parameters.choice("prior", PRIORS),
    )
    return given.with_classes(request)


def _interpolate(given: Given) -> pb.InterpolateRequest:
    parameters = given.parameters
    steps = parameters.integer("steps", 1, _MAX_INT32)
    if steps is None:
        raise InvalidArgument(parameters.field("steps"), "none", "how many images from each key frame to the next")
    latents, images = given.latents_or_images()
    request = pb.InterpolateRequest(
        model=given.model,
        resize=parameters.choice("resize", RESIZES),
        steps=steps,
        path=parameters.choice("path", PATHS),
        output=given.form,
        easing=parameters.choice("easing", EASINGS),
        loop=parameters.flag("loop"),
        exclude_end_points=parameters.flag("exclude_end_points"),
        latents=latents,
        images=images,
    )
    return given.with_classes(request)


def _reconstruct(given: Given) -> pb.ReconstructRequest:
    parameters = given.parameters
    request = pb.ReconstructRequest(
        model=given.model,
        images=given.images(required=True),
        resize=parameters.choice("resize", RESIZES),
        output=given.form,
        seed=parameters.integer("seed", 0, _MAX_UINT64),
        first_index=parameters.integer("first_index", 0, _MAX_INT64),
        omit_images=bool(given.outputs) and "images" not in given.outputs,
    )
    return given.with_classes(request)


def _edit(given: Given) -> pb.EditRequest:
    parameters = given.parameters
    latents, images = given.latents_or_images()
    request = pb.EditRequest(
        model=given.model,
        resize=parameters.choice("resize", RESIZES),
        output=given.form,
        attributes=[
            pb.AttributeAmount(name=name.removeprefix(ATTRIBUTE), amount=parameters.number(name))
            for name in parameters.beginning(ATTRIBUTE)
        ],
        latents=latents,
        images=images,
    )
    return given.with_classes(request)


_DRAWN = ("seed", "first_index", "temperature")
_ASK: Mapping[str, tuple[str, Callable[[Given], Message], Sequence[str]]] = {
    faces.ENCODER: ("Encode", _encode, ("resize", *_DRAWN)),
    faces.DECODER: ("Decode", _decode, ()),
    faces.SAMPLE: ("Sample", _sample, ("count", *_DRAWN, "truncation", "truncation_mode", "prior")),
    faces.INTERPOLATE: (
        "Interpolate",
        _interpolate,
        ("steps", "path", "easing", "loop", "exclude_end_points", "resize"),
    ),
    faces.RECONSTRUCT: ("Reconstruct", _reconstruct, ("resize", "seed", "first_index")),
    faces.EDIT: ("Edit", _edit, (f"{ATTRIBUTE}NAME", "resize")),
}
