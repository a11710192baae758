"""How many images a second the graphs encode and decode on this machine, one caller, from memory to memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from training.evaluation.graphs import Graphs

BATCHES = (1, 8, 64)
_SECONDS = 0.5


def throughput(graphs: Graphs, pixels: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> dict[str, float]:
    """Images a second by graph and batch size, the best of some runs, because other programs only ever slow one."""
    figures = {}
    for batch in BATCHES:
        images = np.resize(pixels, (batch, *pixels.shape[1:]))
        given = None if labels is None else np.resize(labels, batch)
        latents = torch.from_numpy(
            np.random.default_rng(0).standard_normal((batch, graphs.manifest.latent_dim), np.float32)
        )
        figures[f"encode_images_per_s_batch{batch}"] = _rate(partial(graphs.encode, images, given), batch)
        figures[f"decode_images_per_s_batch{batch}"] = _rate(partial(graphs.images, latents, given), batch)
    return figures


def _rate(run: Callable[[], object], batch: int) -> float:
    run()  # the first allocates
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return batch / best
