"""A model folder's ONNX graphs as a subject for pictures: what is drawn is what is served. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from latentry import manifest as manifests
from latentry.manifest import Manifest, ManifestError
from training.binarise import seen_by
from training.data import Dataset
from training.drawing.subject import Labels, Latents, Pixels, Subject
from training.errors import DataError, RunError
from training.evaluation import held_out
from training.progress import say

_SEED = 3


def from_folder(folder: Path, data_path: str | None = None) -> Subject:
    """The graphs of a model folder; `data_path` are images to draw it with, of which the held-out part is taken.

    Raises `RunError` if the folder is not whole, `DataError` if the images are not there.
    """
    try:
        found = manifests.read(folder)
    except ManifestError as error:
        raise RunError(str(error)) from error
    manifest = found.manifest
    dataset = None if data_path is None else _dataset(manifest, data_path)
    test = None if dataset is None else dataset.test
    encoder, decoder = _session(found.graph("encoder")), _session(found.graph("decoder"))
    return Subject(
        name=f"{manifest.name}-{manifest.version}",
        image_shape=manifest.image_shape,
        latent_dim=manifest.latent_dim,
        encode=lambda pixels, labels: _encode(encoder, pixels, _condition(manifest, labels)),
        decode=lambda latents, labels: _decode(decoder, latents, _condition(manifest, labels)),
        classes=manifest.classes,
        class_names=manifest.labels or (() if dataset is None else dataset.labels),
        pixels=None if test is None else seen_by(manifest.likelihood.name, test.pixels),
        labels=None if test is None else test.labels,
        draw_prior=_prior(manifest, found.graphs.get(manifests.PRIOR_FILE)),
    )


def _dataset(manifest: Manifest, path: str) -> Dataset:
    """Images made to fit the model, and split as the run split them where the source has no test images of its own."""
    height, width, channels = manifest.image_shape
    dataset = held_out.load(manifest, Path(path), image_size=(height, width), channels=channels)
    warning = held_out.others(manifest, dataset)
    if warning and not held_out.tests_alone(manifest, Path(path).expanduser()):
        say(f"latentry: warning: {warning}")
    labels = dataset.test.labels
    if manifest.classes and (labels is None or labels.max() >= manifest.classes):
        got = "no labels" if labels is None else f"label {labels.max()}"
        raise DataError(f"{path}: got {got}, wanted labels below {manifest.classes}: the model is conditional")
    return dataset


def _session(graph: bytes) -> Any:
    import onnxruntime  # slow to import

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _condition(manifest: Manifest, labels: Labels | None) -> dict[str, Labels]:
    """The labels, for graphs that want them."""
    if not manifest.classes:
        return {}
    if labels is None:
        raise DataError(f"labels: got none, wanted one of {manifest.classes} classes for each image: it is conditional")
    return {"labels": np.ascontiguousarray(labels, np.int64)}


def _encode(session: Any, pixels: Pixels, condition: dict[str, Labels]) -> tuple[Latents, Latents]:
    mean, logvar = session.run(["mean", "logvar"], {"images": np.ascontiguousarray(pixels), **condition})
    return mean, logvar


def _decode(session: Any, latents: Latents, condition: dict[str, Labels]) -> Pixels:
    (images,) = session.run(["images"], {"latents": np.ascontiguousarray(latents, np.float32), **condition})
    pixels: Pixels = images
    return pixels


def _prior(manifest: Manifest, graph: bytes | None) -> Callable[[int], Latents] | None:
    if manifest.prior is None or graph is None:
        return None
    session, noise_dim = _session(graph), manifest.prior.noise_dim

    def draw(n: int) -> Latents:
        noise = np.random.default_rng(_SEED).standard_normal((n, noise_dim), np.float32)
        (latents,) = session.run(["latents"], {"noise": noise})
        drawn: Latents = latents
        return drawn

    return draw
