"""Replies as bytes of the wire: each tensor is copied once, into the place that it has there.

In messages it would be copied into bytes, into a message, into the messages around that, and into the bytes of the
whole. The fields of a message may come in any order, so protobuf writes what is small, and the tensors come behind.
Knows nothing of what they mean.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from latentry.v1 import vae_pb2 as pb

Array = npt.NDArray[Any]

_DATA = pb.Tensor.DESCRIPTOR.fields_by_name["data"].number
_PIXELS = pb.Images.DESCRIPTOR.fields_by_name["tensor"].number
# What tensors are made of, by the letters that numpy has for it.
_LITTLE: Mapping[str, np.dtype[Any]] = {"B": np.dtype(np.uint8), "f": np.dtype("<f4")}
_DTYPES = {"B": pb.DATA_TYPE_UINT8, "f": pb.DATA_TYPE_FLOAT32}
_BYTES = 2  # the wire type of whatever has a length


class Reply:
    """A reply of which `message` is a part, and `fields` are the rest: by name, messages, or the arrays of tensors and
    images. They are not copied before `to_bytes`, and must stay as they are until then.
    """

    __slots__ = ("_kind", "_pieces")

    def __init__(self, message: Message, **fields: Message | Array) -> None:
        self._kind = type(message)
        about = message.DESCRIPTOR
        self._pieces: list[bytes | memoryview] = [message.SerializeToString()]
        for name, value in fields.items():
            if isinstance(value, Message):
                written = value.SerializeToString()
                self._pieces += _tag(_number(about, name), len(written)), written
            else:
                little = np.ascontiguousarray(value, _LITTLE[value.dtype.char])
                self._pieces += _before(about, name, value.dtype.char, value.shape), little.data.cast("B")

    def within(self, message: Message, name: str) -> Reply:
        """This reply as the field `name` of `message`; the arrays are copied now, and need not be kept."""
        whole = Reply(message)
        number = _number(message.DESCRIPTOR, name)
        size = sum(map(len, self._pieces))
        whole._pieces = [b"".join([*whole._pieces, _tag(number, size), *self._pieces])]
        return whole

    def to_bytes(self) -> bytes:
        """As protobuf would have written it, but for the order of fields."""
        return b"".join(self._pieces)

    def to_message(self) -> Any:
        """The whole message."""
        return self._kind.FromString(self.to_bytes())


@functools.lru_cache(maxsize=1024)
def _before(about: Descriptor, name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """All that comes before the bytes of an array of `shape` in the field `name` of messages `about`."""
    size = _LITTLE[dtype].itemsize * math.prod(shape)
    before = pb.Tensor(dtype=_DTYPES[dtype], shape=shape).SerializeToString() + _tag(_DATA, size)
    if about.fields_by_name[name].message_type is pb.Images.DESCRIPTOR:
        before = _tag(_PIXELS, len(before) + size) + before
    return _tag(_number(about, name), len(before) + size) + before


@functools.cache
def _number(about: Descriptor, name: str) -> int:
    """The number of a field."""
    return int(about.fields_by_name[name].number)


def _tag(field: int, size: int) -> bytes:
    """The beginning of a field that is so many bytes long."""
    return _varint(field << 3 | _BYTES) + _varint(size)


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
