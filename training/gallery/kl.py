"""What the KL does: reconstruction alone, the KL alone, and both; and why the noise is drawn outside the network."""

from __future__ import annotations

import numpy as np

from training.drawing.canvas import png
from training.drawing.latent_space import draws, panels
from training.drawing.subject import encoded
from training.gallery.gaps import VAE_2
from training.gallery.workshop import Changes, Chapter, Workshop

_NO_RECONSTRUCTION = 1e6  # against this weight of the KL the reconstruction counts for nothing
_DRAWS = 200_000


def three_panels(workshop: Workshop) -> Chapter:
    """Draws of q(z|x) of three models that differ in their objective alone."""
    runs: dict[str, tuple[str, Changes]] = {
        "reconstruction": ("reconstruction only (β = 0)", {"model": {"latent_dim": 2}, "objective": {"beta": 0.0}}),
        "kl": ("KL only", {"model": {"latent_dim": 2}, "objective": {"beta": _NO_RECONSTRUCTION}}),
        "both": ("both: the ELBO (β = 1)", VAE_2),
    }
    numbers: dict[str, float] = {}
    charts, class_names = [], tuple[str, ...]()
    for name, (title, changes) in runs.items():
        run = "vae-2" if name == "both" else f"only-{name}"
        subject = workshop.subject(run, changes, 40)
        seen, scores = encoded(subject), workshop.scores(run)
        charts.append((title, draws(seen)))
        class_names = subject.class_names
        numbers |= {
            f"panels_{name}_spread": float(seen.spread.mean()),
            f"panels_{name}_noise": float(np.exp(0.5 * seen.logvar).mean()),
            f"panels_{name}_kl": scores["kl"],
            f"panels_{name}_psnr": scores["psnr_db"],
        }
    return Chapter(numbers, {"three-panels.png": png(panels(charts, class_names))})


def gradients() -> Chapter:
    """Two unbiased estimates of d/dµ E[z²] with z from N(µ, 1), at µ = 1: each draw's mean and variance.

    The gradient is 2; the variances are 4 (of 2z) and 30 (of z²(z - µ)), by the normal distribution's moments.
    """
    mean = 1.0
    z = mean + np.random.default_rng(0).standard_normal(_DRAWS)
    through_the_draw, by_the_score = 2 * z, z**2 * (z - mean)
    return Chapter(
        {
            "gradients_path_mean": float(through_the_draw.mean()),
            "gradients_path_variance": float(through_the_draw.var()),
            "gradients_score_mean": float(by_the_score.mean()),
            "gradients_score_variance": float(by_the_score.var()),
        }
    )
