"""What the operator chose, checked once at start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serving.errors import StartError


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve. Raises `StartError` when a value makes no sense.

    `models` is a model repository, `<models>/<name>/<version>/`. Port 0 takes any free port. `max_batch_size` is the
    most rows one run of a graph gets; `max_queue_items` the most that wait for each graph; `max_request_items` the
    most items a call, where a model's size does not ask for fewer; `drain_s` how long calls may take after SIGTERM.
    """

    models: Path
    host: str = "127.0.0.1"
    port: int = 50051
    metrics_port: int = 9464
    device: str = "auto"
    max_batch_size: int = 64
    max_queue_items: int = 4096
    max_request_items: int = 1024
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            self._check(name, 0, 65535)
        self._check("max_batch_size", 1, 4096)
        self._check("max_request_items", 1, 1 << 20)
        self._check("max_queue_items", self.max_request_items, 1 << 24)
        self._check("drain_s", 0, 3600)

    def _check(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise StartError(f"--{name.replace('_', '-')}: got {value}, wanted {low} to {high}")
