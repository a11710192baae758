"""The estimators on a linear-Gaussian model, whose log p(x) and posterior are known in closed form, and on real images
against what torch.distributions makes of the definitions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributions import Independent, LowRankMultivariateNormal, Normal, kl_divergence
from training_fixtures import fashion_images

from training import likelihood, model, objective, perceptual
from training.config import ESTIMATORS, ModelConfig, ObjectiveConfig
from training.flow import Flow
from training.likelihood import Likelihood

VARIANCE = 0.01
LATENTS = 2


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ShiftedPrior(nn.Module):
    """N(mean, exp(logvar)): a prior that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.logvar = nn.Parameter(torch.tensor([0.1, -0.4]))

    def log_prob(self, z: Tensor) -> Tensor:
        return Normal(self.mean, torch.exp(self.logvar / 2)).log_prob(z).sum(1)


def orthogonal_weight() -> Tensor:
    """(6, 2) with orthogonal columns, so that the true posterior is diagonal; small, so that means stay in [0, 1]."""
    return torch.tensor([[0.06, 0.0], [0.06, 0.0], [0.06, 0.0], [0.0, 0.03], [0.0, -0.03], [0.0, 0.03]])


@dataclass
class Linear:
    """x = W z + 1/2 + noise of VARIANCE for images (1, 2, 3), z of N(0, I) unless there is a prior."""

    prior: nn.Module | None = None
    gives_point: bool = False
    likelihood: Likelihood = field(
        default_factory=lambda: likelihood.build("gaussian-fixed", variance=VARIANCE, link="identity")
    )
    weight: Tensor = field(default_factory=lambda: orthogonal_weight().requires_grad_(True))

    def log_prior(self, z: Tensor) -> Tensor:
        if self.prior is not None:
            log_prob: Tensor = self.prior.log_prob(z)  # type: ignore[operator]
            return log_prob
        return Normal(0.0, 1.0).log_prob(z).sum(1)

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.weight.T + 0.5).view(-1, 1, 2, 3)

    def log_evidence(self, x: Tensor) -> Tensor:
        marginal = LowRankMultivariateNormal(torch.full((6,), 0.5), self.weight.detach(), torch.full((6,), VARIANCE))
        return marginal.log_prob(x.flatten(1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The true one: mean and logvar, each (N, 2)."""
        weight = self.weight.detach()
        precision = 1 + weight.square().sum(0) / VARIANCE
        mean = (x.flatten(1) - 0.5) @ weight / VARIANCE / precision
        return mean, (-precision.log()).expand_as(mean)


def images(n: int) -> Tensor:
    """(n, 1, 2, 3), the same image n times, as rows are independent draws of everything else."""
    x = 0.5 + 0.1 * torch.randn(1, 1, 2, 3, generator=noise(7))
    return x.expand(n, -1, -1, -1)


@dataclass
class Drawn:
    """q's parameters as leaves, and S samples of it for each of n copies of an image."""

    x: Tensor
    mean: Tensor
    logvar: Tensor
    z: Tensor


def drawn(linear: Linear, n: int, samples: int, shift: float = 0.5, seed: int = 0) -> Drawn:
    x = images(n)
    mean, logvar = linear.posterior(x)
    mean = (mean + shift).clone().requires_grad_(True)
    logvar = (logvar + shift).clone().requires_grad_(True)
    epsilon = torch.randn(samples * n, LATENTS, generator=noise(seed))
    z = mean.repeat(samples, 1) + torch.exp(0.5 * logvar.repeat(samples, 1)) * epsilon
    return Drawn(x, mean, logvar, z)


def result_of(config: ObjectiveConfig, linear: Linear, it: Drawn, beta: float = 1.0) -> objective.Objective:
    return objective.loss(config, linear, it.x, linear.decode(it.z), it.z, it.mean, it.logvar, beta)


def gradients(config: ObjectiveConfig, linear: Linear, n: int, samples: int, **drawing: float) -> tuple[Tensor, Tensor]:
    """Of each of n replicas: (n, 2 * LATENTS) of q's parameters; and of the decoder, averaged."""
    it = drawn(linear, n, samples, drawing.get("shift", 0.5), int(drawing.get("seed", 0)))
    value = result_of(config, linear, it, drawing.get("beta", 1.0)).loss
    mean, logvar, weight = torch.autograd.grad(value, [it.mean, it.logvar, linear.weight])
    return n * torch.cat([mean, logvar], 1), weight


def log_weights(linear: Linear, it: Drawn, *, constant_q: bool = False) -> Tensor:
    """log p(x, z) - log q(z|x), (S, N), by torch.distributions."""
    mean, logvar = (it.mean.detach(), it.logvar.detach()) if constant_q else (it.mean, it.logvar)
    z = it.z.view(-1, *it.mean.shape)
    q = Normal(mean, torch.exp(logvar / 2)).log_prob(z).sum(-1)
    decoded = linear.decode(it.z).view(*z.shape[:2], -1)
    p = Normal(decoded, math.sqrt(VARIANCE)).log_prob(it.x.flatten(1)).sum(-1)
    return p + linear.log_prior(it.z).view_as(p) - q


def test_the_bound_grows_with_the_samples_and_converges_to_log_p() -> None:
    linear = Linear()
    truth = linear.log_evidence(images(1)).item()
    config = ObjectiveConfig(estimator="iwae")
    bounds = []
    for samples in (1, 2, 8, 64, 4096):
        result = result_of(config, linear, drawn(linear, 400_000 // samples // 2, samples, seed=samples))
        bounds.append(-result.loss.item())
    assert sorted(bounds) == bounds
    assert bounds[0] < truth - 0.2
    assert bounds[-1] == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize("estimator", ["stl", "iwae", "dreg"])
@pytest.mark.parametrize("samples", [1, 7])
def test_with_the_true_posterior_every_sample_says_log_p(estimator: str, samples: int) -> None:
    linear = Linear()
    result = result_of(ObjectiveConfig(estimator=estimator), linear, drawn(linear, 5, samples, shift=0.0))
    assert -result.loss.item() == pytest.approx(linear.log_evidence(images(1)).item(), rel=1e-4)


@pytest.mark.parametrize("prior", [None, ShiftedPrior])
def test_iwae_has_the_gradient_of_its_definition(prior: type[ShiftedPrior] | None) -> None:
    """Weights of softmax(+loss), which favour the worst sample, or a bound of another form, fail this."""
    linear = Linear(prior() if prior else None)
    parameters = [linear.weight, *(linear.prior.parameters() if linear.prior else [])]
    it = drawn(linear, 6, 5)
    definition = -torch.log(torch.exp(log_weights(linear, it)).mean(0)).mean()
    result = result_of(ObjectiveConfig(estimator="iwae"), linear, it)
    torch.testing.assert_close(result.loss, definition, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.figures["bound"], -definition.detach(), rtol=1e-5, atol=1e-5)
    leaves = [it.mean, it.logvar, *parameters]
    expected = torch.autograd.grad(definition, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(result.loss, leaves), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prior", [None, ShiftedPrior])
def test_dreg_squares_the_weights_of_the_encoder_s_gradient_alone(prior: type[ShiftedPrior] | None) -> None:
    linear = Linear(prior() if prior else None)
    parameters = [linear.weight, *(linear.prior.parameters() if linear.prior else [])]
    it = drawn(linear, 6, 5)
    stopped = log_weights(linear, it, constant_q=True)
    weights = torch.softmax(stopped.detach(), 0)
    (through_z,) = torch.autograd.grad((weights.square() * stopped).sum(0).mean(), it.z, retain_graph=True)
    of_encoder = torch.autograd.grad(it.z, [it.mean, it.logvar], -through_z, retain_graph=True)
    of_others = torch.autograd.grad(-(weights * stopped).sum(0).mean(), parameters)
    result = result_of(ObjectiveConfig(estimator="dreg"), linear, it)
    got = torch.autograd.grad(result.loss, [it.mean, it.logvar, *parameters])
    torch.testing.assert_close(got, (*of_encoder, *of_others), rtol=1e-3, atol=1e-5)


def test_dreg_agrees_with_iwae_on_average_and_varies_less() -> None:
    linear, n = Linear(), 40_000
    iwae, of_decoder = gradients(ObjectiveConfig(estimator="iwae"), linear, n, 8)
    dreg, of_decoder_too = gradients(ObjectiveConfig(estimator="dreg"), linear, n, 8)
    error = ((iwae.var(0) + dreg.var(0)) / n).sqrt()
    assert ((iwae.mean(0) - dreg.mean(0)).abs() < 4 * error).all()
    assert (dreg.mean(0).abs() > 10 * error).any()  # or all of this could be noise about zero
    assert (dreg.var(0) < 0.7 * iwae.var(0)).all()
    torch.testing.assert_close(of_decoder, of_decoder_too, rtol=1e-4, atol=1e-5)


def test_stl_agrees_with_the_elbo_on_average() -> None:
    linear, n = Linear(), 100_000
    elbo, of_decoder = gradients(ObjectiveConfig(), linear, n, 1, beta=0.7)
    stl, of_decoder_too = gradients(ObjectiveConfig(estimator="stl"), linear, n, 1, beta=0.7)
    error = ((elbo.var(0) + stl.var(0)) / n).sqrt()
    assert ((elbo.mean(0) - stl.mean(0)).abs() < 4 * error).all()
    assert (stl.mean(0).abs() > 10 * error).all()
    torch.testing.assert_close(of_decoder, of_decoder_too, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", ["stl", "dreg"])
def test_at_the_true_posterior_the_gradient_has_no_variance(estimator: str) -> None:
    linear = Linear()
    sticking, _ = gradients(ObjectiveConfig(estimator=estimator), linear, 500, 3, shift=0.0)
    plain, _ = gradients(ObjectiveConfig(), linear, 500, 3, shift=0.0)
    assert sticking.abs().max() < 1e-4
    assert plain.std(0).min() > 0.01


def test_with_one_sample_all_estimators_have_the_same_expectation() -> None:
    linear = Linear()
    it = drawn(linear, 100_000, 1)
    values = [result_of(ObjectiveConfig(estimator=estimator), linear, it).loss.item() for estimator in ESTIMATORS]
    assert values == pytest.approx([values[0]] * 4, abs=0.03)


def test_several_samples_are_averaged() -> None:
    linear = Linear()
    it = drawn(linear, 6, 4)
    apart = [Drawn(it.x, it.mean, it.logvar, z) for z in it.z.chunk(4)]
    for estimator in ("elbo", "stl"):
        config = ObjectiveConfig(estimator=estimator)
        together = result_of(config, linear, it).loss
        torch.testing.assert_close(together, torch.stack([result_of(config, linear, s).loss for s in apart]).mean())


def fashion(n: int = 6) -> Tensor:
    return torch.from_numpy(fashion_images()[:n].copy()).unsqueeze(1) / 255


def vae(**changed: object) -> model.VAE:
    config = ObjectiveConfig(**{"likelihood": "bernoulli", **changed})  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model.build(ModelConfig(kind="dense", latent_dim=3, hidden=(16,)), config, (28, 28, 1))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
def test_pixels_and_latents_are_summed_and_images_averaged(beta: float) -> None:
    """A mean over pixels or over latents, a sum over the batch, or a weight of the KL other than beta, fails this."""
    made = vae()
    x = made.likelihood.observe(fashion(), noise())
    passed = made(x, noise(1))
    result = objective.loss(ObjectiveConfig(likelihood="bernoulli"), made, x, *passed, beta)
    log_prob = torch.distributions.Bernoulli(logits=passed.output).log_prob(x)
    q = Independent(Normal(passed.mean, torch.exp(passed.logvar / 2)), 1)
    kl = kl_divergence(q, Independent(Normal(torch.zeros(6, 3), torch.ones(6, 3)), 1))
    total = log_prob.sum()  # over 6 images of 784 pixels
    assert result.loss.item() == pytest.approx((beta * kl.sum() - total).item() / 6, rel=1e-5)
    assert result.figures["reconstruction"].item() == pytest.approx(total.item() / 6, rel=1e-5)
    assert result.figures["kl"].item() == pytest.approx(kl.mean().item(), rel=1e-4)
    assert result.figures["elbo"].item() == pytest.approx((total - kl.sum()).item() / 6, rel=1e-5)
    assert "bound" not in result.figures


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_figures_are_those_of_beta_1_whatever_is_optimised(estimator: str) -> None:
    linear = Linear()
    it = drawn(linear, 50, 4)
    plain = result_of(ObjectiveConfig(), linear, it).figures
    config = ObjectiveConfig(estimator=estimator, free_bits=3.0 if estimator in ("elbo", "stl") else 0.0)
    other = result_of(config, linear, it, beta=0.1).figures
    assert plain.keys() == {"elbo", "reconstruction", "kl", "bound"}
    for name, figure in plain.items():
        assert not figure.requires_grad
        torch.testing.assert_close(other[name], figure)
    assert plain["bound"] > plain["elbo"]


def test_free_bits_cost_the_same_as_none_said_and_have_no_gradient() -> None:
    linear = Linear()
    x = images(3)
    mean = torch.tensor([[0.1, 2.0], [0.2, 3.0], [0.1, 2.0]], requires_grad=True)  # one latent says little, one much
    logvar = torch.zeros(3, 2, requires_grad=True)
    it = Drawn(x, mean, logvar, mean + 0.1)
    kl = (mean.detach().square() / 2).mean(0)
    free = 0.5
    assert kl[0] < free < kl[1]
    with_free, without = (result_of(ObjectiveConfig(free_bits=bits), linear, it) for bits in (free, 0.0))
    assert (with_free.loss - without.loss).item() == pytest.approx(free - kl[0].item(), abs=1e-5)
    (difference,) = torch.autograd.grad(without.loss - with_free.loss, mean)
    torch.testing.assert_close(difference, torch.stack([mean[:, 0].detach() / 3, torch.zeros(3)], 1))


def test_free_bits_of_a_learnt_prior_are_those_of_all_latents_together() -> None:
    linear = Linear(ShiftedPrior())
    it = drawn(linear, 50, 1)
    result = result_of(ObjectiveConfig(free_bits=100.0), linear, it)
    assert (result.loss + result.figures["reconstruction"]).item() == pytest.approx(200.0, rel=1e-5)


def test_a_learnt_prior_has_its_own_kl() -> None:
    prior = ShiftedPrior()
    linear = Linear(prior)
    it = drawn(linear, 200_000, 1)
    p = Normal(prior.mean, torch.exp(prior.logvar / 2))
    exact = kl_divergence(Normal(it.mean, torch.exp(it.logvar / 2)), p).sum(1).mean()
    result = result_of(ObjectiveConfig(), linear, it)
    assert result.figures["kl"].item() == pytest.approx(exact.item(), abs=0.02)
    leaves = [prior.mean, prior.logvar, it.mean]
    expected = torch.autograd.grad(exact, leaves[:2], retain_graph=True)
    got = torch.autograd.grad(result.loss, leaves)
    torch.testing.assert_close(got[:2], expected, rtol=0.02, atol=0.02)


def test_an_untrained_flow_is_the_standard_normal() -> None:
    it = drawn(Linear(), 20_000, 3)
    config = ObjectiveConfig(estimator="iwae")
    plain, flow = (result_of(config, Linear(prior), it) for prior in (None, Flow(LATENTS, 4, 8)))
    torch.testing.assert_close(flow.loss, plain.loss)
    assert flow.figures["kl"].item() == pytest.approx(plain.figures["kl"].item(), abs=0.02)


def test_a_point_posterior_has_the_reconstruction_alone() -> None:
    linear = Linear(gives_point=True)
    it = drawn(linear, 4, 1)
    result = result_of(ObjectiveConfig(free_bits=9.0, estimator="iwae"), linear, it, beta=5.0)
    x = it.x.flatten(1)
    expected = Normal(linear.decode(it.z).flatten(1), math.sqrt(VARIANCE)).log_prob(x).sum(1).mean()
    torch.testing.assert_close(-result.loss, expected)
    torch.testing.assert_close(result.figures["reconstruction"], expected.detach())
    assert math.isnan(result.figures["elbo"].item())
    assert math.isnan(result.figures["kl"].item())


@pytest.mark.parametrize("name", ["laplacian", "ms-ssim"])
def test_a_perceptual_term_is_added_and_reported(name: str) -> None:
    made = vae(likelihood="gaussian").eval()
    x = fashion()
    passed = made(x, noise(), samples=2)
    plain = ObjectiveConfig()
    without = objective.loss(plain, made, x, *passed, 1.0)
    config = replace(plain, perceptual=name, perceptual_weight=0.25)
    with_it = objective.loss(config, made, x, *passed, 1.0)
    expected = perceptual.distance(name, torch.sigmoid(passed.output), x.repeat(2, 1, 1, 1)).mean()
    assert with_it.figures["perceptual"].item() == pytest.approx(expected.item())
    torch.testing.assert_close(with_it.loss - without.loss, 0.25 * expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_every_estimator_reaches_every_parameter_of_a_vae(estimator: str, prior: str) -> None:
    made = vae(prior=prior)
    x = made.likelihood.observe(fashion(), noise())
    config = ObjectiveConfig(likelihood="bernoulli", estimator=estimator, prior=prior, samples=3)
    result = objective.loss(config, made, x, *made(x, noise(1), samples=3), 1.0)
    result.loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert made.encoder.layers[0].weight.grad.abs().max() > 0  # type: ignore[union-attr,index,operator]


def test_dreg_s_gradient_survives_the_wrapping_of_the_model() -> None:
    """The hook is on the tensor that the decoder was given: a copy of it on the way out would lose the weights."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    made = vae()
    parameters = list(made.encoder.parameters())
    wrapped = fabric.setup(made)
    x = made.likelihood.observe(fashion(), noise())
    config = ObjectiveConfig(likelihood="bernoulli", estimator="dreg", samples=4)
    found = []
    for forward in (made, wrapped):
        result = objective.loss(config, made, x, *forward(x, noise(1), None, 4), 1.0)
        made.zero_grad()
        fabric.backward(result.loss)
        found.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
    for plain, through in zip(*found, strict=True):
        assert (plain - through).norm() < 0.05 * plain.norm()  # bfloat16 has two digits
