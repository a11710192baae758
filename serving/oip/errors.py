"""Errors as a caller of the protocol knows them: what is not offered, and the names that `VaeServicer` has for parts of
a request.
"""

from __future__ import annotations

import grpc

from serving.errors import InvalidArgument, ServiceError

_INPUTS = {
    "images.tensor": "inputs[images]",
    "images.encoded.images": "inputs[images]",
    "images": "inputs[images]",
    "latents": "inputs[latents]",
    "classes.indices": "classes",
    "classes.names": "classes",
    "output.format": "parameters[format]",
    "output.quality": "parameters[quality]",
    "output.frame_ms": "parameters[frame_ms]",
}
_PARAMETERS = (
    "count", "seed", "first_index", "temperature", "truncation", "truncation_mode", "prior",
    "resize", "steps", "path", "easing", "loop", "exclude_end_points",
)  # fmt: skip


class Unimplemented(ServiceError):
    """A call of the protocol's that is not offered here."""

    code = grpc.StatusCode.UNIMPLEMENTED


def renamed(error: InvalidArgument) -> InvalidArgument:
    """The same error, about the input or the parameter that the field was made of."""
    for ours, theirs in _INPUTS.items():
        if error.field == ours or error.field.startswith((f"{ours}.", f"{ours}[")):
            return _with_field(error, theirs + error.field[len(ours) :])
    if error.field in _PARAMETERS:
        return _with_field(error, f"parameters[{error.field}]")
    return error


def _with_field(error: InvalidArgument, field: str) -> InvalidArgument:
    got, _, wanted = error.reason.removeprefix("got ").partition(", wanted ")
    return InvalidArgument(field, got, wanted)
