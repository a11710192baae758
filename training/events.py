"""Where a run's figures go: the JSON-lines log, TensorBoard, and a progress bar (or a line now and then)."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.errors import RunError
from training.figures import Grid
from training.progress import say

_BOARD_EVERY = 10  # steps
_LINE_EVERY_S = 15.0

Figures = Mapping[str, float]


class EventLog:
    """RUN/log.jsonl: one object a line, `{"event": "step", "step": 12, ...}`.

    A checkpoint holds the log's length; a run that resumes from it cuts the log back to that `position`, so that no
    step is there twice.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        self._path = path
        with _disk(path):
            length = path.stat().st_size if path.exists() else 0
            if length < position:
                raise RunError(f"{path}: got {length} bytes, wanted the {position} that the checkpoint knows of")
            if length > position:
                os.truncate(path, position)
            self._file = path.open("ab")

    def write(self, event: str, figures: Figures) -> None:
        """Add a line; raises `RunError` if the disk is full."""
        line = json.dumps({"event": event, **{name: _finite(value) for name, value in figures.items()}}) + "\n"
        with _disk(self._path):
            self._file.write(line.encode())
            self._file.flush()

    def sync(self) -> int:
        """Put all lines on the disk and return the log's length in bytes."""
        with _disk(self._path):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        with _disk(self._path):
            self._file.close()


class Board:
    """RUN/tensorboard: scalars every few steps and each epoch, and grids of images each epoch."""

    def __init__(self, folder: Path, step: int) -> None:
        # what a broken-off run wrote after `step` is hidden, because the resumed run writes it again
        self._folder = folder
        with _disk(folder):
            self._writer = SummaryWriter(str(folder), purge_step=step or None)

    def step(self, step: int, figures: Figures) -> None:
        """Add a training step's figures, if it is the turn of this step."""
        if step % _BOARD_EVERY == 0:
            self._scalars("training", step, figures)

    def epoch(self, step: int, figures: Figures, grids: Mapping[str, Grid]) -> None:
        """Add the held-out figures and the pictures of an epoch."""
        self._scalars("held_out", step, figures)
        with _disk(self._folder):
            for name, grid in grids.items():
                self._writer.add_image(name, grid, step, dataformats="HWC")

    def close(self) -> None:
        with _disk(self._folder):
            self._writer.close()

    def _scalars(self, group: str, step: int, figures: Figures) -> None:
        with _disk(self._folder):
            for name, value in figures.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)


class Progress:
    """A bar on a terminal; elsewhere a line every quarter of a minute. Both go to stderr."""

    def __init__(self, step: int, steps: int) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(initial=step, total=steps, unit=" steps", disable=not self._terminal, dynamic_ncols=True)
        self._last_line_s = time.monotonic()
        self._steps = steps

    def step(self, step: int, figures: Figures, seconds_left: float) -> None:
        """Show a training step."""
        text = _in_words(figures)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
        if not self._terminal and time.monotonic() - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            say(f"step {step}/{self._steps}, {text}, {tqdm.format_interval(seconds_left)} left")

    def close(self) -> None:
        self._bar.close()


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Says of a full or read-only disk which file met it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error


def _in_words(figures: Figures) -> str:
    known = [name for name in ("elbo", "reconstruction", "kl") if math.isfinite(figures[name])] or ["loss"]
    nats = ", ".join(f"{name} {figures[name]:.1f}" for name in known)
    return f"{nats} nats, {figures['images_per_s']:.0f} images/s"


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: such a figure is null. All others keep every digit."""
    return value if math.isfinite(value) else None
