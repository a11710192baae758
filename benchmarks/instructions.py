"""How many Python instructions a service executes for a call: the same number every time, on any machine.

Counts the bytecode that this process's service runs in its own threads (event loop, devices), one call at a time; not
what C, Cython or ONNX Runtime do inside one instruction. Depends on Python's minor version and on those of libraries.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks import bench_models, bodies
from latentry.v1 import vae_pb2 as pb
from serving.server import Service
from serving.settings import Settings

_SETTLE_S = 0.02  # for what a call leaves to do after its reply
_WARM = 10
REQUESTS: Mapping[str, Callable[[], Any]] = {
    "Decode of 1": lambda: pb.DecodeRequest.FromString(bodies.decode(1)),
    "Decode of 64": lambda: pb.DecodeRequest.FromString(bodies.decode(64)),
    "Sample of 1": lambda: pb.SampleRequest(count=1, seed=1),
    "Encode of 1": lambda: pb.EncodeRequest(images=_uint8_images(1)),
}


def measure(calls: int = 40, batches: int = 5) -> dict[str, float]:
    """Instructions a call by what is called: the least of so many batches, as timers and collections only add."""
    counter = Counter()
    with (
        tempfile.TemporaryDirectory() as place,
        _service(Path(place), counter) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        return {name: _least(channel, name, counter, calls, batches) for name in REQUESTS}


def _least(channel: grpc.Channel, name: str, counter: Counter, calls: int, batches: int) -> float:
    request = REQUESTS[name]().SerializeToString()
    call = channel.unary_unary(bodies.SERVICE + name.split()[0], None, None)
    counts = []
    for number in range(batches + 1):
        time.sleep(_SETTLE_S)
        before = counter.count
        for _ in range(calls if number else _WARM):
            call(request)
        time.sleep(_SETTLE_S)
        counts.append((counter.count - before) / calls)
    return min(counts[1:])


class Counter:
    """Counts in the threads that start while it is in place."""

    def __init__(self) -> None:
        self.count = 0
        self._threads: set[int] = set()

    @contextlib.contextmanager
    def in_new_threads(self) -> Iterator[None]:
        """Threads that `threading` starts within the block are counted as long as they live."""
        if sys.version_info >= (3, 12):
            yield from self._monitoring()
            return
        threading.settrace(self._trace)
        try:
            yield
        finally:
            threading.settrace(None)

    def _trace(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.count += 1
        elif event == "call":
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        return self._trace

    def _monitoring(self) -> Iterator[None]:
        """From 3.12 on: for the whole process at once, so that the threads have to be told apart."""
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        tool = monitoring.PROFILER_ID

        def one(code: Any, offset: int) -> None:
            if threading.get_ident() in self._threads:
                self.count += 1

        threading.setprofile(lambda *_: self._threads.add(threading.get_ident()))
        monitoring.use_tool_id(tool, "latentry benchmark")
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, one)
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        try:
            yield
        finally:
            threading.setprofile(None)

    def end(self) -> None:
        """Count no more."""
        if sys.version_info >= (3, 12):
            monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
            monitoring.set_events(monitoring.PROFILER_ID, 0)
            monitoring.free_tool_id(monitoring.PROFILER_ID)


@contextlib.contextmanager
def _service(place: Path, counter: Counter) -> Iterator[int]:
    """A service of the small model, its loop in a thread of this process; its port."""
    bench_models.write(place, "linear")
    settings = Settings(
        models=place, port=0, metrics_port=0, device="cpu", threads=1, reload_s=0, reconstruct_share=0, drain_s=1.0
    )
    loop = _new_loop()

    def wait(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    async def make() -> Service:
        return Service(settings)

    with counter.in_new_threads():
        thread = threading.Thread(target=loop.run_forever, name="service")
        thread.start()
        service = wait(make())
        wait(service.start())
    try:
        yield service.port
    finally:
        counter.end()
        wait(service.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    """As `latentry serve` runs on."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _uint8_images(count: int) -> pb.Images:
    images = np.zeros((count, 28, 28, 1), np.uint8)
    return pb.Images(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=images.shape, data=images.tobytes()))
