"""What changes with the step: the learning rate and beta. Both are functions of the step alone, so that a resumed
run needs no more than the step to go on as it was."""

from __future__ import annotations

import math

from training.config import ObjectiveConfig, OptimiserConfig


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Linear growth over the warm-up, then a cosine that reaches zero after the last of `steps`."""
    warmup = min(config.warmup_steps, steps // 5)  # a short run must not be all warm-up
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def beta(config: ObjectiveConfig, step: int, steps: int) -> float:
    """The KL's weight. In a straight line from near 0 to `config.beta` over the warm-up, then constant; or, with
    `beta_cycles`, so many times over: up during half of a cycle, constant during the other (Fu et al. 2019)."""
    if config.beta_cycles > 0:
        cycle = max(math.ceil(steps / config.beta_cycles), 1)
        return _rise(config.beta, step % cycle, cycle // 2)
    return _rise(config.beta, step, round(config.beta_warmup * steps))


def _rise(beta: float, step: int, steps: int) -> float:
    return beta * min(1.0, (step + 1) / max(steps, 1))
