"""Graphs on ONNX Runtime: what they compute, and which are refused."""

from __future__ import annotations

from pathlib import Path

import linear_model
import numpy as np
import onnx
import pytest
from linear_model import LinearModel

from latentry import manifest
from latentry.manifest import Manifest
from serving import devices, engine
from serving.bad_graph import BadGraph
from serving.devices import Device
from serving.engine import Graph
from serving.errors import NoDevice

CPU = Device(devices.CPU)
HAS_GPU = Path("/dev/nvidiactl").exists()


def graphs(model: LinearModel, buckets: tuple[int, ...] = ()) -> tuple[Graph, Graph]:
    loaded = engine.load_graphs(manifest.read(model.folder), CPU, buckets)
    return loaded["encoder"], loaded["decoder"]


def save(model: LinearModel, about: Manifest, **graphs: onnx.ModelProto) -> LinearModel:
    """Write the model again with other graphs or another manifest; the digests are right."""
    encoder = graphs.get("encoder", linear_model.encoder(model.shape, model.w, model.v))
    decoder = graphs.get("decoder", linear_model.decoder(model.shape, model.u))
    linear_model.save(model.folder, {"encoder.onnx": encoder, "decoder.onnx": decoder}, about, metadata=False)
    return model


def with_metadata(graph: onnx.ModelProto, kind: str, about: Manifest) -> onnx.ModelProto:
    onnx.helper.set_model_props(graph, about.graph_metadata(kind))
    return graph


