"""Latentry: train convolutional VAEs, export them as ONNX, serve them over gRPC. This package is the client and the
contract; `Client` and its kin load when they are first named, so that reading a manifest loads no gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentry.client import AsyncClient, Client, LatentryError
    from latentry.pictures import Pictures, Posterior, grid

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "LatentryError", "Pictures", "Posterior", "__version__", "grid"]


_HOMES = {
    **dict.fromkeys(("AsyncClient", "Client", "LatentryError"), "latentry.client"),
    **dict.fromkeys(("Pictures", "Posterior", "grid"), "latentry.pictures"),
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'latentry' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
