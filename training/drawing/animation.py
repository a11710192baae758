"""How the manifold and the latents of a model with two of them came to be: a frame for each snapshot of the run."""

from __future__ import annotations

from PIL import Image

from training.drawing import latent_space, manifold
from training.drawing.canvas import captioned, new_figure, one_axes, rendered
from training.drawing.subject import Subject, encoded

_MOST_PIXELS = 420  # of a side: the files stay small
_SIDE = 12  # fewer cells than the still picture, so that the file stays small


def manifold_frames(subject: Subject) -> list[Image.Image]:
    """The manifold at each snapshot."""
    frames = []
    for snapshot in subject.snapshots:
        picture = manifold.manifold(snapshot.open(), _SIDE)
        picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
        frames.append(captioned(picture, f"epoch {snapshot.epoch}"))
    return frames


def scatter_frames(subject: Subject) -> list[Image.Image]:
    """The encoded means at each snapshot, on the same axes in all frames."""
    points = [latent_space.means(encoded(snapshot.open())) for snapshot in subject.snapshots]
    reach = latent_space.limit(points[-1:])
    frames = []
    for snapshot, here in zip(subject.snapshots, points, strict=True):
        figure = new_figure(4.6, 4.6)
        axes = one_axes(figure)
        latent_space.plot(axes, here, subject.class_names, reach)
        axes.set_title(f"epoch {snapshot.epoch}", fontsize=11, loc="left")
        frames.append(rendered(figure))
    return frames
