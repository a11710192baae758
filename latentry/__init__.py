"""Latentry: train convolutional VAEs, export them as ONNX, serve them over gRPC. This package is the client and the
contract; `Client` and its kin load when they are first named, so that reading a manifest loads no gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentry.async_client import AsyncClient
    from latentry.client import Client
    from latentry.pictures import Edited, Pictures, Posterior, Reconstruction, grid
    from latentry.target import LatentryError

__version__ = "0.2.0"
__all__ = [
    "AsyncClient",
    "Client",
    "Edited",
    "LatentryError",
    "Pictures",
    "Posterior",
    "Reconstruction",
    "__version__",
    "grid",
]


_HOMES = {
    "AsyncClient": "latentry.async_client",
    "Client": "latentry.client",
    "LatentryError": "latentry.target",
    **dict.fromkeys(("Edited", "Pictures", "Posterior", "Reconstruction", "grid"), "latentry.pictures"),
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'latentry' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
