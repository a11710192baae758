"""Where an error of a server lies, in the caller's words: it knows one part of a call, and no names of files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import TypeAlias

from latentry.inputs import Images, Latents
from latentry.target import LatentryError

Given: TypeAlias = "Mapping[str, Images | Latents]"  # by their fields in a request: images, plus_images, minus_images

_FILE = re.compile(r"^(?:differences\[0\]\.)?(images|plus_images|minus_images)\.encoded\.images\[(\d+)\]")
_ALSO = re.compile(r"(?<=[( ])\[(\d+)\](?= \d+x\d+[,)])")
_CLASS = re.compile(r"^classes\.(?:names|indices)\[(\d+)\]")
_LATENT = re.compile(r"^(latents\..*? at \[)(\d+)(?=, \d+\])")


def in_words_of_caller(message: str, given: Given, start: int = 0, first_class: int = 0) -> str:
    """The message about the part of a call that begins with item `start` and with class `first_class`."""
    found = _FILE.match(message)
    if found is not None:
        field, at = found[1], int(found[2])
        offset = start if field == "images" else 0
        items = given.get(field)
        place = items.place(at + offset) if items is not None else f"[{at + offset}]"
        said = _ALSO.sub(lambda also: f"[{int(also[1]) + offset}]", message[found.end() :])
        return f"{field.removesuffix('_images')}{place}{said}"
    message = _CLASS.sub(lambda one: f"classes[{int(one[1]) + first_class}]", message)
    return _LATENT.sub(lambda one: f"{one[1]}{int(one[2]) + start}", message)


class Told:
    """A context in which what is raised about a part of a call is said of the whole."""

    __slots__ = ("_first_class", "_given", "_start")

    def __init__(self, given: Given, start: int = 0, first_class: int = 0) -> None:
        self._given = given
        self._start = start
        self._first_class = first_class

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, LatentryError):
            message = in_words_of_caller(error.message, self._given, self._start, self._first_class)
            raise LatentryError(error.code, message) from error.__cause__
