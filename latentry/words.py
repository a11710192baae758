"""The words that stand for the API's enumerations: in Python, on the command line, in the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from latentry.v1 import vae_pb2 as pb

Resize: TypeAlias = Literal["crop", "stretch"]
Path: TypeAlias = Literal["linear", "spherical", "catmull-rom"]
Easing: TypeAlias = Literal["none", "in", "out", "in-out"]
Prior: TypeAlias = Literal["standard", "fitted"]
TruncationMode: TypeAlias = Literal["resample", "clamp"]

RESIZES: Mapping[str, pb.Resize] = {"crop": pb.RESIZE_CROP, "stretch": pb.RESIZE_STRETCH}
PATHS: Mapping[str, pb.InterpolationPath] = {
    "linear": pb.INTERPOLATION_PATH_LINEAR,
    "spherical": pb.INTERPOLATION_PATH_SPHERICAL,
    "catmull-rom": pb.INTERPOLATION_PATH_CATMULL_ROM,
}
EASINGS: Mapping[str, pb.Easing] = {
    "none": pb.EASING_NONE,
    "in": pb.EASING_IN,
    "out": pb.EASING_OUT,
    "in-out": pb.EASING_IN_OUT,
}
PRIORS: Mapping[str, pb.Prior] = {"standard": pb.PRIOR_STANDARD, "fitted": pb.PRIOR_FITTED}
TRUNCATIONS: Mapping[str, pb.Truncation] = {
    "resample": pb.TRUNCATION_RESAMPLE,
    "clamp": pb.TRUNCATION_CLAMP,
}
