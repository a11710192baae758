"""From a model folder to a model that is warm: read, verify, rehearse, load, warm.

Everything that takes long happens where calls do not wait for it: reading and loading in a thread of its own, the
rehearsal in a process of its own, warming in the devices' threads, one batch size at a time between batches.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from latentry import manifest, onnx_file
from latentry.manifest import Manifest, ModelFolder, graph_file
from serving import freed, precisions
from serving.bad_graph import BadGraph
from serving.batcher import Batcher
from serving.batches import Room, Run
from serving.devices import Device
from serving.drift import Drift, Reconstruction
from serving.engine import Graph, load_graphs, served
from serving.metrics import GraphMetrics, Metrics
from serving.model import DECODER, Limits, Model, limits_of
from serving.pool import Pool
from serving.ports import PARAMETERS
from serving.rehearsal import rehearse
from serving.settings import Settings

T = TypeVar("T")
Graphs = Mapping[str, Sequence[Graph]]  # by kind, as `served` has them, one for each device


class Loader:
    """Loads models for the devices of `pool`. `changed` is called when an engine goes down or comes back."""

    def __init__(
        self,
        settings: Settings,
        devices: Sequence[Device],
        pool: Pool,
        metrics: Metrics,
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._devices = devices
        self._pool = pool
        self._metrics = metrics
        self._changed = changed
        self._room = Room(settings.max_queue_items)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="latentry-loader")

    async def load(self, folder: Path, *, rehearsed: bool, max_message_bytes: int | None = None) -> Model:
        """The model in `folder`, warm; `rehearsed` tries it in another process first.

        Raises `ValueError` (`ManifestError`, `BadGraph`, `RehearsalFailed`) if it cannot be served, or if it needs
        messages of more than `max_message_bytes`.
        """
        started = time.perf_counter()
        whole = await self._in_thread(partial(manifest.read, folder))
        limits = limits_of(whole.manifest, self._settings.max_request_items)
        if max_message_bytes is not None and limits.max_message_bytes > max_message_bytes:
            needs = f"needs messages of {limits.max_message_bytes} bytes"
            raise BadGraph(f"{needs}, more than the {max_message_bytes} that this server began with; restart it")
        if not rehearsed:  # parsing graphs holds the interpreter's lock: with calls to answer, the rehearsal does it
            await self._in_thread(partial(onnx_file.check_folder, whole))
        precision = precisions.choose(self._settings.precision, self._devices[0].provider, whole.manifest)
        whole = _without_others(whole, precision)
        if rehearsed:
            await rehearse(folder, self._settings.max_batch_size, whole.digest, precision=precision)
        graphs = await self._in_thread(partial(self._open, whole, precision))
        loaded = time.perf_counter()
        try:
            await self._warm(whole, graphs, precision)
        except BaseException:
            _close(graphs)
            raise
        whole = replace(whole, graphs={})
        await self._in_thread(freed.give_back)
        self._describe(whole, precision, loaded - started, time.perf_counter() - loaded)
        return self._compose(whole, limits, precision, graphs)

    def close(self) -> None:
        """End the thread; what it loads is waited for."""
        self._thread.shutdown(cancel_futures=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self, folder: ModelFolder, precision: str) -> Graphs:
        graphs: defaultdict[str, list[Graph]] = defaultdict(list)
        try:
            for device in self._devices:
                buckets = _powers_of_two(self._settings.max_batch_size) if device.is_gpu else ()
                for kind, graph in load_graphs(folder, device, buckets, precision).items():
                    graphs[kind].append(graph)
        except BaseException:
            _close(graphs)
            raise
        return graphs

    async def _warm(self, folder: ModelFolder, graphs: Graphs, precision: str) -> None:
        for kind, each in graphs.items():
            for device, graph in zip(self._pool.devices, each, strict=True):
                await self._warm_graph(device, graph, str(folder.path / graph_file(kind, precision)))

    async def _warm_graph(self, device: int, graph: Graph, name: str) -> None:
        try:
            for size in graph.warm_up_sizes(self._settings.max_batch_size):
                await self._pool.call(device, partial(graph.warm, size))
            await self._pool.call(device, graph.check_rows)
        except BadGraph as error:
            raise BadGraph(f"{name}: {error}") from error

    def _describe(self, folder: ModelFolder, precision: str, load_s: float, warmup_s: float) -> None:
        about, metrics = (folder.manifest.name, str(folder.manifest.version)), self._metrics
        metrics.load_seconds.labels(*about).set(load_s)
        metrics.warmup_seconds.labels(*about).set(warmup_s)
        metrics.model_info.remove_by_labels({"model": about[0], "version": about[1]})  # an older digest's
        metrics.model_info.labels(*about, folder.digest, self._devices[0].provider, precision).set(1)

    def _compose(self, folder: ModelFolder, limits: Limits, precision: str, graphs: Graphs) -> Model:
        name, version = folder.manifest.name, folder.manifest.version
        settings = self._settings
        rooms = (self._room, Room(max(1, int(settings.max_queue_items * settings.max_model_share))))
        batchers = {
            kind: Batcher(
                each,
                self._pool,
                _Observer(self._metrics.graph(name, version, kind), self._failed, self._changed),
                rooms=rooms,
                max_batch=settings.max_batch_size,
                max_delay_s=settings.max_queue_delay_ms / 1000,
            )
            for kind, each in graphs.items()
        }
        for kind, batcher in batchers.items():
            waiting = self._metrics.queue_items.labels(name, str(version), kind)
            waiting.set_function(partial(getattr, batcher, "rows_waiting"))
        drift, reconstruction = self._watchers(folder.manifest)
        decoder = graphs[DECODER][0]
        return Model(
            folder.manifest,
            folder.digest,
            limits,
            self._devices[0].provider,
            precision,
            batchers,
            partial(_close, graphs),
            parameters=decoder.outputs[PARAMETERS][1][-1] if PARAMETERS in decoder.outputs else 0,
            drift=drift,
            reconstruction=reconstruction,
        )

    def _watchers(self, about: Manifest) -> tuple[Drift | None, Reconstruction]:
        metrics, training = self._metrics, about.aggregate_posterior
        drifted = partial(metrics.drifted, about.name, about.version)
        reconstructed = partial(metrics.reconstructed, about.name, about.version)
        drift = None if training is None else Drift(training, drifted)
        return drift, Reconstruction(self._settings.reconstruct_share, reconstructed)

    def _failed(self, device: int) -> None:
        self._metrics.engine_restarts.labels(self._devices[device].name).inc()


class _Observer:
    """Takes what a batcher tells to the metrics, and an engine's fate to whoever reports health."""

    def __init__(self, metrics: GraphMetrics, failed: Callable[[int], None], changed: Callable[[], None]) -> None:
        self.ran: Callable[[Run, Sequence[float]], None] = metrics.ran
        self.failed = failed
        self._changed = changed

    def up(self, device: int, up: bool) -> None:
        self._changed()


def _without_others(folder: ModelFolder, precision: str) -> ModelFolder:
    """The folder without the graphs that are not served: loading goes on for long, and they may be large."""
    wanted = {graph_file(kind, precision) for kind in served(folder.manifest)}
    return replace(folder, graphs={file: data for file, data in folder.graphs.items() if file in wanted})


def _close(graphs: Graphs) -> None:
    for each in graphs.values():
        for graph in each:
            graph.close()


def _powers_of_two(top: int) -> list[int]:
    """1, 2, 4, ... and `top`."""
    return sorted({top, *(2**i for i in range(top.bit_length()) if 2**i < top)})
