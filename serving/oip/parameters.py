"""The parameters of a request, of an input or of an output: each is read once, as what it is to be, and what is left
over is refused.

Numbers may come as text too: older clients of the protocol know no other parameters than booleans, int64 and text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from latentry.printable import plain
from serving.errors import InvalidArgument
from serving.inference import grpc_service_pb2 as oip

T = TypeVar("T")
Value = bool | int | float | str

# What Triton's, KServe's and MLServer's clients add by themselves, and what means nothing here.
_TOLERATED = frozenset(
    {
        "sequence_id", "sequence_start", "sequence_end", "priority", "headers",
        "binary_data", "binary_data_output", "binary_data_size", "content_type",
    }
)  # fmt: skip
_TOLERATED_PREFIX = "triton_"
_LONGEST = 64
_LONGEST_NUMBER = 40  # characters


class Parameters:
    """Reads `values`; errors say that they are those of `where`."""

    def __init__(self, values: Mapping[str, oip.InferParameter], where: str = "parameters") -> None:
        self._values = values
        self._where = where
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def field(self, name: str) -> str:
        """How errors name a parameter."""
        return f"{self._where}[{plain(name, _LONGEST)}]"

    def integer(self, name: str, least: int, most: int) -> int | None:
        """A whole number from `least` to `most`, or None if it is not there."""
        wanted = f"a whole number from {least} to {most}"
        value = self._get(name)
        if isinstance(value, str):
            value = self._number(int, name, value, wanted)
        if value is None:
            return None
        if isinstance(value, bool | float) or not least <= value <= most:
            raise InvalidArgument(self.field(name), value, wanted)
        return value

    def number(self, name: str) -> float | None:
        """A finite number, or None if it is not there."""
        value = self._get(name)
        if isinstance(value, str):
            value = self._number(float, name, value, "a finite number")
        if value is None:
            return None
        if isinstance(value, bool) or not math.isfinite(value):
            raise InvalidArgument(self.field(name), value, "a finite number")
        return float(value)

    def flag(self, name: str) -> bool:
        """A truth, false if it is not there."""
        value = self._get(name)
        if value is None:
            return False
        if isinstance(value, bool):
            return value
        raise InvalidArgument(self.field(name), _shown(value), "a boolean")

    def choice(self, name: str, known: Mapping[str, T]) -> T | None:
        """What one of some words stands for, or None if it is not there."""
        value = self._get(name)
        if value is None:
            return None
        if isinstance(value, str) and value in known:
            return known[value]
        raise InvalidArgument(self.field(name), _shown(value), f"one of {', '.join(known)}")

    def name_or_number(self, name: str) -> str | int | None:
        """A word or a whole number, or None if it is not there."""
        value = self._get(name)
        if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
            return value
        raise InvalidArgument(self.field(name), _shown(value), "a name or a whole number")

    def beginning(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`, sorted."""
        return iter(sorted(name for name in self._values if name.startswith(prefix)))

    def finish(self, known: Iterable[str]) -> None:
        """Everything has been asked for: what is left over is an error, which names those that are `known`."""
        for name in sorted(self._values.keys() - self._read - _TOLERATED):
            if not name.startswith(_TOLERATED_PREFIX):
                raise InvalidArgument(self._where, repr(plain(name, _LONGEST)), f"one of {', '.join(known) or 'none'}")

    def _get(self, name: str) -> Value | None:
        if name not in self._values:
            return None
        self._read.add(name)
        kind = self._values[name].WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidArgument(self.field(name), "no value", "one")
        value: Value = getattr(self._values[name], kind)
        return value

    def _number(self, kind: type[T], name: str, text: str, wanted: str) -> T:
        try:
            if len(text) <= _LONGEST_NUMBER:
                return kind(text)  # type: ignore[call-arg] # int or float
        except ValueError:
            pass
        raise InvalidArgument(self.field(name), _shown(text), wanted)


def _shown(value: Value) -> str:
    return repr(plain(value, _LONGEST)) if isinstance(value, str) else str(value)
