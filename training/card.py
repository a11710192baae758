"""The model card and the preview that lie beside the graphs in a model folder."""

from __future__ import annotations

import io

import numpy as np

from latentry.manifest import Manifest
from latentry.pixels import to_pillow
from training import figures
from training.figures import Grid
from training.trained import Trained

_USE = "## Use"


def card(manifest: Manifest) -> str:
    """README.md in Markdown: what the model is, what it was trained on, its figures, its use and its limits."""
    height, width, channels = manifest.image_shape
    data, scores = manifest.provenance["data"], manifest.evaluation
    latent_dim, colour = manifest.latent_dim, "grey" if channels == 1 else "RGB"
    sigma = "".join(f", {name} {value:.4g}" for name, value in manifest.likelihood.parameters.items())
    labels = f"Classes: {', '.join(manifest.labels)}.\n\n" if manifest.labels else ""
    return f"""\
# {manifest.name}, version {manifest.version}

{_kind(manifest)} of {height}x{width} {colour} images: {latent_dim} latents, \
{manifest.likelihood.name} likelihood{sigma}, \
{manifest.provenance["parameters"]:,} parameters.

![Originals above their reconstructions, and samples](preview.png)

## Trained on

`{data["name"]}`: {data["train_images"]:,} images, {data["test_images"]:,} held out ({data["split"]}). SHA-256 of the \
pixels: `{data["sha256"]}`.

{labels}Trained for {manifest.provenance["steps"]:,} steps by `latentry train` with the config in `manifest.json`, \
which also has the versions, the seed and the date.

## Figures

On the {scores["images"]:,.0f} held-out images, at beta = 1, with one posterior sample for each image:

| figure | value |
|---|---|
| ELBO | {scores["elbo"]:.2f} nats per image |
| reconstruction, E[log p(x\\|z)] | {scores["reconstruction"]:.2f} nats per image |
| KL(q(z\\|x) ‖ {_prior_of(manifest)}) | {scores["kl"]:.2f} nats per image |
| PSNR of reconstructions | {scores["psnr_db"]:.2f} dB |
| active units | {scores["active_units"]:.0f} of {latent_dim} |

{_about_likelihood(manifest)}
{_USE}

| graph | input | outputs |
|---|---|---|
| `encoder.onnx` | `images` uint8 [N, {height}, {width}, {channels}]{_labels(manifest)} \
| `mean`, `logvar` float32 [N, {latent_dim}] |
| `decoder.onnx` | `latents` float32 [N, {latent_dim}]{_labels(manifest)} \
| `images` uint8 and `mean` float32 in [0, 1], [N, {height}, {width}, {channels}] |
{_prior_rows(manifest)}\

`latentry serve --models DIR`, where DIR holds `{manifest.name}/{manifest.version}/`, serves it over gRPC. Any ONNX \
Runtime runs the graphs alone.

## Limits

It knows images like those it was trained on, framed as they are, and smooths away what {latent_dim} numbers
cannot hold. {_about_draws(manifest)}
"""


def with_section(text: str, heading: str, section: str) -> str:
    """A card with `section`, which begins with `heading`, in place of an earlier one, or else before what the model is
    used for."""
    start = text.find(f"{heading}\n")
    if start >= 0:
        end = text.find("\n## ", start + 1)
        text = text[:start] + (text[end + 1 :] if end >= 0 else "")
    else:
        start = text.find(f"{_USE}\n")
        start = len(text) if start < 0 else start
    return text[:start] + section + text[start:]


def preview(trained: Trained) -> bytes:
    """A PNG: originals above their reconstructions on the left, samples on the right."""
    left = figures.reconstructions(trained.model, trained.dataset.test)
    right = figures.samples(trained.model, trained.config.model.latent_dim)
    grid = _beside(left, right)
    file = io.BytesIO()
    to_pillow(grid).save(file, "PNG", optimize=True)
    return file.getvalue()


def _about_likelihood(manifest: Manifest) -> str:
    if manifest.likelihood.name == "bernoulli":
        return (
            "The images were binarised for these figures, each pixel drawn once with its grey value as probability.\n"
        )
    if manifest.likelihood.name == "discretised-logistic":
        return "The likelihood is a probability of the 256 levels of each pixel.\n"
    return "The likelihood is a density of pixel values in [0, 1], so that the ELBO can be above zero.\n"


def _kind(manifest: Manifest) -> str:
    kinds = {
        "autoencoder": "An autoencoder",
        "denoising": "A denoising autoencoder",
        "linear": "A linear autoencoder",
        "pca": "Probabilistic PCA",
    }
    vae = "A conditional variational autoencoder" if manifest.classes else "A variational autoencoder"
    return kinds.get(manifest.provenance["config"]["model"]["kind"], vae)


def _prior_of(manifest: Manifest) -> str:
    return "p(z)" if manifest.prior is not None and manifest.prior.learnt else "N(0, I)"


def _labels(manifest: Manifest) -> str:
    return f", `labels` int64 [N] from 0 to {manifest.classes - 1}" if manifest.classes else ""


def _prior_rows(manifest: Manifest) -> str:
    if manifest.prior is None:
        return ""
    rows = f"| `prior.onnx` | `noise` float32 [N, {manifest.prior.noise_dim}], standard normal | `latents` |\n"
    if manifest.prior.kind != "second-stage":
        rows += "| `density.onnx` | `latents` | `log_prob` float32 [N], log p(z) in nats |\n"
    return rows


def _about_draws(manifest: Manifest) -> str:
    prior = manifest.prior
    if prior is None:
        return "Draws from N(0, I) are less sharp than reconstructions."
    densities = f"{prior.held_out_log_density:.1f} nats against {prior.normal_log_density:.1f}"
    if prior.learnt:
        return (
            "Its prior was learnt with it: draw latents with `prior.onnx`, as\n`latentry serve` does; "
            f"N(0, I) does not fit (log p(z) of held-out latents: {densities})."
        )
    return (
        f"Draws from N(0, I) are less sharp than those from `prior.onnx`, a {prior.kind}\nfitted to what was encoded "
        f"(log p(z) of held-out latents: {densities})."
    )


def _beside(left: Grid, right: Grid) -> Grid:
    height = max(left.shape[0], right.shape[0])
    padded = [np.pad(grid, ((0, height - len(grid)), (0, 16), (0, 0)), constant_values=255) for grid in (left, right)]
    return np.concatenate(padded, axis=1)[:, :-16]
