"""Learning curves, from the JSON-lines log of a run. Knows nothing of models."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NATS = ("elbo", "reconstruction", "kl")
_COLOURS = {
    "elbo": "#332288",
    "reconstruction": "#CC6677",
    "kl": "#117733",
    "beta": "#882255",
    "learning_rate": "#666666",
}
_UNITS = {"beta": "β, the KL's weight", "learning_rate": "learning rate"}
_PANELS = (("elbo", "reconstruction"), ("kl",), ("beta",), ("learning_rate",))

Event = dict[str, Any]


def read_events(log: Path) -> list[Event]:
    """The log's events; a figure that was not finite, which JSON has as null, is NaN. Damaged lines are passed over."""
    events = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            events.append({name: math.nan if value is None else value for name, value in event.items()})
    return events


def learning_curves(log: Path) -> Figure:
    """ELBO and reconstruction, KL, beta and learning rate against the step, and the held-out figures of each epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and seldom needed
    from matplotlib.figure import Figure

    events = read_events(log)
    steps = [event for event in events if event.get("event") == "step"]
    epochs = [event for event in events if event.get("event") == "epoch"]
    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, names in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for name in names:
            _curve(axes, name, steps, epochs)
        if names[0] in _NATS:
            _hold(
                axes,
                [event[name] for name in names for event in (*steps[len(steps) // 50 :], *epochs) if name in event],
            )
            if axes.lines:
                axes.legend(fontsize=8)
        axes.set(xlabel="step", ylabel=_UNITS.get(names[0], "nats per image"))
        axes.grid(alpha=0.3)
    return figure


def _curve(axes: Axes, name: str, steps: Sequence[Event], epochs: Sequence[Event]) -> None:
    """A line for training, smoothed where it is noisy, and a dot for each epoch's held-out images."""
    taken = [(event["step"], event[name]) for event in steps if name in event]
    held_out = [(event["step"], event[name]) for event in epochs if name in event]
    if taken:
        at, values = zip(*taken, strict=True)
        line = smooth(values) if name in _NATS else np.asarray(values)
        axes.plot(at, line, color=_COLOURS[name], linewidth=1.2, label=f"{name}, training")
    if held_out and name in _NATS:
        at, values = zip(*held_out, strict=True)
        axes.plot(at, values, "o", color=_COLOURS[name], markersize=3.5, label=f"{name}, held out")


def _hold(axes: Axes, values: Sequence[float]) -> None:
    """Let the axis hold these values: those of the first steps would flatten all others."""
    late = np.asarray(values, np.float64)
    late = late[np.isfinite(late)]
    if len(late):
        margin = 0.1 * np.ptp(late) + 1
        axes.set_ylim(late.min() - margin, late.max() + margin)


def smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean over a window of a hundredth of the curve, which ends at each point."""
    window = max(1, len(values) // 100)
    padded = np.pad(np.asarray(values, np.float64), (window - 1, 0), mode="edge")
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")
