"""A model folder's encoder and decoder as torch modules again, with the weights that its graphs hold.

For comparisons: what ONNX Runtime computes, and how fast, beside torch on the same weights. The modules are folded as
exported ones are (`training.folding`), and their parameters bear the names of the graphs' constants.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from latentry.manifest import Manifest, ModelFolder
from training import config_file, folding, model
from training.errors import ConfigError
from training.graphs import DecoderGraph, EncoderGraph


def graphs_of(folder: ModelFolder) -> tuple[EncoderGraph, DecoderGraph]:
    """Encoder and decoder as they were exported. Raises `ValueError` if the folder does not say how it was made."""
    vae = _build(folder.manifest)
    encoder = EncoderGraph(folding.folded(vae.encoder), vae.classes)
    decoder = DecoderGraph(folding.folded(vae.decoder), vae.likelihood, vae.classes)
    _fill(encoder, folder.graph("encoder"))
    _fill(decoder, folder.graph("decoder"))
    return encoder.eval(), decoder.eval()


def _build(about: Manifest) -> model.VAE:
    said: Any = about.provenance.get("config", {})
    try:
        config = config_file.from_dict({name: said[name] for name in ("model", "objective")})
    except (KeyError, TypeError, ConfigError) as error:
        raise ValueError(f"{about.name}: its provenance does not say how it was built") from error
    return model.build(config.model, config.objective, about.image_shape, about.classes)


def _fill(graph: nn.Module, data: bytes) -> None:
    weights = {each.name: numpy_helper.to_array(each) for each in onnx.load_from_string(data).graph.initializer}
    network = {name: value for name, value in graph.state_dict().items() if not name.startswith("likelihood.")}
    missing = sorted(set(network) - set(weights))
    if missing:
        raise ValueError(f"the graph holds no {missing[0]}; it was written by another release")
    for name, value in network.items():
        value.copy_(torch.from_numpy(weights[name].copy()))
