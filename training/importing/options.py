"""What was said of the foreign graphs; None and () stand for what they are to say themselves."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from latentry.manifest import MAX_SIDE, Likelihood
from training.config import LIKELIHOODS
from training.errors import ConfigError

NCHW, NHWC, FLAT, FLAT_CHW = LAYOUTS = ("nchw", "nhwc", "flat", "flat-chw")
UNIT, SIGNED, LEVELS, NORMALISED = RANGES = ("0..1", "-1..1", "0..255", "mean-std")
LOGVAR, STD, VARIANCE, LOGSTD, POINT = POSTERIORS = (
    "mean-logvar",
    "mean-std",
    "mean-variance",
    "mean-logstd",
    "point",
)
MEAN, LOGITS = DECODER_OUTPUTS = ("mean", "logits")
UNKNOWN = "unknown"
PLAIN = (  # flags that stand in `Options` as they are given
    "layout",
    "decoder_layout",
    "range",
    "decoder_range",
    "posterior",
    "mean_output",
    "spread_output",
    "image_output",
    "decoder_output",
)

# What a likelihood needs beside the mean. The others need the decoder's output itself, which wrapping does not keep.
_PARAMETER = {"bernoulli": None, "gaussian": "sigma", "gaussian-fixed": "variance", "laplace": "scale"}


@dataclass(frozen=True, slots=True)
class Options:
    """The flags of `latentry import`; the decoder's layout and range where they are not the encoder's."""

    layout: str | None = None
    decoder_layout: str | None = None
    range: str | None = None
    decoder_range: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    posterior: str | None = None
    mean_output: str | None = None
    spread_output: str | None = None
    image_output: str | None = None
    decoder_output: str | None = None
    likelihood: Likelihood = field(default_factory=lambda: Likelihood(UNKNOWN))

    def said(self) -> dict[str, Any]:
        """What was said, as plain values."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


def parse_image_shape(text: str) -> tuple[int, int, int]:
    """`H,W,C`; raises `ConfigError` unless these are whole numbers that an image may have."""
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
        raise ConfigError(f"--image-shape: got {text}, wanted H,W,C such as 28,28,1")
    height, width, channels = map(int, numbers)
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and channels in (1, 3)):
        raise ConfigError(f"--image-shape: got {text}, wanted H,W,C, sides up to {MAX_SIDE}, C 1 or 3")
    return height, width, channels


def parse_numbers(flag: str, text: str) -> tuple[float, ...]:
    """One number, or one for each channel, such as `0.485,0.456,0.406`."""
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)) or (flag == "--std" and min(numbers) <= 0):
        positive = " above 0" if flag == "--std" else ""
        raise ConfigError(f"{flag}: got {text}, wanted one number, or three with commas between them{positive}")
    return numbers


def parse_likelihood(text: str) -> Likelihood:
    """`NAME` or `NAME:parameter=value`; raises `ConfigError` if an evaluation could not go by it."""
    name, _, rest = text.partition(":")
    if name == UNKNOWN and not rest:
        return Likelihood(UNKNOWN)
    if name not in LIKELIHOODS:
        raise ConfigError(f"--likelihood: got {name}, wanted {', '.join(_PARAMETER)} or {UNKNOWN}")
    if name not in _PARAMETER:
        raise ConfigError(
            f"--likelihood: got {name}, which takes more than the mean to score an image; wanted "
            f"{', '.join(_PARAMETER)} or {UNKNOWN}"
        )
    wanted = _PARAMETER[name]
    key, _, number = rest.partition("=")
    if wanted is None:
        if rest:
            raise ConfigError(f"--likelihood: got {text}, wanted {name} alone")
        return Likelihood(name)
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if key != wanted or not 1e-9 < value < 1e9:
        raise ConfigError(f"--likelihood: got {text}, wanted {name}:{wanted}=NUMBER, the number above 0")
    return Likelihood(name, {wanted: value})
