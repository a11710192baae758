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
from torch import nn

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is loaded, and else reports home
import onnxruntime

from latentry import onnx_file
from latentry.onnx_parts import OnnxError, parse
from training import differences
from training.errors import ExportError
from training.graphs import DecoderGraph, EncoderGraph

BATCHES = (1, 2, 7, 33)
ENCODER_TOLERANCE = 1e-4  # of |difference| / (1 + |value|), for mean and logvar
DECODER_TOLERANCE = 2e-5  # of the mean of p(x|z), which lies in [0, 1]
LEVEL_TOLERANCE = 1  # of 255, where the mean falls on the edge between two levels
PARAMETERS_TOLERANCE = 1e-4  # of |difference| / (1 + |value|), for the decoder's output
PRIOR_TOLERANCE = 1e-4  # the same, for latents made of noise and their log-densities
_SEED = 5

_Array = NDArray[np.uint8] | NDArray[np.int64] | NDArray[np.float32]
_Arrays = list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest differences between torch and ONNX Runtime over all batches. `parameters` is None for a decoder
    without that output."""

    encoder: float
    decoder: float
    levels: int
    parameters: float | None = None

    def figures(self) -> dict[str, float]:
        """As the manifest's evaluation names them."""
        figures = {
            "parity_encoder_relative": self.encoder,
            "parity_decoder_mean": self.decoder,
            "parity_decoder_levels": float(self.levels),
        }
        return figures if self.parameters is None else {**figures, "parity_decoder_parameters": self.parameters}


@dataclass(frozen=True, slots=True)
class PriorParity:
    """The same of a prior's graphs. `density` is None without a density."""

    latents: float
    density: float | None = None

    def figures(self) -> dict[str, float]:
        """As the manifest's evaluation names them."""
        figures = {"parity_prior_relative": self.latents}
        return figures if self.density is None else {**figures, "parity_density_relative": self.density}


def check_graph(data: bytes, name: str) -> None:
    """Raises `ExportError` if the ONNX file is not valid, or not what a model folder may hold."""
    try:
        onnx.checker.check_model(parse(data, name), full_check=True)
        onnx_file.check(data, name)
    except OnnxError as error:
        raise ExportError(str(error)) from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{name}: not valid ONNX: {error}") from error


def measure(
    encoder: bytes, decoder: bytes, torch_encoder: EncoderGraph, torch_decoder: DecoderGraph, images: NDArray[np.uint8]
) -> Parity:
    """Hold both graphs against torch on uint8 images (N, H, W, C) and, for the decoder, also on draws of the prior.
    A conditional model is given each of its classes in turn.

    Raises `ExportError` with the figure that is outside its tolerance.
    """
    encoder_session, decoder_session = _session(encoder), _session(decoder)
    normal = np.random.default_rng(_SEED)
    relative = difference = parameters = 0.0
    levels = 0
    for n in BATCHES:
        batch = np.resize(images, (n, *images.shape[1:]))
        labels = {"labels": np.arange(n) % torch_encoder.classes} if torch_encoder.classes else {}
        got, wanted = _both(encoder_session, torch_encoder, {"images": batch, **labels})
        relative = max(relative, *(differences.relative(a, b) for a, b in zip(got, wanted, strict=True)))
        for latents in (wanted[0], normal.standard_normal(wanted[0].shape, np.float32)):
            got, wanted = _both(decoder_session, torch_decoder, {"latents": latents, **labels})
            levels = max(levels, int(differences.largest(got[0], wanted[0])))
            difference = max(difference, differences.largest(got[1], wanted[1]))
            parameters = max([parameters, *map(differences.relative, got[2:], wanted[2:])])
    needs_parameters = len(torch_decoder.outputs) > 2
    return _within_tolerance(Parity(relative, difference, levels, parameters if needs_parameters else None))


def measure_prior(
    prior: bytes, density: bytes | None, torch_prior: nn.Module, torch_density: nn.Module | None, noise_dim: int
) -> PriorParity:
    """Hold a prior's graphs against torch: the prior on standard normal noise, the density on the latents made of it
    and on standard normal latents.

    Raises `ExportError` with the figure that is outside its tolerance, or if only one of the densities is there.
    """
    if (density is None) != (torch_density is None):
        raise ExportError("prior: got a density in only one of ONNX and torch, wanted it in both or in neither")
    prior_session = _session(prior)
    normal = np.random.default_rng(_SEED)
    relative = 0.0
    latents: _Arrays = []
    for n in BATCHES:
        got, wanted = _both(prior_session, torch_prior, {"noise": normal.standard_normal((n, noise_dim), np.float32)})
        relative = max(relative, differences.relative(got[0], wanted[0]))
        latents += [wanted[0], normal.standard_normal(wanted[0].shape, np.float32)]
    _check("prior: relative difference of the latents", relative, PRIOR_TOLERANCE)
    if density is None or torch_density is None:
        return PriorParity(relative)
    density_session = _session(density)
    difference = 0.0
    for z in latents:
        got, wanted = _both(density_session, torch_density, {"latents": z})
        difference = max(difference, differences.relative(got[0], wanted[0]))
    _check("density: relative difference of log p(z)", difference, PRIOR_TOLERANCE)
    return PriorParity(relative, difference)


def _within_tolerance(parity: Parity) -> Parity:
    _check("encoder: relative difference of mean and logvar", parity.encoder, ENCODER_TOLERANCE)
    _check("decoder: difference of the mean", parity.decoder, DECODER_TOLERANCE)
    _check("decoder: difference in levels of 255", parity.levels, LEVEL_TOLERANCE)
    if parity.parameters is not None:
        _check("decoder: relative difference of the parameters", parity.parameters, PARAMETERS_TOLERANCE)
    return parity


def _check(name: str, got: float, wanted: float) -> None:
    if not got <= wanted:  # NaN is refused too
        raise ExportError(f"ONNX Runtime and torch disagree: {name}: got {got:.3g}, wanted at most {wanted:g}")


def _session(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def _both(
    session: onnxruntime.InferenceSession, graph: nn.Module, inputs: dict[str, _Array]
) -> tuple[_Arrays, _Arrays]:
    """The outputs of ONNX Runtime and of torch on the same inputs. Raises `ExportError` if their shapes differ."""
    outputs = graph(*(torch.from_numpy(array) for array in inputs.values()))
    wanted = [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
    got = session.run(None, inputs)
    shapes = [[output.shape for output in each] for each in (got, wanted)]
    if shapes[0] != shapes[1]:
        raise ExportError(
            f"ONNX Runtime and torch disagree: shapes of the outputs: got {shapes[0]}, wanted {shapes[1]}"
        )
    return got, wanted
