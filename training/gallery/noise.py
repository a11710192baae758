"""A denoising autoencoder against a plain one, on images with noise."""

from __future__ import annotations

import numpy as np

from training.drawing.canvas import labelled, png
from training.drawing.subject import decode_all
from training.gallery.measures import psnr_db
from training.gallery.workshop import Chapter, Workshop

_DEVIATION = 0.3  # of the noise, of pixel values in [0, 1]: what the denoising autoencoder was trained with
_LATENTS = 32
_EPOCHS = 30
_SHOWN = 10


def denoising(workshop: Workshop) -> Chapter:
    """Both see the same noise; both are held against the images without it."""
    shape = {"latent_dim": _LATENTS}
    plain = workshop.subject("autoencoder-32", {"model": {"kind": "autoencoder", **shape}}, _EPOCHS)
    denoiser = workshop.subject(
        "denoising-32",
        {"model": {"kind": "denoising", **shape}, "objective": {"corruption": _DEVIATION}},
        _EPOCHS,
    )
    clean = workshop.dataset.test.pixels
    noise = _DEVIATION * np.random.default_rng(2).standard_normal(clean.shape)
    noisy = ((clean / 255 + noise).clip(0, 1) * 255).round().astype(np.uint8)
    rows = {"image": clean, "with noise": noisy}
    for name, subject in {"autoencoder": plain, "denoising": denoiser}.items():
        rows[name] = decode_all(subject, subject.encode(noisy, None)[0])
    clean_again = decode_all(plain, plain.encode(clean, None)[0])
    numbers = {
        "noise_noisy_psnr": psnr_db(noisy, clean),
        "noise_plain_psnr": psnr_db(rows["autoencoder"], clean),
        "noise_denoising_psnr": psnr_db(rows["denoising"], clean),
        "noise_plain_clean_psnr": psnr_db(clean_again, clean),
    }
    sheet = np.concatenate([found[:_SHOWN] for found in rows.values()])
    return Chapter(numbers, {"denoising.png": png(labelled(sheet, _SHOWN, list(rows)))})
