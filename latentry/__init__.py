"""Latentry: train convolutional VAEs, export them as ONNX, serve them over gRPC. This package is the client and the
contract; `Client` and its kin load when they are first named, so that reading a manifest loads no gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentry.client import AsyncClient, Client, LatentryError
    from latentry.pictures import Pictures, Posterior, grid

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "LatentryError", "Pictures", "Posterior", "__version__", "grid"]


def __getattr__(name: str) -> Any:
    import importlib

    for module in ("latentry.client", "latentry.pictures"):
        if name in __all__:
            found = getattr(importlib.import_module(module), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module 'latentry' has no attribute {name!r}")
