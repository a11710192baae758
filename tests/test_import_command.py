"""`latentry import` writes a folder that serves as the given graphs do, or nothing at all."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import FASHION, ROOT
from foreign_model import ForeignModel
from PIL import Image

from latentry import Client, manifest, onnx_file
from serving.server import Service
from training.import_command import add_import_arguments, run_import

SHAPE = (28, 28, 1)


def run(place: Path, model: ForeignModel, *flags: str) -> int:
    """Import a model as theirs/1 into `place`/models."""
    encoder, decoder = model.write(place)
    return run_files(encoder, decoder, place / "models" / "theirs" / "1", *flags)


def run_files(encoder: Path, decoder: Path, destination: Path, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    add_import_arguments(parser)
    return run_import(
        parser.parse_args([f"--encoder={encoder}", f"--decoder={decoder}", f"--to={destination}", *flags])
    )


def folder_in(place: Path) -> manifest.ModelFolder:
    return manifest.read(place / "models" / "theirs" / "1")


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        (ForeignModel(shape=SHAPE, batch=1), []),
        (ForeignModel("nhwc", "uint8", "0..255", "mean-std", SHAPE), []),
        (ForeignModel("flat", "float16", "-1..1", "point", SHAPE), ["--image-shape=28,28,1"]),
    ],
)
def test_an_imported_model_serves_what_it_means(
    tmp_path: Path, model: ForeignModel, flags: list[str], fashion_images: Any, serve: Callable[..., Service]
) -> None:
    assert run(tmp_path, model, *flags) == 0
    images, close = fashion_images[:5], 2e-2 if model.dtype == "float16" else 1e-4
    service = serve(tmp_path / "models")
    with Client(f"localhost:{service.port}") as client:
        posterior = client.encode(images)
        sampled = client.sample(4, seed=3, dtype="float32")
        decoded = client.decode(sampled.latents)
    mean, logvar = model.encode(images)
    np.testing.assert_allclose(posterior.mean, mean, rtol=close, atol=close)
    np.testing.assert_allclose(posterior.logvar, logvar, rtol=close, atol=close)
    wanted = model.decode(sampled.latents)
    off = {"uint8": 0.5 / 255 + 1e-6, "float16": 1e-3}.get(model.dtype, 1e-6)
    np.testing.assert_allclose(sampled.images, wanted, rtol=0, atol=off)
    assert np.abs(decoded.images - np.rint(wanted * 255)).max() <= 1


def test_what_is_guessed_and_freed_is_said_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, ForeignModel(batch=1)) == 0
    said = capsys.readouterr().out
    assert "guessed: layout nchw, from picture float32 [N, 1, 8, 6] of theirs-enc.onnx\n" in said
    assert (
        "note: theirs-dec.onnx was exported for a batch of 1 alone; freed it: the shape in Reshape into shape" in said
    )
    assert "theirs version 1" in said


def test_outputs_that_nothing_is_made_of_are_said_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, ForeignModel(), "--posterior=point", "--mean-output=mean") == 0
    assert "left out: logvar float32 [N, 3] of theirs-enc.onnx\n" in capsys.readouterr().out
    assert "Left out: logvar" in (tmp_path / "models" / "theirs" / "1" / "README.md").read_text()


def test_the_folder_passes_the_checks_and_says_where_it_is_from(tmp_path: Path) -> None:
    assert run(tmp_path, ForeignModel(), "--likelihood=gaussian:sigma=0.2") == 0
    folder = folder_in(tmp_path)
    onnx_file.check_folder(folder)
    about = folder.manifest
    imported = about.provenance["imported"]
    digest = manifest.sha256((tmp_path / "theirs-enc.onnx").read_bytes())
    assert imported["encoder"] == {"files": {"theirs-enc.onnx": digest}, "producer": "theirs", "opset": 17}
    assert imported["guessed"][0] == "image shape 8,6,1 (H,W,C), from picture float32 [N, 1, 8, 6]"
    assert about.likelihood == manifest.Likelihood("gaussian", {"sigma": 0.2})
    assert (about.image_shape, about.latent_dim) == ((8, 6, 1), 3)
    assert str(tmp_path) not in about.to_json()
    card = (folder.path / "README.md").read_text()
    assert digest in card
    assert "imported by `latentry import`" in card
    assert str(tmp_path) not in card


def test_two_imports_give_the_same_graphs(tmp_path: Path) -> None:
    graphs = []
    for _ in range(2):
        assert run(tmp_path, ForeignModel(), "--replace") == 0
        graphs.append(folder_in(tmp_path).graphs)
    assert graphs[0] == graphs[1]


def principal_components(place: Path, z: int = 8) -> tuple[Path, Path, Any, Any]:
    """An autoencoder of Fashion-MNIST by principal components, dense and without names: it does reconstruct."""
    raw = np.frombuffer(_gunzip(FASHION / "t10k-images-idx3-ubyte.gz"), np.uint8, offset=16)
    x = raw.reshape(-1, 784)[:2000] / 255
    centre = x.mean(0)
    basis = np.linalg.svd(x - centre, full_matrices=False)[2][:z].T
    node, port = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weights = {"c": centre, "b": basis, "t": basis.T}
    tensors = {name: onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()}

    def save(nodes: list[Any], given: int, made: int, names: str, path: Path) -> Path:
        ports = [[port(name, 1, ["n", width])] for name, width in (("in", given), ("out", made))]
        graph = onnx.helper.make_graph(nodes, "pca", *ports, [tensors[name] for name in names])
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(proto, path)
        return path

    encoder = [node("Sub", ["in", "c"], ["x"]), node("MatMul", ["x", "b"], ["out"])]
    decoder = [node("MatMul", ["in", "t"], ["x"]), node("Add", ["x", "c"], ["out"])]
    paths = save(encoder, 784, z, "cb", place / "e.onnx"), save(decoder, z, 784, "tc", place / "d.onnx")
    return *paths, centre, basis


def _gunzip(path: Path) -> bytes:
    import gzip

    return gzip.decompress(path.read_bytes())


def test_with_images_it_is_measured_on_them(tmp_path: Path, fashion_images: Any) -> None:
    encoder, decoder, centre, basis = principal_components(tmp_path)
    np.savez(tmp_path / "some.npz", images=fashion_images[:400])
    destination = tmp_path / "models" / "theirs" / "1"
    flags = ["--image-shape=28,28,1", "--range=0..1", f"--data={tmp_path / 'some.npz'}"]
    assert run_files(encoder, decoder, destination, *flags) == 0
    folder = folder_in(tmp_path)
    about = folder.manifest
    held = np.sort(np.random.default_rng(0).permutation(400)[:40])
    x = fashion_images[:400].reshape(400, -1) / 255
    z = (x - centre) @ basis
    error = np.square(np.clip(z @ basis.T + centre, 0, 1) - x)[held].mean()
    assert about.evaluation["psnr_db"] == pytest.approx(-10 * np.log10(error), abs=1e-3)
    assert about.evaluation["psnr_db"] > about.evaluation["mean_image_psnr_db"] + 3
    assert about.aggregate_posterior is not None
    rest = np.delete(z, held, 0)
    np.testing.assert_allclose(about.aggregate_posterior.mean, rest.mean(0), atol=1e-4)
    np.testing.assert_allclose(about.aggregate_posterior.variance, rest.var(0), rtol=1e-4)
    assert about.provenance["measured_on"]["test_images"] == 40
    assert "data" not in about.provenance  # what it was trained on is not known
    preview = np.asarray(Image.open(folder.path / "preview.png"))
    np.testing.assert_array_equal(preview[:56:2, :56:2], fashion_images[held[0], :, :, 0])  # twice as large


def test_a_wrong_flag_is_noticed_on_real_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fashion_images: Any
) -> None:
    encoder, decoder, _, _ = principal_components(tmp_path)
    np.savez(tmp_path / "some.npz", images=fashion_images[:100])
    flags = ["--image-shape=28,28,1", "--range=0..1", f"--data={tmp_path / 'some.npz'}", "--decoder-output=logits"]
    assert run_files(encoder, decoder, tmp_path / "models" / "theirs" / "1", *flags) == 0
    assert "and one mean image in place of them all" in capsys.readouterr().out


def test_numbers_that_are_cut_off_are_spoken_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, decoder, _, _ = principal_components(tmp_path)
    destination = tmp_path / "models" / "theirs" / "1"
    assert run_files(encoder, decoder, destination, "--image-shape=28,28,1", "--range=0..1") == 0
    assert "outside 0..1 and are cut off there" in capsys.readouterr().out


def test_logits_get_a_sigmoid(tmp_path: Path) -> None:
    encoder, decoder, centre, basis = principal_components(tmp_path)
    destination = tmp_path / "models" / "theirs" / "1"
    flags = ["--image-shape=28,28,1", "--range=0..1", "--decoder-output=logits"]
    assert run_files(encoder, decoder, destination, *flags) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(folder_in(tmp_path).graph("decoder"))
    z = np.random.default_rng(1).standard_normal((5, 8), np.float32)
    wanted = 1 / (1 + np.exp(-(z @ basis.T + centre)))
    np.testing.assert_allclose(session.run(["mean"], {"latents": z})[0].reshape(5, -1), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "flags", "says"),
    [
        (ForeignModel(), ["--range=-1..1"], "--decoder-range: --range says -1..1"),
        (ForeignModel("flat"), [], "--image-shape: the graphs do not tell it"),
        (ForeignModel(), ["--likelihood=normal"], "--likelihood: got normal"),
        (ForeignModel(), ["--data=/nowhere"], "data: /nowhere does not exist"),
        (ForeignModel(), ["--posterior=mean-std", "--spread-output=logvar"], "encoder: logvar: got -"),
    ],
)
def test_what_is_refused_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: ForeignModel, flags: list[str], says: str
) -> None:
    status = run(tmp_path, model, *flags)
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("latentry: error: ")
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_an_existing_version_stays_unless_it_is_to_be_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, ForeignModel()) == 0
    before = folder_in(tmp_path).digest
    assert run(tmp_path, ForeignModel(z=4)) == 2
    assert "exists already: choose another version, or add --replace" in capsys.readouterr().err
    assert folder_in(tmp_path).digest == before
    assert run(tmp_path, ForeignModel(z=4), "--replace") == 0
    assert folder_in(tmp_path).manifest.latent_dim == 4


def test_it_needs_no_torch(tmp_path: Path) -> None:
    encoder, decoder = ForeignModel().write(tmp_path)
    argv = [f"--encoder={encoder}", f"--decoder={decoder}", f"--to={tmp_path / 'models' / 'theirs' / '1'}"]
    code = f"""
