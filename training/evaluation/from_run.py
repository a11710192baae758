"""A run's newest checkpoint as graphs in memory, to be measured as its exported model will be.

The export's gate, card and pictures, and its pass over all training images, cost more than this, and are left to it.
"""

from __future__ import annotations

from latentry.manifest import DECODER_FILE, ENCODER_FILE, PRIOR_FILE, Likelihood, Manifest
from training import graphs, prior_graphs
from training.precision import fp32
from training.trained import Trained

_NAME, _VERSION = "run", 1
_NO_DIGEST = "0" * 64


def in_memory(source: Trained) -> tuple[Manifest, dict[str, bytes]]:
    """What of the manifest can be said without measuring anything, and the graphs by file name."""
    source.model.cpu()
    density, likelihood = prior_graphs.of(source), source.model.likelihood
    about = Manifest(
        _NAME,
        _VERSION,
        source.dataset.image_shape,
        source.config.model.latent_dim,
        Likelihood(likelihood.name, likelihood.parameters_by_name()),
        dict.fromkeys((ENCODER_FILE, DECODER_FILE, PRIOR_FILE), _NO_DIGEST),
        classes=source.model.classes,
        prior=None if density is None else density.about,
    )
    return about, fp32.graph_files(*graphs.wrapped(source.model), density, about)
