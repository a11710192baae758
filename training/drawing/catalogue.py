"""The pictures that there are: what each is called, what it needs, and how it is made."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.drawing import animation, latent_space, manifold, sheets
from training.drawing.canvas import gif, png
from training.drawing.curves import learning_curves
from training.drawing.subject import Subject
from training.errors import ConfigError

_NO_SNAPSHOTS = "the run kept no weights to look back at: train with `snapshots = true` in [run]"
_NO_IMAGES = "needs images: add --data PATH"


@dataclass(frozen=True, slots=True)
class Picture:
    """`draw` makes the file's bytes; `lacks` says what of the subject is missing for it, or nothing."""

    name: str
    suffix: str
    draw: Callable[[Subject], bytes]
    lacks: Callable[[Subject], str]

    @property
    def file(self) -> str:
        return self.name + self.suffix


def catalogue() -> list[Picture]:
    """All pictures, in the order in which they are drawn."""
    return [
        Picture("reconstructions", ".png", lambda it: png(sheets.reconstructions(it)), _images),
        Picture("samples", ".png", lambda it: png(sheets.samples(it)), lambda it: ""),
        Picture("prior-samples", ".png", lambda it: png(sheets.prior_samples(it)), _prior),
        Picture("interpolations", ".png", lambda it: png(sheets.interpolations(it)), _images),
        Picture("traversals", ".png", lambda it: png(sheets.traversals(it)), _images),
        Picture("classes", ".png", lambda it: png(sheets.classes(it)), _classes),
        Picture("style-transfer", ".png", lambda it: png(sheets.style_transfer(it)), _first(_classes, _images)),
        Picture("scatter", ".png", lambda it: png(latent_space.scatter(it)), _first(_plane, _images)),
        Picture("manifold", ".png", lambda it: png(manifold.manifold(it)), _plane),
        Picture(
            "manifold-animation", ".gif", lambda it: gif(animation.manifold_frames(it)), _first(_plane, _snapshots)
        ),
        Picture("scatter-animation", ".gif", lambda it: gif(animation.scatter_frames(it)), _first(_plane, _snapshots)),
        Picture("curves", ".png", _curves, _log),
    ]


def chosen(names: Sequence[str]) -> list[Picture]:
    """The pictures of these names; raises `ConfigError` with the nearest for a name that there is not."""
    known = {picture.name: picture for picture in catalogue()}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            rest = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"--only: got {name or 'nothing'}, wanted one of {', '.join(known)}{rest}")
    return [known[name] for name in dict.fromkeys(names)]


def _first(*checks: Callable[[Subject], str]) -> Callable[[Subject], str]:
    """What the first check that fails says."""
    return lambda subject: next((said for check in checks if (said := check(subject))), "")


def _images(subject: Subject) -> str:
    return _NO_IMAGES if subject.pixels is None else ""


def _plane(subject: Subject) -> str:
    got = subject.latent_dim
    return "" if got == 2 else f"needs a model with 2 latents, this one has {got}"


def _classes(subject: Subject) -> str:
    return "" if subject.classes else "needs a conditional model, this one knows no classes"


def _prior(subject: Subject) -> str:
    return "" if subject.draw_prior else "the model has no prior but N(0, I)"


def _snapshots(subject: Subject) -> str:
    return "" if subject.snapshots else _NO_SNAPSHOTS


def _log(subject: Subject) -> str:
    return "" if subject.log else "needs a run's log; a model folder has none"


def _curves(subject: Subject) -> bytes:
    assert subject.log is not None  # noqa: S101 - `_log` has asked
    return png(learning_curves(subject.log))
