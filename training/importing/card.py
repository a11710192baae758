"""The model card and the preview of an imported model."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentry.manifest import Manifest
from latentry.onnx_parts import short
from latentry.pictures import grid
from latentry.printable import plain
from training.importing.options import POINT, UNKNOWN
from training.importing.parity import Pair
from training.importing.plan import Plan

_COLUMNS, _ROWS = 8, 4  # of originals, each row above that of its reconstructions; samples fill as large a square
_GAP = 16
_SEED = 3
_MOST_LEFT_OUT = 1000  # characters
_LEAST_SIDE = 56  # pixels of an image, so that it can be seen


def card(manifest: Manifest, plan: Plan) -> str:
    """README.md in Markdown: what the model is, where it is from, how it was wrapped, its figures and its limits."""
    height, width, channels = manifest.image_shape
    colour = "grey" if channels == 1 else "RGB"
    measured = "psnr_db" in manifest.evaluation
    shown = "Originals above their reconstructions, and samples" if measured else "Samples"
    latents = f"float32 [N, {manifest.latent_dim}]"
    images = f"[N, {height}, {width}, {channels}]"
    return f"""\
# {manifest.name}, version {manifest.version}

A model of {height}x{width} {colour} images with {manifest.latent_dim} latents that was not trained here: its encoder \
and decoder were imported by `latentry import`.

![{shown}](preview.png)

## Where it is from

| graph | file | made by | SHA-256 |
|---|---|---|---|
{_origins(manifest.provenance["imported"])}
Their licence, and what they were trained on, are for whoever made them to say.

## How it was wrapped

{_wrapping(plan)}
`manifest.json` holds what was said on the command line and what was guessed.

## Figures

{_figures(manifest)}
## Use

| graph | input | outputs |
|---|---|---|
| `encoder.onnx` | `images` uint8 {images} | `mean`, `logvar` {latents} |
| `decoder.onnx` | `latents` {latents} | `images` uint8 and `mean` float32 in [0, 1], {images} |

`latentry serve --models DIR`, where DIR holds `{manifest.name}/{manifest.version}/`, serves it over gRPC. Any ONNX \
Runtime runs the graphs alone.

## Limits

It knows images like those it was trained on, framed as they were. {_of_draws(plan)}
"""


def preview(pair: Pair, latent_dim: int, images: NDArray[np.uint8] | None) -> bytes:
    """A PNG: originals above their reconstructions on the left if there are `images`, samples on the right."""
    noise = np.random.default_rng(_SEED).standard_normal((_COLUMNS * 2 * _ROWS, latent_dim), np.float32)
    panels = [_tiled(pair.decode(noise)[0])]
    if images is not None:
        drawn = pair.decode(pair.encode(images)[0])[0]
        rows = [each[start : start + _COLUMNS] for start in range(0, len(images), _COLUMNS) for each in (images, drawn)]
        panels.insert(0, _tiled(np.concatenate(rows)))
    width, height = sum(panel.width for panel in panels) + _GAP * (len(panels) - 1), max(p.height for p in panels)
    sheet = Image.new(panels[0].mode, (width, height), "white")
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + _GAP
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def shown(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As many images as a preview has room for."""
    return np.ascontiguousarray(pixels[np.linspace(0, len(pixels) - 1, min(len(pixels), _COLUMNS * _ROWS)).astype(int)])


def _tiled(images: NDArray[np.uint8]) -> Image.Image:
    return grid(images, _COLUMNS, scale=max(1, _LEAST_SIDE // max(images.shape[1:3])))


def _origins(imported: Mapping[str, Any]) -> str:
    rows = ""
    for part in ("encoder", "decoder"):
        about = imported[part]
        for file, digest in about["files"].items():
            made_by = _plain(about["producer"]) or "unknown"
            rows += f"| {part} | {_code(file)} | {made_by}, opset {about['opset']} | `{digest}` |\n"
    return rows


def _plain(text: str, most: int = 100) -> str:
    """A text of a foreign file that is no more than text in Markdown, in a table too."""
    return re.sub(r"([^\w\s.,:;+/-])", r"\\\1", plain(text, most)).replace("_", r"\_")


def _code(name: str) -> str:
    """A name of a foreign file as code in Markdown, in a table too."""
    return f"`{short(name).replace('`', chr(39)).replace('|', '/')}`"


def _wrapping(plan: Plan) -> str:
    encoder, decoder, posterior = plan.encoder, plan.decoder, plan.posterior
    spread = f" and {_code(posterior.spread)}" if posterior.spread not in (None, posterior.mean) else ""
    logits = ", of which a sigmoid is taken" if decoder.logits else ""
    left_out = f"- Left out: {_plain('; '.join(plan.left_out), _MOST_LEFT_OUT)}.\n" if plan.left_out else ""
    return f"""\
- The encoder takes {_code(encoder.name)} {list(encoder.item)}, {encoder.layout}, in {encoder.range.name}.
- Its posterior is `{posterior.kind}`, from {_code(posterior.mean)}{spread}.
- The decoder takes latents of {list(plan.latents)} and gives {_code(decoder.name)} {list(decoder.item)}, \
{decoder.layout}, in {decoder.range.name}{logits}.
{left_out}"""


def _figures(manifest: Manifest) -> str:
    scores = manifest.evaluation
    rows = ""
    if "psnr_db" in scores:
        rows += f"| PSNR of reconstructions, {scores['images']:,.0f} images | {scores['psnr_db']:.2f} dB |\n"
        rows += f"| PSNR of the mean image in their place | {scores['mean_image_psnr_db']:.2f} dB |\n"
    rows += f"| wrapped against given encoder, relative | {scores['parity_encoder_relative']:.2g} |\n"
    rows += f"| wrapped against given decoder, mean | {scores['parity_decoder_mean']:.2g} |\n"
    unknown = "\nIts likelihood is unknown, so that no ELBO can be measured; `latentry import --likelihood` says it.\n"
    return f"| figure | value |\n|---|---|\n{rows}{unknown if manifest.likelihood.name == UNKNOWN else ''}"


def _of_draws(plan: Plan) -> str:
    if plan.posterior.kind == POINT:
        return (
            "Its encoder gives a point, no\nposterior: where nothing made its latents normal, draws from N(0, I) look "
            "like nothing."
        )
    return (
        "The prior that it was\ntrained with is not known: samples are drawn from N(0, I), and may look like nothing "
        "if it was another."
    )
