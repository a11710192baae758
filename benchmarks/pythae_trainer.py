"""`latentry train` beside pythae's trainer: the same networks, images and batch size, on one machine.

    python -m venv /tmp/pythae && /tmp/pythae/bin/pip install pythae -e '.[training]'
    /tmp/pythae/bin/python benchmarks/pythae_trainer.py

Ours runs as it comes, in bf16 where the hardware has it; pythae in fp32, as it comes: its AMP is for CUDA alone. A
third row is ours in fp32: what the loop itself gains or loses. pythae's epoch is `BaseTrainer.train_step`, its inner
loop alone, without checkpoints, which it leaves to the end of an epoch. They take turns, an epoch of some steps each.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import training_loop

from training import idx, model
from training.batches import to_tensor
from training.config import Config
from training.model import VAE

try:
    import pythae.models
    import pythae.models.nn
    from pythae.data.datasets import BaseDataset
    from pythae.models.base.base_utils import ModelOutput
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
except ModuleNotFoundError as error:
    print(f"{error}. To compare with pythae, install it beside latentry: see the head of this file", file=sys.stderr)
    sys.exit(2)


class Encoder(pythae.models.nn.BaseEncoder):
    """Our encoder as pythae wants one."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.encoder = vae.encoder

    def forward(self, x: torch.Tensor) -> ModelOutput:
        mean, logvar = self.encoder(x)
        return ModelOutput(embedding=mean, log_covariance=logvar)


class Decoder(pythae.models.nn.BaseDecoder):
    """Our decoder as pythae wants one."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.decoder = vae.decoder

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.decoder(z)))


def pythae_epoch(config: Config, steps: int, folder: str) -> Callable[[], None]:
    """An epoch of `steps` of pythae's trainer on our networks."""
    pixels = idx.read(training_loop.FASHION, "t10k").pixels[: steps * config.run.batch_size]
    images = to_tensor(np.resize(pixels, (steps * config.run.batch_size, *pixels.shape[1:])), torch.device("cpu"))
    torch.manual_seed(0)
    vae = model.build(config.model, config.objective, (28, 28, 1), 0)
    vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    theirs = pythae.models.VAE(
        pythae.models.VAEConfig(input_dim=(1, 28, 28), latent_dim=config.model.latent_dim, reconstruction_loss="mse"),
        encoder=Encoder(copy.deepcopy(vae)),
        decoder=Decoder(copy.deepcopy(vae)),
    )
    settings = BaseTrainerConfig(
        output_dir=folder,
        per_device_train_batch_size=config.run.batch_size,
        num_epochs=1,
        learning_rate=1e-3,
        optimizer_cls="AdamW",
        no_cuda=True,
    )
    trainer = BaseTrainer(theirs, BaseDataset(images, torch.ones(len(images))), training_config=settings)
    trainer.prepare_training()
    return lambda: trainer.train_step(1) and None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    training_loop.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    config = training_loop.config_of(args)
    fp32 = replace(config, run=replace(config.run, precision="fp32"))
    rates: dict[str, list[float]] = {"latentry": [], "latentry, fp32": [], "pythae": []}
    with tempfile.TemporaryDirectory() as folder:
        epoch = pythae_epoch(config, args.steps * args.blocks, folder)
        images = config.run.batch_size * args.steps * args.blocks
        for _ in range(args.rounds):
            for name, each in (("latentry", config), ("latentry, fp32", fp32)):
                rates[name].append(
                    images / sum(training_loop.measure(each, args.steps, args.blocks, alone=True)["loop"])
                )
            start = training_loop.clock()
            epoch()
            rates["pythae"].append(images / (training_loop.clock() - start))
    print(f"{args.preset}, batch {config.run.batch_size}, {torch.get_num_threads()} threads, ", end="")
    print(f"{os.getloadavg()[0]:.1f} processes wanted to run; {args.rounds} rounds")
    for name, each in rates.items():
        ratios = np.array(each) / np.array(rates["pythae"])
        print(
            f"{name:<16}{np.median(each):>10,.0f} images/s   {np.median(ratios):.2f} times pythae {np.round(ratios, 2)}"
        )


if __name__ == "__main__":
    main()
