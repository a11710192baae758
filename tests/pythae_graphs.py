"""Writes pythae's networks as ONNX, with plain torch.onnx.export, and what torch says of some images and latents.

    python pythae_graphs.py GIVEN.npz FOLDER

`GIVEN.npz` holds `images` uint8 [N, 28, 28, 1] and `latents` float32 [M, 16]. For its own process: pythae is not
installed where the tests run, but found on PYTHONPATH. Weights are random, drawn from a fixed seed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pythae.models import VAE, VAEConfig  # type: ignore[import-not-found]
from pythae.models.nn.benchmarks.mnist import (  # type: ignore[import-not-found]
    Decoder_Conv_AE_MNIST,
    Encoder_Conv_VAE_MNIST,
)

_ENCODER, _DECODER = ("embedding", "log_covariance"), ("reconstruction",)


class Outputs(torch.nn.Module):
    """A network of pythae's whose outputs, a dictionary, are a tuple: what the newer exporter asks of any model."""

    def __init__(self, network: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.network(x)
        return tuple(output[name] for name in self.names)


def export(model: Any, folder: Path, name: str, *, dynamo: bool) -> None:
    """Both networks of a model for a batch of one, as the exporter's defaults have it."""
    for part, names, x in (
        ("encoder", _ENCODER, torch.zeros(1, 1, 28, 28)),
        ("decoder", _DECODER, torch.zeros(1, 16)),
    ):
        network = getattr(model, part)
        torch.onnx.export(Outputs(network, names) if dynamo else network, (x,), folder / f"{name}-{part}.onnx",
                          output_names=list(names), dynamo=dynamo)  # fmt: skip


@torch.inference_mode()
def answers(model: Any, images: Any, latents: Any) -> dict[str, Any]:
    """What torch says: the posteriors of the images, and the pictures [M, 28, 28, 1] of the latents."""
    posterior = model.encoder(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    drawn = model.decoder(torch.from_numpy(latents)).reconstruction.permute(0, 2, 3, 1)
    return {"mean": posterior.embedding.numpy(), "logvar": posterior.log_covariance.numpy(), "drawn": drawn.numpy()}


def main(given: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=16)
    models = {
        "dense": VAE(config),
        "conv": VAE(config, Encoder_Conv_VAE_MNIST(config), Decoder_Conv_AE_MNIST(config)),
    }
    with np.load(given) as arrays:
        images, latents = arrays["images"], arrays["latents"]
    for name, model in models.items():
        model.eval()
        np.savez(folder / f"{name}.npz", **answers(model, images, latents))
    export(models["dense"], folder, "dense-dynamo", dynamo=True)
    export(models["dense"], folder, "dense-legacy", dynamo=False)
    export(models["conv"], folder, "conv-legacy", dynamo=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
