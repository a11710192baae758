"""Why two latents are too few, and how a model of two came to be."""

from __future__ import annotations

import numpy as np

from training.drawing import animation, latent_space, manifold, sheets
from training.drawing.canvas import gif, labelled, png
from training.drawing.curves import learning_curves
from training.drawing.subject import decode_all
from training.gallery.gaps import VAE_2
from training.gallery.workshop import Chapter, Workshop

_SHOWN = 10
_RUNS = {2: ("vae-2", VAE_2, 40), 10: ("vae-10", {"model": {"latent_dim": 10}}, 30),
         32: ("vae-32", {"model": {"latent_dim": 32}}, 30)}  # fmt: skip


def sizes(workshop: Workshop) -> Chapter:
    """The same networks with 2, 10 and 32 latents."""
    test = workshop.dataset.test
    originals = test.pixels[:_SHOWN]
    rows, numbers = {"image": originals}, dict[str, float]()
    for latent_dim, (name, changes, epochs) in _RUNS.items():
        subject, scores = workshop.subject(name, changes, epochs), workshop.scores(name)
        rows[f"{latent_dim} latents"] = decode_all(subject, subject.encode(originals, None)[0])
        names = ("elbo", "reconstruction", "kl", "psnr_db", "active_units")
        numbers |= {f"sizes_{latent_dim}_{key}": scores[key] for key in names}
    return Chapter(numbers, {"sizes.png": png(labelled(np.concatenate(list(rows.values())), _SHOWN, list(rows)))})


def plane(workshop: Workshop) -> Chapter:
    """The model with two latents, still and while it learns; and the walks and latents of the one with ten."""
    two = workshop.subject("vae-2", VAE_2, 40)
    ten = workshop.subject(*_RUNS[10])
    assert two.log is not None  # noqa: S101 - a run has one
    return Chapter(
        {"plane_snapshots": len(two.snapshots)},
        {
            "scatter.png": png(latent_space.scatter(two)),
            "manifold.png": png(manifold.manifold(two)),
            "manifold.gif": gif(animation.manifold_frames(two)),
            "scatter.gif": gif(animation.scatter_frames(two)),
            "curves.png": png(learning_curves(two.log)),
            "samples.png": png(sheets.samples(ten)),
            "interpolations.png": png(sheets.interpolations(ten)),
            "traversals.png": png(sheets.traversals(ten)),
        },
    )
