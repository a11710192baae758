"""The model card and the preview say what the manifest says, in words that hold for the model at hand."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_fixtures import fashion_images, fashion_labels

from latentry import manifest
from latentry.manifest import Manifest, Prior
from training import card, config_file, figures, mixture, preview, state
from training.data import Dataset
from training.images import Images, digest
from training.prior import FittedPrior
from training.trained import Trained

SHIPPED = manifest.read(manifest.embedded_models() / "fashion" / "1").manifest
FASHION = replace(SHIPPED, variants={})


def with_kind(kind: str, about: Manifest = FASHION) -> Manifest:
    config = {**about.provenance["config"], "model": {**about.provenance["config"]["model"], "kind": kind}}
    return replace(about, provenance={**about.provenance, "config": config})


def with_prior(kind: str, **changes: Any) -> Manifest:
    files = {**FASHION.files, "prior.onnx": "0" * 64}
    return replace(FASHION, files=files, prior=Prior(kind, 32, -48.96, -127.31), **changes)


def with_variants(**variants: dict[str, float]) -> Manifest:
    names = [manifest.graph_file(part, precision) for part in ("encoder", "decoder") for precision in variants]
    return replace(FASHION, files={**FASHION.files, **dict.fromkeys(names, "0" * 64)}, variants=variants)


def headings(text: str) -> list[str]:
    return re.findall(r"^##? (.*)$", text, re.M)


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def table(text: str) -> list[list[str]]:
    """The cells of a table's rows, its head first."""
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


class TestCard:
    def test_it_has_these_sections_in_this_order(self) -> None:
        wanted = ["fashion, version 1", "Intended use", "Trained on", "Figures", "Use", "Limits"]
        assert headings(card.card(FASHION)) == wanted
        text = card.card(with_variants(int8={}))
        assert headings(text) == [*wanted[:4], "Precisions", *wanted[4:]]
        assert "\n\n\n" not in text
        assert text.endswith("\n")

    def test_every_table_has_as_many_cells_in_each_row(self) -> None:
        text = card.card(with_variants(int8={"psnr_db": 40.0}, fp16={}))
        for name in ("Figures", "Precisions", "Use"):
            rows = table(section(text, name))
            assert len(rows) > 2
            assert len({len(row) for row in rows}) == 1, name

    def test_figures_are_the_manifest_s(self) -> None:
        figures = dict(table(section(card.card(FASHION), "Figures"))[1:])
        assert figures["ELBO"] == f"{FASHION.evaluation['elbo']:.2f} nats per image"
        assert figures["active units"] == "25 of 32"
        parity = figures["ONNX Runtime against torch, largest differences"]
        assert f"{FASHION.evaluation['parity_encoder_relative']:.1e} relative" in parity
        kept = {name: value for name, value in FASHION.evaluation.items() if not name.startswith("parity_")}
        assert "against torch" not in card.card(replace(FASHION, evaluation=kept))

    def test_limits_are_measured(self) -> None:
        limits = section(card.card(FASHION), "Limits")
        root_mean_square = 255 * np.sqrt(10 ** (-FASHION.evaluation["psnr_db"] / 10))
        assert f"{root_mean_square:.1f} levels of 255 off" in limits
        assert "7 of its 32 latents say next to nothing" in limits
        all_active = replace(FASHION, evaluation={**FASHION.evaluation, "active_units": 32.0})
        assert "next to nothing" not in card.card(all_active)

    def test_variants_are_listed_with_sizes_and_errors(self) -> None:
        found = {"encoder_relative": 0.0123, "decoder_levels": 9.0, "psnr_db": 44.44, "psnr_db_lost": 0.054}
        sizes = {"encoder.onnx": 2_024_918, "decoder.onnx": 2_032_477, "encoder.int8.onnx": 612_345}
        head, fp32, int8 = table(section(card.card(with_variants(int8=found), sizes), "Precisions"))
        assert dict(zip(head, int8, strict=True)) == {
            "precision": "int8",
            "encoder, MB": "0.61",
            "decoder, MB": "?",
            "encoder, relative": "0.012",
            "decoder's mean": "-",
            "pixels, of 255 levels": "9",
            "PSNR to fp32, dB": "44.4",
            "PSNR lost, dB": "0.05",
            "change of the ELBO, nats": "-",
        }
        assert fp32 == ["fp32", "2.02", "2.03", *["-"] * 6]

    @pytest.mark.parametrize(
        ("about", "samples", "limit", "title"),
        [
            (FASHION, "draws of N(0, I).", "Draws from N(0, I) are less sharp", "sigma 0.07912, 1,007,617"),
            (with_prior("flow"), "draws of `prior.onnx`.", "N(0, I) does\nnot fit (log p(z)", ", flow prior, "),
            (
                with_prior("mixture"),
                "of `prior.onnx`.",
                "(log p(z) of held-out latents: -49.0",
                ", mixture prior fitted",
            ),
            (with_kind("autoencoder"), "draws of N(0, I).", "was given no prior", "An autoencoder of 28x28 grey"),
        ],
        ids=["normal", "flow", "mixture", "autoencoder"],
    )
    def test_it_says_where_samples_come_from(self, about: Manifest, samples: str, limit: str, title: str) -> None:
        text = card.card(about)
        assert samples in text.split("## Intended")[0]
        assert title in text.split("![")[0]
        assert limit in section(text, "Limits")

    def test_a_model_of_points_has_no_elbo(self) -> None:
        rows = dict(table(section(card.card(with_kind("denoising")), "Figures")))
        assert set(rows) >= {"PSNR of reconstructions", "active units"}
        assert not [name for name in rows if "ELBO" in name or "KL" in name]

    @pytest.mark.parametrize(
        ("classes", "wanted"), [(3, "a row for each class,"), (10, "each of the first 8 classes,")]
    )
    def test_a_conditional_model_s_samples_are_said_to_be_by_class(self, classes: int, wanted: str) -> None:
        text = card.card(replace(FASHION, classes=classes))
        assert wanted in text
        assert f"`labels` int64 [N] from 0 to {classes - 1}" in text

    def test_files_that_were_left_out_are_told(self) -> None:
        data = {**FASHION.provenance["data"], "unreadable_files": 1234}
        told = card.card(replace(FASHION, provenance={**FASHION.provenance, "data": data}))
        assert "1,234 files of it could not be read" in section(told, "Trained on")
        assert "could not be read" not in card.card(FASHION)

    def test_a_section_goes_before_use_and_takes_its_own_place_again(self) -> None:
        text = card.card(FASHION)
        once = card.with_section(text, "## Measured", "## Measured\n\none\n\n")
        assert headings(once)[3:5] == ["Figures", "Measured"]
        assert card.with_section(once, "## Measured", "") == text


