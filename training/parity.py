"""The gate before a model is published: the graphs are valid ONNX, draw nothing at random, and agree with torch.

Real images go through torch and through ONNX Runtime on the CPU, in batches of several sizes, because a batch size
that became a constant, or a kernel that treats one image otherwise, shows only there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is loaded, and else reports home
import onnxruntime

from training.errors import ExportError
from training.graphs import DecoderGraph, EncoderGraph

BATCHES = (1, 2, 7, 33)
ENCODER_TOLERANCE = 1e-4  # of |difference| / (1 + |value|), for mean and logvar
DECODER_TOLERANCE = 2e-5  # of the mean of p(x|z), which lies in [0, 1]
LEVEL_TOLERANCE = 1  # of 255, where the mean falls on the edge between two levels
_SEED = 5

_Arrays = list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest differences between torch and ONNX Runtime over all batches."""

    encoder: float
    decoder: float
    levels: int

    def figures(self) -> dict[str, float]:
        """As the manifest's evaluation names them."""
        return {
            "parity_encoder_relative": self.encoder,
            "parity_decoder_mean": self.decoder,
            "parity_decoder_levels": float(self.levels),
        }


def check_graph(data: bytes, name: str) -> None:
    """Raises `ExportError` if the ONNX file is not valid or holds an operator that draws random numbers."""
    proto = onnx.load_from_string(data)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{name}: not valid ONNX: {error}") from error
    kinds = {node.op_type for node in [*proto.graph.node, *(node for f in proto.functions for node in f.node)]}
    random = sorted(kind for kind in kinds if "Random" in kind or kind in ("Bernoulli", "Multinomial", "Dropout"))
    if random:
        raise ExportError(f"{name}: draws at random: {', '.join(random)}; wanted a deterministic graph")


def measure(
    encoder: bytes, decoder: bytes, torch_encoder: EncoderGraph, torch_decoder: DecoderGraph, images: NDArray[np.uint8]
) -> Parity:
    """Hold both graphs against torch on uint8 images (N, H, W, C) and, for the decoder, also on draws of the prior.

    Raises `ExportError` with the figure that is outside its tolerance.
    """
    encoder_session, decoder_session = _session(encoder), _session(decoder)
    normal = np.random.default_rng(_SEED)
    relative = difference = 0.0
    levels = 0
    for n in BATCHES:
        batch = np.resize(images, (n, *images.shape[1:]))
        wanted = _run_torch(torch_encoder, batch)
        got = encoder_session.run(["mean", "logvar"], {"images": batch})
        relative = max(relative, *(_relative(a, b) for a, b in zip(got, wanted, strict=True)))
        for latents in (wanted[0], normal.standard_normal(wanted[0].shape, np.float32)):
            wanted_images, wanted_mean = _run_torch(torch_decoder, latents)
            got_images, got_mean = decoder_session.run(["images", "mean"], {"latents": latents})
            difference = max(difference, _largest(got_mean, wanted_mean))
            levels = max(levels, int(_largest(got_images, wanted_images)))
    return _within_tolerance(Parity(relative, difference, levels))


def _within_tolerance(parity: Parity) -> Parity:
    for name, got, wanted in (
        ("encoder: relative difference of mean and logvar", parity.encoder, ENCODER_TOLERANCE),
        ("decoder: difference of the mean", parity.decoder, DECODER_TOLERANCE),
        ("decoder: difference in levels of 255", parity.levels, LEVEL_TOLERANCE),
    ):
        if not got <= wanted:  # NaN is refused too
            raise ExportError(f"ONNX Runtime and torch disagree: {name}: got {got:.3g}, wanted at most {wanted:g}")
    return parity


def _session(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def _run_torch(graph: EncoderGraph | DecoderGraph, batch: NDArray[np.uint8] | NDArray[np.float32]) -> _Arrays:
    return [output.numpy() for output in graph(torch.from_numpy(batch))]


def _largest(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return _nan_is_infinite(np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max())


def _relative(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return _nan_is_infinite((np.abs(got.astype(np.float64) - wanted) / (1 + np.abs(wanted))).max())


def _nan_is_infinite(value: float) -> float:
    """max() may lose a NaN; it never loses an infinity."""
    return float("inf") if np.isnan(value) else float(value)
