"""The words and numbers that a caller of a client chooses, checked and as the API has them.

What only the server can know (limits, names of classes) is left to it. Raises `ValueError` "name: got X, wanted Y".
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, TypeAlias

import numpy as np

from latentry import words
from latentry.v1 import vae_pb2 as pb

Dtype = Literal["uint8", "float32"]
# One for all items, or one each: by name or by number.
ClassInput: TypeAlias = "str | int | Sequence[str] | Sequence[int]"

RESIZES: Mapping[str | None, pb.Resize] = dict([(None, pb.RESIZE_UNSPECIFIED), *words.RESIZES.items()])
PRIORS: Mapping[str | None, pb.Prior] = dict([(None, pb.PRIOR_UNSPECIFIED), *words.PRIORS.items()])
_OUTPUTS = {
    "uint8": pb.ImageOutput(format=pb.IMAGE_FORMAT_RAW_UINT8),
    "float32": pb.ImageOutput(format=pb.IMAGE_FORMAT_RAW_FLOAT32),
}


def one_of(name: str, value: str | None, known: Mapping[Any, Any]) -> Any:
    """The enum value that `value` stands for."""
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(repr(k) for k in known)}")
    return known[value]


def output(dtype: str) -> pb.ImageOutput:
    """The form of the images in a reply."""
    form: pb.ImageOutput = one_of("dtype", dtype, _OUTPUTS)
    return form


def seed(value: int | None) -> int | None:
    """A seed, or none."""
    return None if value is None else _whole("seed", value, 0, 2**64 - 1, "a whole number, 0 to 2^64 - 1")


def count(name: str, value: SupportsIndex) -> int:
    """A number of items: what an int32 of the API holds."""
    return _whole(name, value, -(2**31), 2**31 - 1, "a whole number below 2^31")


def index(name: str, value: SupportsIndex) -> int:
    """The place of an item in a sequence: what an int64 of the API holds."""
    return _whole(name, value, -(2**63), 2**63 - 1, "a whole number below 2^63")


def number(name: str, value: float | None) -> float | None:
    """A number that need not be whole, or none."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: got {value!r}, wanted a number") from None


def unused_without_seed(**options: tuple[float, float]) -> None:
    """Raise `ValueError` for what only a draw goes by and was given although none is made: (value, default) each."""
    for name, (value, default) in options.items():
        if value != default:
            raise ValueError(f"{name}: got {value} without a seed, wanted it with one, for a draw")


def amounts(attributes: Mapping[str, float] | None) -> list[pb.AttributeAmount]:
    """So much of each attribute."""
    given = (attributes or {}).items()
    return [pb.AttributeAmount(name=name, amount=number(f"attributes[{name!r}]", amount)) for name, amount in given]


@dataclass(frozen=True)
class Classes:
    """The classes that a caller chose, all names or all numbers, for any part of the items."""

    each: list[str] | list[int] | None

    def one(self) -> pb.Classes | None:
        """Those of a call that wants one class."""
        return self._message(self.each)

    @property
    def named(self) -> bool:
        """Whether they are names."""
        return self.each is not None and all(isinstance(one, str) for one in self.each)

    def part(self, part: slice, items: int) -> pb.Classes | None:
        """Those of this part of so many items."""
        return self._message(self.these(part, items))

    def these(self, part: slice, items: int) -> list[str] | list[int] | None:
        """The same, as they were given."""
        if self.each is None:
            return None
        if len(self.each) not in (1, items):
            raise ValueError(f"classes: got {len(self.each)}, wanted one for all or {items}")
        return self.each[part] if len(self.each) > 1 else self.each

    def start(self, part: slice) -> int:
        """Which of them is the first of this part."""
        return part.start if self.each is not None and len(self.each) > 1 else 0

    def _message(self, these: Any) -> pb.Classes | None:
        if these is None:
            return None
        return pb.Classes(names=these) if self.named else pb.Classes(indices=these)


def classes(given: ClassInput | None) -> Classes:
    """The classes that a caller chose, read once: they may come from a generator."""
    if given is None:
        return Classes(None)
    wanted = "a name or a number, or a list of one each"
    if isinstance(given, str | int | np.integer):
        given = [given]  # type: ignore[assignment]
    if isinstance(given, Set | Mapping | bytes):
        raise ValueError(f"classes: got a {type(given).__name__}, wanted {wanted}")  # noqa: TRY004 - see the module
    try:
        each: list[Any] = list(given)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"classes: got {given!r}, wanted {wanted}") from None
    if each and all(isinstance(one, str) for one in each):
        return Classes(each)
    if any(isinstance(one, str) for one in each):
        raise ValueError(f"classes: got {each!r}, wanted all names or all numbers")
    return Classes([count(f"classes[{at}]", one) for at, one in enumerate(each)])


def _whole(name: str, value: SupportsIndex, least: int, most: int, wanted: str) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: got {value!r}, wanted {wanted}") from None
    if not least <= whole <= most:
        raise ValueError(f"{name}: got {whole}, wanted {wanted}")
    return whole
