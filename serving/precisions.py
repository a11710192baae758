"""Which precision a model's encoder and decoder run in: the operator's word, or what suits the device.

The one table of defaults is here. Strict: a precision that was named is used or refused, never replaced by another.
Priors always run in fp32, so that equal seeds give equal latents. Knows nothing of graphs' contents.
"""

from __future__ import annotations

from collections.abc import Mapping

from latentry.manifest import FP32, Manifest
from serving.bad_graph import BadGraph
from serving.devices import CPU, CUDA, TENSORRT

AUTO = "auto"

# By ONNX Runtime's provider, the best first; fp32 is always there.
DEFAULTS: Mapping[str, tuple[str, ...]] = {CPU: (FP32,), CUDA: ("fp16", FP32), TENSORRT: ("fp16", FP32)}


def choose(wanted: str, provider: str, about: Manifest) -> str:
    """The precision to run the model in on `provider`, where the operator `wanted` this one, or `auto`.

    Raises `BadGraph` if the model does not come in the one that is named.
    """
    if wanted == AUTO:
        return next(precision for precision in DEFAULTS[provider] if precision in about.precisions)
    if wanted not in about.precisions:
        there = ", ".join(about.precisions)
        remedy = f"export it again with `latentry export --precision {wanted}`, or serve with --precision {AUTO}"
        raise BadGraph(f"{about.name} version {about.version} comes in {there}, wanted {wanted}; {remedy}")
    return wanted
