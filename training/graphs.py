"""A VAE's encoder and decoder as ONNX: uint8 pixels outside, all that depends on the model inside, nothing random.

encoder   images uint8 [N,H,W,C]  -> mean, logvar float32 [N,Z]
decoder   latents float32 [N,Z]   -> images uint8 [N,H,W,C], mean float32 [N,H,W,C] in [0,1]
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from onnx import GraphProto, ModelProto
from torch import Tensor, nn

from training.likelihood import Likelihood
from training.model import VAE, Decoder, Encoder

OPSET = 18  # what the exporter speaks of itself; every ONNX Runtime since 1.14 reads it
_MAX_BATCH = 1 << 20
_EXAMPLES = 2  # a batch of one invites the exporter to take the batch size for a constant


class EncoderGraph(nn.Module):
    """The encoder from pixels."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], self.encoder(images.permute(0, 3, 1, 2).float() / 255))


class DecoderGraph(nn.Module):
    """The decoder to pixels, and to the mean of p(x|z) that they are rounded from."""

    def __init__(self, decoder: Decoder, likelihood: Likelihood) -> None:
        super().__init__()
        self.decoder = decoder
        self.likelihood = likelihood

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.likelihood.mean(self.decoder(latents)).permute(0, 2, 3, 1)
        return (mean * 255).round().clamp(0, 255).to(torch.uint8), mean


def wrapped(model: VAE) -> tuple[EncoderGraph, DecoderGraph]:
    """What is exported, and what the exported graphs are held against."""
    return EncoderGraph(model.encoder).eval(), DecoderGraph(model.decoder, model.likelihood).eval()


def export_encoder(graph: EncoderGraph, image_shape: tuple[int, int, int], metadata: Mapping[str, str]) -> bytes:
    """The encoder as one ONNX file; `metadata` goes into its `metadata_props`."""
    example = torch.zeros((_EXAMPLES, *image_shape), dtype=torch.uint8)
    return _export(graph, {"images": example}, ["mean", "logvar"], metadata)


def export_decoder(graph: DecoderGraph, latent_dim: int, metadata: Mapping[str, str]) -> bytes:
    """The decoder as one ONNX file; `metadata` goes into its `metadata_props`."""
    return _export(graph, {"latents": torch.zeros(_EXAMPLES, latent_dim)}, ["images", "mean"], metadata)


def _export(graph: nn.Module, example: dict[str, Tensor], outputs: list[str], metadata: Mapping[str, str]) -> bytes:
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)  # named, so that a constant batch raises
    with _quiet_exporter():
        program = torch.onnx.export(
            graph,
            kwargs=example,
            dynamo=True,
            dynamic_shapes={name: {0: batch} for name in example},
            input_names=list(example),
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - so it is with dynamo=True
    proto = program.model_proto
    _strip(proto)
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=value)
    return proto.SerializeToString(deterministic=True)


def _strip(proto: ModelProto) -> None:
    """Remove the exporter's notes: stack traces, which hold paths of this machine, and names of Python objects."""
    graph: GraphProto = proto.graph
    holders: list[Any] = [proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for holder in holders:
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns that torchvision, which we do not use, is missing
    try:
        with warnings.catch_warnings():
            # torch.export's own use of a torch class that is to change
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        registration.setLevel(level)
