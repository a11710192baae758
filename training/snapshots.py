"""Weights kept at a few epochs of a run, more of the early ones, so that its learning can be drawn afterwards.

RUN/snapshots/epoch-00012.pt    {"epoch": 12, "weights": the averaged model's state}, with its digest
"""

from __future__ import annotations

from pathlib import Path

from training import checkpoint, run
from training.errors import RunError
from training.model import VAE


def is_kept(epoch: int) -> bool:
    """Whether `epoch`, from 1, is one of 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, ...: the powers of the root of two."""
    power = 0
    while round(2 ** (power / 2)) < epoch:
        power += 1
    return round(2 ** (power / 2)) == epoch


def keep(folder: Path, epoch: int, model: VAE) -> None:
    """Keep the weights of this epoch, if it is one of those. Raises `RunError` if the disk does not take them."""
    if not is_kept(epoch):
        return
    snapshots = folder / run.SNAPSHOTS
    try:
        snapshots.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"{snapshots}: cannot be made: {error.strerror}") from error
    checkpoint.write(snapshots / f"epoch-{epoch:05d}.pt", {"epoch": epoch, "weights": model.state_dict()})
