"""Model folders: what is published agrees with torch on real images, and what does not is not published."""

from __future__ import annotations

import importlib.metadata
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from training_fixtures import fashion_images, small_run

from latentry import graph_notes, manifest
from training import checkpoint, config_file, differences, export, graphs, parity, publication, state, trained
from training.data import Dataset
from training.errors import ExportError
from training.evaluate import encoded_moments, evaluate
from training.images import Images, digest, in_memory
from training.trained import Trained


@pytest.fixture(scope="module")
def small() -> Trained:
    return trained.load(small_run())


@pytest.fixture(scope="module")
def built(small: Trained) -> tuple[manifest.Manifest, dict[str, bytes]]:
    """The contents of a model folder called small/1."""
    return export.build(small, "small", 1)


@pytest.fixture(scope="module")
def folder(built: tuple[manifest.Manifest, dict[str, bytes]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("models") / "small" / "1"
    publication.publish(destination, built[1])
    return destination


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def real_images(n: int) -> np.ndarray:
    return fashion_images()[:n, ..., np.newaxis].copy()


def test_what_is_exported_is_the_weight_average(small: Trained) -> None:
    saved = checkpoint.load(small_run() / "checkpoints", warn=lambda line: None)
    name, weight = next(iter(small.model.named_parameters()))
    assert torch.equal(weight, saved["average"][name])
    assert not torch.equal(weight, saved["model"][name])


class TestFolder:
    def test_it_reads_as_the_contract_says(self, folder: Path) -> None:
        read = manifest.read(folder)
        assert read.manifest.image_shape == (28, 28, 1)
        assert read.manifest.latent_dim == 4
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            "decoder.onnx",
            "encoder.onnx",
            "manifest.json",
            "preview.png",
        ]
        assert set(read.manifest.files) == {"README.md", "decoder.onnx", "encoder.onnx", "preview.png"}

    def test_encoder_agrees_with_torch_on_real_images(self, folder: Path, small: Trained) -> None:
        encoder = session(folder / "encoder.onnx")
        for n in (1, 2, 7, 33):
            images = real_images(n)
            mean, logvar = encoder.run(["mean", "logvar"], {"images": images})
            x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
            with torch.inference_mode():
                wanted_mean, wanted_logvar = small.model.encoder(x)
            np.testing.assert_allclose(mean, wanted_mean, atol=1e-4, rtol=1e-4)
            np.testing.assert_allclose(logvar, wanted_logvar, atol=1e-4, rtol=1e-4)

    def test_decoder_agrees_with_torch(self, folder: Path, small: Trained) -> None:
        decoder = session(folder / "decoder.onnx")
        for n in (1, 2, 7, 33):
            latents = np.random.default_rng(n).standard_normal((n, 4), np.float32)
            images, mean = decoder.run(["images", "mean"], {"latents": latents})
            with torch.inference_mode():
                wanted = torch.sigmoid(small.model.decoder(torch.from_numpy(latents))).permute(0, 2, 3, 1)
            np.testing.assert_allclose(mean, wanted, atol=1e-5)
            assert images.dtype == np.uint8
            assert np.abs(images - np.rint(wanted.numpy() * 255)).max() <= 1

    def test_graphs_have_the_names_types_and_shapes_of_the_contract(self, folder: Path) -> None:
        for graph, inputs, outputs in (
            ("encoder", {"images": ("tensor(uint8)", [28, 28, 1])}, {"mean": [4], "logvar": [4]}),
            ("decoder", {"latents": ("tensor(float)", [4])}, {"images": [28, 28, 1], "mean": [28, 28, 1]}),
        ):
            loaded = session(folder / f"{graph}.onnx")
            assert {i.name: (i.type, i.shape[1:]) for i in loaded.get_inputs()} == inputs
            assert {o.name: o.shape[1:] for o in loaded.get_outputs()} == outputs
            batches = {value.shape[0] for value in (*loaded.get_inputs(), *loaded.get_outputs())}
            assert batches == {"batch"}

    def test_graphs_explain_themselves(self, folder: Path) -> None:
        for graph in ("encoder", "decoder"):
            metadata = session(folder / f"{graph}.onnx").get_modelmeta().custom_metadata_map
            assert metadata == graph_notes.metadata(manifest.read(folder).manifest, graph)

    def test_no_file_tells_of_the_machine(self, folder: Path, small: Trained) -> None:
        paths = [str(Path(__file__).resolve().parent.parent), str(Path(small.config.data.path).parent), "site-packages"]
        for file in folder.iterdir():
            for path in paths:
                assert path.encode() not in file.read_bytes(), (file.name, path)

    def test_the_manifest_says_where_the_model_comes_from(self, folder: Path, small: Trained) -> None:
        read = manifest.read(folder).manifest
        assert read.provenance["data"]["sha256"] == small.dataset.digest
        assert read.provenance["config"]["model"]["latent_dim"] == 4
        assert read.provenance["versions"]["torch"] == importlib.metadata.version("torch")
        assert read.provenance["steps"] == 16
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|None", str(read.provenance["git_revision"]))
        sigma = small.model.likelihood.parameters_by_name()["sigma"]
        assert read.likelihood == manifest.Likelihood("gaussian", {"sigma": sigma})
        assert read.evaluation["images"] == 30
        scored = evaluate(small.model, small.dataset.test)
        assert read.evaluation["elbo"] == pytest.approx(scored.elbo)
        on_training_images = evaluate(small.model, small.dataset.train.part(0, 30)).elbo
        assert read.evaluation["elbo"] != pytest.approx(on_training_images)
        mean, _ = encoded_moments(small.model, small.dataset.train)
        assert read.aggregate_posterior is not None
        assert read.aggregate_posterior.mean == pytest.approx(mean)
        assert read.evaluation["parity_encoder_relative"] <= parity.ENCODER_TOLERANCE
        assert read.aggregate_posterior is not None
        assert len(read.aggregate_posterior.variance) == 4

    def test_the_card_and_the_preview_are_there_to_be_looked_at(self, folder: Path) -> None:
        card = (folder / "README.md").read_text()
        assert card.startswith("# small, version 1\n")
        assert f"{manifest.read(folder).manifest.evaluation['elbo']:.2f} nats per image" in card
        with Image.open(folder / "preview.png") as preview:
            assert preview.size[0] > 28 * 16

    def test_anyone_may_read_it(self, folder: Path) -> None:
        assert folder.stat().st_mode & 0o555 == 0o555
        assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())


