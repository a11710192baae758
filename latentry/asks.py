"""What a caller asks of a model, checked, for those calls that are streams too. Sends nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentry import choices, inputs, pieces, words
from latentry.choices import ClassInput, Dtype
from latentry.fitting import Fitting
from latentry.inputs import Images, Input, Latents
from latentry.pieces import Sample
from latentry.v1 import vae_pb2 as pb
from latentry.words import Easing, Path, Prior, Resize, TruncationMode


@dataclass(frozen=True)
class Model:
    """The model that is meant: as a request names it, and as the server described it."""

    selector: pb.ModelSelector
    info: pb.ModelInfo
    _fittings: list[Fitting] = field(default_factory=list)

    def fitting(self, resize: str | None) -> Fitting:
        """What makes images of a call as small as the model's."""
        shape = self.info.image_shape
        self._fittings.append(Fitting((shape.height, shape.width, shape.channels), resize))
        return self._fittings[-1]

    def digest(self) -> str:
        """That of the model that has to answer since images were fitted for it; empty: any may."""
        return self.info.model.digest if any(each.used for each in self._fittings) else ""


@dataclass(frozen=True)
class Samples:
    """What was asked of `sample` or `stream_sample`, for any part of its images."""

    count: int
    seed: int | None
    first_index: int
    classes: choices.Classes
    options: dict[str, Any]

    def request(self, selector: pb.ModelSelector, at: int, most: int, seed: int | None) -> pb.SampleRequest:
        """The images from number `at` on, `most` at most."""
        part = slice(at, min(at + most, self.count))
        return pb.SampleRequest(
            model=selector,
            count=part.stop - part.start,
            seed=seed,
            first_index=choices.index("first_index", self.first_index + at),
            classes=self.classes.part(part, self.count),
            **self.options,
        )

    def piece(self, at: int, most: int, seed: int) -> Sample:
        """The images from number `at` on, `most` at most, as `Sample` has them."""
        part = slice(at, min(at + most, self.count))
        return pieces.sample(part, self.classes, self.count, seed, self.first_index + at, self.options)


@dataclass(frozen=True)
class Walk:
    """What was asked of `interpolate` or `stream_interpolate`; its key frames are still to be read."""

    key_frames: Input
    resize: Resize | None
    options: Mapping[str, Any]

    def request(self, model: Model) -> tuple[pb.InterpolateRequest, Images | Latents]:
        """The request, and what was given. Raises `ValueError` and `OSError` as `inputs.read`."""
        given = inputs.read(self.key_frames, "key_frames", model.fitting(self.resize))
        check_room("key_frames", given.size(), model.info)
        return pb.InterpolateRequest(model=model.selector, **self.options, **given.fields(slice(None))), given


def samples(
    count: int,
    *,
    classes: ClassInput | None,
    seed: int | None,
    first_index: int,
    temperature: float,
    truncation: float | None,
    truncation_mode: TruncationMode,
    prior: Prior | None,
    dtype: Dtype,
) -> Samples:
    """What a caller asks, checked."""
    options = {
        "temperature": choices.number("temperature", temperature),
        "truncation": choices.number("truncation", truncation),
        "truncation_mode": choices.one_of("truncation_mode", truncation_mode, words.TRUNCATIONS),
        "prior": choices.one_of("prior", prior, choices.PRIORS),
        "output": choices.output(dtype),
    }
    if truncation is None and truncation_mode != "resample":
        raise ValueError(f"truncation_mode: got {truncation_mode!r} without truncation, wanted both or neither")
    return Samples(
        choices.count("count", count),
        choices.seed(seed),
        choices.index("first_index", first_index),
        choices.classes(classes),
        options,
    )


def walk(
    key_frames: Input,
    *,
    classes: ClassInput | None,
    steps: int,
    path: Path,
    easing: Easing,
    loop: bool,
    ends: bool,
    resize: Resize | None,
    dtype: Dtype,
) -> Walk:
    """What a caller asks, checked."""
    options = {
        "steps": choices.count("steps", steps),
        "path": choices.one_of("path", path, words.PATHS),
        "easing": choices.one_of("easing", easing, words.EASINGS),
        "loop": loop,
        "exclude_end_points": not ends,
        "resize": choices.one_of("resize", resize, choices.RESIZES),
        "output": choices.output(dtype),
        "classes": choices.classes(classes).one(),
    }
    return Walk(key_frames, resize, options)


def check_room(name: str, size: int, info: pb.ModelInfo) -> None:
    """Raise `ValueError` if so many bytes do not fit into a request that cannot be split."""
    if size > inputs.room(info):
        wanted = f"at most {inputs.room(info)} in one call: a `resize` makes image files small"
        raise ValueError(f"{name}: got {size} bytes, wanted {wanted}")
