"""A run's model as a model folder, published whole or not at all.

run -> graphs -> gate (checker, parity with torch) -> manifest, card, preview -> rename into place
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

from latentry import manifest as manifests
from latentry.manifest import AggregatePosterior, Likelihood, Manifest, ManifestError, sha256
from training import card, graphs, parity, prior_graphs, publication, trained
from training.errors import ExportError
from training.evaluate import encoded_moments, evaluate
from training.graphs import DecoderGraph, EncoderGraph
from training.prior_graphs import PriorGraphs
from training.provenance import provenance
from training.trained import Trained

_TO_COME = "0" * 64  # stands for a file's digest until the file is made


def export(run_folder: Path, destination: Path, *, overwrite: bool = False, data_path: str | None = None) -> Manifest:
    """Write the model of a run as the model folder `destination`, which ends in NAME/VERSION.

    Raises `ExportError` if the destination is taken (and `overwrite` is false) or cannot be written, or if the
    graphs are not what torch says; then nothing is published, and what was there before is intact.
    """
    destination, name, version = publication.destination(destination, overwrite=overwrite)
    try:
        manifest, files = build(trained.load(run_folder, data_path), name, version)
    except ManifestError as error:
        raise ExportError(f"{destination}: {error}; nothing was published") from error
    publication.publish(destination, files, overwrite=overwrite)
    return manifest


def build(source: Trained, name: str, version: int) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the contents of all files of the model folder. Raises `ExportError` if the gate says no."""
    source.model.cpu()
    density = prior_graphs.of(source)
    draft = _draft(source, density, name, version)
    encoder, decoder = graphs.wrapped(source.model)
    files = graph_files(encoder, decoder, density, draft)
    for file, data in files.items():
        parity.check_graph(data, file)
    measured = parity.measure(
        files[manifests.ENCODER_FILE], files[manifests.DECODER_FILE], encoder, decoder, source.dataset.test.pixels
    ).figures()
    if density is not None:
        measured.update(prior_graphs.measure(density, files))
    files[manifests.CARD_FILE] = card.card(draft).encode()
    files[manifests.PREVIEW_FILE] = card.preview(source)
    manifest = replace(
        draft,
        files={file: sha256(data) for file, data in files.items()},
        evaluation={**draft.evaluation, **measured},
    )
    files[manifests.MANIFEST_FILE] = manifest.to_json().encode()
    return manifest, files


def graph_files(
    encoder: EncoderGraph, decoder: DecoderGraph, density: PriorGraphs | None, about: Manifest
) -> dict[str, bytes]:
    """The contents of all graphs of the model folder that `about` is of."""
    return {
        manifests.ENCODER_FILE: graphs.export_encoder(encoder, about.image_shape, about.graph_metadata("encoder")),
        manifests.DECODER_FILE: graphs.export_decoder(decoder, about.latent_dim, about.graph_metadata("decoder")),
        **({} if density is None else prior_graphs.export(density, about)),
    }


def _draft(source: Trained, density: PriorGraphs | None, name: str, version: int) -> Manifest:
    """The manifest but for the digests. Raises `ExportError` if the model's figures are not numbers."""
    likelihood = source.model.likelihood
    mean, variance = encoded_moments(source.model, source.dataset.train)
    scores = asdict(evaluate(source.model, source.dataset.test))
    evaluation = {name: float(value) for name, value in scores.items()}
    if not all(map(math.isfinite, [*evaluation.values(), *mean, *variance])):
        raise ExportError(f"the model's figures are not finite: {evaluation}; nothing was published")
    return Manifest(
        name=name,
        version=version,
        image_shape=source.dataset.image_shape,
        latent_dim=source.config.model.latent_dim,
        likelihood=Likelihood(likelihood.name, likelihood.parameters_by_name()),
        files=dict.fromkeys((manifests.ENCODER_FILE, manifests.DECODER_FILE, manifests.PRIOR_FILE), _TO_COME),
        provenance=provenance(source),
        evaluation=evaluation,
        aggregate_posterior=AggregatePosterior(tuple(mean), tuple(variance)),
        labels=source.dataset.labels,
        classes=source.model.classes,
        prior=None if density is None else density.about,
    )
