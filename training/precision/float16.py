"""The graphs in half precision as a device computes them that has kernels for it.

ONNX Runtime's CPU provider has none: it widens the weights and computes in float32, so that what overflows on a GPU
never shows. torch computes in half on any CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from latentry.manifest import Manifest
from training.errors import ExportError
from training.evaluation.graphs import Graphs
from training.graphs import HALF_LATENT_LIMIT, DecoderGraph, EncoderGraph

_FAR = 64  # latents as far out as the graph lets any be
_SEED = 17


class HalfGraphs(Graphs):
    """Encoder and decoder by torch in half precision; prior and density as in `files`, which hold the fp32 graphs."""

    def __init__(
        self, manifest: Manifest, files: Mapping[str, bytes], encoder: EncoderGraph, decoder: DecoderGraph
    ) -> None:
        super().__init__(manifest, files, "cpu")
        self._half_encoder = encoder.folded(torch.float16)
        self._half_decoder = decoder.folded(torch.float16)

    @torch.inference_mode()
    def encode(self, images: NDArray, labels: NDArray | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[type-arg]
        """As `Graphs.encode`, but what is not finite is left to the figures."""
        parts = []
        for start in range(0, len(images), self.rows):
            rows = slice(start, start + self.rows)
            given = () if labels is None else (torch.from_numpy(labels[rows]),)
            parts.append(self._half_encoder(torch.from_numpy(images[rows].copy()), *given))
        means, logvars = (torch.cat(part) for part in zip(*parts, strict=True))
        return means, logvars

    @torch.inference_mode()
    def decode(self, latents: Tensor, labels: Tensor | None = None, output: str = "") -> Tensor:
        outputs = self._half_decoder(latents, *(() if labels is None else (labels,)))
        name = output or ("parameters" if self.has_parameters else "mean")
        return cast(Tensor, dict(zip(self._half_decoder.outputs, outputs, strict=True))[name]).contiguous()

    def check_far_out(self) -> None:
        """Raises `ExportError` if latents as large as the graph lets them be overflow."""
        normal = torch.Generator().manual_seed(_SEED)
        shape = (_FAR, self.manifest.latent_dim)
        far = torch.cat([torch.randn(shape, generator=normal), torch.randn(shape, generator=normal).sign()])
        labels = torch.arange(len(far)) % self.manifest.classes if self.manifest.classes else None
        if not self.decode(HALF_LATENT_LIMIT * far, labels, "mean").isfinite().all():
            raise ExportError(
                f"fp16: latents of {HALF_LATENT_LIMIT:g} overflow in the decoder; nothing was published: leave fp16 out"
            )
