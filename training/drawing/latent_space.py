"""The two-dimensional latent space as a chart: where the encoder puts each image, coloured by its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.drawing.canvas import PALETTE, new_figure, one_axes
from training.drawing.subject import Encoded, Labels, Latents, Subject, encoded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "o^sDvP"  # beyond the palette's colours they come again, with another mark
_SEED = 5
_APART = 0.7  # standard deviations of all points
_INSIDE = 0.995  # share of the points that the axes hold: one stray point must not shrink all others


@dataclass(frozen=True, slots=True)
class Points:
    """What a scatter shows: `latents` (N, 2), and a label (N,) for each if there are labels."""

    latents: Latents
    labels: Labels | None


def means(seen: Encoded) -> Points:
    """The posterior's mean of each image."""
    return Points(seen.mean, seen.labels)


def draws(seen: Encoded) -> Points:
    """One draw of q(z|x) for each image: the aggregate posterior, which the KL pulls towards N(0, I)."""
    if seen.are_points:
        return means(seen)
    noise = np.random.default_rng(_SEED).standard_normal(seen.mean.shape, np.float32)
    return Points(seen.mean + np.exp(0.5 * seen.logvar) * noise, seen.labels)


def limit(points: Sequence[Points]) -> float:
    """How far the axes must reach from 0, both ways, to hold nearly all points of all charts."""
    reach = np.abs(np.concatenate([each.latents for each in points])).max(1)
    return float(np.quantile(reach, _INSIDE)) * 1.08 + 1e-6


def scatter(subject: Subject) -> Figure:
    """The means of all held-out images."""
    points = means(encoded(subject))
    figure = new_figure(6.4, 6)
    plot(one_axes(figure), points, subject.class_names, limit([points]))
    return figure


def panels(charts: Sequence[tuple[str, Points]], class_names: Sequence[str]) -> Figure:
    """Charts side by side, each at a scale of its own, under its title."""
    figure = new_figure(4.4 * len(charts), 4.7)
    for axes, (title, points) in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        plot(axes, points, class_names, limit([points]))
        axes.set_title(title, fontsize=11)
    return figure


def plot(axes: Axes, points: Points, class_names: Sequence[str], reach: float) -> None:
    """A dot for each image; its class by colour, and by name at the middle of the class."""
    z, labels = points.latents, points.labels
    if labels is None:
        axes.plot(z[:, 0], z[:, 1], "o", color=PALETTE[0], markersize=2, alpha=0.6, markeredgewidth=0)
    else:
        for label in np.unique(labels):
            colour, marker = PALETTE[label % len(PALETTE)], _MARKERS[label // len(PALETTE) % len(_MARKERS)]
            here = z[labels == label]
            axes.plot(here[:, 0], here[:, 1], marker, color=colour, markersize=2.6, alpha=0.7, markeredgewidth=0)
        _name_classes(axes, z, labels, class_names)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="latent 0", ylabel="latent 1")
    axes.grid(alpha=0.25)


def _name_classes(axes: Axes, z: NDArray[np.float32], labels: Labels, class_names: Sequence[str]) -> None:
    from matplotlib.patheffects import withStroke

    names, found = dict(enumerate(class_names)), np.unique(labels)
    middles = np.array([np.median(z[labels == label], axis=0) for label in found])
    if np.ptp(middles, axis=0).max() < _APART * z.std():
        return  # all in one place: the names would hide each other
    for label, (x, y) in zip(found, middles, strict=True):
        text = axes.text(x, y, names.get(int(label), str(label)), fontsize=8, ha="center", va="center", clip_on=True)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
