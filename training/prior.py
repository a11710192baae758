"""The prior fitted after training: a density of the latents of real images, chosen by what held-out ones say of it.

images -> encoder -> draws of q(z|x) -> mixture, second stage, N(0, I) -> the highest held-out log-density

The prior under which a trained model's ELBO is highest is its aggregate posterior q(z), the mean of q(z|x) over the
images (Hoffman & Johnson 2016; Tomczak & Welling 2018). So draws of q(z|x) are fitted, not its means: a density of
the means leaves the posterior's own width out, and gives what the encoder draws next to no density. A conditional
model's q(z) is that over all classes: z and label are taken for independent, as they are when a wanted class is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training import batches
from training.config import PRIOR_FITS, PriorConfig
from training.data import Dataset
from training.errors import CheckpointError, ConfigError, RunError
from training.images import Images
from training.loss import log_standard_normal
from training.mixture import Density, Mixture, fit_mixture
from training.model import VAE
from training.progress import Progress, say
from training.second_stage import SecondStage, fit_second_stage, hidden_for

FORMAT = 1
_MOST_DRAWS = 100_000  # of training images; more add minutes and no accuracy
_MOST_SCORED = 10_000
_NTH = 10  # where nothing is set aside to choose by, every so many-th training image is
_ENCODED = 256  # images at a time
_SCORED = 256  # latents at a time
_IMPORTANCE_SAMPLES = 100


@dataclass(frozen=True, slots=True, eq=False)
class FittedPrior:
    """`kind` is mixture, second-stage, or none for N(0, I), which has no `module`. Noise of `noise_dim` standard
    normal numbers makes a latent vector. `held_out_log_density` and `scores`, by kind and "normal", are mean nats for
    each held-out image; the second stage's is a lower bound, so that it is never chosen unduly."""

    kind: str
    module: Mixture | SecondStage | None
    noise_dim: int
    held_out_log_density: float
    scores: Mapping[str, float]

    def latents(self, noise: Tensor) -> Tensor:
        """Draws (N, Z) made of standard normal noise (N, `noise_dim`)."""
        return noise if self.module is None else self.module.latents(noise)

    @property
    def density(self) -> nn.Module | None:
        """Latents (N, Z) -> log p(z) (N,) in nats, to be exported; None where there is no exact one."""
        return Density(self.module) if isinstance(self.module, Mixture) else None

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {
            "prior_format": FORMAT,
            "kind": self.kind,
            "noise_dim": self.noise_dim,
            "held_out_log_density": self.held_out_log_density,
            "scores": dict(self.scores),
            "module": {} if self.module is None else dict(self.module.state_dict()),
        }


def from_state(state: Mapping[str, Any]) -> FittedPrior:
    """What `to_state` gave, bit for bit; raises `CheckpointError` if it is of another version or does not fit."""
    if state.get("prior_format") != FORMAT:
        raise CheckpointError(f"prior format: got {state.get('prior_format')}, wanted {FORMAT}")
    try:
        kind, noise_dim, tensors = state["kind"], state["noise_dim"], state["module"]
        return FittedPrior(
            kind, _module(kind, tensors), noise_dim, state["held_out_log_density"], dict(state["scores"])
        )
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"prior: got a state that lacks something or is of another shape: {error}") from error


def check(config: PriorConfig, learnt: bool, images: int, latent_dim: int) -> None:
    """Raises `ConfigError` if such a prior cannot be fitted to the latents of so many training images, or if the
    model has `learnt` its own; to be asked before training rather than after it."""
    if config.fit == "none":
        return
    if learnt:
        raise ConfigError(f"prior.fit: got {config.fit}, wanted none, as the model learns its prior (objective.prior)")
    if config.fit != "best" and images <= latent_dim:
        raise ConfigError(
            f"prior.fit: got {config.fit} for {images} images, wanted none, or more images than {latent_dim} latents"
        )


def images_to_fit(dataset: Dataset) -> int:
    """How many images a prior is fitted to; the others that are there to train on are scored."""
    n = min(len(dataset.train), _MOST_DRAWS)
    return n if dataset.validation is not None else n - len(range(min(_NTH, n) - 1, n, _NTH))


