"""`latentry serve` with its later stages cut off: what it costs less is what they cost.

    python -m benchmarks.stage_server LEVEL FLAGS OF latentry serve ...

LEVEL says which part answers Decode at once, from the first call on: `decode` (the call itself: what is left is gRPC,
the interceptor, parsing and serialising), `queue` (the batcher), `graph` (ONNX Runtime), or `whole` (nothing is cut
off). For Decode of one latent to one image of 28x28 as uint8, in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from latentry import cli
from latentry.v1 import vae_pb2 as pb
from serving import engine
from serving.api.servicer import VaeServicer
from serving.batcher import Batcher

LEVELS = ("decode", "queue", "graph", "whole")
_IMAGES = np.zeros((4096, 28, 28, 1), np.uint8)
_REPLY = pb.DecodeResponse(
    model=pb.ModelRef(name="bench", version=1, digest="0" * 64),
    images=pb.Images(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[1, 28, 28, 1], data=bytes(784))),
    provenance=pb.Provenance(provider="CPUExecutionProvider", precision="fp32", timings=pb.Timings(queue_s=0.001)),
)


def cut(level: str) -> Callable[[], None]:
    """Put the shortened parts in place; what is returned switches them on. Until then, models are loaded and tried."""
    on = SimpleNamespace(yes=False)
    decode, submit, run = VaeServicer.Decode, Batcher.submit, engine.Graph.run

    def decode_first(self: VaeServicer, request: Any, context: Any) -> Any:
        on.yes = True
        return _at_once() if level == "decode" else decode(self, request, context)

    async def submit_nothing(self: Batcher, rows: Any, outputs: frozenset[str], *more: Any, **others: Any) -> Any:
        if not on.yes:
            return await submit(self, rows, outputs, *more, **others)
        return {name: _IMAGES[: len(rows)] for name in outputs}

    def run_nothing(self: engine.Graph, rows: Any, outputs: frozenset[str]) -> Any:
        return {name: _IMAGES[: len(rows)] for name in outputs} if on.yes else run(self, rows, outputs)

    VaeServicer.Decode = decode_first  # type: ignore[method-assign]
    if level == "queue":
        Batcher.submit = submit_nothing  # type: ignore[method-assign]
    if level == "graph":
        engine.Graph.run = run_nothing  # type: ignore[method-assign]
    return lambda: setattr(on, "yes", True)


async def _at_once() -> pb.DecodeResponse:
    return _REPLY


def main() -> int:
    """Serve."""
    level, *flags = sys.argv[1:]
    if level not in LEVELS:
        sys.exit(f"level: got {level}, wanted one of {', '.join(LEVELS)}")
    cut(level)
    return cli.main(["serve", *flags])


if __name__ == "__main__":
    sys.exit(main())
