"""The model card that lies beside the graphs of a trained model: what it is for, what it was trained on, its figures,
and its limits. It says what was measured and nothing else; a section without facts is left out."""

from __future__ import annotations

from collections.abc import Mapping

from latentry import manifest as manifests
from latentry.graph_notes import gives_points
from latentry.manifest import Manifest
from training import card_tables
from training.preview import MOST_CLASSES, preview

__all__ = ["card", "preview", "with_section"]

_USE = "## Use"
_MOST_NAMED = 100  # classes


def card(manifest: Manifest, sizes: Mapping[str, int] | None = None) -> str:
    """README.md in Markdown, of a manifest with figures; `sizes` of the graphs in bytes, by file name, for the table of
    precisions. The files' digests are not read, the card's being one of them."""
    sections = (
        _title(manifest),
        _intended_use(manifest),
        _trained_on(manifest),
        card_tables.figures(manifest),
        card_tables.precisions(manifest, sizes or {}),
        _use(manifest),
        _limits(manifest),
    )
    return "\n".join(section for section in sections if section)


def with_section(text: str, heading: str, section: str) -> str:
    """A card with `section`, which begins with `heading`, in place of an earlier one, or else before what the model is
    used for."""
    start = text.find(f"{heading}\n")
    if start >= 0:
        end = text.find("\n## ", start + 1)
        text = text[:start] + (text[end + 1 :] if end >= 0 else "")
    else:
        start = text.find(f"{_USE}\n")
        start = len(text) if start < 0 else start
    return text[:start] + section + text[start:]


def _title(manifest: Manifest) -> str:
    numbers = "".join(f", {name} {value:.4g}" for name, value in manifest.likelihood.parameters.items())
    prior = manifest.prior
    drawn = "" if prior is None else f", {prior.kind} prior" + ("" if prior.learnt else " fitted afterwards")
    return f"""\
# {manifest.name}, version {manifest.version}

{_kind(manifest)} of {_images(manifest)}: {manifest.latent_dim} latents, \
{manifest.likelihood.name} likelihood{numbers}{drawn}, {manifest.provenance["parameters"]:,} parameters.

![Originals above their reconstructions, and samples](preview.png)

Left: held-out images, each row above the row of their reconstructions. Right: {_shown_samples(manifest)}.
"""


def _shown_samples(manifest: Manifest) -> str:
    drawn = "N(0, I)" if manifest.prior is None else f"`{manifests.PRIOR_FILE}`"
    if not manifest.classes:
        return f"samples, decoded from draws of {drawn}"
    rows = min(manifest.classes, MOST_CLASSES)
    which = "each class" if rows == manifest.classes else f"each of the first {rows} classes"
    return f"samples, a row for {which}, decoded from the same draws of {drawn}"


def _intended_use(manifest: Manifest) -> str:
    return f"""\
## Intended use

For images like those of `{manifest.provenance["data"]["name"]}`, {_images(manifest)}, framed as they are: to encode, \
draw, blend and edit such images, to study what latents hold, to try out a service with a small model.

Not for other images: it makes of them what it knows, and only a bad reconstruction tells. Not for keeping images: what
comes back is another image. Not for telling what an image shows, or who: reconstructions and samples are made up from
what many images have in common, and prove nothing about any one of them.
"""


def _trained_on(manifest: Manifest) -> str:
    data = manifest.provenance["data"]
    aside = f", {data['validation_images']:,} set aside to choose by" if data.get("validation_images") else ""
    named = ", ".join(manifest.labels[:_MOST_NAMED]) + (", ..." if len(manifest.labels) > _MOST_NAMED else "")
    labels = f"Classes: {named}.\n\n" if manifest.labels else ""
    unreadable = data.get("unreadable_files")
    left_out = f"{unreadable:,} files of it could not be read, and were left out.\n\n" if unreadable else ""
    return f"""\
## Trained on

`{data["name"]}`: {data["train_images"]:,} images{aside}, {data["test_images"]:,} held out ({data["split"]}). SHA-256 \
of the pixels: `{data["sha256"]}`.

{labels}{left_out}Trained for {manifest.provenance["steps"]:,} steps by `latentry train` with the config in \
`manifest.json`, which also has the versions, the seed and the date.
"""


def _use(manifest: Manifest) -> str:
    height, width, channels = manifest.image_shape
    labels = f", `labels` int64 [N] from 0 to {manifest.classes - 1}" if manifest.classes else ""
    return f"""\
{_USE}

| graph | input | outputs |
|---|---|---|
| `encoder.onnx` | `images` uint8 [N, {height}, {width}, {channels}]{labels} \
| `mean`, `logvar` float32 [N, {manifest.latent_dim}] |
| `decoder.onnx` | `latents` float32 [N, {manifest.latent_dim}]{labels} \
| `images` uint8 and `mean` float32 in [0, 1], [N, {height}, {width}, {channels}] |
{_prior_rows(manifest)}\

`latentry serve --models DIR`, where DIR holds `{manifest.name}/{manifest.version}/`, serves it over gRPC. Any ONNX \
Runtime runs the graphs alone; what to feed them is in their metadata too.
"""


def _prior_rows(manifest: Manifest) -> str:
    if manifest.prior is None:
        return ""
    rows = f"| `prior.onnx` | `noise` float32 [N, {manifest.prior.noise_dim}], standard normal | `latents` |\n"
    if manifest.prior.kind != "second-stage":
        rows += "| `density.onnx` | `latents` | `log_prob` float32 [N], log p(z) in nats |\n"
    return rows


def _limits(manifest: Manifest) -> str:
    scores, latent_dim = manifest.evaluation, manifest.latent_dim
    off = 255 * 10 ** (-scores["psnr_db"] / 20)
    idle = latent_dim - round(scores["active_units"])
    unused = f" {idle} of its {latent_dim} latents say next to nothing of an image." if idle else ""
    return f"""\
## Limits

It knows images like those it was trained on, framed as they are, and smooths away what {latent_dim} numbers cannot
hold: reconstructions of held-out images are {off:.1f} levels of 255 off, as root mean square.{unused}

{_about_draws(manifest)}

All figures are of held-out images of one data set and of this one run. Nothing was measured on other images, nor
apart for kinds of images that the data set holds few of.
"""


def _about_draws(manifest: Manifest) -> str:
    prior = manifest.prior
    if prior is None and gives_points(manifest):
        return "Its encoder gives points and was given no prior: draws from N(0, I) need not look like anything."
    if prior is None:
        return "Draws from N(0, I) are less sharp than reconstructions."
    densities = f"{prior.held_out_log_density:.1f} nats against {prior.normal_log_density:.1f}"
    if prior.learnt:
        return (
            "Its prior was learnt with it: draw latents with `prior.onnx`, as `latentry serve` does; N(0, I) does\n"
            f"not fit (log p(z) of held-out latents: {densities})."
        )
    return (
        f"Draws from N(0, I) are less sharp than those from `prior.onnx`, a {prior.kind} fitted to what was encoded\n"
        f"(log p(z) of held-out latents: {densities})."
    )


def _kind(manifest: Manifest) -> str:
    kinds = {
        "autoencoder": "An autoencoder",
        "denoising": "A denoising autoencoder",
        "linear": "A linear autoencoder",
        "pca": "Probabilistic PCA",
    }
    vae = "A conditional variational autoencoder" if manifest.classes else "A variational autoencoder"
    return kinds.get(manifest.provenance["config"]["model"]["kind"], vae)


def _images(manifest: Manifest) -> str:
    height, width, channels = manifest.image_shape
    return f"{height}x{width} {'grey' if channels == 1 else 'RGB'} images"
