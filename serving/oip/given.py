"""A request of the protocol taken apart: its tensors, the outputs that it wants, and the form of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from latentry.printable import plain
from latentry.v1 import vae_pb2 as pb
from serving.errors import InvalidArgument
from serving.inference import grpc_service_pb2 as oip
from serving.oip import faces, words
from serving.oip.faces import Face
from serving.oip.parameters import Parameters
from serving.oip.tensors import BYTES, Tensor, read_inputs

_DTYPES = {"UINT8": pb.DATA_TYPE_UINT8, "FP32": pb.DATA_TYPE_FLOAT32}
_DATATYPES = {  # that an input may have, the advertised one first
    "images": ("UINT8", "FP32", BYTES),
    "latents": ("FP32",),
    "classes": ("INT64", "INT32", "UINT64", BYTES),
    "count": ("INT64", "INT32", "UINT64"),
    "seed": ("INT64", "UINT64", "INT32"),
}
_MAX_INT32 = 2**31 - 1
_MANY = 1024  # parameters, inputs or outputs of a request: each is looked at by itself, while other calls wait
_LONGEST = 64

Request = TypeVar(
    "Request",
    pb.EncodeRequest,
    pb.DecodeRequest,
    pb.SampleRequest,
    pb.InterpolateRequest,
    pb.ReconstructRequest,
    pb.EditRequest,
)


@dataclass(frozen=True, slots=True)
class Given:
    """A request, taken apart. Its methods raise `InvalidArgument`."""

    face: Face
    tensors: Mapping[str, Tensor]
    parameters: Parameters
    outputs: Sequence[str]
    form: pb.ImageOutput
    model: pb.ModelSelector

    def latents(self, required: bool = False) -> pb.Tensor | None:
        """Those of the input `latents`, if it is there."""
        tensor = self._tensor("latents", required)
        return None if tensor is None else _plain_tensor(tensor)

    def images(self, required: bool = False) -> pb.Images | None:
        """Those of the input `images`, if it is there."""
        tensor = self._tensor("images", required)
        if tensor is None:
            return None
        if tensor.datatype == BYTES:
            return pb.Images(encoded=pb.EncodedImages(images=tensor.elements))
        return pb.Images(tensor=_plain_tensor(tensor))

    def latents_or_images(self) -> tuple[pb.Tensor | None, pb.Images | None]:
        """One of them."""
        latents, images = self.latents(), self.images()
        if latents is not None and images is not None:
            raise InvalidArgument("inputs", "latents and images", "one of them")
        if latents is None and images is None:
            raise InvalidArgument("inputs", "none", "latents or images")
        return latents, images

    def number(self, name: str, least: int, most: int) -> int | None:
        """A number that may be a parameter or an input of one element."""
        number = self.parameters.integer(name, least, most)
        tensor = self.tensors.get(name)
        if tensor is None:
            return number
        if number is not None:
            raise InvalidArgument(f"inputs[{name}]", "a tensor beside the parameter", "one of them")
        wanted = f"one whole number from {least} to {most}"
        if (count := math.prod(tensor.shape)) != 1:
            raise InvalidArgument(f"inputs[{name}]", f"{count} numbers", wanted)
        (value,) = tensor.integers()
        if not least <= value <= most:
            raise InvalidArgument(f"inputs[{name}]", value, wanted)
        return value

    def with_classes(self, request: Request) -> Request:
        """The request, with the classes that are given: an input with one for all or one an item, or a parameter."""
        chosen, tensor = self.parameters.name_or_number("class"), self.tensors.get("classes")
        if chosen is not None and tensor is not None:
            raise InvalidArgument("inputs[classes]", "a tensor beside the parameter `class`", "one of them")
        most = self.face.model.limits.max_items
        if tensor is not None and (count := math.prod(tensor.shape)) > most:
            raise InvalidArgument("inputs[classes]", f"{count} classes", f"at most {most}")
        if isinstance(chosen, str) and chosen not in self.face.model.manifest.labels and _is_number(chosen):
            chosen = int(chosen)
        if isinstance(chosen, str):
            request.classes.names.append(chosen)
        elif chosen is not None:
            request.classes.indices.extend(_indices([chosen], self.parameters.field("class")))
        elif tensor is not None and tensor.datatype == BYTES:
            request.classes.names.extend(each.decode(errors="replace") for each in tensor.elements)
        elif tensor is not None:
            request.classes.indices.extend(_indices(tensor.integers(), "inputs[classes]"))
        return request

    def _tensor(self, name: str, required: bool) -> Tensor | None:
        if required and name not in self.tensors:
            (port,) = [each for each in self.face.inputs if each.name == name]
            shape = [-1, *port.dims] if self.face.batched else list(port.dims)
            raise InvalidArgument(f"inputs[{name}]", "none", f"{port.datatype} {shape}")
        return self.tensors.get(name)


async def read(request: oip.ModelInferRequest, face: Face) -> Given:
    """Take it apart; raises `InvalidArgument`."""
    for what in ("parameters", "inputs", "outputs"):
        if (many := len(getattr(request, what))) > _MANY:
            raise InvalidArgument(what, f"{many} of them", f"at most {_MANY}")
    parameters = Parameters(request.parameters)
    tensors = await read_inputs(request, {port.name: _DATATYPES[port.name] for port in face.inputs})
    for tensor in tensors.values():
        if tensor.datatype == BYTES or tensor.name == "classes":
            _check_column(tensor)
    for given in request.inputs:
        Parameters(given.parameters, f"inputs[{plain(given.name, _LONGEST)}].parameters").finish(())
    outputs, form = _read_outputs(request, parameters, face)
    about = face.model.manifest
    return Given(face, tensors, parameters, outputs, form, pb.ModelSelector(name=about.name, version=about.version))


def _check_column(tensor: Tensor) -> None:
    """[N], or [N, 1] as Triton has what is one an item."""
    if len(tensor.shape) > 2 or tensor.shape[1:] not in ((), (1,)):
        raise InvalidArgument(f"inputs[{tensor.name}].shape", list(tensor.shape), "[N] or [N, 1]")


def _read_outputs(
    request: oip.ModelInferRequest, parameters: Parameters, face: Face
) -> tuple[list[str], pb.ImageOutput]:
    """The outputs that are wanted, and the form of images: parameters of that output, or else of the request."""
    known = [port.name for port in face.outputs] + ["latents"] * (face.kind == faces.ENCODER)
    form = _form(parameters, face)
    names: list[str] = []
    for output in request.outputs:
        name = output.name
        if name not in known or name in names:
            got = f"{plain(name, _LONGEST)!r}{' twice' if name in names else ''}"
            raise InvalidArgument("outputs", got, f"{', '.join(known)}, each at most once")
        own = Parameters(output.parameters, f"outputs[{name}].parameters")
        shapes_images = name == "images"
        if shapes_images:
            form.MergeFrom(_form(own, face))
        own.finish(forms(face) if shapes_images else ())
        names.append(name)
    return names, form


def forms(face: Face) -> tuple[str, ...]:
    """The parameters that say what form images come in."""
    if face.kind == faces.ENCODER:
        return ()
    return ("format", "quality") + ("frame_ms",) * (face.kind == faces.INTERPOLATE)


def _form(parameters: Parameters, face: Face) -> pb.ImageOutput:
    form, known = pb.ImageOutput(), forms(face)
    kinds = {**words.FORMATS, **(words.ANIMATIONS if "frame_ms" in known else {})}
    for name in known:
        value = parameters.choice(name, kinds) if name == "format" else parameters.integer(name, 1, _MAX_INT32)
        if value is not None:
            setattr(form, name, value)
    return form


def _plain_tensor(tensor: Tensor) -> pb.Tensor:
    return pb.Tensor(dtype=_DTYPES[tensor.datatype], shape=tensor.shape, data=tensor.data)


def _indices(numbers: Sequence[int], field: str) -> Sequence[int]:
    """As they go into our own request; one that does not is no class of any model."""
    for number in numbers:
        if not -_MAX_INT32 <= number <= _MAX_INT32:
            raise InvalidArgument(field, number, "the number of a class")
    return numbers


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _LONGEST
