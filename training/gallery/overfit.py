"""A deep autoencoder can give each of N images a place on a line, and learn nothing of any other image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

from training import batches, figures, model
from training.config import ModelConfig, ObjectiveConfig
from training.drawing.canvas import labelled, png
from training.gallery.measures import psnr_db
from training.gallery.workshop import Chapter, Workshop
from training.model import VAE

_IMAGES = 32
_STEPS = 3000
_SHOWN = 10
_RATE = 2e-3
_SEED = 4
_DEVICE = torch.device("cpu")


def line_of_images(workshop: Workshop) -> Chapter:
    """One latent, 32 images, and as many steps as it takes; then 32 images that it has not seen."""
    train, test = workshop.dataset.train.pixels[:_IMAGES], workshop.dataset.test.pixels[:_IMAGES]
    steps = max(50, round(_STEPS * workshop.share))
    line = memorise(train, steps)
    seen, codes = _through(line, train)
    unseen, _ = _through(line, test)
    order = np.argsort(codes)[: 2 * _SHOWN : 2]
    after = np.argsort(codes)[1 : 2 * _SHOWN : 2]
    between = _decode(line, (codes[order] + codes[after]) * np.float32(0.5))
    rows = {"learnt by heart": train[order], "from one number": seen[order], "between neighbours": between,
            "not seen before": test[:_SHOWN], "from one number ": unseen[:_SHOWN]}  # fmt: skip
    numbers = {
        "overfit_images": _IMAGES,
        "overfit_train_psnr": psnr_db(seen, train),
        "overfit_test_psnr": psnr_db(unseen, test),
    }
    return Chapter(numbers, {"overfit.png": png(labelled(np.concatenate(list(rows.values())), _SHOWN, list(rows)))})


def memorise(pixels: NDArray[np.uint8], steps: int) -> VAE:
    """A deep autoencoder with one latent, trained on all of `pixels` in each step."""
    _, height, width, channels = pixels.shape
    config = ModelConfig(kind="autoencoder", latent_dim=1, hidden=(256, 128, 64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        line = model.build(config, ObjectiveConfig(), (height, width, channels))
    x = batches.to_tensor(pixels, _DEVICE)
    line.decoder.centre(x.mean(0))
    optimiser = torch.optim.Adam(line.parameters(), lr=_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in tqdm(range(steps), desc="32 images on a line", unit=" steps", disable=None):
        mean, _ = line.encoder(x)
        optimiser.zero_grad()
        functional.mse_loss(line.likelihood.mean(line.decoder(mean)), x).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        decay.step()
    return line.eval()


@torch.no_grad()
def _through(line: VAE, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """What becomes of images, and their places on the line (N,)."""
    mean, _ = line.encoder(batches.to_tensor(np.ascontiguousarray(pixels), _DEVICE))
    return figures.to_pixels(line.likelihood.mean(line.decoder(mean))), mean[:, 0].numpy()


@torch.no_grad()
def _decode(line: VAE, places: NDArray[np.float32]) -> NDArray[np.uint8]:
    return figures.to_pixels(line.likelihood.mean(line.decoder(torch.from_numpy(places[:, None]))))
