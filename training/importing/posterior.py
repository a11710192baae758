"""How a foreign encoder says q(z|x): which of its outputs is the mean, which the spread, and what kind of spread.

Knows nothing of images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError, ExportError
from training.importing.foreign import Dims
from training.importing.options import LOGSTD, LOGVAR, POINT, POSTERIORS, STD, VARIANCE, Options

POINT_LOGVAR = -10.0  # of an encoder that gives a point: as training.networks.posterior has it
LEAST_SPREAD = 1e-18  # of a standard deviation or variance, whose logarithm is to be finite

_SPREADS = (
    (LOGVAR, ("logvar", "logcov", "lnvar", "logsigma2", "logsigmasq")),
    (LOGSTD, ("logstd", "logsigma", "logscale", "lnstd", "lnsigma")),
    (VARIANCE, ("var", "cov", "sigma2", "sigmasq")),
    (STD, ("std", "stddev", "sigma", "scale", "deviation")),
)
_MEANS = {"mean", "mu", "loc", "embedding"}

Items = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Posterior:
    """`item` is the mean's shape for one image. Where `axis` is given, the output `mean` holds the mean and then the
    spread, one after the other along this axis of an item; `spread` is that output too."""

    kind: str
    mean: str
    spread: str | None
    item: tuple[int, ...]
    axis: int | None = None

    @property
    def size(self) -> int:
        """How many latents."""
        return math.prod(self.item)

    @property
    def outputs(self) -> list[str]:
        """The outputs that are needed."""
        return [self.mean] if self.spread in (None, self.mean) else [self.mean, str(self.spread)]

    def moments(self, outputs: Sequence[NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the encoder gives -> mean and logvar, each (N, Z)."""
        given = [output.astype(np.float64) for output in outputs]
        if self.axis is not None:
            given = np.split(given[0], 2, axis=1 + self.axis)
        mean, *spreads = (each.reshape(len(each), -1) for each in given)
        if not spreads:
            return mean, np.full_like(mean, POINT_LOGVAR)
        if self.kind == LOGVAR:
            return mean, spreads[0]
        if self.kind == LOGSTD:
            return mean, 2 * spreads[0]
        if (spreads[0] < 0).any():
            raise ExportError(
                f"encoder: {self.spread}: got {spreads[0].min():.3g}, wanted no {self.kind[5:]} below 0: is it the "
                f"logarithm? Then --posterior {LOGVAR} or {LOGSTD}"
            )
        return mean, np.log(np.maximum(spreads[0], LEAST_SPREAD)) * (2 if self.kind == STD else 1)


def find(options: Options, outputs: Items, latents: Dims, say: list[str]) -> Posterior:
    """The posterior among the encoder's outputs, each with the shape of one item; `latents` is what the decoder takes.

    What is guessed goes into `say`. Raises `ConfigError`, naming a flag and its choices, where that would be a gamble.
    """
    for flag, name in (("--mean-output", options.mean_output), ("--spread-output", options.spread_output)):
        if name is not None and name not in outputs:
            raise ConfigError(f"{flag}: got {name}, wanted one of the encoder's outputs: {_listed(outputs)}")
    whole = {name: item for name, item in outputs.items() if _fits(item, latents)}
    halves = {name: item for name, item in outputs.items() if name not in whole and _doubles(item, latents)}
    if options.mean_output in halves or (options.mean_output is None and not whole and halves):
        return _split(options, outputs, halves, latents, say)
    if options.posterior == POINT or (options.posterior is None and len(whole) == 1 and not options.spread_output):
        return _point(options, outputs, whole, say)
    return _pair(options, outputs, whole, say)


def _point(options: Options, outputs: Items, whole: Items, say: list[str]) -> Posterior:
    mean = options.mean_output or _mean(whole) or (next(iter(whole)) if len(whole) == 1 else None)
    if mean is None or mean not in whole:
        raise ConfigError(f"--mean-output: wanted which of the encoder's outputs is the point: {_listed(outputs)}")
    if options.posterior is None:
        if _kind(mean):
            raise ConfigError(f"--posterior: got only {mean}, whose name says a spread, wanted a mean beside it")
        say.append(f"posterior {POINT}, from {mean} alone; logvar is {POINT_LOGVAR:g} everywhere")
    return Posterior(POINT, mean, None, whole[mean])


