"""Attribute vectors written into a model folder: directions and figures in the manifest, a section of the card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from latentry import manifest as manifests
from latentry.attributes import stem
from latentry.manifest import Manifest, ModelFolder, sha256
from training import card, publication
from training.attributes.study import Attribute
from training.errors import ExportError

_HEADING = "## Attributes"


def record(folder: ModelFolder, found: Sequence[Attribute]) -> None:
    """Add the attributes to what the folder says of itself, in place of earlier ones whose figures are called alike.

    Raises `ManifestError` if the folder is damaged, and `ExportError` if it has changed since it was read or cannot be
    written; then it is as it was.
    """
    now = manifests.read(folder.path)
    if now.digest != folder.digest:
        raise ExportError(f"{folder.path}: it has changed meanwhile; nothing was recorded")
    files = {name: (folder.path / name).read_bytes() for name in now.manifest.files}
    manifest = with_attributes(now.manifest, found)
    if manifests.CARD_FILE in files:
        files[manifests.CARD_FILE] = with_section(files[manifests.CARD_FILE].decode("utf-8", "replace"), manifest)
    manifest = replace(manifest, files={name: sha256(data) for name, data in files.items()})
    files[manifests.MANIFEST_FILE] = manifest.to_json().encode()
    publication.publish(folder.path, files, overwrite=True, instead_of=now.digest)


def with_attributes(manifest: Manifest, found: Sequence[Attribute]) -> Manifest:
    """The manifest with directions and figures of the attributes, in place of earlier ones with the same stem."""
    again = {stem(each.name) for each in found}
    others = {name: vector for name, vector in manifest.attributes.items() if stem(name) not in again}
    stems = again | {stem(name) for name in others}

    def stays(figure: str) -> bool:  # a figure of `high shaft` begins as those of `high` do: the longest stem has it
        return max((each for each in stems if figure.startswith(f"{each}_")), key=len, default="") not in again

    return replace(
        manifest,
        attributes={**others, **{each.name: tuple(each.direction.tolist()) for each in found}},
        evaluation={**{name: it for name, it in manifest.evaluation.items() if stays(name)}, **figures(found)},
    )


def figures(found: Sequence[Attribute]) -> dict[str, float]:
    """All figures by the names that the manifest's evaluation has them under: attribute_eyeglasses_linear_added."""
    return {f"{stem(each.name)}_{name}": value for each in found for name, value in each.figures.items()}


def with_section(text: str, manifest: Manifest) -> bytes:
    """The model card with the section on the attributes, in place of an earlier one."""
    rows = "\n".join(_row(name, manifest) for name in sorted(manifest.attributes))
    section = f"""\
{_HEADING}

Directions in latent space, in `manifest.json`. An edit by 1 adds `amount` times the direction to an image's latents,
and with it what the direction is named after; an edit by -1 removes it; edits go as far as `limit` either way. A judge,
linear on the encoder's latents or a network that looks at pixels, was right about so many held-out images, and sees
what was added or removed in so many that were edited by 1 or -1.

| attribute | amount | limit | judge | right about images | added | removed |
|---|---|---|---|---|---|---|
{rows}

"""
    return card.with_section(text, _HEADING, section).encode()


def _row(name: str, manifest: Manifest) -> str:
    begin, evaluation = stem(name), manifest.evaluation
    judge = "picture" if f"{begin}_picture_added" in evaluation else "linear"
    shares = [evaluation.get(f"{begin}_{judge}_{figure}", float("nan")) for figure in ("accuracy", "added", "removed")]
    attribute = manifest.attribute(name)
    far = f"{attribute.amount:g} | {attribute.limit:.3g}"
    return f"| {name} | {far} | {judge} | {' | '.join(f'{share:.1%}' for share in shares)} |"
