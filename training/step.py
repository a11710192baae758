"""One step of training: forward, objective, backward, clip, optimiser, average. Knows nothing of files or epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor

from training import objective, processes
from training.state import TrainingState


def train_step(
    training: TrainingState, x: Tensor, labels: Tensor | None, *, beta: float, learning_rate: float
) -> dict[str, float]:
    """One step on images x (N, C, H, W) in [0, 1] and, for a conditional model, their labels (N,); returns its figures,
    in nats for each image.

    If the loss or the gradient is not finite, the step is counted but changes nothing, BatchNorm's statistics and
    the likelihood's sigma included.
    """
    model, config = training.model, training.config.objective
    buffers = [buffer.clone() for buffer in training.buffers]
    observed = model.likelihood.observe(x, training.generator)
    output, z, mean, logvar = training.forward(observed, training.generator, labels, config.samples)
    result = objective.loss(config, model, observed, output, z, mean, logvar, beta)
    training.optimiser.zero_grad()
    training.fabric.backward(result.loss)
    norm = _clip_gradients(training, training.config.optimiser.clip_norm)
    means = processes.mean_of({**result.figures, "loss": result.loss}, training.fabric)  # so all decide alike
    if math.isfinite(norm) and math.isfinite(means["loss"]):
        _apply(training, learning_rate)
    else:
        _skip(training, buffers)
    training.step += 1
    return {
        **means,
        "beta": beta,
        "learning_rate": learning_rate,
        "gradient_norm": norm,
        "skipped_steps": training.skipped,
        **model.likelihood.parameters_by_name(),
    }


def _clip_gradients(training: TrainingState, limit: float) -> float:
    """Shorten the gradient to `limit`; returns its length before."""
    fabric = training.fabric
    norm = fabric.clip_gradients(training.forward, training.optimiser, max_norm=limit, error_if_nonfinite=False)
    return float(cast(Tensor, norm))


def _apply(training: TrainingState, learning_rate: float) -> None:
    for group in training.optimiser.param_groups:
        group["lr"] = learning_rate
    training.optimiser.step()
    training.average.update(training.step)
    training.skipped_in_a_row = 0


def _skip(training: TrainingState, buffers: Sequence[Tensor]) -> None:
    """Leave the weights alone, and put back what the forward pass has changed."""
    for buffer, before in zip(training.buffers, buffers, strict=True):
        buffer.copy_(before)
    training.skipped += 1
    training.skipped_in_a_row += 1
