"""Conditional models are served: each row is encoded and decoded as of its own class, whatever it is batched with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import conditional_model
import linear_model
import numpy as np
import onnx
import pytest
import torch
from conditional_model import ConditionalModel
from linear_model import LinearModel
from loaded_models import loaded
from onnx import helper, numpy_helper
from test_graphs import SHAPE, build, real_pixels
from training_fixtures import fashion_images

from latentry import manifest as manifests
from latentry.manifest import DECODER_FILE, ENCODER_FILE, Likelihood, Manifest
from serving import engine, labelled, rehearsal
from serving.bad_graph import BadGraph
from serving.devices import CPU, TENSORRT, Device
from serving.engine import Graph
from serving.metrics import Metrics
from serving.model import Model
from training import graphs, publication
from training.model import VAE
from training.precision import fp32

Array = np.ndarray[Any, np.dtype[Any]]

CLASSES = 4
BUCKETS = (1, 2, 4, 8)


# ---- rows and classes as one array ----


def test_rows_and_their_classes_are_cut_and_joined_together() -> None:
    images = np.arange(6 * 5 * 5 * 3).reshape(6, 5, 5, 3).astype(np.uint8)  # 75 bytes a row: classes are aligned
    classes = np.array([5, 0, 2, 2, 9, 1])
    records = labelled.attach(images, classes)
    rows, back = labelled.split(np.concatenate([records[4:], records[:1]]))
    assert back is not None
    assert (rows == images[[4, 5, 0]]).all()
    assert list(back) == [9, 1, 5]
    assert back.flags.aligned
    assert labelled.split(records[1:2])[0].flags.aligned


def test_rows_without_classes_are_not_touched() -> None:
    rows = np.zeros((3, 2), np.float32)
    assert labelled.split(rows) == (rows, None)
    assert labelled.spread(rows, 0) is rows


@pytest.mark.parametrize(("n", "known"), [(1, 10), (2, 10), (7, 10), (10, 10), (25, 10), (3, 1)])
def test_a_graph_is_tried_with_the_last_class_and_with_as_many_others_as_there_are_rows(n: int, known: int) -> None:
    _, classes = labelled.split(labelled.spread(np.zeros((n, 2), np.float32), known))
    assert classes is not None
    assert classes[0] == known - 1
    assert n == 1 or classes[-1] == 0
    assert len(set(classes.tolist())) == min(n, known)


# ---- against torch ----


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VAE]:
    """A small conditional model with a predicted variance, and its folder."""
    vae = build("dense-norm", "gaussian-predicted", CLASSES)
    files = dict.fromkeys((ENCODER_FILE, DECODER_FILE), "0" * 64)
    likelihood = Likelihood(vae.likelihood.name, vae.likelihood.parameters_by_name())
    about = Manifest("small", 1, SHAPE, 5, likelihood, files, classes=CLASSES)
    made = fp32.graph_files(*graphs.wrapped(vae), None, about)
    about = replace(about, files={name: manifests.sha256(data) for name, data in made.items()})
    folder = tmp_path_factory.mktemp("models") / "small" / "1"
    publication.publish(folder, {**made, "manifest.json": about.to_json().encode()})
    return folder, vae


@pytest.mark.parametrize("buckets", [(), BUCKETS], ids=["as they are", "padded"])
async def test_every_call_gets_its_own_rows_of_its_own_classes(
    exported: tuple[Path, VAE], buckets: Sequence[int]
) -> None:
    folder, vae = exported
    rng = np.random.default_rng(3)
    calls = [(real_pixels()[k : k + n], rng.integers(0, CLASSES, n)) for k, n in enumerate((3, 1, 13, 1, 2, 5, 8, 21))]
    metrics = Metrics()
    async with loaded(folder, buckets=buckets, metrics=metrics, max_batch_size=8) as model:
        assert model.has_parameters
        got = await asyncio.gather(*(model.encode(images, None, classes) for images, classes in calls))
        labels = {"model": "small", "version": "1", "graph": "encoder"}
        batches = metrics.registry.get_sample_value("latentry_batch_items_count", labels)
        assert batches == 7, "54 rows fill batches of 8, whosever they are"
        latents = [mean + np.float32(0.5) for mean, _ in got]
        some = [frozenset(each) for each in (["images"], ["mean", "parameters"], ["mean"], ["images", "mean"])]
        asked = list(zip(latents, some * 2, (classes for _, classes in calls), strict=True))
        decoded = await asyncio.gather(*(model.decode_outputs(z, names, None, k) for z, names, k in asked))
        floats = await asyncio.gather(*(model.decode(z, True, None, k) for z, _, k in asked))
    encoder, decoder = graphs.wrapped(vae)
    for (images, classes), (mean, logvar) in zip(calls, got, strict=True):
        wanted_mean, wanted_logvar = run(encoder, images, classes)
        np.testing.assert_allclose(mean, wanted_mean, atol=1e-4)
        np.testing.assert_allclose(logvar, wanted_logvar, atol=1e-4)
        other, _ = run(encoder, images, (classes + 1) % CLASSES)
        assert np.abs(other - wanted_mean).max(1).min() > 1e-3, "a row of another class is another row"
    for (z, names, classes), outputs, pixels in zip(asked, decoded, floats, strict=True):
        wanted = dict(zip(("images", "mean", "parameters"), run(decoder, z, classes), strict=True))
        assert set(outputs) == names
        for name in names:
            np.testing.assert_allclose(outputs[name], wanted[name], atol=1 if name == "images" else 1e-4)
        np.testing.assert_allclose(pixels, wanted["mean"], atol=1e-4)
        other = run(decoder, z, (classes + 1) % CLASSES)[2]
        assert np.abs(other - wanted["parameters"]).reshape(len(z), -1).max(1).min() > 1e-3


def run(module: torch.nn.Module, rows: Array, classes: Array) -> list[Array]:
    with torch.no_grad():
        return [each.numpy() for each in module(torch.from_numpy(rows), torch.from_numpy(classes))]


# ---- classes that a model cannot take ----


@pytest.fixture
def linear_conditional(tmp_path: Path) -> ConditionalModel:
    return conditional_model.write(tmp_path, 10)


@pytest.mark.parametrize(
    ("classes", "got"),
    [
        (np.array([0, 10]), "got 0 to 10, wanted 0 to 9"),
        (np.array([-1, 3]), "got -1 to 3, wanted 0 to 9"),
        (np.array([1]), r"got int64 \[1\], wanted int64 \[2\]"),
        (np.array([1, 2], np.int32), r"got int32 \[2\], wanted int64 \[2\]"),
        (None, r"got none, wanted int64 \[2\]"),
    ],
)
async def test_no_graph_is_run_with_a_class_that_it_does_not_know(
    linear_conditional: ConditionalModel, classes: Array | None, got: str
) -> None:
    async with loaded(linear_conditional.linear.folder) as model:
        with pytest.raises(ValueError, match=f"linear: classes: {got}"):
            await model.decode(np.zeros((2, 5), np.float32), True, None, classes)
        with pytest.raises(ValueError, match=f"linear: classes: {got}"):
            await model.encode(np.zeros((2, 12, 10, 1), np.uint8), None, classes)


async def test_a_model_without_classes_takes_none(linear: LinearModel) -> None:
    async with loaded(linear.folder) as model:
        with pytest.raises(ValueError, match=r"linear: classes: got int64 \[2\], wanted none"):
            await model.decode(np.zeros((2, 5), np.float32), True, None, np.array([0, 0]))


# ---- loading ----


def test_graphs_that_take_no_labels_are_refused_for_a_manifest_with_classes(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path)
    about = replace(linear_model.manifest("linear", 1, model.shape, 5), classes=10)
    both = {name: onnx.load(model.folder / name) for name in (ENCODER_FILE, DECODER_FILE)}
    linear_model.save(model.folder, both, about)
    with pytest.raises(BadGraph, match=r"encoder.onnx: inputs: got images, wanted images, labels"):
        engine.load_graphs(manifests.read(model.folder), Device(CPU), ())


def test_a_rehearsal_runs_the_last_class(tmp_path: Path) -> None:
    rehearsal.run(manifests.read(conditional_model.write(tmp_path / "a", 10).linear.folder), 64)
    short = conditional_model.write(tmp_path / "b", 10, known=9).linear.folder
    with pytest.raises(BadGraph, match=r"encoder.onnx: a batch of 1 fails: "):
        rehearsal.run(manifests.read(short), 64)


@pytest.mark.parametrize("buckets", [(), BUCKETS], ids=["as they are", "padded"])
def test_a_class_whose_outputs_are_not_finite_does_not_pass_the_warm_up(
    linear_conditional: ConditionalModel, buckets: Sequence[int]
) -> None:
    decoder = conditional_model.graphs(linear_conditional.linear, 6)[DECODER_FILE]
    table = np.zeros((6, 1), np.float32)
    table[2] = np.nan
    (held,) = (each for each in decoder.graph.initializer if each.name == "table")
    held.CopyFrom(numpy_helper.from_array(table, "table"))
    graph = Graph(decoder.SerializeToString(), Device(CPU), {}, buckets, classes=6)
    graph.warm(1)
    with pytest.raises(BadGraph, match="output mean: not finite"):
        graph.warm(8)


def test_rows_that_depend_on_the_classes_of_others_are_refused(linear_conditional: ConditionalModel) -> None:
    decoder = conditional_model.graphs(linear_conditional.linear, 10)[DECODER_FILE]
    decoder.graph.node[1].output[0] = "own"
    decoder.graph.node.insert(2, helper.make_node("ReduceMean", ["own"], ["shift"]))
    with pytest.raises(BadGraph, match="a row changes by"):
        Graph(decoder.SerializeToString(), Device(CPU), {}, classes=10).check_rows()


def test_a_conditional_graph_that_failed_is_loaded_again_and_computes_the_same(
    linear_conditional: ConditionalModel,
) -> None:
    folder = manifests.read(linear_conditional.linear.folder)
    decoder = engine.load_graph(folder, "decoder", Device(CPU), BUCKETS)
    z, classes = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32), np.array([9, 0, 4])
    rows = labelled.attach(z, classes)
    before = decoder.run(rows, frozenset({"mean"}))["mean"]
    decoder.restart()
    np.testing.assert_array_equal(decoder.run(rows, frozenset({"mean"}))["mean"], before)
    np.testing.assert_allclose(before, linear_conditional.decode(z, classes), atol=1e-6)


def test_tensorrt_is_told_that_a_label_is_one_number_a_row(
    linear_conditional: ConditionalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}

    def session(model: bytes, device: Device, profile: Any, max_batch: int) -> None:
        tensorrt = Device(TENSORRT, tensorrt_cache=Path("cache")).providers(profile, max_batch)[0]
        assert not isinstance(tensorrt, str)
        seen.update(tensorrt[1])
        raise BadGraph("there is none here")

    monkeypatch.setattr(engine, "_session", session)
    with pytest.raises(BadGraph, match="there is none here"):
        engine.load_graph(manifests.read(linear_conditional.linear.folder), "decoder", Device(CPU), BUCKETS)
    assert seen["trt_profile_min_shapes"] == "latents:1x5,labels:1"
    assert seen["trt_profile_max_shapes"] == "latents:8x5,labels:8"


# ---- what is told of traffic ----


async def test_images_are_held_against_their_reconstructions_of_their_own_class(
    linear_conditional: ConditionalModel,
) -> None:
    images = fashion_images()[:7, 8:20, 9:19, np.newaxis]
    classes = np.array([9, 0, 3, 3, 7, 1, 9])
    metrics = Metrics()
    async with loaded(linear_conditional.linear.folder, metrics=metrics, reconstruct_share=1) as model:
        await model.encode(images, None, classes)
        await _watched(model)
    mean, _ = linear_conditional.encode(images, classes)
    wanted, other = (
        ((linear_conditional.decode(mean, each) - images / 255) ** 2).reshape(7, -1).mean(1).sum()
        for each in (classes, 0 * classes)
    )
    labels = {"model": "linear", "version": "1"}
    got = metrics.registry.get_sample_value("latentry_reconstruction_error_sum", labels)
    assert metrics.registry.get_sample_value("latentry_reconstruction_error_count", labels) == 7
    assert got == pytest.approx(wanted, rel=1e-4)
    assert abs(other - wanted) > 1e-2


async def _watched(model: Model) -> None:
    await asyncio.gather(*model._checks)
