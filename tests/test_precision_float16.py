"""fp16 is judged by what half precision computes, not by what ONNX Runtime widens it to on a CPU."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from test_graphs import SHAPE, build
from test_precision_matrix import dataset

from latentry.manifest import Likelihood, Manifest
from training import graphs
from training.config import Config
from training.errors import ExportError
from training.graphs import HALF_LATENT_LIMIT
from training.model import VAE
from training.networks.conv import Upsample
from training.precision import fp32, variants
from training.precision.variants import Exported
from training.trained import Trained

ABOUT = Manifest(
    "small", 1, SHAPE, 5, Likelihood("bernoulli"), dict.fromkeys(("encoder.onnx", "decoder.onnx"), "0" * 64)
)


def made(vae: VAE) -> dict[str, bytes]:
    encoder, decoder = graphs.wrapped(vae)
    files = fp32.graph_files(encoder, decoder, None, ABOUT)
    source = Trained(Config(), dataset(0), vae, 0)
    return variants.made(Exported(source, encoder, decoder, ABOUT, files), ["fp16"])["fp16"][0]


def run(decoder: bytes, latents: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(decoder, providers=["CPUExecutionProvider"])
    return session.run(["mean"], {"latents": latents})[0]


def overflowing(factor: float) -> VAE:
    """Its activations are `factor` squared times larger behind the head, until the norms behind the first two doublings
    make up for it. None of its weights is beyond half."""
    vae = build("conv", "bernoulli")
    layers = list(vae.decoder.features)
    norms = [after for layer, after in zip(layers, layers[2:], strict=False) if isinstance(layer, Upsample)]
    with torch.no_grad():
        for layer in (0, 2):
            vae.decoder.head[layer].weight *= factor
        for norm in norms[:2]:
            norm.weight /= factor
    return vae


def test_what_overflows_in_half_is_refused_though_onnx_runtime_on_the_cpu_shows_nothing() -> None:
    vae = overflowing(500)
    assert max(float(weight.detach().abs().max()) for weight in vae.decoder.parameters()) < 65504
    _, decoder = graphs.wrapped(vae)
    data = graphs.export_decoder(decoder, 5, {}, torch.float16)
    latents = np.random.default_rng(0).standard_normal((8, 5), np.float32)
    assert np.isfinite(run(data, latents)).all()
    assert not decoder.folded(torch.float16)(torch.from_numpy(latents))[1].isfinite().all()
    with pytest.raises(ExportError, match=r"fp16: .* against fp32: got nan"):
        made(vae)


def test_what_overflows_only_far_out_is_refused_too() -> None:
    with pytest.raises(ExportError, match="fp16: latents of 256 overflow in the decoder"):
        made(overflowing(20))


def test_latents_beyond_the_limit_are_taken_for_it() -> None:
    decoder = made(build("conv", "bernoulli"))["decoder.fp16.onnx"]
    signs = np.sign(np.random.default_rng(0).standard_normal((4, 5))).astype(np.float32)
    at_limit = run(decoder, signs * HALF_LATENT_LIMIT)
    assert np.array_equal(run(decoder, signs * np.float32(1e6)), at_limit)
    assert not np.array_equal(run(decoder, signs * np.float32(100)), at_limit)
