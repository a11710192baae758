"""From the text of a `manifest.json` to a `Manifest`: the first value that is not of its field's type is named.

Others import `parse` from `latentry.manifest`. Knows nothing of folders.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from latentry.manifest_error import ManifestError, want
from latentry.manifest_schema import (
    FORMAT,
    MANIFEST_FILE,
    AggregatePosterior,
    Likelihood,
    Manifest,
    Prior,
)

MAX_DEPTH = 32  # levels of nested values: all that is done with them afterwards needs some stack for each


def parse(text: str | bytes) -> Manifest:
    """Read the text of a `manifest.json`; raises `ManifestError` with the first field that is wrong."""
    try:
        raw = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        json.dumps(raw, ensure_ascii=False).encode()  # refuses halves of surrogate pairs, which no message can carry
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{MANIFEST_FILE}: not JSON: {error}") from error
    want(isinstance(raw, dict), MANIFEST_FILE, type(raw).__name__, "a JSON object")
    want(not _is_deeper(raw, MAX_DEPTH), MANIFEST_FILE, "deeper nesting", f"at most {MAX_DEPTH} levels of values")
    want(raw.get("format") == FORMAT, "format", raw.get("format"), f"{FORMAT}, the format that this release reads")
    likelihood = _get(raw, "likelihood", dict)
    posterior = _get(raw, "aggregate_posterior", dict, optional=True)
    attributes = _get(raw, "attributes", dict, optional=True) or {}
    prior = _get(raw, "prior", dict, optional=True)
    variants = _get(raw, "variants", dict, optional=True) or {}
    shape = _get(raw, "image_shape", list)
    want(len(shape) == 3 and all(type(side) is int for side in shape), "image_shape", shape, "three integers H, W, C")
    labels = _get(raw, "labels", list, optional=True) or []
    want(all(isinstance(label, str) for label in labels), "labels", labels, "strings")
    return Manifest(
        name=_get(raw, "name", str),
        version=_get(raw, "version", int),
        image_shape=(shape[0], shape[1], shape[2]),
        latent_dim=_get(raw, "latent_dim", int),
        likelihood=Likelihood(_get(likelihood, "name", str), _numbers_by_name(likelihood, "parameters")),
        files=_strings_by_name(raw, "files"),
        provenance=_get(raw, "provenance", dict, optional=True) or {},
        evaluation=_numbers_by_name(raw, "evaluation"),
        aggregate_posterior=None
        if posterior is None
        else AggregatePosterior(_vector(posterior, "mean"), _vector(posterior, "variance")),
        attributes={name: _vector(attributes, name) for name in attributes},
        labels=tuple(labels),
        classes=_get(raw, "classes", int, optional=True) or 0,
        prior=None if prior is None else _prior(prior),
        variants={precision: _numbers_by_name(variants, precision) for precision in variants},
    )


def _prior(raw: Mapping[str, Any]) -> Prior:
    densities = []
    for key in ("held_out_log_density", "normal_log_density"):
        value = raw.get(key)
        want(_is_number(value), f"prior.{key}", value, "a finite number")
        densities.append(float(value))  # type: ignore[arg-type]
    return Prior(_get(raw, "kind", str), _get(raw, "noise_dim", int), *densities)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_constant(text)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _is_deeper(value: object, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper(child, levels - 1) for child in children)


def _get(raw: Mapping[str, Any], key: str, kind: type, *, optional: bool = False) -> Any:
    value = raw.get(key)
    if value is None and optional:
        return None
    ok = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    want(ok, key, "nothing" if value is None else f"{type(value).__name__} {value!r}", f"a JSON {kind.__name__}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _numbers_by_name(raw: Mapping[str, Any], key: str) -> dict[str, float]:
    values: dict[str, float] = _get(raw, key, dict, optional=True) or {}
    for name, value in values.items():
        want(_is_number(value), f"{key}.{name}", value, "a finite number")
    return values


def _strings_by_name(raw: Mapping[str, Any], key: str) -> dict[str, str]:
    values: dict[str, str] = _get(raw, key, dict)
    for name, value in values.items():
        want(isinstance(value, str), f"{key}.{name}", value, "a string")
    return values


def _vector(raw: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = _get(raw, key, list)
    want(all(_is_number(value) for value in values), key, values, "finite numbers")
    return tuple(float(value) for value in values)
