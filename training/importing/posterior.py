"""How a foreign encoder says q(z|x): which of its outputs is the mean, which the spread, and what kind of spread.

Knows nothing of images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.onnx_parts import short
from training.errors import ConfigError, ExportError
from training.importing import latents_fit, output_names
from training.importing.foreign import Dims
from training.importing.options import LOGSTD, LOGVAR, POINT, POSTERIORS, STD, Options

POINT_LOGVAR = -10.0  # of an encoder that gives a point: as training.networks.posterior has it
LEAST_SPREAD = 1e-18  # of a standard deviation or variance, whose logarithm is to be finite

_MOST_LISTED = 12  # outputs that a message names

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
                f"encoder: {short(self.spread)}: got {spreads[0].min():.3g}, wanted no {self.kind[5:]} below 0: is it "
                f"the logarithm? Then --posterior {LOGVAR} or {LOGSTD}"
            )
        return mean, np.log(np.maximum(spreads[0], LEAST_SPREAD)) * (2 if self.kind == STD else 1)


def find(
    options: Options, outputs: Items, latents: Dims, say: list[str], others: Mapping[str, str] | None = None
) -> Posterior:
    """The posterior among the encoder's outputs, each with the shape of one item; `latents` is what the decoder takes.
    `others` are outputs without a row for each image, and what they are in words.

    What is guessed goes into `say`. Raises `ConfigError`, naming a flag and its choices, where that would be a gamble.
    """
    others = others or {}
    _check_said(options, outputs, others)
    whole = {name: item for name, item in outputs.items() if latents_fit.fits(item, latents)}
    halves = {name: item for name, item in outputs.items() if name not in whole and latents_fit.doubles(item, latents)}
    if options.mean_output in halves or (options.mean_output is None and not whole and halves):
        return _split(options, outputs, halves, latents, say)
    alone = len(outputs) + len(others) == len(whole) == 1
    if options.posterior == POINT or (options.posterior is None and alone and not options.spread_output):
        return _point(options, outputs, whole, latents, say)
    return _pair(options, outputs, whole, latents, others, say)


def _check_said(options: Options, outputs: Items, others: Mapping[str, str]) -> None:
    """Raises `ConfigError` for an output that cannot be what it is said to be."""
    for flag, name in (("--mean-output", options.mean_output), ("--spread-output", options.spread_output)):
        if name is not None and name in others:
            raise ConfigError(
                f"{flag}: {short(name)} is {others[name]}, without a row for each image: wanted one of "
                f"{_listed(outputs)}; export the encoder so that {short(name)} has one"
            )
        if name is not None and name not in outputs:
            raise ConfigError(f"{flag}: got {short(name)}, wanted one of the encoder's outputs: {_listed(outputs)}")
    if options.posterior == POINT and options.spread_output is not None:
        raise ConfigError(
            f"--spread-output: got {short(options.spread_output)} for --posterior {POINT}, which has no spread: wanted "
            "one of the two flags"
        )


def _point(options: Options, outputs: Items, whole: Items, latents: Dims, say: list[str]) -> Posterior:
    mean = options.mean_output or output_names.mean(whole) or (next(iter(whole)) if len(whole) == 1 else None)
    if mean is not None:
        latents_fit.check_fit("--mean-output", mean, outputs[mean], latents)
    if mean is None:
        raise ConfigError(f"--mean-output: wanted which of the encoder's outputs is the point: {_listed(outputs)}")
    if options.posterior is None:
        if output_names.kind_of(mean):
            raise ConfigError(f"--posterior: got only {short(mean)}, whose name says a spread, wanted a mean beside it")
        say.append(f"posterior {POINT}, from {short(mean)} alone; logvar is {POINT_LOGVAR:g} everywhere")
    return Posterior(POINT, mean, None, whole[mean])


def _pair(
    options: Options, outputs: Items, whole: Items, latents: Dims, others: Mapping[str, str], say: list[str]
) -> Posterior:
    mean = options.mean_output or output_names.mean(whole)
    spread = options.spread_output or output_names.spread(whole, options.posterior)
    for flag, name in (("--mean-output", mean or output_names.mean(outputs)), ("--spread-output", spread)):
        if name is not None:
            latents_fit.check_fit(flag, name, outputs[name], latents)
    kind = options.posterior or (spread and output_names.kind_of(spread))
    if not mean or not spread or not kind or mean == spread:
        more = "".join(f", {short(name)} ({what})" for name, what in list(others.items())[:_MOST_LISTED])
        raise ConfigError(
            "--posterior, --mean-output, --spread-output: the names of the encoder's outputs do not say which is the "
            f"mean and what the other is, in the decoder's latents {latents_fit.in_words(latents)}: "
            f"{_listed(outputs)}{more}; wanted --posterior {' or '.join(POSTERIORS)}, and the names of the two"
        )
    if whole[mean] != whole[spread]:
        raise ConfigError(f"--spread-output: got {_listed(outputs)}, wanted two of the same shape")
    if options.mean_output is None or options.spread_output is None or options.posterior is None:
        say.append(f"posterior {kind} of {short(mean)} and {short(spread)}, from their names")
    return Posterior(kind, mean, spread, whole[mean])


def _split(options: Options, outputs: Items, halves: Items, latents: Dims, say: list[str]) -> Posterior:
    name = options.mean_output or (next(iter(halves)) if len(halves) == 1 else None)
    if name is None:
        raise ConfigError(f"--mean-output: wanted which output holds mean and spread: {_listed(outputs)}")
    if options.spread_output not in (None, name):
        raise ConfigError(
            f"--spread-output: got {short(options.spread_output)}, but {short(name)} {list(halves[name])} holds mean "
            f"and spread, twice the decoder's latents: wanted {short(name)}, or another --mean-output"
        )
    if options.posterior in (None, POINT):
        kinds = " or ".join(each for each in POSTERIORS if each != POINT)
        raise ConfigError(
            f"--posterior: {short(name)} {list(halves[name])} holds twice the decoder's latents: wanted {kinds}, for "
            "what stands behind the means"
        )
    axis = latents_fit.axis_of_halves(halves[name], latents)
    if axis is None:
        raise ConfigError(
            f"--mean-output: got {short(name)} {list(halves[name])}, wanted twice the decoder's latents "
            f"{latents_fit.in_words(latents)} along one axis"
        )
    say.append(f"the first half of {short(name)} is the mean, the second its spread, along axis {axis + 1}")
    return Posterior(str(options.posterior), name, name, latents_fit.halved(halves[name], axis), axis)


def _listed(outputs: Items) -> str:
    named = [f"{short(name)} {list(item)}" for name, item in list(outputs.items())[:_MOST_LISTED]]
    return ", ".join(named + [f"and {len(outputs) - _MOST_LISTED} more"] * (len(outputs) > _MOST_LISTED))
