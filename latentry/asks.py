"""What a caller asks of a model, checked, for those calls that are streams too. Sends nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentry import choices, inputs
from latentry.choices import ClassInput, Dtype, Easing, Path, Prior, Resize, TruncationMode
from latentry.inputs import Input
from latentry.v1 import vae_pb2 as pb


@dataclass(frozen=True)
class Model:
    """The model that is meant: as a request names it, and as the server describes it."""

    selector: pb.ModelSelector
    info: pb.ModelInfo


@dataclass(frozen=True)
class Samples:
    """What was asked of `sample` or `stream_sample`, for any part of its images."""

    count: int
    seed: int | None
    first_index: int
    classes: ClassInput | None
    options: Mapping[str, Any]

    def request(self, selector: pb.ModelSelector, at: int, most: int, seed: int | None) -> pb.SampleRequest:
        """The images from number `at` on, `most` at most."""
        part = slice(at, min(at + most, self.count))
        return pb.SampleRequest(
            model=selector,
            count=part.stop - part.start,
            seed=seed,
            first_index=choices.index("first_index", self.first_index + at),
            classes=choices.classes(self.classes, self.count, part),
            **self.options,
        )


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
        "truncation_mode": choices.one_of("truncation_mode", truncation_mode, choices.TRUNCATIONS),
        "prior": choices.one_of("prior", prior, choices.PRIORS),
        "output": choices.output(dtype),
    }
    return Samples(
        choices.count("count", count),
        choices.seed(seed),
        choices.index("first_index", first_index),
        classes,
        options,
    )


def interpolation(
    selector: pb.ModelSelector,
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
) -> pb.InterpolateRequest:
    """What a caller asks, checked."""
    given = inputs.read(key_frames)
    return pb.InterpolateRequest(
        model=selector,
        steps=choices.count("steps", steps),
        path=choices.one_of("path", path, choices.PATHS),
        easing=choices.one_of("easing", easing, choices.EASINGS),
        loop=loop,
        exclude_end_points=not ends,
        resize=choices.one_of("resize", resize, choices.RESIZES),
        output=choices.output(dtype),
        classes=choices.classes(classes, 1),
        **given.fields(slice(None)),
    )
