"""A bar on standard error, if that is a terminal, while images come in parts."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing

import numpy as np

from latentry.pictures import Pictures

_WIDTH = 30  # characters of the bar


def collect(parts: Generator[Pictures, None, None], total: int) -> Pictures:
    """All parts as one; of `total` images, so far as is known. The stream is cancelled if this is interrupted."""
    got: list[Pictures] = []
    shown = sys.stderr.isatty()
    try:
        with closing(parts):
            for part in parts:
                got.append(part)
                if shown and total > len(part.images):
                    _show(sum(len(each.images) for each in got), total)
    finally:
        if shown:
            _say("\r\033[K")
    return joined(got)


def joined(parts: list[Pictures]) -> Pictures:
    """Parts that follow each other, as one, with what the first says of how it was made."""
    first = parts[0]
    images, latents = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "latents"))
    return Pictures(images, latents, first.seed, first.model, first.provenance)


def _show(done: int, total: int) -> None:
    filled = _WIDTH * done // total
    bar = "#" * filled + "." * (_WIDTH - filled)
    _say(f"\r[{bar}] {done} of {total} images")


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
