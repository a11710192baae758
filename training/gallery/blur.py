"""Where blur comes from: the mean of p(x|z) is an average of all the images that z could be."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

from training.drawing.canvas import labelled, png
from training.drawing.subject import Subject, decode_all
from training.gallery.measures import Pixels, mean_absolute_error, psnr_db, sharpness
from training.gallery.workshop import Changes, Chapter, Workshop

_NEIGHBOURS = 10
_SHOWN = 10
_EPOCHS = 30
_VAE_10: Changes = {"model": {"latent_dim": 10}}
_PERCEPTUAL: Changes = {
    "model": {"latent_dim": 10},
    "objective": {"perceptual": "ms-ssim", "perceptual_weight": 300.0},
}
_LIKELIHOODS = ("gaussian", "laplace", "bernoulli")


def blur(workshop: Workshop) -> Chapter:
    """Sharpness of images, of reconstructions, and of averages of images whose latents are close."""
    test = workshop.dataset.test.pixels
    plain = workshop.subject("vae-10", _VAE_10, _EPOCHS)
    perceptual = workshop.subject("perceptual-10", _PERCEPTUAL, _EPOCHS)
    nearest, average = _neighbours(plain, workshop.dataset.train.pixels, test)
    rows = {
        "image": test,
        "nearest in latent space": nearest,
        f"average of {_NEIGHBOURS} nearest": average,
        "VAE": _again(plain, test),
        "VAE, MS-SSIM term": _again(perceptual, test),
    }
    keys = ("image", "nearest", "average", "vae", "perceptual")
    numbers = {f"blur_{key}_sharpness": sharpness(found) for key, found in zip(keys, rows.values(), strict=True)}
    numbers |= {f"blur_{key}_share": value / numbers["blur_image_sharpness"] for key, value in _named(numbers)}
    numbers |= {f"blur_{key}_psnr": psnr_db(rows[row], test) for key, row in zip(keys, rows, strict=True)}
    del numbers["blur_image_psnr"]  # of an image with itself
    sheet = np.concatenate([found[:_SHOWN] for found in rows.values()])
    return Chapter(numbers, {"blur.png": png(labelled(sheet, _SHOWN, list(rows)))})


def likelihoods(workshop: Workshop) -> Chapter:
    """Three p(x|z) for the same networks: what each makes of the same images, and by which measure it is best."""
    test = workshop.dataset.test.pixels
    numbers: dict[str, float] = {}
    rows = {"image": test}
    for name in _LIKELIHOODS:
        run = "vae-10" if name == "gaussian" else f"{name}-10"
        changes: Changes = _VAE_10 if name == "gaussian" else {**_VAE_10, "objective": {"likelihood": name}}
        subject = workshop.subject(run, changes, _EPOCHS)
        assert subject.pixels is not None  # noqa: S101 - what the model sees: black and white for bernoulli
        found = decode_all(subject, subject.encode(subject.pixels, None)[0])
        numbers |= {
            f"likelihoods_{name}_psnr": psnr_db(found, test),
            f"likelihoods_{name}_error": mean_absolute_error(found, test),
            f"likelihoods_{name}_share": sharpness(found) / sharpness(test),
        }
        rows[name] = found
    sheet = np.concatenate([found[:_SHOWN] for found in rows.values()])
    return Chapter(numbers, {"likelihoods.png": png(labelled(sheet, _SHOWN, list(rows)))})


def _neighbours(subject: Subject, train: Pixels, test: Pixels) -> tuple[Pixels, Pixels]:
    """For each test image the training image nearest in latent space, and the average of the nearest few."""
    known = np.concatenate([subject.encode(part, None)[0] for part in np.array_split(train, -(-len(train) // 500))])
    found = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(known).kneighbors(subject.encode(test, None)[0])[1]
    average = np.stack([train[indices].mean(0).round() for indices in found]).astype(np.uint8)
    return train[found[:, 0]], average


def _again(subject: Subject, pixels: Pixels) -> Pixels:
    return decode_all(subject, subject.encode(pixels, None)[0])


def _named(numbers: dict[str, float]) -> list[tuple[str, float]]:
    return [(key.removeprefix("blur_").removesuffix("_sharpness"), value) for key, value in numbers.items()]
