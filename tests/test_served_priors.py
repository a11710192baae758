"""Serving what training can export besides an encoder and a decoder: priors, likelihoods' parameters, labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import linear_model
import numpy as np
import onnx
import pytest
from conftest import running_service, settings_for
from linear_model import LinearModel
from onnx import TensorProto, helper, numpy_helper

from latentry import Client, manifest
from latentry.manifest import DECODER_FILE, ENCODER_FILE, PRIOR_FILE, Prior
from serving import engine, latents
from serving.devices import CPU, Device

NOISE_DIM = 6


def prior_graph(weights: np.ndarray[Any, np.dtype[np.float32]]) -> onnx.ModelProto:
    """latents = noise @ weights."""
    noise, z = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["noise", "w"], ["latents"])],
        "prior",
        [helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["N", noise])],
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["N", z])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def with_prior(root: Path, kind: str) -> tuple[LinearModel, np.ndarray[Any, np.dtype[np.float32]]]:
    """A linear model with a prior of its own that maps six numbers to five latents."""
    model = linear_model.write(root)
    weights = np.random.default_rng(0).normal(0, 1, (NOISE_DIM, 5)).astype(np.float32)
    about = linear_model.manifest("linear", 1, model.shape, 5)
    files = {**about.files, PRIOR_FILE: "0" * 64}
    about = replace(about, files=files, prior=Prior(kind, NOISE_DIM, -5.0, -7.0))
    graphs = {name: onnx.load(model.folder / name) for name in (ENCODER_FILE, DECODER_FILE)}
    linear_model.save(model.folder, {**graphs, PRIOR_FILE: prior_graph(weights)}, about)
    return model, weights


def test_samples_are_drawn_from_the_prior_that_the_model_was_trained_with(tmp_path: Path) -> None:
    model, weights = with_prior(tmp_path, "flow")
    with running_service(settings_for(tmp_path)) as service, Client(f"localhost:{service.port}") as client:
        samples = client.sample(9, seed=3, temperature=0.5)
        one = client.sample(1, seed=3, first_index=7, temperature=0.5)
    wanted = np.float32(0.5) * latents.standard_normals(3, 0, 9, NOISE_DIM) @ weights
    np.testing.assert_allclose(samples.latents, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(samples.images / 255, model.decode(samples.latents), atol=0.51 / 255 + 1e-5)
    assert np.abs(one.latents - samples.latents[7:8]).max() < 1e-6, "seeds are addresses still"


def test_a_prior_fitted_afterwards_is_not_drawn_from_unasked(tmp_path: Path) -> None:
    with_prior(tmp_path, "mixture")
    with running_service(settings_for(tmp_path)) as service, Client(f"localhost:{service.port}") as client:
        samples = client.sample(4, seed=3)
    np.testing.assert_array_equal(samples.latents, latents.standard_normals(3, 0, 4, 5))


def test_a_decoder_that_also_gives_parameters_is_served(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path)
    decoder = onnx.load(model.folder / DECODER_FILE)
    decoder.graph.node.append(helper.make_node("Neg", ["mean"], ["parameters"]))
    decoder.graph.output.append(helper.make_tensor_value_info("parameters", TensorProto.FLOAT, ["N", *model.shape]))
    about = linear_model.manifest("linear", 1, model.shape, 5)
    graphs = {ENCODER_FILE: onnx.load(model.folder / ENCODER_FILE), DECODER_FILE: decoder}
    linear_model.save(model.folder, graphs, about)
    z = np.ones((2, 5), np.float32)
    with running_service(settings_for(tmp_path)) as service, Client(f"localhost:{service.port}") as client:
        images = client.decode(z, dtype="float32").images
    np.testing.assert_allclose(images, model.decode(z), atol=1e-6)


def test_a_conditional_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path)
    about = replace(linear_model.manifest("linear", 1, model.shape, 5), classes=10)
    graphs = {name: onnx.load(model.folder / name) for name in (ENCODER_FILE, DECODER_FILE)}
    linear_model.save(model.folder, graphs, about)
    with pytest.raises(engine.BadGraph, match="a conditional model, whose graphs want labels"):
        engine.load_graphs(manifest.read(model.folder), Device(CPU), ())
