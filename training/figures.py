"""Pictures of a model: reconstructions beside originals, samples, and the training curve."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentry.pixels import to_pillow
from training import batches
from training.model import VAE

Grid = NDArray[np.uint8]  # (H, W, C)
_GAP = 2  # pixels of white between the images
_SEED = 3


@torch.inference_mode()
def reconstructions(model: VAE, pixels: NDArray[np.uint8], columns: int = 8, rows: int = 4) -> Grid:
    """Originals from `pixels` (N, H, W, C), each row above the row of their reconstructions."""
    device = next(model.parameters()).device
    originals = batches.spread(pixels, columns * rows)
    mean, _ = model.encoder(batches.to_tensor(originals, device))
    drawn = _to_pixels(model.likelihood.mean(model.decoder(mean)))
    pairs = []
    for start in range(0, len(originals), columns):
        pairs += [originals[start : start + columns], drawn[start : start + columns]]
    return tile(np.concatenate(pairs), min(columns, len(originals)))


@torch.inference_mode()
def samples(model: VAE, latent_dim: int, side: int = 8) -> Grid:
    """`side` x `side` images for latents drawn from N(0, I); the same latents each time."""
    device = next(model.parameters()).device
    z = torch.randn(side * side, latent_dim, generator=torch.Generator().manual_seed(_SEED)).to(device)
    return tile(_to_pixels(model.likelihood.mean(model.decoder(z))), side)


def tile(images: NDArray[np.uint8], columns: int) -> Grid:
    """Images (N, H, W, C) in rows of `columns` on white, enlarged by whole factors until they can be seen."""
    n, height, width, channels = images.shape
    scale = max(1, 56 // max(height, width))
    images = images.repeat(scale, 1).repeat(scale, 2)
    height, width = height * scale + _GAP, width * scale + _GAP
    grid = np.full((-(-n // columns) * height + _GAP, columns * width + _GAP, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height + _GAP, index % columns * width + _GAP
        grid[top : top + height - _GAP, left : left + width - _GAP] = image
    return grid


def write_png(grid: Grid, path: Path) -> None:
    """Write a grid (H, W, C) as PNG."""
    to_pillow(grid).save(path)


def write_training_curve(log: Path, path: Path) -> None:
    """Draw the ELBO, and what it is made of, from the JSON-lines log of a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and seldom needed
    from matplotlib.figure import Figure

    events = _read_events(log)
    steps = [event for event in events if event["event"] == "step"]
    epochs = [event for event in events if event["event"] == "epoch"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, names in zip(figure.subplots(1, 2), (("elbo", "reconstruction"), ("kl",)), strict=True):
        for name in names:
            curve = _smooth([event[name] for event in steps])
            axes.plot([event["step"] for event in steps], curve, label=f"{name}, training")
            held_out = [event[name] for event in epochs]
            axes.plot([event["step"] for event in epochs], held_out, "o", markersize=3, label=f"{name}, held out")
        first = [event[name] for name in names for event in steps[: len(steps) // 50 + 1]]
        late = np.array([event[name] for name in names for event in steps[len(steps) // 50 :]] + first[-1:])
        late = late[np.isfinite(late)]
        if len(late):
            margin = 0.1 * np.ptp(late) + 1
            axes.set_ylim(late.min() - margin, late.max() + margin)  # the first steps would flatten all others
        axes.set(xlabel="step", ylabel="nats per image")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _read_events(log: Path) -> list[dict[str, Any]]:
    """The log's events; a figure that was not finite, which JSON has as null, is NaN. Damaged lines are passed over."""
    events = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            events.append({name: math.nan if value is None else value for name, value in event.items()})
    return events


def _smooth(values: list[float]) -> NDArray[np.float64]:
    """The mean over a window of a hundredth of the curve."""
    window = max(1, len(values) // 100)
    padded = np.pad(np.asarray(values), (window - 1, 0), mode="edge")
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")


def _to_pixels(mean: torch.Tensor) -> NDArray[np.uint8]:
    """Means (N, C, H, W) in [0, 1] -> uint8 (N, H, W, C)."""
    return (mean * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
