"""The tables of a model card: what the model scored, and what its other precisions cost."""

from __future__ import annotations

from collections.abc import Mapping

from latentry import manifest as manifests
from latentry.graph_notes import gives_points
from latentry.manifest import Manifest

_DECIMALS = {"psnr_db": 1, "psnr_db_lost": 2, "elbo_change": 2}  # of a variant's figures


def figures(manifest: Manifest) -> str:
    """The section on what the model scored on held-out images. A model of points has no ELBO to speak of."""
    scores, rows = manifest.evaluation, []
    if not gives_points(manifest):
        rows += [
            f"| ELBO | {scores['elbo']:.2f} nats per image |",
            f"| reconstruction, E[log p(x\\|z)] | {scores['reconstruction']:.2f} nats per image |",
            f"| KL(q(z\\|x) ‖ {_prior_of(manifest)}) | {scores['kl']:.2f} nats per image |",
        ]
    rows += [
        f"| PSNR of reconstructions | {scores['psnr_db']:.2f} dB |",
        f"| active units | {scores['active_units']:.0f} of {manifest.latent_dim} |",
    ]
    if "parity_encoder_relative" in scores:
        rows.append(
            f"| ONNX Runtime against torch, largest differences | encoder {scores['parity_encoder_relative']:.1e} "
            f"relative, decoder's mean {scores['parity_decoder_mean']:.1e}, pixels "
            f"{scores['parity_decoder_levels']:.0f} of 255 levels |"
        )
    how = "" if gives_points(manifest) else ", at beta = 1, with one posterior sample for each image"
    table = "\n".join(rows)
    return f"""\
## Figures

On the {scores["images"]:,.0f} held-out images{how}:

| figure | value |
|---|---|
{table}
{"" if gives_points(manifest) else _about_likelihood(manifest)}"""


def precisions(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """The section on the variants beside fp32, each with its size and with those of its figures that the manifest has;
    "" if there are none."""
    if not manifest.variants:
        return ""
    columns = {
        "encoder_relative": "encoder, relative",
        "decoder_mean": "decoder's mean",
        "decoder_levels": "pixels, of 255 levels",
        "psnr_db": "PSNR to fp32, dB",
        "psnr_db_lost": "PSNR lost, dB",
        "elbo_change": "change of the ELBO, nats",
    }
    rows = []
    for precision in manifest.precisions:
        parts = [sizes.get(manifests.graph_file(part, precision)) for part in ("encoder", "decoder")]
        megabytes = ["?" if size is None else f"{size / 1e6:.2f}" for size in parts]
        found = manifest.variants.get(precision, {})
        rows.append(f"| {' | '.join([precision, *megabytes, *(_figure(found, name) for name in columns)])} |")
    table = "\n".join(rows)
    return f"""\
## Precisions

How far each is from fp32 on held-out images: the largest differences of the encoder's outputs, of the decoder's mean
and of its pixels, the PSNR of its images to fp32's, and what reconstructions and the ELBO lose or gain.

| precision | encoder, MB | decoder, MB | {" | ".join(columns.values())} |
|---|---|---|{"---|" * len(columns)}
{table}
"""


def _figure(figures: Mapping[str, float], name: str) -> str:
    value = figures.get(name)
    if value is None:
        return "-"
    return f"{value:.{_DECIMALS[name]}f}" if name in _DECIMALS else f"{value:.2g}"


def _about_likelihood(manifest: Manifest) -> str:
    if manifest.likelihood.name == "bernoulli":
        return (
            "\nThe images were binarised for these figures, each pixel drawn once with its grey value as probability.\n"
        )
    if manifest.likelihood.name == "discretised-logistic":
        return "\nThe likelihood is a probability of the 256 levels of each pixel.\n"
    return "\nThe likelihood is a density of pixel values in [0, 1], so that the ELBO can be above zero.\n"


def _prior_of(manifest: Manifest) -> str:
    return "p(z)" if manifest.prior is not None and manifest.prior.learnt else "N(0, I)"
