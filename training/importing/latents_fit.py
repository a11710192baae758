"""Whether the shape of an encoder's output is that of the latents that a decoder takes, whose sides may be open."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latentry.onnx_parts import short
from training.errors import ConfigError
from training.importing.foreign import Dims
from training.importing.options import POINT


def fits(item: Sequence[int], latents: Dims) -> bool:
    """Whether an item's numbers are the decoder's latents, whose sides may be open, one for one and in their order.

    As many numbers are enough only if one of the two is a row: other axes may stand in another order.
    """
    if len(item) == len(latents) and _matches(item, latents):
        return True
    known = [side for side in latents if side is not None]
    return len(known) == len(latents) and math.prod(item) == math.prod(known) and (_is_row(item) or _is_row(known))


def check_fit(flag: str, name: str, item: tuple[int, ...], latents: Dims) -> None:
    """Raises `ConfigError` if an output is not in the shape of the decoder's latents."""
    if fits(item, latents):
        return
    got = f"{flag}: {short(name)} {list(item)} does not fit the decoder's latents {in_words(latents)}"
    if None not in latents and math.prod(item) == math.prod(side or 1 for side in latents):
        raise ConfigError(
            f"{got}: as many numbers, but on other axes, whose order is not known: wanted the same axes, or one row of "
            "numbers: export one of the two graphs in the order of the other"
        )
    remedy = (
        "is it the decoder of the same model?"
        if flag == "--mean-output"
        else f"export one for each latent, or leave it out with --posterior {POINT}"
    )
    raise ConfigError(f"{got}: wanted as many numbers on the same axes; {remedy}")


def doubles(item: tuple[int, ...], latents: Dims) -> list[int]:
    """The axes of an item along which it is twice as long as the decoder's latents."""
    return [axis for axis, side in enumerate(item) if side % 2 == 0 and fits(halved(item, axis), latents)]


def axis_of_halves(item: tuple[int, ...], latents: Dims) -> int | None:
    """The axis along which mean and spread stand one after the other; None if there is a choice."""
    axes = doubles(item, latents)
    alike = [axis for axis in axes if len(item) == len(latents) and _matches(halved(item, axis), latents)]
    found = alike or axes
    return found[0] if len(found) == 1 else None


def halved(item: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """An item that is half as long along an axis."""
    return tuple(side // 2 if index == axis else side for index, side in enumerate(item))


def in_words(sides: Sequence[int | None]) -> str:
    """A shape, with ? for an open side."""
    return f"[{', '.join('?' if side is None else str(side) for side in sides)}]"


def _is_row(sides: Sequence[int]) -> bool:
    return sum(side != 1 for side in sides) <= 1


def _matches(item: Sequence[int], latents: Dims) -> bool:
    return all(want in (None, got) for got, want in zip(item, latents, strict=True))
