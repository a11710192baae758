"""Which model made a result, how, and where the time went. Knows nothing of gRPC."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The model that answered: equal digests are equal models."""

    name: str
    version: int
    digest: str  # SHA-256 of its manifest, hexadecimal


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds in the server, summed over the calls that a result is made of. The parts need not sum up to the total."""

    queue_s: float  # its rows waited for a batch
    inference_s: float  # batches with rows of it ran
    codec_s: float  # its tensors and images were read and written
    total_s: float  # from a call's arrival until its reply was put together


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a result was made: with the model and the seed beside it, all that it takes to make it again."""

    provider: str  # ONNX Runtime's execution provider, such as "CUDAExecutionProvider"
    precision: str  # that encoder and decoder ran in: "fp32", "fp16", "bf16" or "int8"; several if replicas differ
    timings: Timings
