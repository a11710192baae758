"""What a call sends of itself: a piece of rows, which can go in one request with those of other calls, and its part of
the reply. Knows nothing of channels, threads or event loops.

Results are those of the piece alone: rows do not depend on each other, and each image of a seed has its own address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from latentry import choices, replies
from latentry.choices import Classes
from latentry.messages import read_tensor, tensor_of
from latentry.pictures import Array
from latentry.provenance import ModelRef, Provenance
from latentry.v1 import vae_pb2 as pb

# Larger pieces go alone: they gain little from company, and smaller ones would wait for them.
_MOST_ITEMS, _MOST_BYTES = 64, 256 << 10


class Answer:
    """What came of a piece: its tensors by their fields in the reply, as arrays of its own."""

    __slots__ = ("arrays", "model", "provenance")

    def __init__(self, arrays: dict[str, Array], model: ModelRef, provenance: Provenance) -> None:
        self.arrays = arrays
        self.model = model
        self.provenance = provenance


@dataclass(slots=True, eq=False)
class Piece:
    """`items` rows of a call. Those with equal `alike` can go together; `fields` are what they have in common in the
    request, and `classes` those of the items, or one for all.
    """

    rpc: ClassVar[str]

    items: int
    classes: list[Any] | None
    alike: tuple[Any, ...]
    fields: dict[str, Any]

    @property
    def size(self) -> int:
        """About so many bytes of a request."""
        return _size_of(self.classes, self.items)

    def sociable(self) -> bool:
        """Whether it may go with others."""
        return 0 < self.items <= _MOST_ITEMS and self.size <= _MOST_BYTES and self.classes != []

    def request(self, selector: pb.ModelSelector, together: Sequence[Piece]) -> Any:
        """The one request of pieces that can go together, this one the first of them."""
        raise NotImplementedError

    def tensors(self, reply: Any) -> dict[str, pb.Tensor]:
        """Those of a reply, by what their fields are called in `Answer`."""
        raise NotImplementedError


@dataclass(slots=True, eq=False)
class Decode(Piece):
    """Latents, float32 [items, dim] as bytes."""

    rpc: ClassVar[str] = "Decode"

    dim: int
    data: bytes

    @property
    def size(self) -> int:
        """See `Piece`."""
        return len(self.data) + _size_of(self.classes, self.items)

    def request(self, selector: pb.ModelSelector, together: Sequence[Any]) -> pb.DecodeRequest:
        """See `Piece`."""
        return pb.DecodeRequest(
            model=selector,
            latents=_joined(together, pb.DATA_TYPE_FLOAT32, (self.dim,)),
            classes=_classes(together),
            **self.fields,
        )

    def tensors(self, reply: pb.DecodeResponse) -> dict[str, pb.Tensor]:
        """See `Piece`."""
        return {"images": reply.images.tensor}


@dataclass(slots=True, eq=False)
class Sample(Piece):
    """`items` images of a seed, from index `first` on."""

    rpc: ClassVar[str] = "Sample"

    seed: int
    first: int

    def request(self, selector: pb.ModelSelector, together: Sequence[Any]) -> pb.SampleRequest:
        """See `Piece`."""
        if len(together) == 1:  # as a server understands it that knows no spans
            which: dict[str, Any] = {"count": self.items, "seed": self.seed, "first_index": self.first}
        else:
            which = {"spans": _spans(together)}
        return pb.SampleRequest(model=selector, classes=_classes(together), **which, **self.fields)

    def tensors(self, reply: pb.SampleResponse) -> dict[str, pb.Tensor]:
        """See `Piece`."""
        return {"images": reply.images.tensor, "latents": reply.latents}


@dataclass(slots=True, eq=False)
class Encode(Piece):
    """Images: an array [items, *shape] as bytes, or `files`, which go alone. With a `seed` also draws, as `Sample`."""

    rpc: ClassVar[str] = "Encode"

    dtype: pb.DataType
    shape: tuple[int, ...]
    data: bytes
    files: pb.Images | None
    seed: int | None
    first: int

    @property
    def size(self) -> int:
        """See `Piece`."""
        return len(self.data) + _size_of(self.classes, self.items)

    def sociable(self) -> bool:
        """See `Piece`."""
        return self.files is None and Piece.sociable(self)

    def request(self, selector: pb.ModelSelector, together: Sequence[Any]) -> pb.EncodeRequest:
        """See `Piece`."""
        which: dict[str, Any] = {}
        if self.seed is not None:
            alone = len(together) == 1
            which = {"seed": self.seed, "first_index": self.first} if alone else {"spans": _spans(together)}
        images = self.files or pb.Images(tensor=_joined(together, self.dtype, self.shape))
        return pb.EncodeRequest(model=selector, images=images, classes=_classes(together), **which, **self.fields)

    def tensors(self, reply: pb.EncodeResponse) -> dict[str, pb.Tensor]:
        """See `Piece`."""
        tensors = {"mean": reply.mean, "logvar": reply.logvar}
        return tensors if self.seed is None else {**tensors, "latents": reply.latents}


def answer(reply: Any, piece: Piece) -> Answer:
    """The reply to one."""
    arrays = {name: read_tensor(tensor).copy() for name, tensor in piece.tensors(reply).items()}
    return Answer(arrays, replies.model_ref([reply]), replies.provenance([reply]))


def answers(reply: Any, together: Sequence[Piece]) -> list[Answer] | None:
    """The part of each in the reply to all; None if it is no such reply, as of a server that knows no spans."""
    if len(together) == 1:
        return [answer(reply, together[0])]
    tensors, items = together[0].tensors(reply), sum(piece.items for piece in together)
    if any(not tensor.shape or tensor.shape[0] != items for tensor in tensors.values()):
        return None
    arrays = {name: read_tensor(tensor) for name, tensor in tensors.items()}
    model, provenance = replies.model_ref([reply]), replies.provenance([reply])
    parts, at = [], 0
    for piece in together:
        end = at + piece.items
        # Copies, so that who keeps one image does not keep those of everybody.
        parts.append(Answer({name: array[at:end].copy() for name, array in arrays.items()}, model, provenance))
        at = end
    return parts


def decode(rows: Array, asked: Classes, part: slice, items: int, dtype: str, fields: dict[str, Any]) -> Decode:
    """That of latents [n, Z], which are this part of the `items` of a call."""
    dim = rows.shape[1]
    data = rows.astype("<f4", copy=False).tobytes()
    classes = asked.these(part, items)
    return Decode(len(rows), classes, ("Decode", dim, dtype, _kind(classes)), fields, dim, data)


def sample(part: slice, asked: Classes, items: int, seed: int, first: int, fields: dict[str, Any]) -> Sample:
    """That of the images of this part of the `items` of a call."""
    classes = asked.these(part, items)
    output: pb.ImageOutput = fields["output"]
    alike = tuple(value for name, value in fields.items() if name != "output")
    count = part.stop - part.start
    return Sample(
        count,
        classes,
        ("Sample", output.format, *alike, _kind(classes)),
        fields,
        seed,
        choices.index("first_index", first),
    )


def encode(
    rows: Array | list[bytes],
    asked: Classes,
    part: slice,
    items: int,
    seed: int | None,
    first: int,
    fields: dict[str, Any],
) -> Encode:
    """That of images, which are this part of the `items` of a call."""
    classes = asked.these(part, items)
    index = 0 if seed is None else choices.index("first_index", first + part.start)
    if isinstance(rows, list):
        files = pb.Images(encoded=pb.EncodedImages(images=rows))
        return Encode(len(rows), classes, (), fields, pb.DATA_TYPE_UNSPECIFIED, (), b"", files, seed, index)
    dtype = pb.DATA_TYPE_UINT8 if rows.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    data = (rows if dtype == pb.DATA_TYPE_UINT8 else rows.astype("<f4", copy=False)).tobytes()
    shape = rows.shape[1:]
    alike = ("Encode", dtype, shape, seed is None, *fields.values(), _kind(classes))
    return Encode(len(rows), classes, alike, fields, dtype, shape, data, None, seed, index)


def joined(answers: Sequence[Answer], name: str) -> Array:
    """The arrays of this name, one after the other."""
    if len(answers) == 1:
        return answers[0].arrays[name]
    return np.concatenate([answer.arrays[name] for answer in answers])


def provenance(answers: Sequence[Answer]) -> Provenance:
    """How they were made, all together."""
    return answers[0].provenance if len(answers) == 1 else replies.together([each.provenance for each in answers])


def _kind(classes: list[Any] | None) -> str:
    """Of classes: only those of one kind can go in one request."""
    return "" if classes is None else "names" if classes and isinstance(classes[0], str) else "indices"


def _joined(together: Sequence[Any], dtype: pb.DataType, shape: tuple[int, ...]) -> pb.Tensor:
    if len(together) == 1:
        return tensor_of(dtype, (together[0].items, *shape), together[0].data)
    items = sum(piece.items for piece in together)
    return tensor_of(dtype, (items, *shape), b"".join([piece.data for piece in together]))


def _spans(together: Sequence[Any]) -> list[pb.SeedSpan]:
    return [pb.SeedSpan(seed=piece.seed, first_index=piece.first, count=piece.items) for piece in together]


def _classes(together: Sequence[Piece]) -> pb.Classes | None:
    first = together[0].classes
    if first is None:
        return None
    each: list[Any] = first
    if len(together) > 1:
        each = []
        for piece in together:
            these = piece.classes or []
            each += these * piece.items if len(these) == 1 else these
    return pb.Classes(names=each) if each and isinstance(each[0], str) else pb.Classes(indices=each)


def _size_of(classes: list[Any] | None, items: int) -> int:
    if not classes:
        return 0
    each = sum(4 * len(one) + 4 if isinstance(one, str) else 5 for one in classes)
    return each * items if len(classes) == 1 else each
