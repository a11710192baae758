"""Why a plain autoencoder cannot sample: its latents have gaps, and what is decoded there is measured here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.drawing.canvas import labelled, png
from training.drawing.latent_space import draws, panels
from training.drawing.sheets import normal_latents
from training.drawing.subject import Subject, decode_all, encoded
from training.gallery.judge import Judge
from training.gallery.workshop import Changes, Chapter, Workshop

_PAIRS = 500
_SHOWN = 10
_EPOCHS = 30
LATENTS = 10


def gaps(workshop: Workshop, judge: Judge) -> Chapter:
    """An autoencoder and a VAE, the same networks, by what lies between their latents and at N(0, I)."""
    models: dict[str, Subject] = {
        "ae": workshop.subject("autoencoder-10", {"model": {"kind": "autoencoder", "latent_dim": LATENTS}}, _EPOCHS),
        "vae": workshop.subject("vae-10", {"model": {"latent_dim": LATENTS}}, _EPOCHS),
    }
    test = workshop.dataset.test
    pairs = np.random.default_rng(1).permutation(len(test))[: 2 * min(_PAIRS, len(test) // 2)].reshape(2, -1)
    blends = test.pixels[pairs].astype(np.float64).mean(0).round().astype(np.uint8)
    images: dict[str, NDArray[np.uint8]] = {"real": test.pixels, "blend": blends}
    for name, subject in models.items():
        images |= {f"{name}_{what}": found for what, found in _decoded(subject, pairs).items()}
    numbers = {
        f"gaps_{name}_{measure}": getattr(judge, measure)(found)
        for name, found in images.items()
        for measure in ("confidence", "distance")
    }
    rows = {
        "autoencoder, midpoints": "ae_midpoint", "autoencoder, N(0, I)": "ae_normal",
        "autoencoder, fitted Gaussian": "ae_fitted", "VAE, midpoints": "vae_midpoint", "VAE, N(0, I)": "vae_normal",
        "pixels, midpoints": "blend",
    }  # fmt: skip
    sheet = np.concatenate([images[key][:_SHOWN] for key in rows.values()])
    pictures = {"gaps.png": png(labelled(sheet, _SHOWN, list(rows)))}
    return Chapter({**numbers, "gaps_classifier_accuracy": judge.agreement(*_labelled(workshop))}, pictures)


def planes(workshop: Workshop) -> Chapter:
    """The same in two dimensions, to look at: the latents of both."""
    ae = workshop.subject("autoencoder-2", {"model": {"kind": "autoencoder", "latent_dim": 2}}, 40)
    vae = workshop.subject("vae-2", VAE_2, 40)
    seen = {"autoencoder": encoded(ae), "VAE, one draw of q(z|x) each": encoded(vae)}
    chart = panels([(title, draws(each)) for title, each in seen.items()], ae.class_names)
    ae_seen, vae_seen = seen.values()
    return Chapter(
        {
            "planes_ae_spread": float(ae_seen.spread.max()),
            "planes_ae_offset": float(np.linalg.norm(ae_seen.centre)),
            "planes_vae_spread": float(vae_seen.spread.max()),
            "planes_vae_offset": float(np.linalg.norm(vae_seen.centre)),
        },
        {"planes.png": png(chart)},
    )


VAE_2: Changes = {"model": {"latent_dim": 2}, "run": {"snapshots": True}}


def _decoded(subject: Subject, pairs: NDArray[np.intp]) -> dict[str, NDArray[np.uint8]]:
    """Images decoded halfway between pairs, at draws of N(0, I), and at draws of a Gaussian fitted to the latents."""
    assert subject.pixels is not None  # noqa: S101 - a run has images
    first, second = (subject.encode(subject.pixels[half], None)[0] for half in pairs)
    seen = encoded(subject)
    noise = normal_latents(pairs.shape[1], subject.latent_dim)
    covariance = np.cov(draws(seen).latents, rowvar=False)
    fitted = seen.centre + noise @ np.linalg.cholesky(covariance).T
    latents: dict[str, NDArray[np.floating]] = {"midpoint": (first + second) / 2, "normal": noise, "fitted": fitted}
    return {what: decode_all(subject, z.astype(np.float32)) for what, z in latents.items()}


def _labelled(workshop: Workshop) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    test = workshop.dataset.test
    assert test.labels is not None  # noqa: S101
    return test.pixels, test.labels
