"""All the precisions that were asked for of one trained model, each within its tolerance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentry import graph_notes
from latentry.manifest import Manifest, graph_file
from training import graphs
from training.binarise import seen_by
from training.evaluation.graphs import Graphs
from training.graphs import DecoderGraph, EncoderGraph
from training.images import Images
from training.precision import bfloat16, int8, variant
from training.precision.float16 import HalfGraphs
from training.precision.int8 import Feed
from training.precision.variant import Reference
from training.progress import say
from training.trained import Trained

CALIBRATION_IMAGES = 512  # of the training set; as many latents are drawn from the prior
_VALUES = 200_000  # pixel values in a batch, as quantising keeps all activations of one
_SEED = 13

Variants = dict[str, tuple[dict[str, bytes], dict[str, float]]]


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """A trained model, the modules that its graphs were made of, its manifest so far, and its fp32 graphs by file
    name."""

    source: Trained
    encoder: EncoderGraph
    decoder: DecoderGraph
    about: Manifest
    fp32: Mapping[str, bytes]


def made(model: Exported, precisions: Sequence[str]) -> Variants:
    """For each precision the files, by name, and their figures against fp32.

    Raises `ExportError` with the figure of the first that is too far from fp32.
    """
    done: Variants = {}
    if not precisions:
        return done
    reference = Reference(model.about, Graphs(model.about, model.fp32, "cpu"), model.source.dataset.test)
    for precision in precisions:
        say(f"Making {precision}, and measuring it against fp32 ...")
        parts = _parts(precision, model)
        measured = _measured(precision, model, parts, reference)
        done[precision] = ({graph_file(part, precision): data for part, data in parts.items()}, measured)
    return done


def _measured(precision: str, model: Exported, parts: Mapping[str, bytes], reference: Reference) -> dict[str, float]:
    """The figures, within their tolerances. fp16 is measured as GPUs compute it; what ONNX Runtime makes of its graphs
    on the CPU has to be within the tolerances too."""
    values = int(np.prod(model.about.image_shape))
    files = {**model.fp32, **{graph_file(part): data for part, data in parts.items()}}
    figures = reference.measure(Graphs(model.about, files, "cpu"))
    variant.check(precision, figures, values)
    if precision == "fp16":
        half = HalfGraphs(model.about, model.fp32, model.encoder, model.decoder)
        figures = reference.measure(half)
        variant.check(precision, figures, values)
        half.check_far_out()
    return figures


def _parts(precision: str, model: Exported) -> dict[str, bytes]:
    """The two graphs, with what they say of themselves."""
    about, fp32 = model.about, model.fp32
    said = {part: graph_notes.metadata(about, part, precision) for part in ("encoder", "decoder")}
    if precision == "fp16":
        return {
            "encoder": graphs.export_encoder(model.encoder, about.image_shape, said["encoder"], torch.float16),
            "decoder": graphs.export_decoder(model.decoder, about.latent_dim, said["decoder"], torch.float16),
        }
    if precision == "bf16":
        return {part: bfloat16.with_bfloat16_weights(fp32[graph_file(part)], said[part]) for part in said}
    feeds = calibration(model.source.dataset.train, about, fp32)
    return {part: int8.quantised(fp32[graph_file(part)], feeds[part], said[part]) for part in said}


def calibration(images: Images, about: Manifest, fp32: Mapping[str, bytes]) -> dict[str, list[Feed]]:
    """Training images for the encoder; for the decoder posterior samples of them, and draws of the prior."""
    images = images.spread(CALIBRATION_IMAGES)
    observed = seen_by(about.likelihood.name, images.pixels)
    labels = images.labels if about.classes else None
    model = Graphs(about, fp32, "cpu")
    mean, logvar = model.encode(observed, labels)
    normal = torch.Generator().manual_seed(_SEED)
    sampled = mean + torch.exp(logvar / 2) * torch.randn(mean.shape, generator=normal)
    drawn = model.prior_latents(torch.randn(len(mean), model.noise_dim, generator=normal))
    latents = torch.cat([sampled, drawn]).numpy()
    twice = None if labels is None else np.concatenate([labels, labels])
    return {
        "encoder": list(_batches("images", observed, labels, about)),
        "decoder": list(_batches("latents", latents, twice, about)),
    }


def _batches(name: str, rows: NDArray[Any], labels: NDArray[np.int64] | None, about: Manifest) -> Iterator[Feed]:
    size = max(1, min(64, _VALUES // int(np.prod(about.image_shape))))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        yield {name: rows[part]} if labels is None else {name: rows[part], "labels": labels[part]}
