"""Every kind of model with every likelihood is exported in every precision: valid, of the contract, as close as said.

The networks are small and hardly trained; the shipped models are in tests/test_shipped_precisions.py. Each kind with
each likelihood is for LATENTRY_LONG_TESTS; else the convolutional kind meets them all, and of the other kinds and the
conditional models each meets every third, every likelihood several of them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import LONG
from test_graphs import SHAPE, build, real_pixels

from latentry import graph_notes
from latentry.manifest import Likelihood, Manifest, graph_file
from training import graphs, parity
from training.config import KINDS, LIKELIHOODS, Config
from training.data import Dataset
from training.graphs import EncoderGraph
from training.images import Images
from training.precision import fp32, variant, variants
from training.precision.variants import Exported
from training.trained import Trained

PRECISIONS = ("fp16", "bf16", "int8")
CLASSES = 4
LINEAR = {"linear": ("gaussian", "gaussian-fixed", "laplace"), "pca": ("gaussian",)}
ALL = [
    *((kind, likelihood, 0) for kind in KINDS for likelihood in LINEAR.get(kind, LIKELIHOODS)),
    *(("conv", likelihood, CLASSES) for likelihood in LIKELIHOODS),
    ("dense-norm", "gaussian-predicted", CLASSES),
]
ENOUGH = {
    (kind, likelihood, classes)
    for kind, likelihood, classes in ALL
    if kind in LINEAR
    or (kind == "conv") != bool(classes)  # unlabelled; or the one of another kind that has classes
    or (KINDS.index(kind) + LIKELIHOODS.index(likelihood)) % 3 == 0
}
MODELS = [model for model in ALL if LONG or model in ENOUGH]


@functools.cache
def encoder_file(kind: str, classes: int, dtype: torch.dtype) -> bytes:
    """An encoder does not depend on the likelihood, and exporting takes half a second."""
    encoder, _ = graphs.wrapped(build(kind, classes=classes))
    return graphs.export_encoder(encoder, SHAPE, {}, dtype)


@pytest.fixture(autouse=True)
def _each_encoder_once(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    kind, _, classes = request.node.callspec.params["model"]

    def export(graph: EncoderGraph, shape: Any, metadata: Any, dtype: torch.dtype = torch.float32) -> bytes:
        proto = onnx.load_from_string(encoder_file(kind, classes, dtype))
        graph_notes.describe(proto, metadata)
        return proto.SerializeToString(deterministic=True)

    encoder_file(kind, classes, torch.float32)
    encoder_file(kind, classes, torch.float16)
    monkeypatch.setattr(graphs, "export_encoder", export)


def dataset(classes: int) -> Dataset:
    pixels = real_pixels(300)
    labels = np.arange(300) % classes if classes else None
    images = Images(pixels, labels)
    return Dataset("small", images.part(0, 200), images.part(200, 300), "0" * 64, "none")


@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{m[0]}{'-conditional' if m[2] else ''}-{m[1]}")
def test_every_model_is_exported_in_every_precision(model: tuple[str, str, int]) -> None:
    kind, likelihood, classes = model
    vae = build(kind, likelihood, classes)
    source = Trained(Config(), dataset(classes), vae, 0)
    encoder, decoder = graphs.wrapped(vae)
    about = Manifest(
        "small",
        1,
        SHAPE,
        5,
        Likelihood(vae.likelihood.name, vae.likelihood.parameters_by_name()),
        dict.fromkeys(("encoder.onnx", "decoder.onnx"), "0" * 64),
        classes=classes,
    )
    files = fp32.graph_files(encoder, decoder, None, about)
    parity.measure(files["encoder.onnx"], files["decoder.onnx"], encoder, decoder, source.dataset.test.pixels)
    model = Exported(source, encoder, decoder, about, files)
    made = variants.made(model, PRECISIONS)  # raises if one is outside its tolerance
    assert list(made) == list(PRECISIONS)
    for precision, (graph_files, figures) in made.items():
        assert set(graph_files) == {graph_file("encoder", precision), graph_file("decoder", precision)}
        for name, data in graph_files.items():
            parity.check_graph(data, name)
            assert ports(data) == ports(files[name.replace(f".{precision}", "")])
            assert len(data) < len(files[name.replace(f".{precision}", "")]) or precision == "int8"
        assert figures["psnr_db"] >= variant.TOLERANCES[precision].psnr_db
        assert figures["decoder_mean"] > 0 or figures["psnr_db"] == 120


def ports(data: bytes) -> list[tuple[str, str, list[object]]]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return [(each.name, each.type, each.shape) for each in (*session.get_inputs(), *session.get_outputs())]