def trained(classes: int, prior: FittedPrior | None = None, objective: str = "normal") -> Trained:
    """An untrained dense model of two latents, of real images."""
    config = config_file.override(
        config_file.read_preset("tiny"),
        {
            "model": {"kind": "dense", "latent_dim": 2, "conditional": classes > 0},
            "objective": {"prior": objective},
        },
    )
    chosen = np.flatnonzero(fashion_labels() < max(classes, 1))[:40] if classes else np.arange(40)
    images = Images(fashion_images()[chosen, ..., np.newaxis], fashion_labels()[chosen].astype(np.int64))
    dataset = Dataset("small", images, images, digest(images), "none", tuple(f"class {n}" for n in range(classes)))
    return Trained(config, dataset, state.build_model(config, dataset).eval(), 0, prior)


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


def halves(data: bytes, source: Trained) -> tuple[Any, Any]:
    """The left and the right of the white gap."""
    left = figures.reconstructions(source.model, source.dataset.test)[..., 0]
    whole = pixels(data)
    np.testing.assert_array_equal(whole[: len(left), : left.shape[1]], left)
    return left, whole[:, left.shape[1] + 16 :]


class TestPreview:
    def test_reconstructions_stand_beside_samples_of_the_prior(self) -> None:
        source = trained(0)
        _, right = halves(card.preview(source), source)
        np.testing.assert_array_equal(right, figures.samples(source.model, 2)[..., 0])

    def test_samples_are_of_the_prior_that_was_fitted(self) -> None:
        around_seven = 7 + torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        far = mixture.fit_mixture(around_seven, 1, seed=0)
        source = trained(0, FittedPrior("mixture", far, far.noise_dim, 0.0, {"normal": 0.0}))
        z = preview._latents(source, 64)
        assert abs(float(z.mean()) - 7) < 1
        _, right = halves(card.preview(source), source)
        with torch.inference_mode():
            images = figures.to_pixels(source.model.likelihood.mean(source.model.decoder(z)))
        np.testing.assert_array_equal(right, figures.tile(images, 8)[..., 0])

    def test_samples_are_of_the_prior_that_was_learnt(self) -> None:
        source = trained(0, objective="flow")
        assert source.model.prior is not None
        _, right = halves(card.preview(source), source)
        np.testing.assert_array_equal(right, figures.samples(source.model, 2)[..., 0])

    def test_a_conditional_model_has_a_named_row_for_each_class(self) -> None:
        source = trained(3)
        _, right = halves(card.preview(source), source)
        noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
        scale = 56 // 28
        width = 8 * (28 * scale + 2) + 2
        assert (right[:100, : -width - 12] < 128).any(), "words to the left"
        for label in range(3):
            with torch.inference_mode():
                output = source.model.decoder(noise, torch.full((8,), label))
            row = figures.tile(figures.to_pixels(source.model.likelihood.mean(output)), 8)[2:-2, :, 0]
            top = 2 + label * (28 * scale + 2)
            np.testing.assert_array_equal(right[top : top + 28 * scale, -width:], row)
