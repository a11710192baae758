"""What the words of parameters stand for, and our own API's terms in them."""

from __future__ import annotations

from collections.abc import Mapping

from latentry.v1 import vae_pb2 as pb
from latentry.words import EASINGS, PATHS, PRIORS, RESIZES, TRUNCATIONS

FORMATS = {
    "uint8": pb.IMAGE_FORMAT_RAW_UINT8,
    "float32": pb.IMAGE_FORMAT_RAW_FLOAT32,
    "png": pb.IMAGE_FORMAT_PNG,
    "jpeg": pb.IMAGE_FORMAT_JPEG,
    "webp": pb.IMAGE_FORMAT_WEBP,
}
ANIMATIONS = {"gif": pb.IMAGE_FORMAT_GIF, "animated-webp": pb.IMAGE_FORMAT_ANIMATED_WEBP}

_ENUMERATIONS = (
    (pb.ImageFormat, FORMATS),
    (pb.ImageFormat, ANIMATIONS),
    (pb.Resize, RESIZES),
    (pb.Truncation, TRUNCATIONS),
    (pb.Prior, PRIORS),
    (pb.InterpolationPath, PATHS),
    (pb.Easing, EASINGS),
)
_TERMS: Mapping[str, str] = {
    **{f"{enum.Name(value)} ({value})": word for enum, words in _ENUMERATIONS for word, value in words.items()},
    "FLOAT32": "FP32",
    ", or 0 for the default": "",
}


def said(sentence: str) -> str:
    """What our own API says of an enumeration or a type, as the protocol's callers know it."""
    for ours, theirs in _TERMS.items():
        sentence = sentence.replace(ours, theirs)
    return sentence
