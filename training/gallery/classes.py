"""A conditional VAE: images of a wanted class, and an image's style in another class."""

from __future__ import annotations

import numpy as np

from training.drawing import sheets
from training.drawing.canvas import png
from training.drawing.sheets import normal_latents
from training.drawing.subject import decode_all
from training.gallery.judge import Judge
from training.gallery.workshop import Chapter, Workshop

_LATENTS = 10
_EPOCHS = 30
_DRAWS = 1000


def conditional(workshop: Workshop, judge: Judge) -> Chapter:
    """How often the classifier sees the class that was asked for."""
    changes = {"model": {"latent_dim": _LATENTS, "conditional": True}}
    subject = workshop.subject("conditional-10", changes, _EPOCHS)
    assert subject.pixels is not None  # noqa: S101
    assert subject.labels is not None  # noqa: S101
    wanted = np.arange(_DRAWS, dtype=np.int64) % subject.classes
    drawn = decode_all(subject, normal_latents(_DRAWS, _LATENTS), wanted)
    z = subject.encode(subject.pixels, subject.labels)[0]
    others = (subject.labels + 1 + np.arange(len(z)) % (subject.classes - 1)) % subject.classes
    changed = decode_all(subject, z, others)
    numbers = {
        "classes_wanted_share": judge.agreement(drawn, wanted),
        "classes_changed_share": judge.agreement(changed, others),
        "classes_real_share": judge.agreement(subject.pixels, subject.labels),
    }
    pictures = {"classes.png": png(sheets.classes(subject)), "style.png": png(sheets.style_transfer(subject))}
    return Chapter(numbers, pictures)
