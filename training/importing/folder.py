"""Someone else's encoder and decoder as a model folder, published whole or not at all.

files -> foreign graphs -> plan -> wrapped graphs -> gate (static checks, parity) -> manifest, card, preview -> publish
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from latentry import graph_notes, onnx_file
from latentry import manifest as manifests
from latentry.manifest import Manifest, sha256
from latentry.onnx_parts import short
from latentry.printable import plain
from training import data, publication
from training.config import DataConfig
from training.data import Dataset
from training.errors import ExportError
from training.importing import card, foreign, measured, parity, plan, runtime, wrap
from training.importing.foreign import Foreign
from training.importing.options import POINT, Options
from training.importing.parity import Originals, Pair
from training.importing.plan import Plan

_TO_COME = "0" * 64  # stands for a file's digest until the file is made
_SEED = 5
_MOST_LISTED = 100  # outputs that are left out: the manifest is bounded
_DRAWN = 33  # images, where there are no real ones


@dataclass(frozen=True, slots=True)
class Imported:
    """The manifest that was published. `guesses`, `left_out` and `notes` are for whoever runs this to read."""

    manifest: Manifest
    guesses: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def publish(
    encoder: Path, decoder: Path, destination: Path, options: Options, *, data_path: str = "", overwrite: bool = False
) -> Imported:
    """Write the model folder `destination`, which ends in NAME/VERSION.

    Raises a `TrainingError` or a `ManifestError` if the destination is taken (and `overwrite` is false), if the graphs
    are none that can be wrapped, if they leave open what was not said, or if the wrapped ones are not what the given
    ones are; then nothing is published, and what was there before is intact.
    """
    destination, name, number = publication.destination(destination, overwrite=overwrite)
    imported, files = build(encoder, decoder, name, number, options, data_path)
    publication.publish(destination, files, overwrite=overwrite)
    return imported


def build(
    encoder_path: Path, decoder_path: Path, name: str, number: int, options: Options, data_path: str = ""
) -> tuple[Imported, dict[str, bytes]]:
    """The manifest and the contents of all files of the model folder; raises as `publish` does."""
    encoder, decoder = foreign.read(encoder_path, "encoder"), foreign.read(decoder_path, "decoder")
    settled = plan.settle(encoder, decoder, options)
    dataset = _dataset(data_path, settled) if data_path else None
    draft = _draft(name, number, settled, options, _provenance(encoder, decoder, options, settled, dataset))
    files, changed = _graphs(encoder, decoder, settled, draft)
    pair = Pair(files[manifests.ENCODER_FILE], files[manifests.DECODER_FILE])
    images = _drawn(settled.shape) if dataset is None else dataset.test.pixels[:_DRAWN]
    agreed = parity.measure(pair, Originals(encoder, decoder, settled), images, (encoder, decoder))
    figures, notes = agreed.figures(), [*changed, *agreed.notes]
    if dataset is None:
        notes.append("checked on drawn images; --data PATH checks it on real ones, and measures its reconstructions")
    else:
        found = measured.measure(pair, dataset)
        figures |= found.figures()
        draft = replace(draft, aggregate_posterior=found.posterior)
        notes += [found.note] if found.note else []
    if not all(map(math.isfinite, figures.values())):
        raise ExportError(f"the model's figures are not finite: {figures}; nothing was published")
    draft = replace(draft, evaluation=figures)
    files[manifests.CARD_FILE] = card.card(draft, settled).encode()
    real = None if dataset is None else card.shown(dataset.test.pixels)
    files[manifests.PREVIEW_FILE] = card.preview(pair, draft.latent_dim, real)
    whole = replace(draft, files={file: sha256(content) for file, content in files.items()})
    files[manifests.MANIFEST_FILE] = whole.to_json().encode()
    return Imported(whole, settled.guesses, settled.left_out, tuple(notes)), files


def _graphs(encoder: Foreign, decoder: Foreign, settled: Plan, about: Manifest) -> tuple[dict[str, bytes], list[str]]:
    """Both wrapped graphs, and what is to be said of the nodes that held a batch size.

    Raises `ManifestError` or `ExportError` if one is not fit for a model folder.
    """
    said = {part: graph_notes.metadata(about, part) for part in ("encoder", "decoder")}
    wrapped = {
        manifests.ENCODER_FILE: (encoder, wrap.encoder(encoder, settled, said["encoder"])),
        manifests.DECODER_FILE: (decoder, wrap.decoder(decoder, settled, said["decoder"])),
    }
    files, notes = {}, []
    for file, (given, (content, changed)) in wrapped.items():
        onnx_file.check(content, file)
        try:
            onnx.checker.check_model(content)
        except onnx.checker.ValidationError as error:
            why = wrap.unprefixed(" ".join(str(error).split()))
            raise ExportError(
                f"{given.file}: not valid ONNX: {plain(why, 300).rstrip('.')}; export it again"
            ) from error
        if given.batch is not None:
            nodes = f": the shape in Reshape {', '.join(map(short, changed))}" if changed else ""
            notes.append(f"{given.file} was exported for a batch of {given.batch} alone; freed it{nodes}")
        files[file] = content
    return files, notes


def _dataset(path: str, settled: Plan) -> Dataset:
    """Images in the model's shape."""
    height, width, channels = settled.shape
    config = DataConfig(path=str(Path(path).expanduser()), image_size=(height, width), channels=channels)
    return data.load(config, seed=0)


def _drawn(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Images of noise, some coarse, some fine: what a graph does to them shows where it goes wrong."""
    rng = np.random.default_rng(_SEED)
    fine = rng.integers(0, 256, (_DRAWN, *shape), np.uint8)
    fine[::2] = np.sort(fine[::2], axis=1)  # from dark above to light below
    return fine


def _draft(name: str, number: int, settled: Plan, options: Options, provenance: Mapping[str, Any]) -> Manifest:
    """The manifest but for its figures and the digests."""
    return Manifest(
        name=name,
        version=number,
        image_shape=settled.shape,
        latent_dim=settled.posterior.size,
        likelihood=options.likelihood,
        files=dict.fromkeys((manifests.ENCODER_FILE, manifests.DECODER_FILE), _TO_COME),
        provenance=provenance,
    )


def _provenance(
    encoder: Foreign, decoder: Foreign, options: Options, settled: Plan, dataset: Dataset | None
) -> dict[str, Any]:
    """Where the model is from, as plain values: of files their names and digests, and no paths.

    `measured_on` are images that it was measured on; what it was trained on is not known. `config` says, as that of a
    run does, how images are made to fit, and that an encoder of points has no density.
    """
    height, width, channels = settled.shape
    config: dict[str, Any] = {"data": {"image_size": [height, width], "channels": channels}}
    if settled.posterior.kind == POINT:
        config["model"] = {"kind": "autoencoder"}
    on = {} if dataset is None else {"measured_on": dataset.provenance()}
    versions = {name: version(name) for name in ("latentry", "numpy", "onnx")}
    return {
        "imported": {
            "encoder": _origin(encoder),
            "decoder": _origin(decoder),
            "options": options.said(),
            "guessed": list(settled.guesses),
            **({"left_out": list(settled.left_out[:_MOST_LISTED])} if settled.left_out else {}),
        },
        "config": config,
        **on,
        "versions": {"python": platform.python_version(), "onnxruntime": runtime.VERSION, **versions},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _origin(given: Foreign) -> dict[str, Any]:
    model = onnx.ModelProto.FromString(given.as_given)
    opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)
    producer = short(f"{model.producer_name} {model.producer_version}".strip())
    return {"files": dict(given.digests), "producer": producer, "opset": opset}
