"""All that changes while a model is trained, and its way into a checkpoint and back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from training import model, processes
from training.config import Config, OptimiserConfig, RunConfig
from training.data import Dataset
from training.ema import WeightAverage
from training.errors import ConfigError
from training.model import VAE

_BETAS = (0.9, 0.99)
FORMAT = 1


@dataclass(slots=True)
class TrainingState:
    """`forward` is `model` as Fabric wraps it, for device and precision. `generator` draws all of training's noise;
    `buffers` are the model's, listed once; `skipped` counts the steps whose loss or gradient was not finite,
    `skipped_in_a_row` the latest of them."""

    config: Config
    fabric: Fabric
    model: VAE
    forward: nn.Module
    optimiser: torch.optim.Optimizer
    average: WeightAverage
    generator: torch.Generator
    buffers: list[Tensor]
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def to_checkpoint(self) -> dict[str, Any]:
        """What `restore` needs. The learning rate, beta, the order of the images and the noise follow from the step."""
        return {
            "format": FORMAT,
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on as `to_checkpoint` left off."""
        self.step = checkpoint["step"]
        self.skipped = checkpoint["skipped"]
        self.skipped_in_a_row = checkpoint["skipped_in_a_row"]
        self.model.load_state_dict(checkpoint["model"])
        self.average.model.load_state_dict(checkpoint["average"])
        self.optimiser.load_state_dict(checkpoint["optimiser"])


def initial(config: Config, dataset: Dataset, fabric: Fabric | None = None) -> TrainingState:
    """The state before the first step; the same for the same config and images."""
    fabric = fabric or build_fabric(config.run)
    vae = build_model(config, dataset)
    mean_image = dataset.train.spread(10_000).pixels.mean(0, dtype=np.float64) / 255
    vae.decoder.centre(torch.from_numpy(mean_image).permute(2, 0, 1).float())
    vae = vae.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = _optimiser(vae, config.optimiser)
    forward, wrapped = fabric.setup(vae, optimiser)
    average = WeightAverage(vae, config.optimiser.ema_decay)
    generator = torch.Generator(fabric.device).manual_seed(config.run.seed)
    return TrainingState(config, fabric, vae, forward, wrapped, average, generator, list(vae.buffers()))


def build_model(config: Config, dataset: Dataset) -> VAE:
    """The untrained VAE of `config`, its weights drawn from the run's seed; leaves torch's global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        return model.build(config.model, config.objective, dataset.image_shape, dataset.classes)


def build_fabric(config: RunConfig) -> Fabric:
    """Lightning Fabric for the devices and the precision that they are quick in. Raises `ConfigError` without CUDA."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device: got cuda, but torch finds no CUDA device; wanted auto or cpu")
    bf16 = config.precision == "bf16" or (config.precision == "auto" and _has_bf16(device))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # `fit` says device and precision itself, once
    return processes.connect(device, "bf16-mixed" if bf16 else "32-true", config)


def _has_bf16(device: str) -> bool:
    """Whether bfloat16 is in the hardware; emulated it is slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _optimiser(vae: VAE, config: OptimiserConfig) -> torch.optim.AdamW:
    weights = [parameter for parameter in vae.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in vae.parameters() if parameter.ndim <= 1]  # norms and biases do not decay
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=_BETAS, fused=True)
