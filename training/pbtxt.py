"""Protobuf's text format, written without a schema: fields in the order given, nested ones indented.

Knows nothing of what the fields mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias


class Symbol(str):
    """The name of an enum's value, or `true`: written without quotes."""

    __slots__ = ()


# A field that is repeated comes once for each of its values, one of numbers with a tuple of them.
Value: TypeAlias = "str | int | tuple[int, ...] | Message"
Message: TypeAlias = Sequence[tuple[str, "Value"]]

_WIDTH = 120
_ESCAPES = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n"}


def text(message: Message, indent: str = "") -> str:
    """`message` as text: a line for each field, and more for a message that does not fit into one."""
    return "".join(f"{indent}{name}{_value(value, indent, len(indent + name))}\n" for name, value in message)


def _value(value: Value, indent: str, column: int) -> str:
    if isinstance(value, Symbol | int):
        return f": {value}"
    if isinstance(value, str):
        return f": {quoted(value)}"
    if isinstance(value, tuple):
        return f": [ {', '.join(map(str, value))} ]" if value else ": [ ]"
    line = " ".join(["", "{", *(f"{name}{_value(each, '', 0)}" for name, each in value), "}"])
    fits = "\n" not in line and column + len(line) <= _WIDTH
    return line if fits else f" {{\n{text(value, indent + '  ')}{indent}}}"


def quoted(value: str) -> str:
    """`value` as a string literal of ASCII: what is outside of it is written as the octal numbers of its UTF-8."""
    return '"' + "".join(map(_escaped, value.encode())) + '"'


def _escaped(byte: int) -> str:
    return _ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}")
