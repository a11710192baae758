"""Tensors of the protocol as bytes and back: raw or typed contents in, raw out. Knows nothing of what they mean."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from latentry.printable import plain
from serving.errors import InvalidArgument
from serving.inference import grpc_service_pb2 as oip

_Input: TypeAlias = oip.ModelInferRequest.InferInputTensor

BYTES = "BYTES"
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT64": np.dtype("<u8"),
    "FP32": np.dtype("<f4"),
}
_CONTENTS: Mapping[str, str] = {  # datatypes other than these cannot be read
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    BYTES: "bytes_contents",
}
_MAX_SIDES = 8
_MAX_ELEMENTS = 1 << 16  # of BYTES, whose elements are taken apart one by one
_AT_ONCE = 1 << 16  # numbers of typed contents between two turns of the event loop
_LONGEST = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: `data` has its elements, little-endian and row-major; or `elements` those of BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes = b""
    elements: Sequence[bytes] = ()

    def integers(self) -> list[int]:
        """The elements of a tensor of whole numbers."""
        return [int(each) for each in np.frombuffer(self.data, _DTYPES[self.datatype])]


async def read_inputs(request: oip.ModelInferRequest, known: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The tensors of a request by their names; raises `InvalidArgument`. `known`: the names that there are, and the
    datatypes that each may have."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidArgument("raw_input_contents", f"{len(raw)} entries", f"{len(request.inputs)}, one an input")
    tensors: dict[str, Tensor] = {}
    for i, given in enumerate(request.inputs):
        name = plain(given.name, _LONGEST)
        field = f"inputs[{name}]"
        if given.name not in known:
            raise InvalidArgument("inputs", repr(name), f"one of {', '.join(known)}")
        _check_datatype(given.datatype, known[given.name], field)
        if given.name in tensors:
            raise InvalidArgument("inputs", f"{name!r} twice", "each name once")
        if raw and given.contents.ByteSize():
            raise InvalidArgument(f"{field}.contents", "contents beside raw_input_contents", "one of them")
        count = _count(given, field)
        if given.datatype == BYTES:
            elements = _take_apart(raw[i], count, field) if raw else _from_contents(given, count, field)
            tensors[given.name] = Tensor(given.name, BYTES, tuple(given.shape), elements=elements)
        else:
            data = _check_size(raw[i], count, given, field) if raw else await _pack(given, count, field)
            tensors[given.name] = Tensor(given.name, given.datatype, tuple(given.shape), data)
    return tensors


def _check_datatype(datatype: str, known: Sequence[str], field: str) -> None:
    if datatype not in known:
        wanted = f"{', '.join(known[:-1])} or {known[-1]}".removeprefix(" or ")
        raise InvalidArgument(f"{field}.datatype", repr(plain(datatype, _LONGEST)), wanted)


def _count(given: _Input, field: str) -> int:
    """How many elements its shape makes."""
    if not 1 <= len(given.shape) <= _MAX_SIDES or any(side < 1 for side in given.shape):
        wanted = f"1 to {_MAX_SIDES} sides of at least 1"
        raise InvalidArgument(f"{field}.shape", list(given.shape[: _MAX_SIDES + 1]), wanted)
    elements = math.prod(given.shape)
    if given.datatype == BYTES and elements > _MAX_ELEMENTS:
        raise InvalidArgument(f"{field}.shape", list(given.shape), f"at most {_MAX_ELEMENTS} elements of BYTES")
    return elements


def _check_size(data: bytes, count: int, given: _Input, field: str) -> bytes:
    wanted = count * _DTYPES[given.datatype].itemsize
    if len(data) != wanted:
        what = f"{wanted} bytes, as {given.datatype} {list(given.shape)} takes"
        raise InvalidArgument(f"{field}.raw_input_contents", f"{len(data)} bytes", what)
    return data


def _take_apart(data: bytes, count: int, field: str) -> list[bytes]:
    """Elements of BYTES, each behind its length as a little-endian uint32."""
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) <= count:
        end = at + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, at)[0]
        if end > len(data):
            got = f"an element {len(found)} that ends at byte {end}"
            raise InvalidArgument(f"{field}.raw_input_contents", got, f"elements within its {len(data)} bytes")
        found.append(data[at + 4 : end])
        at = end
    if len(found) != count:
        got = f"{'more than ' if len(found) > count else ''}{min(len(found), count)} elements"
        raise InvalidArgument(f"{field}.raw_input_contents", got, f"{count}, as its shape says")
    return found


def _from_contents(given: _Input, count: int, field: str) -> Sequence[Any]:
    """The typed contents, which are of the datatype's kind and as many as they are to be."""
    wanted = _CONTENTS[given.datatype]
    others = [each.name for each, _ in given.contents.ListFields() if each.name != wanted]
    if others:
        raise InvalidArgument(f"{field}.contents", others[0], f"{wanted}, where {given.datatype} belongs")
    values: Sequence[Any] = getattr(given.contents, wanted)
    if len(values) != count:
        what = f"{count} elements, as shape {list(given.shape)} takes"
        raise InvalidArgument(f"{field}.contents.{wanted}", len(values), what)
    return values


async def _pack(given: _Input, count: int, field: str) -> bytes:
    """Typed contents as raw ones. That is slow, so that other calls have their turn in between."""
    values, dtype, parts = _from_contents(given, count, field), _DTYPES[given.datatype], []
    for at in range(0, count, _AT_ONCE):
        part = np.array(values[at : at + _AT_ONCE], np.uint32 if given.datatype == "UINT8" else dtype)
        if given.datatype == "UINT8" and part.max() > 255:
            raise InvalidArgument(f"{field}.contents.uint_contents", part.max(), "0 to 255")
        parts.append(part.astype(dtype, copy=False).tobytes())
        await asyncio.sleep(0)
    return b"".join(parts)


def add_output(response: oip.ModelInferResponse, tensor: Tensor) -> None:
    """Put a tensor into a reply, raw."""
    response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    if tensor.datatype == BYTES:
        response.raw_output_contents.append(b"".join(struct.pack("<I", len(each)) + each for each in tensor.elements))
    else:
        response.raw_output_contents.append(tensor.data)
