"""An exported model in torch again: the modules of training/ with the weights that the ONNX graphs hold.

The exporter folds batch normalisation into the convolution before it, so here convolutions have a bias and the
normalisations do nothing.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from latentry.manifest import Manifest, ModelFolder
from training import config_file, model
from training.errors import ConfigError
from training.graphs import DecoderGraph, EncoderGraph, wrapped


def graphs_of(folder: ModelFolder) -> tuple[EncoderGraph, DecoderGraph]:
    """Encoder and decoder as they were exported. Raises `ValueError` if the folder does not say how it was made."""
    vae = _build(folder.manifest)
    for part, data in (("encoder", folder.graph("encoder")), ("decoder", folder.graph("decoder"))):
        weights = {i.name: numpy_helper.to_array(i) for i in onnx.load_from_string(data).graph.initializer}
        _fill(getattr(vae, part), part, weights)
    return wrapped(vae)


def _build(about: Manifest) -> model.VAE:
    said: Any = about.provenance.get("config", {})
    try:
        config = config_file.from_dict({name: said[name] for name in ("model", "objective")})
    except (KeyError, TypeError, ConfigError) as error:
        raise ValueError(f"{about.name}: its provenance does not say how it was built") from error
    return model.build(config.model, config.objective, about.image_shape, about.classes)


def _fill(module: nn.Module, prefix: str, weights: dict[str, Any]) -> None:
    for name, child in list(module.named_children()):
        path = f"{prefix}.{name}"
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        elif isinstance(child, nn.Conv2d | nn.Linear):
            child.weight.data = torch.tensor(weights[f"{path}.weight"])
            bias = weights.get(f"{path}.bias", weights.get(f"{path}.weight_bias"))
            child.bias = None if bias is None else nn.Parameter(torch.tensor(bias))
        else:
            _fill(child, path, weights)
