"""A model as ONNX graphs: uint8 pixels outside, all that depends on the model inside, nothing random.

encoder   images uint8 [N,H,W,C] [, labels int64 [N]]  -> mean, logvar float32 [N,Z]
decoder   latents float32 [N,Z] [, labels int64 [N]]   -> images uint8 [N,H,W,C], mean float32 [N,H,W,C] in [0,1]
                                                          [, parameters float32 [N,H,W,C*outputs_per_channel]]
prior     noise float32 [N,K], standard normal         -> latents float32 [N,Z]
density   latents float32 [N,Z]                        -> log_prob float32 [N], nats

Labels come with a conditional model, `parameters` with a likelihood that its mean does not determine: they are the
decoder's output as it is. Knows nothing of files, nor of how a prior was made.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from onnx import GraphProto, ModelProto
from torch import Tensor, nn

from latentry import __version__, graph_notes
from training import folding, graph_passes
from training.errors import ExportError
from training.flow import Flow
from training.likelihood import Likelihood
from training.model import VAE, Decoder, Encoder

OPSET, IR_VERSION = 18, 8  # what the exporter speaks of itself; every ONNX Runtime since 1.15 reads it
HALF_LATENT_LIMIT = 256.0  # far from any posterior; what a server lets through, up to 1e6, would overflow in half
_MAX_BATCH = 1 << 20
_EXAMPLES = 2  # a batch of one invites the exporter to take the batch size for a constant


class EncoderGraph(nn.Module):
    """The encoder from pixels, with a label for each image if there are `classes`. It computes in `dtype`."""

    outputs = ("mean", "logvar")

    def __init__(self, encoder: Encoder, classes: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.encoder = encoder
        self.classes = classes
        self.dtype = dtype

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encoder(images.permute(0, 3, 1, 2).to(self.dtype) / 255, labels)
        return mean.float(), logvar.float()

    def folded(self, dtype: torch.dtype) -> EncoderGraph:
        """The same for inference, in another precision."""
        return EncoderGraph(folding.folded(self.encoder).to(dtype), self.classes, dtype).eval()


class DecoderGraph(nn.Module):
    """The decoder to pixels, to the mean of p(x|z) that they are rounded from, and where the likelihood needs more
    than its mean, to the decoder's output; with a label for each latent if there are `classes`. It computes in `dtype`
    what is before the likelihood."""

    def __init__(
        self, decoder: Decoder, likelihood: Likelihood, classes: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.likelihood = likelihood
        self.classes = classes
        self.dtype = dtype
        self.outputs = ("images", "mean", "parameters") if likelihood.needs_parameters else ("images", "mean")

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        if self.dtype == torch.float16:
            latents = latents.clamp(-HALF_LATENT_LIMIT, HALF_LATENT_LIMIT)
        output = self.decoder(latents.to(self.dtype), labels).float()
        mean = self.likelihood.mean(output).permute(0, 2, 3, 1)
        images = (mean * 255).round().to(torch.uint8)
        return (images, mean, output.permute(0, 2, 3, 1)) if self.likelihood.needs_parameters else (images, mean)

    def folded(self, dtype: torch.dtype) -> DecoderGraph:
        """The same for inference, in another precision."""
        return DecoderGraph(folding.folded(self.decoder).to(dtype), self.likelihood, self.classes, dtype).eval()


class FlowPrior(nn.Module):
    """A flow from noise to latents."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, noise: Tensor) -> Tensor:
        return self.flow.latents(noise)


class FlowDensity(nn.Module):
    """A flow's log-density of latents."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, latents: Tensor) -> Tensor:
        return self.flow.log_prob(latents)


def wrapped(model: VAE) -> tuple[EncoderGraph, DecoderGraph]:
    """What is exported, and what the exported graphs are held against."""
    encoder = EncoderGraph(model.encoder, model.classes)
    return encoder.eval(), DecoderGraph(model.decoder, model.likelihood, model.classes).eval()


def wrapped_flow(flow: Flow) -> tuple[FlowPrior, FlowDensity]:
    """The same for a prior learnt with the model."""
    return FlowPrior(flow).eval(), FlowDensity(flow).eval()


def export_encoder(
    graph: EncoderGraph,
    image_shape: tuple[int, int, int],
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float32,
) -> bytes:
    """The encoder, folded and computing in `dtype`, as one ONNX file; `metadata` goes into its `metadata_props`."""
    images = torch.zeros((_EXAMPLES, *image_shape), dtype=torch.uint8)
    return _export(graph.folded(dtype), {"images": images, **_labels(graph.classes)}, graph.outputs, metadata)


def export_decoder(
    graph: DecoderGraph, latent_dim: int, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> bytes:
    """The decoder, folded and computing in `dtype`, as one ONNX file; `metadata` goes into its `metadata_props`."""
    latents = torch.zeros(_EXAMPLES, latent_dim)
    return _export(graph.folded(dtype), {"latents": latents, **_labels(graph.classes)}, graph.outputs, metadata)


def export_prior(graph: nn.Module, noise_dim: int, metadata: Mapping[str, str]) -> bytes:
    """A module whose forward makes latents (N, Z) of standard normal noise (N, `noise_dim`), as one ONNX file."""
    return _export(graph.eval(), {"noise": torch.zeros(_EXAMPLES, noise_dim)}, ["latents"], metadata)


def export_density(graph: nn.Module, latent_dim: int, metadata: Mapping[str, str]) -> bytes:
    """A module whose forward gives log p(z) (N,) in nats of latents z (N, `latent_dim`), as one ONNX file."""
    return _export(graph.eval(), {"latents": torch.zeros(_EXAMPLES, latent_dim)}, ["log_prob"], metadata)


def _labels(classes: int) -> dict[str, Tensor]:
    return {"labels": torch.zeros(_EXAMPLES, dtype=torch.int64)} if classes else {}


def _export(graph: nn.Module, example: dict[str, Tensor], outputs: Sequence[str], metadata: Mapping[str, str]) -> bytes:
    """`graph`, called with `example` in this order, as ONNX; the first axis of all it takes and gives is the batch.

    Raises `ExportError` if tracing the module made its batch size a constant.
    """
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            tuple(example.values()),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in example),
            input_names=list(example),
            output_names=list(outputs),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - so it is with dynamo=True
    proto = program.model_proto
    _check_batch(proto.graph)
    _strip(proto)
    graph_passes.tidy(proto.graph)
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "latentry", __version__
    graph_notes.describe(proto, metadata)
    return proto.SerializeToString(deterministic=True)


def _check_batch(graph: GraphProto) -> None:
    for value in [*graph.input, *graph.output]:
        first = value.type.tensor_type.shape.dim[0]
        if not first.dim_param:
            raise ExportError(f"{value.name}: the batch size became a constant: got {first.dim_value}, wanted any")


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
            # it is said of a second input whose batch is the first's
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            yield
    finally:
        registration.setLevel(level)