@pytest.mark.parametrize(
    ("kind", "likelihood", "shape"), [("conv", "bernoulli", (33, 18, 3)), ("dense", "gaussian", (9, 12, 1))]
)
def test_every_kind_of_model_passes_the_gate(kind: str, likelihood: str, shape: tuple[int, int, int]) -> None:
    config = config_file.override(
        config_file.read_preset("tiny"), {"model": {"kind": kind}, "objective": {"likelihood": likelihood}}
    )
    pixels = Images(real_images(40)).fitted(shape[:2], shape[2], in_memory)
    dataset = Dataset("small", pixels, pixels, digest(pixels), "none")
    source = Trained(config, dataset, state.build_model(config, dataset).eval(), 0)
    made, files = export.build(source, "other", 3)
    assert made.image_shape == shape
    assert made.likelihood.name == likelihood
    assert made.evaluation["parity_decoder_levels"] <= 1
    assert json.loads(files["manifest.json"])["version"] == 3


class TestGate:
    def test_graphs_of_other_weights_are_refused_with_the_figure(
        self, built: tuple[manifest.Manifest, dict[str, bytes]], small: Trained
    ) -> None:
        other = state.build_model(replace(small.config, run=replace(small.config.run, seed=1)), small.dataset).eval()
        encoder, decoder = graphs.wrapped(small.model)
        other_encoder, other_decoder = graphs.wrapped(other)
        files = built[1]["encoder.onnx"], built[1]["decoder.onnx"]
        with pytest.raises(ExportError, match=r"encoder: relative difference .* got [0-9.]+, wanted at most 0.0001"):
            parity.measure(*files, other_encoder, decoder, small.dataset.test.pixels)
        with pytest.raises(ExportError, match=r"decoder: difference of the mean: got [0-9.]+, wanted at most 2e-05"):
            parity.measure(*files, encoder, other_decoder, small.dataset.test.pixels)

    def test_nan_is_refused(self) -> None:
        nan = np.array([np.nan], np.float32)
        with pytest.raises(ExportError, match="got inf"):
            parity._within_tolerance(parity.Parity(differences.relative(nan, nan), 0.0, 0))

    def test_outside_tolerance_nothing_is_published(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parity, "ENCODER_TOLERANCE", 0.0)
        with pytest.raises(ExportError, match="ONNX Runtime and torch disagree: encoder"):
            export.export(small_run(), tmp_path / "models" / "small" / "1")
        assert list(tmp_path.iterdir()) == []

    def test_a_random_operator_is_refused(self) -> None:
        node = helper.make_node("RandomNormal", [], ["y"], shape=[1])
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
        graph = helper.make_graph([node], "g", [], [output])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", graphs.OPSET)], ir_version=10)
        with pytest.raises(ExportError, match=r"encoder.onnx: draws at random: RandomNormal"):
            parity.check_graph(proto.SerializeToString(), "encoder.onnx")

    def test_invalid_onnx_is_refused(self, built: tuple[manifest.Manifest, dict[str, bytes]]) -> None:
        proto = onnx.load_from_string(built[1]["encoder.onnx"])
        del proto.graph.node[0]
        with pytest.raises(ExportError, match=r"encoder.onnx: not valid ONNX"):
            parity.check_graph(proto.SerializeToString(), "encoder.onnx")
