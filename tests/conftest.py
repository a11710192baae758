"""What the tests share: folders of models, real servers on free ports, real images."""

from __future__ import annotations

import asyncio
import gc
import gzip
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import linear_model
import numpy as np
import pytest
from linear_model import LinearModel
from server_process import free_ports
from split_service import service_of

from latentry import streams, target
from latentry.v1 import vae_pb2_grpc
from serving.server import Service
from serving.settings import Settings

# Two busy processes with two OpenMP threads each crawl on two cores: their barriers wait for the scheduler.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, later than this

# Tests started in the background ignore SIGINT, and so would the processes that they start to be stopped by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Some millions of objects of torch, ONNX and the tests themselves are here to stay. Python's collector looks through
# all of them again and again, which took a third of the time: more seldom from now on, and not at all at those that
# collecting the tests has left (`pytest_collection_finish`).
gc.set_threshold(10_000, 20, 50)

ROOT = Path(__file__).resolve().parent.parent
FASHION = ROOT / "data" / "fashion-mnist"

# What finds more the longer it looks (fuzzing, soaking, drawn examples) looks briefly, unless this is set.
LONG = os.environ.get("LATENTRY_LONG_TESTS", "") not in ("", "0")


def pytest_collection_finish() -> None:
    """Leave what was imported to itself: see above."""
    gc.collect()
    gc.freeze()


@contextmanager
def running_service(settings: Settings) -> Iterator[Service]:
    """A service in this process, its event loop in a thread; drained at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="service")
    thread.start()

    def wait(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    async def make() -> Service:
        return service_of(settings)

    try:
        service = wait(make())
        try:
            wait(service.start())
            yield service
        finally:
            wait(service.stop())
    finally:
        wait(_end_tasks())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end_tasks() -> None:
    """Calls that were cut short have clearing up to do; as `asyncio.run`, which does this, ends its loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def settings_for(repository: Path, **changes: Any) -> Settings:
    """Settings on free ports."""
    return Settings(
        **{
            "models": repository,
            "port": 0,
            "metrics_port": 0,
            "device": "cpu",
            "drain_s": 5.0,
            "reload_s": 0,
            "reconstruct_share": 0,
            **changes,
        }
    )


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    """A linear VAE in a repository of its own."""
    return linear_model.write(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def linear_repository(linear: LinearModel) -> Path:
    return linear.folder.parent.parent


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    """Start services that are drained when the test ends: `serve(repository, **settings)`."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda repository, **changes: stack.enter_context(running_service(settings_for(repository, **changes)))


@pytest.fixture(scope="session")
def linear_service(linear_repository: Path) -> Iterator[Service]:
    """One service of the linear model for all tests that only call it."""
    with running_service(settings_for(linear_repository)) as service:
        yield service


@pytest.fixture
def stub(linear_service: Service) -> Iterator[Any]:
    """A bare stub to the linear model's service."""
    with grpc.insecure_channel(f"localhost:{linear_service.port}") as channel:
        yield vae_pb2_grpc.VaeServiceStub(channel)


@pytest.fixture(scope="session")
def fashion_images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The 10,000 real images that come with the repository, uint8 [N, 28, 28, 1]."""
    raw = gzip.decompress((FASHION / "t10k-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28, 1)


@pytest.fixture(scope="session")
def fashion_labels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Their classes, uint8 [N]."""
    raw = gzip.decompress((FASHION / "t10k-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=8)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that LATENTRY_DATA names, with mnist/, fashion-mnist/ and lfw64/."""
    folder = os.environ.get("LATENTRY_DATA")
    if not folder:
        pytest.skip("LATENTRY_DATA is not set")
    return Path(folder)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that try as often as ever, but hardly pause in between: for servers that the last try finds no better."""
    method = target.RETRY["methodConfig"][0]
    monkeypatch.setitem(method["retryPolicy"], "maxBackoff", "0.01s")
    monkeypatch.setattr(streams, "MAX_PAUSE_S", 0.01)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without the curve that is drawn after each epoch, which takes longer than a small one's steps."""
    monkeypatch.setattr("training.figures.write_training_curve", lambda log, path: None)


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on."""
    return free_ports(1)[0]
