"""A conditional VAE: images of a wanted class, and an image's style in another class."""

from __future__ import annotations

import numpy as np

from training.drawing import sheets
from training.drawing.canvas import png
from training.drawing.sheets import normal_latents
from training.drawing.subject import Subject, decode_all
from training.gallery.judge import Judge
from training.gallery.workshop import Changes, Chapter, Workshop

_LATENTS = 10
_EPOCHS = 30
_DRAWS = 1000
_MODEL = {"latent_dim": _LATENTS, "conditional": True}
_DEAF: Changes = {"model": _MODEL}  # its latents say the class, which costs them little among all else
_TOLD: Changes = {"model": _MODEL, "objective": {"likelihood": "bernoulli", "beta": 3.0}}


def conditional(workshop: Workshop, judge: Judge) -> Chapter:
    """How often the classifier sees the class that was asked for, of two models."""
    told = workshop.subject("conditional-10", _TOLD, 3 * _EPOCHS)
    deaf = workshop.subject("conditional-deaf-10", _DEAF, _EPOCHS)
    test = workshop.dataset.test
    assert test.labels is not None  # noqa: S101
    numbers = {
        "classes_real_share": judge.agreement(test.pixels, test.labels),
        **_seen(told, judge, "classes"),
        **_seen(deaf, judge, "classes_deaf"),
    }
    pictures = {"classes.png": png(sheets.classes(told)), "style.png": png(sheets.style_transfer(told))}
    return Chapter(numbers, pictures)


def _seen(subject: Subject, judge: Judge, name: str) -> dict[str, float]:
    """The share of draws of a wanted class, and of images whose class was changed, that the classifier agrees with."""
    assert subject.pixels is not None  # noqa: S101
    assert subject.labels is not None  # noqa: S101
    wanted = np.arange(_DRAWS, dtype=np.int64) % subject.classes
    drawn = decode_all(subject, normal_latents(_DRAWS, _LATENTS), wanted)
    z = subject.encode(subject.pixels, subject.labels)[0]
    others = (subject.labels + 1 + np.arange(len(z)) % (subject.classes - 1)) % subject.classes
    changed = decode_all(subject, z, others)
    return {
        f"{name}_wanted_share": judge.agreement(drawn, wanted),
        f"{name}_changed_share": judge.agreement(changed, others),
    }
