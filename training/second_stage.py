"""A second VAE, of the first one's latents, as their prior (Dai & Wipf 2019, "Diagnosing and enhancing VAE models").

    noise (N, 2 Z) -> u (first half) -> mean and sigma of p(z|u) -> z = mean + sigma · second half -> latents (N, Z)

u has as many dimensions as z, so that the second stage need not compress, only bend N(0, I) into the aggregate
posterior. Its density has no closed form; a lower bound on it comes from importance sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.errors import RunError
from training.mixture import spread_of
from training.progress import Progress

_LOG_SIGMA_LIMIT = 5.0  # sigma is 0.007 to 148 of the latents' spread: neither a spike nor an overflow
_STEPS = 4000
_EPOCHS = 100  # at most, where latents are few
_BATCH = 256
_WARMUP = 0.25  # share of the steps in which beta grows to 1; without it second stages are known to collapse
_RATE = 1e-3
_CLIP_NORM = 5.0
_ROWS = 1 << 14  # that go through the networks at a time
_LOG_2PI = math.log(2 * math.pi)


class SecondStage(nn.Module):
    """A VAE of latents (N, Z), which are brought to mean 0 and variance 1 inside; dense layers of `hidden` units."""

    shift: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.encoder = _dense(latent_dim, hidden)
        self.decoder = _dense(latent_dim, hidden)
        self.register_buffer("shift", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))

    @property
    def noise_dim(self) -> int:
        """2 Z."""
        return 2 * len(self.shift)

    def forward(self, noise: Tensor) -> Tensor:
        return self.latents(noise)

    def latents(self, noise: Tensor) -> Tensor:
        """Draws (N, Z) made of standard normal noise (N, 2 Z)."""
        u, rest = noise.chunk(2, 1)
        mean, log_sigma = _gaussian(self.decoder(u))
        return (mean + log_sigma.exp() * rest) * self.scale + self.shift

    def log_weights(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z|u) and log p(u) - log q(u|z), each (N,), for the draw u of q(u|z) that `noise` (N, Z) makes.

        Their sum is a one-draw ELBO of log p(z) in nats.
        """
        standard = (z - self.shift) / self.scale
        mean, log_sigma = _gaussian(self.encoder(standard))
        u = mean + log_sigma.exp() * noise
        log_ratio = (0.5 * (noise.square() - u.square()) + log_sigma).sum(1)
        mean, log_sigma = _gaussian(self.decoder(u))
        distance = ((standard - mean) * torch.exp(-log_sigma)).square()
        log_likelihood = -(0.5 * (distance + _LOG_2PI) + log_sigma).sum(1) - self.scale.log().sum()
        return log_likelihood, log_ratio

    @torch.no_grad()
    def log_prob_bound(self, z: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """A lower bound on log p(z) in nats, (N,), that grows to it with `k`: the log of the mean of k importance
        weights p(z, u) / q(u|z) (Burda et al. 2016). Rows are independent; the noise is `generator`'s."""
        bounds = []
        for part in torch.split(z, max(1, _ROWS // k)):
            noise = torch.randn((len(part) * k, z.shape[1]), generator=generator)
            log_likelihood, log_ratio = self.log_weights(part.repeat_interleave(k, 0), noise)
            bounds.append(torch.logsumexp((log_likelihood + log_ratio).view(-1, k), 1) - math.log(k))
        return torch.cat(bounds)


def fit_second_stage(z: Tensor, seed: int, steps: int = _STEPS) -> SecondStage:
    """A second stage trained on latents z (N, Z), the same for the same seed and number of threads.

    Fewer than `steps` are taken where the latents are few, for they would be learnt by heart. Raises `RunError` if a
    latent never varies or if training diverges.
    """
    z = z.float()
    latent_dim = z.shape[1]
    shift, scale = spread_of(z)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SecondStage(latent_dim, hidden_for(latent_dim))
    model.shift.copy_(shift)
    model.scale.copy_(scale)
    _train(model, z, steps, torch.Generator().manual_seed(seed))
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise RunError("prior: got weights of the second stage that are not finite, wanted latents it can learn")
    return model.requires_grad_(False).eval()


def hidden_for(latent_dim: int) -> tuple[int, int]:
    """Two layers of eight units for each latent, 128 to 1024."""
    units = min(max(128, 8 * latent_dim), 1024)
    return units, units


def _train(model: SecondStage, z: Tensor, steps: int, generator: torch.Generator) -> None:
    batch = min(_BATCH, len(z))
    steps = min(steps, _EPOCHS * math.ceil(len(z) / batch))
    optimiser = torch.optim.Adam(model.parameters(), _RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with Progress("second stage", steps, "steps") as progress:
        for step in range(steps):
            chosen = torch.randint(len(z), (batch,), generator=generator)
            noise = torch.randn((batch, z.shape[1]), generator=generator)
            log_likelihood, log_ratio = model.log_weights(z[chosen], noise)
            beta = min(1.0, (step + 1) / (_WARMUP * steps))
            optimiser.zero_grad()
            torch.autograd.backward(-(log_likelihood + beta * log_ratio).mean())
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
            optimiser.step()
            schedule.step()
            progress.add(1)


def _dense(latent_dim: int, hidden: Sequence[int]) -> nn.Sequential:
    """(N, Z) -> the statistics of a Gaussian, (N, 2 Z)."""
    layers: list[nn.Module] = []
    width = latent_dim
    for units in hidden:
        layers += [nn.Linear(width, units), nn.SiLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 2 * latent_dim))


def _gaussian(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2 Z) -> mean and log sigma, each (N, Z)."""
    mean, log_sigma = statistics.chunk(2, 1)
    return mean, _LOG_SIGMA_LIMIT * torch.tanh(log_sigma / _LOG_SIGMA_LIMIT)