def _pair(options: Options, outputs: Items, whole: Items, say: list[str]) -> Posterior:
    mean, spread = options.mean_output or _mean(whole), options.spread_output or _spread(whole, options.posterior)
    kind = options.posterior or (spread and _kind(spread))
    if not mean or not spread or not kind or mean == spread or mean not in whole or spread not in whole:
        raise ConfigError(
            "--posterior, --mean-output, --spread-output: the names of the encoder's outputs do not say which is the "
            f"mean and what the other is: {_listed(outputs)}; wanted --posterior {' or '.join(POSTERIORS)}, and the "
            "names of the two"
        )
    if whole[mean] != whole[spread]:
        raise ConfigError(f"--spread-output: got {_listed(outputs)}, wanted two of the same shape")
    if options.mean_output is None or options.spread_output is None or options.posterior is None:
        say.append(f"posterior {kind} of {mean} and {spread}, from their names")
    return Posterior(kind, mean, spread, whole[mean])


def _split(options: Options, outputs: Items, halves: Items, latents: Dims, say: list[str]) -> Posterior:
    name = options.mean_output or (next(iter(halves)) if len(halves) == 1 else None)
    if name is None:
        raise ConfigError(f"--mean-output: wanted which output holds mean and spread: {_listed(outputs)}")
    if options.posterior in (None, POINT):
        kinds = " or ".join(each for each in POSTERIORS if each != POINT)
        raise ConfigError(
            f"--posterior: {name} {list(halves[name])} holds twice the decoder's latents: wanted {kinds}, for what "
            "stands behind the means"
        )
    axis = _axis(halves[name], latents)
    if axis is None:
        raise ConfigError(
            f"--mean-output: got {name} {list(halves[name])}, wanted twice the decoder's latents "
            f"{list(latents)} along one axis"
        )
    say.append(f"the first half of {name} is the mean, the second its spread, along axis {axis + 1}")
    return Posterior(str(options.posterior), name, name, _halved(halves[name], axis), axis)


def _fits(item: Sequence[int], latents: Dims) -> bool:
    """Whether an item may be the decoder's latents, whose sides may be open."""
    known = [side for side in latents if side is not None]
    if len(known) == len(latents):
        return math.prod(item) == math.prod(known)
    return len(item) == len(latents) and _matches(item, latents)


def _doubles(item: tuple[int, ...], latents: Dims) -> list[int]:
    """The axes of an item along which it is twice as long as the decoder's latents."""
    return [axis for axis, side in enumerate(item) if side % 2 == 0 and _fits(_halved(item, axis), latents)]


def _axis(item: tuple[int, ...], latents: Dims) -> int | None:
    """The axis along which mean and spread stand one after the other; None if there is a choice."""
    axes = _doubles(item, latents)
    alike = [axis for axis in axes if len(item) == len(latents) and _matches(_halved(item, axis), latents)]
    found = alike or axes
    return found[0] if len(found) == 1 else None


def _matches(item: Sequence[int], latents: Dims) -> bool:
    return all(want in (None, got) for got, want in zip(item, latents, strict=True))


def _halved(item: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(side // 2 if index == axis else side for index, side in enumerate(item))


def _mean(outputs: Items) -> str | None:
    found = [name for name in outputs if not _kind(name) and _words(name) & _MEANS]
    return found[0] if len(found) == 1 else None


def _spread(outputs: Items, kind: str | None) -> str | None:
    found = [name for name in outputs if _kind(name) and kind in (None, _kind(name))]
    return found[0] if len(found) == 1 else None


def _kind(name: str) -> str | None:
    """The kind of spread that an output's name says, if any."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((kind for kind, parts in _SPREADS if any(part in plain for part in parts)), None)


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))


def _listed(outputs: Items) -> str:
    return ", ".join(f"{name} {list(item)}" for name, item in outputs.items())
