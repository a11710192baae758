"""Likelihoods against torch.distributions, numerical integration and sums over levels; sigma and b against their
definition: the best ones for the data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, distributions
from training_fixtures import fashion_images

from training import likelihood
from training.config import LIKELIHOODS
from training.errors import ExportError

DENSITIES = [name for name in LIKELIHOODS if name not in ("bernoulli", "discretised-logistic")]
OF_MEAN = ("gaussian", "gaussian-fixed", "laplace", "bernoulli")
OUTPUTS = (-50.0, -8.0, -1.3, -0.499, -0.02, 0.0, 1e-4, 0.3, 0.501, 2.0, 6.0, 50.0)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def real_images(n: int = 16) -> Tensor:
    return torch.from_numpy(fashion_images()[:n].copy()).unsqueeze(1) / 255


def made(name: str) -> likelihood.Likelihood:
    """In evaluation mode, with numbers that are not what a new one has."""
    chosen = likelihood.build(name, variance=0.3)
    if chosen.has_statistic:
        chosen.set_statistic(0.04)
    return chosen.requires_grad_(False).eval()


def output_of(chosen: likelihood.Likelihood, logits: Tensor) -> Tensor:
    """(N, C, H, W) -> an output of that many channels; log-variances that vary where there are any."""
    if chosen.outputs_per_channel == 1:
        return logits
    return torch.cat([logits, torch.linspace(-14, 4, logits.numel()).to(logits).view_as(logits)], 1)


def one_pixel(chosen: likelihood.Likelihood, logit: float, logvar: float, n: int) -> Tensor:
    numbers = [logit, logvar][: chosen.outputs_per_channel]
    return torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1, 1).expand(n, -1, 1, 1)


def moments(chosen: likelihood.Likelihood, logit: float, logvar: float = -2.0) -> tuple[float, float, float]:
    """Integral, mean and variance of p(x|z) of one pixel, by the trapezoidal rule in float64."""
    chosen = chosen.double()
    centre = float(chosen.mean(one_pixel(chosen, logit, logvar, 1)))
    low, high = (0.0, 1.0) if chosen.name == "continuous-bernoulli" else (centre - 12, centre + 12)
    # the Laplace density has its corner at the mean, and the rule wants a knot there
    x = torch.cat([torch.linspace(low, centre, 200_001), torch.linspace(centre, high, 200_001)[1:]]).double()
    density = chosen.log_prob(x.view(-1, 1, 1, 1), one_pixel(chosen, logit, logvar, len(x))).exp()
    total, mean = torch.trapezoid(density, x), torch.trapezoid(density * x, x)
    return total.item(), mean.item(), torch.trapezoid(density * (x - mean).square(), x).item()


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("logit", OUTPUTS)
def test_densities_integrate_to_one_and_have_the_mean_that_is_said(name: str, logit: float) -> None:
    total, mean, _ = moments(made(name), logit)
    assert total == pytest.approx(1, abs=1e-5)
    single = made(name)
    said = single.mean(one_pixel(single, logit, -2.0, 1).float()).item()
    assert said == pytest.approx(mean, abs=1e-5)


def level_probabilities(chosen: likelihood.Likelihood, outputs: Tensor) -> Tensor:
    """(256, N) of one-pixel images, in the precision of `outputs` (N,)."""
    levels = (torch.arange(256) / 255).to(outputs).view(256, 1).expand(-1, len(outputs)).reshape(-1, 1, 1, 1)
    log_prob = chosen.log_prob(levels, outputs.repeat(256).view(-1, 1, 1, 1))
    return log_prob.exp().view(256, -1)


@pytest.mark.parametrize("scale", [1.05 / 255, 0.01, 0.1, 2.0])
def test_the_256_levels_have_a_probability_of_one_and_the_mean_that_is_said(scale: float) -> None:
    chosen = likelihood.from_manifest("discretised-logistic", {"scale": scale}).double()
    outputs = torch.cat([torch.linspace(-4, 4, 201), torch.tensor(OUTPUTS)])
    probabilities = level_probabilities(chosen, outputs.double())
    torch.testing.assert_close(probabilities.sum(0), torch.ones(len(outputs), dtype=torch.float64))
    exact = (probabilities * torch.arange(256)[:, None] / 255).sum(0)
    said = chosen.float().mean(outputs.view(-1, 1, 1, 1)).flatten()
    torch.testing.assert_close(said, exact.float(), atol=4e-7, rtol=0)


def test_levels_have_the_probability_of_their_bin() -> None:
    chosen = likelihood.from_manifest("discretised-logistic", {"scale": 0.05}).double()
    output = torch.tensor([0.4], dtype=torch.float64)
    edges = (torch.arange(255, dtype=torch.float64) + 0.5) / 255
    below = torch.cat([torch.zeros(1), torch.sigmoid((edges - (0.5 + 0.1)) / 0.05), torch.ones(1)])
    torch.testing.assert_close(level_probabilities(chosen, output).flatten(), below.diff(), rtol=1e-6, atol=1e-12)


def test_a_black_pixel_can_be_certain() -> None:
    chosen = made("discretised-logistic")
    assert chosen.log_prob(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), -6.0)) > -1e-3


def test_bernoulli_is_that_of_torch() -> None:
    bernoulli = likelihood.Bernoulli()
    x = bernoulli.observe(real_images(), noise())
    logits = 3 * torch.randn(x.shape, generator=noise(1))
    expected = distributions.Bernoulli(logits=logits)
    torch.testing.assert_close(bernoulli.log_prob(x, logits), expected.log_prob(x).sum((1, 2, 3)))
    torch.testing.assert_close(bernoulli.mean(logits), expected.mean)


def test_binarised_images_are_draws_with_the_grey_values_as_probabilities() -> None:
    x = real_images(1).expand(20_000, -1, -1, -1)
    drawn = likelihood.Bernoulli().observe(x, noise())
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn.mean(0) - x[0]).abs().max() < 0.02
    assert torch.equal(drawn.amax(0)[x[0] == 0], torch.zeros(int((x[0] == 0).sum())))


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "bernoulli"])
def test_grey_images_are_observed_as_they_are(name: str) -> None:
    x = real_images()
    assert torch.equal(made(name).observe(x, noise()), x)


def torch_distribution(chosen: likelihood.Likelihood, output: Tensor) -> distributions.Distribution:
    mean = torch.sigmoid(output[:, :1])
    if chosen.name == "gaussian":
        return distributions.Normal(mean, 0.2)
    if chosen.name == "gaussian-fixed":
        return distributions.Normal(mean, math.sqrt(0.3))
    if chosen.name == "laplace":
        return distributions.Laplace(mean, 0.04)
    assert chosen.name == "gaussian-predicted"
    return distributions.Normal(mean, torch.exp(output[:, 1:] / 2))


@pytest.mark.parametrize("name", ["gaussian", "gaussian-fixed", "gaussian-predicted", "laplace"])
def test_normal_and_laplace_are_those_of_torch(name: str) -> None:
    chosen, x = made(name), real_images()
    output = torch.randn(x.shape, generator=noise())
    if chosen.outputs_per_channel == 2:
        output = torch.cat([output, -4 + 0.3 * torch.randn(x.shape, generator=noise(1))], 1)
    expected = torch_distribution(chosen, output).log_prob(x).sum((1, 2, 3))
    soft = 0.02 if chosen.outputs_per_channel == 2 else 1e-5  # the bounds on log-variances are soft
    torch.testing.assert_close(chosen.log_prob(x, output), expected, rtol=soft, atol=1e-3)


def test_predicted_variances_are_bounded() -> None:
    chosen, x = made("gaussian-predicted"), torch.full((2, 1, 1, 1), 0.5)
    output = torch.tensor([[0.0, -1e4], [0.0, 1e4]]).view(2, 2, 1, 1)
    sigma = torch.exp(-chosen.log_prob(x, output)) / math.sqrt(2 * math.pi)
    assert sigma.tolist() == pytest.approx([1 / 255, math.e], rel=1e-2)


def test_each_channel_has_the_log_variance_of_its_own() -> None:
    chosen, x = made("gaussian-predicted"), torch.rand(2, 3, 4, 4, generator=noise())
    output = torch.randn(2, 6, 4, 4, generator=noise(1))
    apart = [chosen.log_prob(x[:, c : c + 1], output[:, [c, c + 3]]) for c in range(3)]
    torch.testing.assert_close(chosen.log_prob(x, output), torch.stack(apart).sum(0))
    assert chosen.mean(output).shape == x.shape


def test_continuous_bernoulli_is_that_of_torch() -> None:
    chosen, x = made("continuous-bernoulli"), real_images()
    logits = 4 * torch.randn(x.shape, generator=noise())
    expected = distributions.ContinuousBernoulli(logits=logits.double())
    log_prob = expected.log_prob(x.double()).sum((1, 2, 3))
    torch.testing.assert_close(chosen.log_prob(x, logits).double(), log_prob, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(chosen.mean(logits).double(), expected.mean, rtol=0, atol=2e-6)


def test_continuous_bernoulli_s_mean_is_not_lambda() -> None:
    logit = torch.logit(torch.tensor(0.98)).view(1, 1, 1, 1)
    assert made("continuous-bernoulli").mean(logit).item() == pytest.approx(0.764, abs=5e-4)


def test_continuous_bernoulli_s_series_meet_the_formulas() -> None:
    """In float64 the formulas hold to many digits on both sides of the joint; the gradient of the log normaliser is
    the mean, however near to zero."""
    chosen = made("continuous-bernoulli")
    t = torch.tensor([1e-6, -1e-3, 0.2, 0.4999, -0.4999, 0.5001, 3.0], requires_grad=True)
    double = t.detach().double()
    zero = torch.zeros(len(t), 1, 1, 1)
    normaliser = -chosen.log_prob(zero, t.view(-1, 1, 1, 1))
    torch.testing.assert_close(normaliser.double(), torch.log(torch.expm1(double) / double), rtol=0, atol=3e-7)
    (gradient,) = torch.autograd.grad(normaliser.sum(), t)
    torch.testing.assert_close(gradient, chosen.mean(t.detach()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_have_the_moments_of_the_likelihood(name: str) -> None:
    chosen, n = made(name), 60_000
    for logit in (-2.0, 0.0, 3.0):
        output = one_pixel(chosen, logit, -2.0, n).float()
        mean = chosen.mean(output[:1]).item()
        drawn = chosen.sample(output, noise()).flatten().double()
        if name == "bernoulli":
            variance = mean * (1 - mean)
            assert set(drawn.unique().tolist()) <= {0.0, 1.0}
        elif name == "discretised-logistic":
            levels = torch.arange(256).double() / 255
            variance = (level_probabilities(chosen, output[:1].flatten())[:, 0] * (levels - mean).square()).sum().item()
            torch.testing.assert_close((drawn * 255).round() / 255, drawn, rtol=0, atol=1e-6)
        else:
            variance = moments(made(name), logit)[2]
        assert drawn.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
        assert drawn.var().item() == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_infinite_at_the_extremes(name: str, training: bool) -> None:
    chosen = likelihood.build(name).train(training)
    extreme = torch.tensor([-1e4, -50.0, -0.5, 0.0, 0.5, 50.0, 1e4])
    output = extreme.repeat_interleave(3 * 7).view(-1, 1, 1, 1)
    if chosen.outputs_per_channel == 2:
        output = torch.cat([output, extreme.repeat_interleave(3).repeat(7).view(-1, 1, 1, 1)], 1)
    output = output.clone().requires_grad_(True)
    x = torch.tensor([0.0, 1.0, 1.0]).repeat(49).view(-1, 1, 1, 1)
    log_prob, mean = chosen.log_prob(x, output), chosen.mean(output)
    assert torch.isfinite(log_prob).all()
    assert ((mean >= 0) & (mean <= 1)).all()
    (log_prob.sum() + mean.sum()).backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()
    for parameter in chosen.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    assert torch.isfinite(chosen.sample(output.detach(), noise())).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_pixels_and_channels_are_summed_and_images_are_not(name: str) -> None:
    chosen = made(name)
    x = chosen.observe(real_images(6).view(2, 3, 28, 28), noise())
    output = torch.randn(2, 3 * chosen.outputs_per_channel, 28, 28, generator=noise())
    together = chosen.log_prob(x, output)
    assert together.shape == (2,)
    rows = [chosen.log_prob(x[:, :, row : row + 1], output[:, :, row : row + 1]) for row in range(28)]
    torch.testing.assert_close(together, torch.stack(rows).sum(0), rtol=1e-4, atol=1e-2)


def best_scale(family: type[distributions.Normal] | type[distributions.Laplace], x: Tensor, mean: Tensor) -> float:
    """By search, to 1 in 1,000."""
    candidates = torch.exp(torch.linspace(math.log(0.05), math.log(1), 3000))
    return max(candidates.tolist(), key=lambda scale: family(mean, scale).log_prob(x).sum().item())


@pytest.mark.parametrize(("name", "family"), [("gaussian", distributions.Normal), ("laplace", distributions.Laplace)])
def test_in_training_the_scale_is_the_best_one_for_the_batch(
    name: str, family: type[distributions.Normal] | type[distributions.Laplace]
) -> None:
    chosen, x = likelihood.build(name).train(), real_images(4)
    output = torch.randn(x.shape, generator=noise())
    mean = torch.sigmoid(output)
    best = best_scale(family, x, mean)
    got = chosen.log_prob(x, output).sum().item()
    assert got == pytest.approx(family(mean, best).log_prob(x).sum().item(), rel=1e-5)
    measured = made(name)
    measured.set_statistic((measured.statistic(x, output) / x.numel()).item())
    assert next(iter(measured.parameters_by_name().values())) == pytest.approx(best, rel=2e-3)
    assert measured.log_prob(x, output).sum().item() == pytest.approx(got, rel=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_the_scale_has_a_gentle_floor(name: str) -> None:
    chosen = likelihood.build(name)
    chosen.set_statistic(0.0)
    assert next(iter(chosen.parameters_by_name().values())) == pytest.approx(math.exp(-6), rel=1e-3)
    assert torch.isfinite(chosen.train().log_prob(torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), -200.0))).all()


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_the_running_error_follows_training_only(name: str) -> None:
    chosen = likelihood.build(name)
    x, output = real_images(), torch.zeros(16, 1, 28, 28)
    error = (chosen.statistic(x, output) / x.numel()).float()
    for _ in range(200):
        chosen.train().log_prob(x, output)
    (running,) = chosen.buffers()
    torch.testing.assert_close(running, error, rtol=1e-3, atol=0)
    chosen.eval().log_prob(x, output + 5)
    torch.testing.assert_close(running, error, rtol=1e-3, atol=0)


def test_the_logistic_s_scale_is_learnt_and_stays_above_a_level() -> None:
    chosen, x = likelihood.build("discretised-logistic"), real_images()
    output = 4 * (x - 0.5) + 0.2 * torch.randn(x.shape, generator=noise())
    optimiser = torch.optim.Adam(chosen.parameters(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        (-chosen.log_prob(x, output).mean()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    learnt = chosen.parameters_by_name()["scale"]
    candidates = [likelihood.from_manifest(chosen.name, {"scale": learnt * factor}) for factor in (0.9, 1.0, 1.1)]
    scores = [candidate.log_prob(x, output).sum().item() for candidate in candidates]
    assert max(scores) == scores[1]
    chosen.log_scale.data.fill_(-100.0)  # type: ignore[union-attr,operator]
    assert chosen.parameters_by_name()["scale"] == pytest.approx(1 / 255)


@pytest.mark.parametrize("name", OF_MEAN)
def test_the_mean_determines_the_density_where_no_parameters_are_needed(name: str) -> None:
    chosen = made(name)
    assert not chosen.needs_parameters
    x = chosen.observe(real_images(), noise())
    output = 3 * torch.randn(x.shape, generator=noise(1))
    of_mean = chosen.log_prob_of_mean(x, chosen.mean(output))
    torch.testing.assert_close(of_mean, chosen.log_prob(x, output), rtol=1e-5, atol=0)


def test_others_need_parameters() -> None:
    assert {name for name in LIKELIHOODS if made(name).needs_parameters} == set(LIKELIHOODS) - set(OF_MEAN)


def test_a_certain_and_wrong_bernoulli_is_finite_and_still_a_distribution() -> None:
    mean = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    chosen = made("bernoulli")
    log_prob = torch.stack([chosen.log_prob_of_mean(torch.full_like(mean, value), mean) for value in (0.0, 1.0)])
    assert log_prob.min().item() == pytest.approx(24 * math.log(0.5), rel=1e-5)
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(2))


@pytest.mark.parametrize("name", ["gaussian", "gaussian-fixed", "laplace"])
def test_by_the_identity_the_output_is_the_mean_and_is_cut_only_where_nothing_is_learnt(name: str) -> None:
    chosen = likelihood.build(name, link="identity").train()
    x, output = torch.full((1, 1, 1, 3), 0.5), torch.tensor([-0.7, 0.25, 1.9]).view(1, 1, 1, 3).requires_grad_(True)
    assert chosen.mean(output.detach()).flatten().tolist() == [0.0, 0.25, 1.0]
    chosen.log_prob(x, output).sum().backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    assert (output.grad.flatten() * torch.tensor([1, 1, -1]) > 0).all()  # each is pulled towards 0.5
    if name != "laplace":
        torch.testing.assert_close(output.grad / output.grad[..., 1:2], (x - output.detach()) / 0.25)
    cut = output.detach().clamp(0, 1)
    torch.testing.assert_close(chosen.eval().log_prob(x, output.detach()), chosen.log_prob_of_mean(x, cut))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_manifest_s_numbers_make_the_same_likelihood(name: str) -> None:
    chosen = made(name)
    again = likelihood.from_manifest(name, chosen.parameters_by_name())
    x = chosen.observe(real_images(), noise())
    output = output_of(chosen, torch.randn(x.shape, generator=noise(1)))
    assert again.name == name
    assert not again.training
    torch.testing.assert_close(again.log_prob(x, output), chosen.log_prob(x, output))
    assert torch.equal(again.mean(output), chosen.mean(output)) or name == "discretised-logistic"


@pytest.mark.parametrize(
    ("name", "parameters", "named"),
    [
        ("poisson", {}, "likelihood.name: got poisson"),
        ("gaussian", {}, "likelihood.parameters.sigma: got None"),
        ("laplace", {"scale": -1.0}, "likelihood.parameters.scale: got -1.0"),
        ("gaussian-fixed", {"variance": math.nan}, "likelihood.parameters.variance: got nan"),
        ("discretised-logistic", {"scale": 0.0}, "likelihood.parameters.scale: got 0.0"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(name: str, parameters: dict[str, float], named: str) -> None:
    with pytest.raises(ExportError, match=named):
        likelihood.from_manifest(name, parameters)


def test_names_in_configs_are_the_likelihoods() -> None:
    for name in LIKELIHOODS:
        assert likelihood.build(name).name == name
    assert likelihood.build("gaussian-fixed", variance=0.5).parameters_by_name() == {"variance": 0.5}
