"""A run's model as a model folder, published whole or not at all.

run -> graphs -> gate (checker, parity with torch) -> manifest, card, preview -> rename into place
"""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from latentry import manifest as manifests
from latentry.manifest import AggregatePosterior, Likelihood, Manifest, ManifestError, sha256
from training import card, graphs, lock, parity, prior_graphs, trained
from training.disk import sync_folder, write_synced
from training.errors import ExportError
from training.evaluate import encoded_moments, evaluate
from training.graphs import DecoderGraph, EncoderGraph
from training.prior_graphs import PriorGraphs
from training.progress import say
from training.provenance import provenance
from training.trained import Trained

_TO_COME = "0" * 64  # stands for a file's digest until the file is made


def export(run_folder: Path, destination: Path, *, overwrite: bool = False, data_path: str | None = None) -> Manifest:
    """Write the model of a run as the model folder `destination`, which ends in NAME/VERSION.

    Raises `ExportError` if the destination is taken (and `overwrite` is false) or cannot be written, or if the
    graphs are not what torch says; then nothing is published, and what was there before is intact.
    """
    destination = destination.absolute()
    try:
        name = manifests.check_name(destination.parent.name)
        version = manifests.parse_version(destination.name)
    except ManifestError as error:
        raise ExportError(f"{destination}: wanted a path that ends in NAME/VERSION: {error}") from error
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise ExportError(f"{destination}: got a link or a file, wanted a folder or nothing")
    _recover(destination)
    if destination.exists() and not overwrite:
        raise ExportError(_taken(destination))
    try:
        manifest, files = build(trained.load(run_folder, data_path), name, version)
    except ManifestError as error:
        raise ExportError(f"{destination}: {error}; nothing was published") from error
    publish(destination, files, overwrite=overwrite)
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


def publish(destination: Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Make `destination` hold exactly `files`; with `overwrite` in place of what is there.

    Raises `ExportError` if the disk says no, or if `destination` has come to be meanwhile; nothing changes then.
    """
    if destination.is_symlink():
        raise ExportError(f"{destination}: got a link, wanted a folder or nothing; nothing was published")
    made = [folder for folder in (destination.parent, destination.parent.parent) if not folder.exists()]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _writing(destination), _sibling(destination) as partial:
            for name, data in files.items():
                write_synced(partial / name, data)
            sync_folder(partial)
            if overwrite and destination.exists():
                _exchange(partial, destination)
            else:
                partial.rename(destination)  # fails if it exists and holds anything
            sync_folder(destination.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ExportError(_taken(destination)) from error
        raise ExportError(f"{destination}: cannot be written: {error.strerror}; nothing was published") from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty, as it should be
                folder.rmdir()


def _writing(destination: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the version for the one export that writes it; raises `ExportError` naming the other."""
    path = destination.with_name(f".{destination.name}.lock")
    return lock.held(path, destination, "export", ExportError, say)


def _taken(destination: Path) -> str:
    return f"{destination} exists already: choose another version, or add --replace"


def _retired(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.retired")


def _exchange(partial: Path, destination: Path) -> None:
    """Put `partial` where `destination` is. Killed between the two renames, `_recover` brings the old one back."""
    retired = _retired(destination)
    destination.rename(retired)
    try:
        partial.rename(destination)
    except BaseException:
        retired.rename(destination)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _recover(destination: Path) -> None:
    """Finish what a killed `_exchange` began."""
    retired = _retired(destination)
    if retired.exists() and not destination.exists():
        retired.rename(destination)
    shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def _sibling(destination: Path) -> Iterator[Path]:
    """An empty hidden folder beside `destination`, gone afterwards."""
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # an export that was killed left it
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
