"""The words and numbers that a caller of a client chooses, checked and as the API has them.

What only the server can know (limits, names of classes) is left to it. Raises `ValueError` "name: got X, wanted Y".
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, SupportsIndex, TypeAlias

import numpy as np

from latentry.v1 import vae_pb2 as pb

Resize = Literal["crop", "stretch"]
Path = Literal["linear", "spherical", "catmull-rom"]
Easing = Literal["none", "in", "out", "in-out"]
Prior = Literal["standard", "fitted"]
TruncationMode = Literal["resample", "clamp"]
Dtype = Literal["uint8", "float32"]
# One for all items, or one each: by name or by number.
ClassInput: TypeAlias = "str | int | Sequence[str] | Sequence[int]"

RESIZES = {None: pb.RESIZE_UNSPECIFIED, "crop": pb.RESIZE_CROP, "stretch": pb.RESIZE_STRETCH}
PATHS = {
    "linear": pb.INTERPOLATION_PATH_LINEAR,
    "spherical": pb.INTERPOLATION_PATH_SPHERICAL,
    "catmull-rom": pb.INTERPOLATION_PATH_CATMULL_ROM,
}
EASINGS = {"none": pb.EASING_NONE, "in": pb.EASING_IN, "out": pb.EASING_OUT, "in-out": pb.EASING_IN_OUT}
PRIORS = {None: pb.PRIOR_UNSPECIFIED, "standard": pb.PRIOR_STANDARD, "fitted": pb.PRIOR_FITTED}
TRUNCATIONS = {"resample": pb.TRUNCATION_RESAMPLE, "clamp": pb.TRUNCATION_CLAMP}
FORMATS = {"uint8": pb.IMAGE_FORMAT_RAW_UINT8, "float32": pb.IMAGE_FORMAT_RAW_FLOAT32}


def one_of(name: str, value: str | None, known: Mapping[Any, Any]) -> Any:
    """The enum value that `value` stands for."""
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(repr(k) for k in known)}")
    return known[value]


def output(dtype: str) -> pb.ImageOutput:
    """The form of the images in a reply."""
    return pb.ImageOutput(format=one_of("dtype", dtype, FORMATS))


def seed(value: int | None) -> int | None:
    """A seed, or none."""
    return None if value is None else _whole("seed", value, 0, 2**64 - 1, "0 to 2^64 - 1")


def count(name: str, value: SupportsIndex) -> int:
    """A number of items: what an int32 of the API holds."""
    return _whole(name, value, -(2**31), 2**31 - 1, "a number below 2^31")


def index(name: str, value: SupportsIndex) -> int:
    """The place of an item in a sequence: what an int64 of the API holds."""
    return _whole(name, value, -(2**63), 2**63 - 1, "a number below 2^63")


def number(name: str, value: float | None) -> float | None:
    """A number that need not be whole, or none."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: got {value!r}, wanted a number") from None


def amounts(attributes: Mapping[str, float] | None) -> list[pb.AttributeAmount]:
    """So much of each attribute."""
    given = (attributes or {}).items()
    return [pb.AttributeAmount(name=name, amount=number(f"attributes[{name!r}]", amount)) for name, amount in given]


def classes(given: ClassInput | None, items: int, part: slice | None = None) -> pb.Classes | None:
    """The classes of this part of so many items."""
    if given is None:
        return None
    each: list[Any] = [given] if isinstance(given, str | int | np.integer) else list(given)
    if part is not None and len(each) not in (1, items):
        raise ValueError(f"classes: got {len(each)}, wanted one for all or {items}")
    these = each[part] if part is not None and len(each) > 1 else each
    if all(isinstance(one, str) for one in each):
        return pb.Classes(names=these)
    if any(isinstance(one, str) for one in each):
        raise ValueError(f"classes: got {each!r}, wanted all names or all numbers")
    return pb.Classes(indices=[count("classes", one) for one in these])


def _whole(name: str, value: SupportsIndex, least: int, most: int, wanted: str) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: got {value!r}, wanted {wanted}") from None
    if not least <= whole <= most:
        raise ValueError(f"{name}: got {whole}, wanted {wanted}")
    return whole
