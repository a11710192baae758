"""A run's model as a model folder, published whole or not at all.

run -> graphs -> gate (checker, parity with torch) -> manifest, card, preview -> rename into place
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from latentry import manifest as manifests
from latentry.manifest import AggregatePosterior, Likelihood, Manifest, ManifestError, sha256
from training import card, graphs, parity, prior_graphs, publication, trained
from training.errors import ExportError
from training.evaluate import encoded_moments, evaluate
from training.precision import fp32, variants
from training.precision.variants import Exported
from training.prior_graphs import PriorGraphs
from training.provenance import provenance
from training.trained import Trained

_TO_COME = "0" * 64  # stands for a file's digest until the file is made


def export(
    run_folder: Path,
    destination: Path,
    *,
    overwrite: bool = False,
    data_path: str | None = None,
    precisions: Sequence[str] = (),
) -> Manifest:
    """Write the model of a run as the model folder `destination`, which ends in NAME/VERSION; `precisions` beside fp32.

    Raises `ExportError` if the destination is taken (and `overwrite` is false) or cannot be written, or if the
    graphs are not what torch says; then nothing is published, and what was there before is intact.
    """
    destination, name, version = publication.destination(destination, overwrite=overwrite)
    try:
        manifest, files = build(trained.load(run_folder, data_path), name, version, precisions)
    except ManifestError as error:
        raise ExportError(f"{destination}: {error}; nothing was published") from error
    publication.publish(destination, files, overwrite=overwrite)
    return manifest


def build(
    source: Trained, name: str, version: int, precisions: Sequence[str] = ()
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the contents of all files of the model folder. Raises `ExportError` if the gate says no."""
    source.model.cpu()
    density = prior_graphs.of(source)
    draft = _draft(source, density, name, version)
    encoder, decoder = graphs.wrapped(source.model)
    files = fp32.graph_files(encoder, decoder, density, draft)
    measured = parity.measure(
        files[manifests.ENCODER_FILE], files[manifests.DECODER_FILE], encoder, decoder, source.dataset.test.pixels
    ).figures()
    if density is not None:
        measured.update(prior_graphs.measure(density, files))
    others = variants.made(Exported(source, encoder, decoder, draft, files), precisions)
    for made, _ in others.values():
        files.update(made)
    for file, data in files.items():
        parity.check_graph(data, file)
    manifest = replace(
        draft,
        files={file: sha256(data) for file, data in files.items()},
        evaluation={**draft.evaluation, **measured},
        variants={name: figures for name, (_, figures) in others.items()},
    )
    files[manifests.CARD_FILE] = card.card(manifest, {name: len(data) for name, data in files.items()}).encode()
    files[manifests.PREVIEW_FILE] = card.preview(source)
    manifest = replace(manifest, files={file: sha256(data) for file, data in files.items()})
    files[manifests.MANIFEST_FILE] = manifest.to_json().encode()
    return manifest, files


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
