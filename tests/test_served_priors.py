"""Serving what training can export besides an encoder and a decoder: priors, their densities, p(x|z)'s parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import linear_model
import numpy as np
import onnx
import pytest
from conftest import ROOT, running_service, settings_for
from linear_model import LinearModel
from loaded_models import loaded
from onnx import TensorProto, helper, numpy_helper

from latentry import Client, manifest
from latentry.manifest import DECODER_FILE, DENSITY_FILE, ENCODER_FILE, PRIOR_FILE, Prior
from serving import engine
from serving.bad_graph import BadGraph
from serving.devices import CPU, Device
from serving.latents import noise
from serving.metrics import Metrics
from serving.model import Limits, limits_of

NOISE_DIM = 6
Array = np.ndarray[Any, np.dtype[Any]]


def prior_graph(weights: Array) -> onnx.ModelProto:
    """latents = noise @ weights."""
    given, z = weights.shape
    return graph_of(
        [helper.make_node("MatMul", ["noise", "w"], ["latents"])], ("noise", given), ("latents", z), w=weights
    )


def density_graph() -> onnx.ModelProto:
    """log_prob = the sum of the squares of the latents, which is a density of nothing, but easily told."""
    square = helper.make_node("ReduceSumSquare", ["latents", "axes"], ["log_prob"], keepdims=0)
    return graph_of([square], ("latents", 5), ("log_prob",), axes=np.array([1]))


def graph_of(
    nodes: list[onnx.NodeProto], given: tuple[Any, ...], made: tuple[Any, ...], **held: Array
) -> onnx.ModelProto:
    """A graph from one float32 input to one output, each a name and the sizes of an item."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *sizes]) for name, *sizes in (given, made)]
    weights = [numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "graph", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def with_prior(root: Path, kind: str, *, density: bool = False) -> tuple[LinearModel, Array]:
    """A linear model with a prior of its own that maps six numbers to five latents."""
    model = linear_model.write(root)
    weights = np.random.default_rng(0).normal(0, 1, (NOISE_DIM, 5)).astype(np.float32)
    about = linear_model.manifest("linear", 1, model.shape, 5)
    graphs = {name: onnx.load(model.folder / name) for name in (ENCODER_FILE, DECODER_FILE)}
    graphs |= {PRIOR_FILE: prior_graph(weights), **({DENSITY_FILE: density_graph()} if density else {})}
    about = replace(about, files=dict.fromkeys(graphs, "0" * 64), prior=Prior(kind, NOISE_DIM, -5.0, -7.0))
    linear_model.save(model.folder, graphs, about)
    return model, weights


def with_parameters(root: Path, shape: list[int | str]) -> LinearModel:
    """A linear model whose decoder gives the negative mean as parameters, and declares them to be of this shape."""
    model = linear_model.write(root)
    decoder = onnx.load(model.folder / DECODER_FILE)
    decoder.graph.node.append(helper.make_node("Neg", ["mean"], ["parameters"]))
    decoder.graph.output.append(helper.make_tensor_value_info("parameters", TensorProto.FLOAT, shape))
    graphs = {ENCODER_FILE: onnx.load(model.folder / ENCODER_FILE), DECODER_FILE: decoder}
    linear_model.save(model.folder, graphs, linear_model.manifest("linear", 1, model.shape, 5))
    return model


# ---- priors ----


def test_samples_are_drawn_from_the_prior_that_the_model_was_trained_with(tmp_path: Path) -> None:
    model, weights = with_prior(tmp_path, "flow")
    with running_service(settings_for(tmp_path)) as service, Client(f"localhost:{service.port}") as client:
        samples = client.sample(9, seed=3, temperature=0.5)
        one = client.sample(1, seed=3, first_index=7, temperature=0.5)
    wanted = np.float32(0.5) * noise.standard_normals(3, 0, 9, NOISE_DIM) @ weights
    np.testing.assert_allclose(samples.latents, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(samples.images / 255, model.decode(samples.latents), atol=0.51 / 255 + 1e-5)
    assert np.abs(one.latents - samples.latents[7:8]).max() < 1e-6, "seeds are addresses still"


def test_a_prior_fitted_afterwards_is_not_drawn_from_unasked(tmp_path: Path) -> None:
    with_prior(tmp_path, "mixture")
    with running_service(settings_for(tmp_path)) as service, Client(f"localhost:{service.port}") as client:
        samples = client.sample(4, seed=3)
    np.testing.assert_array_equal(samples.latents, noise.standard_normals(3, 0, 4, 5))


@pytest.mark.parametrize(
    ("kind", "by_default", "selectors"), [("flow", True, 0), ("mixture", False, 1), ("second-stage", False, 0)]
)
async def test_every_prior_is_drawn_from_if_asked(tmp_path: Path, kind: str, by_default: bool, selectors: int) -> None:
    model, weights = with_prior(tmp_path, kind)
    metrics = Metrics()
    async with loaded(model.folder, metrics=metrics) as served:
        assert (served.has_prior, served.fitted_by_default) == (True, by_default)
        assert (served.noise_dim(True), served.noise_dim(False)) == (NOISE_DIM, 5)
        assert (served.selectors(True), served.selectors(False)) == (selectors, 0)
        given = noise.standard_normals(3, 0, 7, NOISE_DIM)
        np.testing.assert_allclose(await served.draw(given, None, True), given @ weights, atol=1e-5)
        plain = noise.standard_normals(3, 0, 7, 5)
        assert (await served.draw(plain, None, False) == plain).all()
    labels = {"model": "linear", "version": "1", "graph": "prior"}
    assert metrics.registry.get_sample_value("latentry_items_total", labels) == 7


async def test_a_model_without_a_prior_of_its_own_draws_from_the_standard_one_alone(linear: LinearModel) -> None:
    async with loaded(linear.folder) as served:
        assert not served.has_prior
        assert not served.fitted_by_default
        assert (served.noise_dim(False), served.selectors(False)) == (5, 0)
        assert await served.log_prior(np.zeros((2, 5), np.float32), None) is None
        with pytest.raises(ValueError, match="it has no prior of its own"):
            served.noise_dim(True)


async def test_draws_of_the_shipped_flow_have_the_same_bits_in_every_batch() -> None:
    """Seeds are addresses. (CPUs add up each row in the same order whatever the batch; GPUs need not.)"""
    async with loaded(ROOT / "models" / "mnist-binary" / "1") as served:
        given = noise.standard_normals(11, 0, 64, served.noise_dim(True))
        whole = await served.draw(given, None, True)
        for n in (1, 2, 5, 8, 31):
            parts = [await served.draw(given[k : k + n], None, True) for k in range(0, 64, n)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_limits_leave_room_for_noise_and_for_all_that_a_reply_holds(tmp_path: Path) -> None:
    about = linear_model.manifest("linear", 1, (2, 2, 1), 500)
    files = {**about.files, PRIOR_FILE: "0" * 64}
    for prior, floats in ((None, 4 + 3 * 500 + 4), (Prior("second-stage", 1000, 0.0, 0.0), 4 + 3 * 1000 + 4)):
        limits = limits_of(replace(about, files=files, prior=prior), 10**9)
        assert limits == Limits((64 * 2**20 - 2**16) // (4 * floats), limits.max_message_bytes)
        assert limits.max_items * 4 * floats + 2**16 <= limits.max_message_bytes <= 64 * 2**20


# ---- densities ----


async def test_the_density_of_a_prior_learnt_with_the_model_is_log_p_of_z(tmp_path: Path) -> None:
    model, _ = with_prior(tmp_path, "flow", density=True)
    metrics = Metrics()
    z = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    async with loaded(model.folder, metrics=metrics) as served:
        got = await served.log_prior(z, None)
    assert got is not None
    np.testing.assert_allclose(got, np.square(z).sum(1), rtol=1e-5)
    labels = {"model": "linear", "version": "1", "graph": "density"}
    assert metrics.registry.get_sample_value("latentry_items_total", labels) == 4


async def test_log_p_of_z_is_not_that_of_a_prior_fitted_afterwards(tmp_path: Path) -> None:
    model, _ = with_prior(tmp_path, "mixture", density=True)
    async with loaded(model.folder) as served:
        assert await served.log_prior(np.zeros((1, 5), np.float32), None) is None
        assert sorted(served.batchers) == ["decoder", "encoder", "prior"]


# ---- parameters of p(x|z) ----


async def test_a_decoder_that_also_gives_parameters_is_served(tmp_path: Path) -> None:
    model = with_parameters(tmp_path, ["N", 12, 10, 1])
    z = np.ones((2, 5), np.float32)
    async with loaded(model.folder) as served:
        assert served.has_parameters
        got = await served.decode_outputs(z, frozenset({"mean", "parameters"}), None)
        images = await served.decode(z, True, None)
    assert set(got) == {"mean", "parameters"}
    np.testing.assert_allclose(images, model.decode(z), atol=1e-6)
    np.testing.assert_array_equal(got["parameters"], -images)


async def test_a_decoder_without_parameters_says_so(linear: LinearModel) -> None:
    async with loaded(linear.folder) as served:
        assert not served.has_parameters


@pytest.mark.parametrize(
    "shape",
    [["N", 12, 9, 1], ["N", 12, 10], ["N", 12, 10, 0], [2, 12, 10, 1], []],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_parameters_that_are_not_of_pixels_are_refused(tmp_path: Path, shape: list[int | str]) -> None:
    folder = with_parameters(tmp_path, shape).folder
    with pytest.raises(BadGraph, match=r"parameters: got .*, wanted float32 \[N, 12, 10, a multiple of 1\]"):
        engine.load_graphs(manifest.read(folder), Device(CPU), ())
