"""Attribute vectors written into a model folder: directions and figures in the manifest, a section of the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from latentry import manifest as manifests
from latentry.manifest import Manifest, ModelFolder, sha256
from training import card, publication
from training.attributes.study import Attribute
from training.attributes.table import stem
from training.errors import ExportError

_HEADING = "## Attributes"


def record(folder: ModelFolder, found: Sequence[Attribute]) -> None:
    """Add the attributes to what the folder says of itself, in place of earlier ones of the same names.

    Raises `ManifestError` if the folder is damaged, and `ExportError` if it has changed since it was read or cannot be
    written; then it is as it was.
    """
    now = manifests.read(folder.path)
    if now.digest != folder.digest:
        raise ExportError(f"{folder.path}: it has changed meanwhile; nothing was recorded")
    files = {name: (folder.path / name).read_bytes() for name in now.manifest.files}
    again = tuple(f"{stem(each.name)}_" for each in found)
    kept = {name: value for name, value in now.manifest.evaluation.items() if not name.startswith(again)}
    manifest = replace(
        now.manifest,
        attributes={**now.manifest.attributes, **{each.name: tuple(each.direction.tolist()) for each in found}},
        evaluation={**kept, **figures(found)},
    )
    if manifests.CARD_FILE in files:
        files[manifests.CARD_FILE] = with_section(files[manifests.CARD_FILE].decode("utf-8", "replace"), manifest)
    manifest = replace(manifest, files={name: sha256(data) for name, data in files.items()})
    files[manifests.MANIFEST_FILE] = manifest.to_json().encode()
    publication.publish(folder.path, files, overwrite=True, instead_of=now.digest)


def figures(found: Sequence[Attribute]) -> dict[str, float]:
    """All figures by the names that the manifest's evaluation has them under: attribute_eyeglasses_linear_added."""
    return {f"{stem(each.name)}_{name}": value for each in found for name, value in each.figures.items()}


def with_section(text: str, manifest: Manifest) -> bytes:
    """The model card with the section on the attributes, in place of an earlier one."""
    rows = "\n".join(_row(name, manifest.evaluation) for name in sorted(manifest.attributes))
    section = f"""\
{_HEADING}

Directions in latent space, in `manifest.json`: times `amount`, added to an image's latents, each adds what it is named
after, and times -`amount` it removes it. A judge, linear on the encoder's latents or a network that looks at pixels,
was right about so many held-out images, and sees what was added or removed in so many edited ones.

| attribute | amount | judge | right about images | added | removed |
|---|---|---|---|---|---|
{rows}

"""
    return card.with_section(text, _HEADING, section).encode()


def _row(name: str, evaluation: Mapping[str, float]) -> str:
    begin = stem(name)
    judge = "picture" if f"{begin}_picture_added" in evaluation else "linear"
    shares = [evaluation.get(f"{begin}_{judge}_{figure}", float("nan")) for figure in ("accuracy", "added", "removed")]
    amount = evaluation.get(f"{begin}_amount", float("nan"))
    return f"| {name} | {amount:g} | {judge} | {' | '.join(f'{share:.1%}' for share in shares)} |"
