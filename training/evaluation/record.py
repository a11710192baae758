"""Figures written into a model folder: the manifest's evaluation, and a section of the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from latentry import manifest as manifests
from latentry.manifest import Manifest, sha256
from training import card, publication
from training.errors import ExportError
from training.evaluation.report import ERROR, number

_ABOUT = ("data", "images", "binarize", "seed")
_HEADING = "## Measured from the graphs"


def record(folder: Path, measured: Manifest, about: Mapping[str, object], figures: Mapping[str, float]) -> None:
    """Add `figures` to what `folder` says of itself, in place of earlier ones of the same names.

    `measured` is the manifest of the model that they are of, `about` says of which images, for the card. The folder is
    published anew, so that it is whole with the old figures or with the new. What the export measured stays as it is,
    beside its own number of images. Raises `ManifestError` if the folder is damaged, and `ExportError` if it has become
    another model's or cannot be written; then it is as it was.
    """
    found = manifests.read(folder)
    before = found.manifest
    for graph in (manifests.ENCODER_FILE, manifests.DECODER_FILE, manifests.PRIOR_FILE, manifests.DENSITY_FILE):
        if before.files.get(graph) != measured.files.get(graph):
            raise ExportError(f"{folder}: {graph} is another than was measured; nothing was recorded")
    if (before.likelihood, before.prior) != (measured.likelihood, measured.prior):
        raise ExportError(f"{folder}: likelihood or prior is another than was measured; nothing was recorded")
    files = files_in(folder)
    kept = _exported(before)
    added = {name: value for name, value in figures.items() if name.removesuffix(ERROR) not in kept}
    after = replace(before, evaluation={**before.evaluation, **added})
    if manifests.CARD_FILE in files:
        text = files[manifests.CARD_FILE].decode("utf-8", "replace")
        files[manifests.CARD_FILE] = card.with_section(text, _HEADING, _section(after, about)).encode()
        after = replace(after, files={**after.files, manifests.CARD_FILE: sha256(files[manifests.CARD_FILE])})
    files[manifests.MANIFEST_FILE] = after.to_json().encode()
    publication.publish(folder.absolute(), files, overwrite=True, instead_of=found.digest)


def _section(manifest: Manifest, about: Mapping[str, object]) -> str:
    exported = _exported(manifest)
    figures = {name: value for name, value in manifest.evaluation.items() if name not in exported}
    left_out = ("parity_", "attribute_")
    shown = sorted(name for name in figures if not name.startswith(left_out) and not name.endswith(ERROR))
    rows = (f"| {name}{_of(manifest, name)} | {number(figures[name])}{_error(figures, name)} |" for name in shown)
    table = "\n".join(rows)
    of_what = ", ".join(f"{name}: {about[name]}" for name in _ABOUT if name in about)
    return f"""\
{_HEADING}

By `latentry evaluate` with ONNX Runtime ({of_what}), in nats for each image unless the name says otherwise.
`bound_kN` is the importance-weighted bound of log p(x) with N samples for each image. Distances are in features of a
classifier of our own, and comparable only among models measured so.

| figure | value |
|---|---|
{table}

"""


def _of(manifest: Manifest, name: str) -> str:
    """On how many images, if on fewer than the others."""
    images = manifest.evaluation.get(f"{name}_images")
    return "" if images in (None, manifest.evaluation.get("images")) else f" (the first {images:,.0f} images)"


def _error(figures: Mapping[str, float], name: str) -> str:
    error = figures.get(name + ERROR)
    return "" if error is None else f" ± {error:.2g}"


def _exported(manifest: Manifest) -> set[str]:
    """The figures that the export wrote, which the card speaks of elsewhere."""
    names = {"elbo", "reconstruction", "kl", "psnr_db", "active_units", "images"}
    return names & set(manifest.evaluation)


def files_in(folder: Path) -> dict[str, bytes]:
    """All that lies in the folder, whether the manifest lists it or not."""
    files = {}
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_file():
            raise ExportError(f"{path}: got a folder or a link, wanted plain files only; nothing was recorded")
        files[path.name] = path.read_bytes()
    return files