def fit_to(model: VAE, dataset: Dataset, config: PriorConfig, seed: int) -> FittedPrior:
    """The prior that `config` asks for, fitted to `model`'s latents of the training images; leaves evaluation mode on.

    It is scored on the images set aside to choose by, or else on every tenth training image, which is then not fitted
    to; never on test images. Raises as `fit` and `check` do.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    z_train = aggregate_posterior(model, dataset.train.spread(_MOST_DRAWS), generator)
    check(config, model.prior is not None, *z_train.shape)
    if dataset.validation is not None:
        z_held_out = aggregate_posterior(model, dataset.validation.spread(_MOST_SCORED), generator)
    else:
        if len(z_train) < 2:
            raise RunError(f"prior: got {len(z_train)} training image, wanted at least 2: one to choose by")
        held_out = torch.arange(len(z_train)) % _NTH == min(_NTH, len(z_train)) - 1
        z_train, z_held_out = z_train[~held_out], z_train[held_out][:_MOST_SCORED]
    return fit(config.fit, z_train, z_held_out, config.components, seed)


@torch.no_grad()
def aggregate_posterior(model: VAE, images: Images, generator: torch.Generator) -> Tensor:
    """One draw of q(z|x) for each image, (N, Z) on the CPU; the mean itself if the model's posterior is a point.

    `generator` is on the model's device. Leaves evaluation mode on.
    """
    model.eval()
    device = next(model.parameters()).device
    drawn = []
    with Progress("encoding for the prior", len(images), "images") as progress:
        for x, labels in batches.in_order(images, _ENCODED, model, device):
            mean, logvar = model.encoder(model.likelihood.observe(x, generator), labels)
            drawn.append(model.sample(mean, logvar, generator).cpu())
            progress.add(len(x))
    return torch.cat(drawn)


@torch.no_grad()
def score(prior: Mixture | SecondStage | None, z: Tensor, seed: int) -> float:
    """The mean log-density of latents z (N, Z) in nats; for a second stage a bound from below, for None N(0, I)'s."""
    if prior is None:
        return log_standard_normal(z).double().mean().item()
    if isinstance(prior, SecondStage):
        return prior.log_prob_bound(z, _IMPORTANCE_SAMPLES, torch.Generator().manual_seed(seed)).double().mean().item()
    return torch.cat([prior.log_prob(part) for part in torch.split(z, _SCORED)]).double().mean().item()


def fit(kind: str, z_train: Tensor, z_held_out: Tensor, components: int, seed: int) -> FittedPrior:
    """A prior of `kind` (none, mixture, second-stage, or best of all, N(0, I) among them) fitted to latents `z_train`
    (N, Z) and scored on `z_held_out` (M, Z), float32 on the CPU. The same for the same seed and number of threads.

    Says what it found. Raises `ConfigError` for an unknown kind or too few latents for the one asked for, and
    `RunError` for latents that are not finite or never vary.
    """
    if kind not in PRIOR_FITS:
        raise ConfigError(f"prior.fit: got {kind}, wanted {' or '.join(PRIOR_FITS)}")
    for name, z in (("training", z_train), ("held-out", z_held_out)):
        _check_finite(name, z)
    scored = z_held_out[:_MOST_SCORED]
    modules: dict[str, Mixture | SecondStage] = {}
    for name in _candidates(kind, *z_train.shape):
        modules[name] = _FITS[name](z_train, components, seed)
    scores = {"normal": score(None, scored, seed)}
    scores.update({name: score(module, scored, seed) for name, module in modules.items()})
    for name, value in scores.items():
        if not math.isfinite(value):
            raise RunError(f"prior: held-out log-density of {name}: got {value}, wanted a finite number of nats")
    best = max(scores, key=lambda name: scores[name])
    chosen = best if kind == "best" else "normal" if kind == "none" else kind
    _say(kind, chosen, scores)
    module = modules.get(chosen)
    noise_dim = z_train.shape[1] if module is None else module.noise_dim
    return FittedPrior("none" if module is None else chosen, module, noise_dim, scores[chosen], scores)


_FITS: dict[str, Callable[[Tensor, int, int], Mixture | SecondStage]] = {
    "mixture": fit_mixture,
    "second-stage": lambda z, _, seed: fit_second_stage(z, seed),
}


def _candidates(kind: str, images: int, latent_dim: int) -> list[str]:
    if kind == "best" and images <= latent_dim:
        say(f"prior: {images} images are too few to fit a density of {latent_dim} latents: N(0, I) is kept")
        return []
    check(PriorConfig(fit=kind), False, images, latent_dim)
    return list(_FITS) if kind == "best" else [kind] if kind != "none" else []


def _check_finite(name: str, z: Tensor) -> None:
    if z.ndim != 2 or not len(z):
        raise RunError(f"prior: {name} latents: got shape {tuple(z.shape)}, wanted at least one row of latents")
    bad = int((~torch.isfinite(z)).any(1).sum())
    if bad:
        raise RunError(f"prior: {name} latents: got {bad} of {len(z)} that are not finite, wanted numbers")


def _say(kind: str, chosen: str, scores: Mapping[str, float]) -> None:
    if kind == "none":
        return
    found = ", ".join(f"{_WORDS[name]} {value:.2f}" for name, value in scores.items())
    line = f"prior: {_WORDS[chosen]} is kept; held-out log-density in nats: {found}"
    if scores[chosen] < scores["normal"]:
        line += "; N(0, I) would be better: prior.fit best takes it"
    say(line)


_WORDS = {"normal": "N(0, I)", "mixture": "the mixture", "second-stage": "the second stage (at least)"}


def _module(kind: str, tensors: Mapping[str, Tensor]) -> Mixture | SecondStage | None:
    if kind == "none":
        return None
    module: Mixture | SecondStage
    if kind == "mixture":
        module = Mixture(*tensors["means"].shape)
    elif kind == "second-stage":
        latent_dim = len(tensors["shift"])
        module = SecondStage(latent_dim, hidden_for(latent_dim))
    else:
        raise CheckpointError(f"prior: got kind {kind}, wanted none, mixture or second-stage")
    module.load_state_dict(dict(tensors))
    return module.requires_grad_(False).eval()
