"""A model's own prior, learnt with it or fitted afterwards, as ONNX: prior.onnx and, if it is exact, density.onnx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from latentry import graph_notes
from latentry import manifest as manifests
from latentry.manifest import Manifest
from latentry.manifest import Prior as AboutPrior
from training import graphs, parity, prior
from training.trained import Trained

_SCORED = 10_000  # held-out images


@dataclass(frozen=True, slots=True, eq=False)
class PriorGraphs:
    """What the manifest says of the prior; its forward pass from noise to latents; and its log-density of latents,
    None if that has no closed form."""

    about: AboutPrior
    latents: nn.Module
    density: nn.Module | None


def of(source: Trained) -> PriorGraphs | None:
    """The prior of a trained model; None if that is N(0, I)."""
    flow, fitted, seed = source.model.prior, source.prior, source.config.run.seed
    if flow is not None:
        generator = torch.Generator().manual_seed(seed)
        z = prior.aggregate_posterior(source.model, source.dataset.held_out.spread(_SCORED), generator)
        with torch.no_grad():
            learnt = flow.log_prob(z).double().mean().item()
        about = AboutPrior(manifests.FLOW, z.shape[1], learnt, prior.score(None, z, seed))
        return PriorGraphs(about, *graphs.wrapped_flow(flow))
    if fitted is None or fitted.module is None:
        return None
    about = AboutPrior(fitted.kind, fitted.noise_dim, fitted.held_out_log_density, fitted.scores["normal"])
    return PriorGraphs(about, fitted.module, fitted.density)


def export(source: PriorGraphs, draft: Manifest) -> dict[str, bytes]:
    """The files of the prior."""
    about = graph_notes.metadata(draft, "prior")
    files = {manifests.PRIOR_FILE: graphs.export_prior(source.latents, source.about.noise_dim, about)}
    if source.density is not None:
        about = graph_notes.metadata(draft, "density")
        files[manifests.DENSITY_FILE] = graphs.export_density(source.density, draft.latent_dim, about)
    return files


def measure(source: PriorGraphs, files: Mapping[str, bytes]) -> dict[str, float]:
    """How far ONNX Runtime is from torch. Raises `ExportError` if that is too far."""
    graph, density = files[manifests.PRIOR_FILE], files.get(manifests.DENSITY_FILE)
    return parity.measure_prior(graph, density, source.latents, source.density, source.about.noise_dim).figures()