def test_the_graphs_compute_what_the_weights_say(linear: LinearModel) -> None:
    encoder, decoder = graphs(linear)
    images = np.random.default_rng(0).integers(0, 256, (6, *linear.shape), np.uint8)
    got = encoder.run(images, frozenset({"mean", "logvar"}))
    mean, logvar = linear.encode(images)
    np.testing.assert_allclose(got["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(got["logvar"], logvar, atol=1e-5)
    pictures = decoder.run(mean, frozenset({"images", "mean"}))
    np.testing.assert_allclose(pictures["mean"], linear.decode(mean), atol=1e-5)
    assert np.abs(pictures["images"] - 255 * linear.decode(mean)).max() <= 0.51


def test_padding_to_buckets_changes_no_row(linear: LinearModel) -> None:
    _, plain = graphs(linear)
    _, padded = graphs(linear, (1, 2, 4, 8))
    z = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    for n in (8, 3, 1, 5, 2, 8):  # buffers are reused: a large batch before a small one
        expected = plain.run(z[:n], frozenset({"mean"}))["mean"]
        got = padded.run(z[:n], frozenset({"mean"}))["mean"]
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert [padded.bucket(n) for n in (1, 3, 8)] == [1, 4, 8]


def test_results_outlive_the_next_batch(linear: LinearModel) -> None:
    _, decoder = graphs(linear, (4,))
    first = decoder.run(np.zeros((2, 5), np.float32), frozenset({"images"}))["images"]
    before = first.copy()
    decoder.run(np.full((4, 5), 9, np.float32), frozenset({"images"}))
    assert (first == before).all()


@pytest.fixture
def model(tmp_path: Path) -> LinearModel:
    """A model to spoil."""
    return linear_model.write(tmp_path)


def about(model: LinearModel, latent_dim: int = 5) -> Manifest:
    return linear_model.manifest("linear", 1, model.shape, latent_dim)


def refusal(model: LinearModel) -> str:
    with pytest.raises(BadGraph) as caught:
        graphs(model)
    return str(caught.value)


def test_latents_that_the_manifest_counts_otherwise_are_refused(model: LinearModel) -> None:
    save(model, about(model, latent_dim=6))
    assert "encoder.onnx: output mean: got items of [5], the manifest says [6]" in refusal(model)


def test_images_of_another_shape_are_refused(model: LinearModel) -> None:
    wide = linear_model.decoder((12, 5, 2), model.u)
    encoder = with_metadata(linear_model.encoder(model.shape, model.w, model.v), "encoder", about(model))
    save(model, about(model), encoder=encoder, decoder=wide)
    wanted = "decoder.onnx: output images: got items of [12, 5, 2], the manifest says [12, 10, 1]"
    assert wanted in refusal(model)


def test_a_fixed_batch_is_refused(model: LinearModel) -> None:
    save(model, about(model), encoder=linear_model.encoder(model.shape, model.w, model.v, batch=1))
    assert "input images: got shape [1, 12, 10, 1], wanted a free batch dimension" in refusal(model)


def test_an_output_of_another_name_is_refused(model: LinearModel) -> None:
    encoder = linear_model.encoder(model.shape, model.w, model.v)
    encoder.graph.output[0].name = encoder.graph.node[3].output[0] = "mu"
    save(model, about(model), encoder=encoder)
    assert "encoder.onnx: outputs: got mu, logvar, wanted mean, logvar" in refusal(model)


def test_a_graph_that_does_not_say_what_it_is_is_refused(model: LinearModel) -> None:
    save(model, about(model))
    assert "encoder.onnx: metadata latentry.format: got None, the manifest says 1" in refusal(model)


def test_weights_outside_the_file_are_not_read(
    model: LinearModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = with_metadata(linear_model.encoder(model.shape, model.w, model.v), "encoder", about(model))
    onnx.save(encoder, tmp_path / "x.onnx", save_as_external_data=True, location="secret.bin", size_threshold=0)
    assert (tmp_path / "secret.bin").exists()
    save(model, about(model), encoder=onnx.load(tmp_path / "x.onnx", load_external_data=False))
    assert "encoder.onnx: ONNX Runtime cannot load it" in refusal(model)


def test_a_graph_that_is_not_what_it_declares_does_not_pass_the_warm_up(model: LinearModel) -> None:
    doubled = linear_model.decoder(model.shape, model.u)
    doubled.graph.node[-1].output[0] = "once"
    doubled.graph.node.append(onnx.helper.make_node("Concat", ["once", "once"], ["images"], axis=0))
    for output in doubled.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "M"
    with pytest.raises(BadGraph, match=r"output images: got shape \[2, 12, 10, 1\], wanted \[1, 12, 10, 1\]"):
        Graph(doubled.SerializeToString(), CPU, {}).warm(1)


def test_weights_that_are_not_finite_do_not_pass_the_warm_up(model: LinearModel) -> None:
    sick = linear_model.decoder(model.shape, model.u * np.nan)
    with pytest.raises(BadGraph, match="output mean: not finite"):
        Graph(sick.SerializeToString(), CPU, {}).warm(1)


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x08\x08" * 50])
def test_bytes_that_are_no_graph_are_refused(data: bytes) -> None:
    with pytest.raises(BadGraph, match="cannot load"):
        Graph(data, CPU, {})


@pytest.mark.skipif(HAS_GPU, reason="this machine has an NVIDIA driver")
def test_without_a_gpu_cuda_is_refused_and_auto_says_why_it_took_the_cpu() -> None:
    with pytest.raises(NoDevice, match="--device cuda: cuda:0: "):
        devices.choose("cuda", engine.why_not, threads=2)
    (device,) = devices.choose("auto", engine.why_not, threads=2)
    assert (device.provider, device.threads) == ("CPUExecutionProvider", 2)
    assert device.reason.startswith("auto: ")


def test_a_graph_that_failed_is_loaded_again_and_computes_the_same(linear: LinearModel) -> None:
    _, decoder = graphs(linear, (1, 4))
    z = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)
    before = decoder.run(z, frozenset({"images", "mean"}))
    decoder.restart()
    after = decoder.run(z, frozenset({"images", "mean"}))
    assert all((before[name] == after[name]).all() for name in before)


def test_a_closed_graph_neither_runs_nor_comes_back(linear: LinearModel) -> None:
    _, decoder = graphs(linear)
    decoder.close()
    with pytest.raises(RuntimeError, match="closed"):
        decoder.run(np.zeros((1, 5), np.float32), frozenset({"images"}))
    with pytest.raises(BadGraph, match="closed"):
        decoder.restart()
