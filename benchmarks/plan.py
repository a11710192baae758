"""What every section of `benchmarks.serving` is given: where it may write, how often and how long it measures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import bench_models, children


@dataclass(frozen=True, slots=True)
class Plan:
    """`place` is a folder for models and requests, `seconds` the length of one measurement, `peers` the folder that has
    the other servers' environments, if they are to be measured."""

    place: Path
    rounds: int = 3
    seconds: float = 2.0
    peers: Path | None = None

    def repository(self, kind: str) -> Path:
        """A repository with one model of this kind of `bench_models`, called `bench`."""
        repository = self.place / f"{kind}-models"
        if not repository.exists():
            bench_models.write(repository, kind)
        return repository

    def decoder(self, kind: str = "conv") -> Path:
        """Its decoder."""
        return self.repository(kind) / "bench" / "1" / "decoder.onnx"

    @contextlib.contextmanager
    def latentry(self, repository: Path, *flags: str) -> Iterator[tuple[children.Child, int, float]]:
        """`latentry serve`, ready: the process, its port, and the seconds that it took to be ready."""
        port, metrics_port = children.free_port(), children.free_port()
        with children.running(children.latentry(repository, port, metrics_port, *flags)) as child:
            yield child, port, child.wait(partial(children.is_ready, metrics_port))

    @contextlib.contextmanager
    def echo(self, *flags: str) -> Iterator[int]:
        """The echo server; its port."""
        port = children.free_port()
        with children.running(children.Child(children.python("benchmarks.echo_server", port, *flags))) as child:
            child.wait(partial(children.listens, port))
            yield port
