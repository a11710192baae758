"""The model folder as a trust boundary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from linear_model import LinearModel

from latentry import manifest
from latentry.attributes import Attribute
from latentry.manifest import AggregatePosterior, Likelihood, Manifest, ManifestError

DIGESTS = {"encoder.onnx": "a" * 64, "decoder.onnx": "b" * 64}


@pytest.fixture
def folder(linear: LinearModel, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(linear.folder, tmp_path / "linear" / "1"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_a_manifest_survives_its_own_json() -> None:
    about = Manifest(
        "fashion-2",
        3,
        (28, 20, 3),
        2,
        Likelihood("gaussian", {"sigma": 0.25}),
        DIGESTS,
        provenance={"data": {"name": "x", "digest": "y"}},
        evaluation={"elbo": -10.5},
        aggregate_posterior=AggregatePosterior((0.0, 1.5), (1.0, 2.0)),
        attributes={"smile": (1.0, -1.0)},
        labels=("a", "b"),
    )
    assert manifest.parse(about.to_json()) == about


@pytest.mark.parametrize(
    ("evaluation", "amount", "limit"),
    [
        ({}, 1, 1),
        ({"attribute_high_shaft_amount": 2.0}, 2, 1),
        ({"attribute_high_shaft_amount": 2.0, "attribute_high_shaft_amount_limit": 3.0}, 2, 1.5),
        ({"attribute_high_shaft_amount_limit": 3.0}, 1, 3),
    ],
)
def test_an_attribute_says_how_far_an_edit_goes(evaluation: dict[str, float], amount: float, limit: float) -> None:
    about = Manifest(
        "x",
        1,
        (8, 8, 1),
        2,
        Likelihood("bernoulli"),
        DIGESTS,
        evaluation=evaluation,
        attributes={"High shaft": (1.0, -1.0)},
    )
    assert about.attribute("High shaft") == Attribute((1.0, -1.0), amount, limit)
    with pytest.raises(KeyError):
        about.attribute("high shaft")


def test_a_whole_folder_is_read_with_its_graphs(linear: LinearModel) -> None:
    read = manifest.read(linear.folder)
    assert read.manifest.image_shape == linear.shape
    assert read.graph("encoder") == (linear.folder / "encoder.onnx").read_bytes()
    assert read.digest == manifest.sha256((linear.folder / "manifest.json").read_bytes())


@pytest.mark.parametrize("name", ["manifest.json", "encoder.onnx", "decoder.onnx"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ManifestError, match=rf"{name}: No such file"):
        manifest.read(folder)


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_one_changed_byte_is_found(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ManifestError, match=rf"{name}: SHA-256: got"):
        manifest.read(folder)


@pytest.mark.parametrize("version", ["one", "01", "0", "-1", "1.5", " 1", "1_0", "\u0661"])
def test_a_version_that_is_no_number_is_refused(folder: Path, version: str) -> None:
    with pytest.raises(ManifestError, match="version: got"):
        manifest.read(folder.rename(folder.parent / version))


def test_the_folder_and_the_manifest_must_agree_on_name_and_version(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="version: got 1, wanted 2"):
        manifest.read(folder.rename(folder.parent / "2"))
    (tmp_path / "linear").rename(tmp_path / "other")
    (tmp_path / "other" / "2").rename(tmp_path / "other" / "1")
    with pytest.raises(ManifestError, match="name: got linear, wanted other"):
        manifest.read(tmp_path / "other" / "1")


def test_a_symbolic_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (folder / "encoder.onnx").rename(outside)
    (folder / "encoder.onnx").symlink_to(outside)
    with pytest.raises(ManifestError, match=r"encoder\.onnx: got a link outside, wanted a file inside"):
        manifest.read(folder)


def test_a_symbolic_link_within_the_folder_is_fine(folder: Path) -> None:
    (folder / "encoder.onnx").rename(folder / "real.bin")
    (folder / "encoder.onnx").symlink_to("real.bin")
    assert manifest.read(folder).manifest.name == "linear"


def test_a_loop_of_links_is_an_error_like_any_other(folder: Path) -> None:
    (folder / "encoder.onnx").unlink()
    (folder / "encoder.onnx").symlink_to("encoder.onnx")
    with pytest.raises(ManifestError, match=r"encoder\.onnx"):
        manifest.read(folder)


def test_a_file_name_with_a_path_in_it_is_refused(folder: Path) -> None:
    edit(folder, lambda raw: raw["files"].update({"../../secret": "a" * 64}))
    with pytest.raises(ManifestError, match=r"files: got \.\./\.\./secret, wanted a plain file name"):
        manifest.read(folder)


@pytest.mark.parametrize(("variance", "refused"), [((1.0, -1e-9), "-1e-09"), ((float("nan"), 1.0), "nan")])
def test_a_variance_below_0_is_refused(variance: tuple[float, ...], refused: str) -> None:
    def with_variance(*variance: float) -> Manifest:
        posterior = AggregatePosterior((0.0, 0.0), variance)
        return Manifest("x", 1, (8, 8, 1), 2, Likelihood("bernoulli"), DIGESTS, aggregate_posterior=posterior)

    assert with_variance(0.0, 1.0)
    with pytest.raises(ManifestError, match=rf"aggregate_posterior\.variance: got {refused}, wanted 0 or more"):
        with_variance(*variance)


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    with (folder / "manifest.json").open("ab") as file:
        file.truncate(manifest.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ManifestError, match=r"manifest\.json: got \d+ bytes, wanted at most"):
        manifest.read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format=2), "format: got 2, wanted 1"),
        (lambda raw: raw.pop("name"), "name: got nothing"),
        (lambda raw: raw.update(name="../up"), "name: got ../up"),
        (lambda raw: raw.update(version=True), "version: got bool"),
        (lambda raw: raw.update(latent_dim=0), "latent_dim: got 0"),
        (lambda raw: raw.update(latent_dim=10**9), "latent_dim: got 1000000000"),
        (lambda raw: raw.update(image_shape=[28, 28]), "image_shape: got [28, 28]"),
        (lambda raw: raw.update(image_shape=[28, 28, 2]), "image_shape: got [28, 28, 2]"),
        (lambda raw: raw.update(image_shape=[0, 28, 1]), "image_shape: got [0, 28, 1]"),
        (lambda raw: raw.update(image_shape=["28", 28, 1]), "image_shape"),
        (lambda raw: raw.update(likelihood="gaussian"), "likelihood: got str"),
        (lambda raw: raw.update(labels=[1]), "labels: got [1]"),
        (lambda raw: raw.update(labels=["\ud800"]), "not JSON: 'utf-8' codec can't encode"),
        (lambda raw: raw.update(aggregate_posterior={}), "mean: got nothing"),
        (lambda raw: raw.update(provenance={"log": "x" * 300_000}), "provenance: got 300"),
        (lambda raw: raw["files"].pop("decoder.onnx"), "files: got ['encoder.onnx']"),
        (lambda raw: raw["files"].update({"encoder.onnx": "xyz"}), "files.encoder.onnx: got xyz"),
        (lambda raw: raw.update(evaluation={"elbo": "high"}), "evaluation.elbo: got high"),
        (lambda raw: raw.update(aggregate_posterior={"mean": [0], "variance": [1]}), "aggregate_posterior.mean: got 1"),
        (
            lambda raw: raw.update(attributes={"Big hat": [0] * 5}, evaluation={"attribute_big_hat_amount": 0}),
            "evaluation.attribute_big_hat_amount: got 0, wanted more than 0",
        ),
        (
            lambda raw: raw.update(attributes={"hat": [0] * 5}, evaluation={"attribute_hat_amount_limit": -1}),
            "evaluation.attribute_hat_amount_limit: got -1, wanted 0 to a finite multiple of the amount, 1",
        ),
        (
            lambda raw: raw.update(
                attributes={"hat": [0] * 5},
                evaluation={"attribute_hat_amount": 1e-300, "attribute_hat_amount_limit": 1e300},
            ),
            "evaluation.attribute_hat_amount_limit: got 1e+300, wanted 0 to a finite multiple",
        ),
        (lambda raw: raw.update(attributes={"smile": [1, "x", 2, 3, 4]}), "smile: got [1, 'x', 2, 3, 4]"),
    ],
)
def test_each_field_that_makes_no_sense_is_named(folder: Path, change: Any, message: str) -> None:
    edit(folder, change)
    with pytest.raises(ManifestError) as caught:
        manifest.read(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": NaN}', "[" * 100_000, "\x00", '{"format": 1e999}'])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        manifest.parse(text)


def test_numbers_too_large_for_a_float_are_refused(folder: Path) -> None:
    edit(folder, lambda raw: raw.update(evaluation={"elbo": 10**400}))
    with pytest.raises(ManifestError):
        manifest.read(folder)
