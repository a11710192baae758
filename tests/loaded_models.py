"""Models as the service has them, behind their queues, without a service: for tests of what is between the two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from conftest import settings_for

from serving import engine, loading
from serving.devices import CPU, Device
from serving.loading import Loader
from serving.metrics import Metrics
from serving.model import Model
from serving.pool import Pool


@asynccontextmanager
async def loaded(
    folder: Path, *, buckets: Sequence[int] = (), metrics: Metrics | None = None, **settings: Any
) -> AsyncIterator[Model]:
    """The model of a folder, warm, on the CPU; with `buckets` as on a device on which rows are padded to them."""
    pool = Pool(1)
    configured = settings_for(folder.parent.parent, **settings)
    loader = Loader(configured, [Device(CPU)], pool, metrics or Metrics(), lambda: None)
    padded = partial(_load_graphs, tuple(buckets))
    try:
        with patch.object(loading, "load_graphs", padded):
            model = await loader.load(folder, rehearsed=False)
        try:
            yield model
        finally:
            assert await model.retire(5)
    finally:
        loader.close()
        pool.close()


def _load_graphs(buckets: Sequence[int], folder: Any, device: Device, _: Any, precision: str) -> dict[str, Any]:
    return engine.load_graphs(folder, device, buckets, precision)
