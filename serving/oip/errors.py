"""Errors as a caller of the protocol knows them: what is not offered, and the names that `VaeServicer` has for parts of
a request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import grpc

from serving.errors import InvalidArgument, ServiceError
from serving.oip.words import said

# What our own API's messages are made of, where the protocol has one tensor or one parameter.
_INNER = re.compile(r"\.(tensor|encoded\.images|data|indices|names|name|amount)(?![a-z_])")
_FIELDS = {
    **{name: f"inputs[{name}]" for name in ("images", "latents", "classes")},
    **{f"output.{name}": f"parameters[{name}]" for name in ("format", "quality", "frame_ms")},
    "attributes": "parameters",
}
_PARAMETERS = (
    "count", "seed", "first_index", "temperature", "truncation", "truncation_mode", "prior",
    "resize", "steps", "path", "easing", "loop", "exclude_end_points",
)  # fmt: skip
_NAMED_BY_CALLERS = ("classes", "attributes")  # by the model's names too: none of ours


class Unimplemented(ServiceError):
    """A call of the protocol's that is not offered here."""

    code = grpc.StatusCode.UNIMPLEMENTED


def renamed(error: InvalidArgument, fields: Mapping[str, str]) -> InvalidArgument:
    """The same error, about the input or the parameter that the field was made of, which `fields` has for those that
    are not always made of the same."""
    got, _, wanted = error.reason.removeprefix("got ").partition(", wanted ")
    if not error.field.startswith(_NAMED_BY_CALLERS):
        got, wanted = said(got), said(wanted)
    field = _INNER.sub("", error.field)
    for ours, theirs in (*fields.items(), *_FIELDS.items()):
        if field == ours or field.startswith((f"{ours}.", f"{ours}[")):
            return InvalidArgument(theirs + field[len(ours) :], got, wanted)
    return InvalidArgument(f"parameters[{field}]" if field in _PARAMETERS else field, got, wanted)