import argparse, sys
sys.modules.update(dict.fromkeys(("torch", "lightning_fabric", "matplotlib", "sklearn", "grpc")))
from training.import_command import add_import_arguments, run_import
assert "onnx" not in sys.modules and "onnxruntime" not in sys.modules
parser = argparse.ArgumentParser()
add_import_arguments(parser)
sys.exit(run_import(parser.parse_args({argv!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert folder_in(tmp_path).manifest.name == "theirs"


def test_points_are_as_sure_as_our_own_autoencoders_points() -> None:
    from training.importing.posterior import POINT_LOGVAR
    from training.networks import posterior

    assert posterior.POINT_LOGVAR == POINT_LOGVAR


def test_no_elbo_is_measured_of_an_unknown_likelihood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fashion_images: Any
) -> None:
    from latentry.cli import main

    assert run(tmp_path, ForeignModel(shape=SHAPE)) == 0
    np.savez(tmp_path / "some.npz", images=fashion_images[:40])
    folder = str(tmp_path / "models" / "theirs" / "1")
    assert main(["evaluate", folder, "--data", str(tmp_path / "some.npz"), "--quick", "--device=cpu"]) == 2
    assert "likelihood.name: got unknown, wanted gaussian" in capsys.readouterr().err


def test_a_named_likelihood_is_evaluated(tmp_path: Path, fashion_images: Any) -> None:
    from latentry.cli import main

    assert run(tmp_path, ForeignModel(shape=SHAPE), "--likelihood=gaussian-fixed:variance=0.1") == 0
    np.savez(tmp_path / "some.npz", images=fashion_images[:40])
    folder, figures = str(tmp_path / "models" / "theirs" / "1"), tmp_path / "figures.json"
    flags = ["--data", str(tmp_path / "some.npz"), "--quick", "--device=cpu", "--json", str(figures)]
    assert main(["evaluate", folder, *flags]) == 0
    assert "elbo" in json.dumps(json.loads(figures.read_text()))


def test_the_commands_of_the_page_are_understood() -> None:
    page = (ROOT / "docs" / "import.md").read_text().replace("\\\n", " ")
    commands = [line for line in page.splitlines() if line.startswith("latentry import")]
    assert len(commands) == 5
    parser = argparse.ArgumentParser()
    add_import_arguments(parser)
    for command in commands:
        parser.parse_args(shlex.split(command)[2:])
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= flags
    assert flags - set(re.findall(r"--[a-z-]+", page)) == {"-h", "--help"}
