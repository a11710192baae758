"""Perceptual distances against scipy, on real images and on blurred ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from training_fixtures import fashion_images

from training import perceptual

Plane = NDArray[np.float64]


def real_images(n: int = 8, side: int = 28) -> Tensor:
    planes = [Image.fromarray(image).resize((side, side)) for image in fashion_images()[:n]]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).unsqueeze(1) / 255


def blurred(images: Tensor) -> Tensor:
    return functional.avg_pool2d(images, 3, 1, 1)


def noisy(images: Tensor, deviation: float = 0.1) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).clamp(0, 1)


def window(side: int) -> Plane:
    places = np.arange(side) - side // 2
    taps = np.exp(-0.5 * (places / 1.5) ** 2)
    plane = np.outer(taps, taps)
    return plane / plane.sum()


def scipy_maps(a: Plane, b: Plane, side: int) -> tuple[Plane, Plane]:
    """Luminance, and contrast and structure from centred moments in float64, wherever the window lies within."""
    taps = window(side)
    edge = side // 2
    inside = (slice(edge, a.shape[0] - edge), slice(edge, a.shape[1] - edge))

    def smoothed(plane: Plane) -> Plane:
        correlated: Plane = ndimage.correlate(plane, taps, mode="constant")[inside]
        return correlated

    mean_a, mean_b = smoothed(a), smoothed(b)
    var_a, var_b = smoothed(a * a) - mean_a**2, smoothed(b * b) - mean_b**2
    covariance = smoothed(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return luminance, (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2)


def scipy_ssim(a: Plane, b: Plane, side: int = 11) -> float:
    luminance, structure = scipy_maps(a, b, side)
    return float((luminance * structure).mean())


@pytest.mark.parametrize("change", [blurred, noisy])
@pytest.mark.parametrize(("pixels", "side"), [(28, 11), (64, 11), (9, 9), (8, 7)])
def test_ssim_is_that_of_scipy(change: object, pixels: int, side: int) -> None:
    assert callable(change)
    a = real_images(4, pixels)
    b = change(a)
    expected = [scipy_ssim(*(plane[0].double().numpy() for plane in pair), side) for pair in zip(a, b, strict=True)]
    assert perceptual.ssim(a, b).tolist() == pytest.approx(expected, abs=2e-5)


def test_ssim_of_colours_is_the_mean_over_the_channels() -> None:
    a = real_images(6).view(2, 3, 28, 28)
    b = noisy(a)
    apart = torch.stack([perceptual.ssim(a[:, c : c + 1], b[:, c : c + 1]) for c in range(3)])
    torch.testing.assert_close(perceptual.ssim(a, b), apart.mean(0))


def halved(plane: Plane) -> Plane:
    side = len(plane) // 2
    means: Plane = plane[: 2 * side, : 2 * side].reshape(side, 2, side, 2).mean((1, 3))
    return means


@pytest.mark.parametrize(("pixels", "scales"), [(20, 1), (28, 2), (64, 3)])
def test_multi_scale_ssim_is_that_of_scipy_at_as_many_scales_as_fit(pixels: int, scales: int) -> None:
    a = real_images(1, pixels)
    b = noisy(a)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    one, other, expected = a[0, 0].double().numpy(), b[0, 0].double().numpy(), 1.0
    for scale, weight in enumerate(weights / weights.sum()):
        luminance, structure = scipy_maps(one, other, 11)
        similarity = (luminance * structure).mean() if scale + 1 == scales else structure.mean()
        expected *= similarity**weight
        one, other = halved(one), halved(other)
    assert perceptual.multi_scale_ssim(a, b).item() == pytest.approx(expected, abs=2e-5)


def scipy_laplacian(difference: Plane) -> float:
    taps, total, weight = np.array([1, 4, 6, 4, 1]) / 16, 0.0, 1.0
    while len(difference) > 4:
        low = ndimage.correlate1d(ndimage.correlate1d(difference, taps, 0, mode="nearest"), taps, 1, mode="nearest")
        total += weight * np.abs(difference - low).sum()
        padded = np.pad(low, (0, len(low) % 2), mode="edge") if len(low) % 2 == 0 else low
        difference, weight = halved(padded), 4 * weight
    return total + weight * float(np.abs(difference).sum())


@pytest.mark.parametrize("pixels", [8, 32, 64])
def test_the_laplacian_distance_is_that_of_scipy(pixels: int) -> None:
    a = real_images(3, pixels)
    b = noisy(a)
    expected = [scipy_laplacian(plane[0].double().numpy()) for plane in a - b]
    assert perceptual.laplacian(a, b).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["laplacian", "ms-ssim"])
@pytest.mark.parametrize("shape", [(28, 28), (33, 18), (8, 8), (64, 64)])
def test_a_distance_is_zero_for_like_images_and_symmetric(name: str, shape: tuple[int, int]) -> None:
    a = functional.interpolate(real_images(6).view(2, 3, 28, 28), shape, mode="bilinear")
    b = noisy(a)
    torch.testing.assert_close(perceptual.distance(name, a, a), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(perceptual.distance(name, a, b), perceptual.distance(name, b, a))
    assert (perceptual.distance(name, a, b) > 0.01).all()


def of_the_same_error(a: Tensor, change: Tensor, other: Tensor) -> Tensor:
    """a + change, scaled to the squared error of `other`, image by image."""
    ratio = (other - a).square().flatten(1).mean(1) / change.square().flatten(1).mean(1)
    return a + change * ratio.sqrt().view(-1, 1, 1, 1)


def test_errors_on_a_coarse_scale_cost_more_than_noise_of_the_same_squared_error() -> None:
    a = real_images()
    fine = noisy(a)
    coarse = of_the_same_error(a, torch.ones_like(a), fine)
    assert (perceptual.laplacian(a, coarse) > perceptual.laplacian(a, fine)).all()


def test_blur_costs_more_than_a_brighter_image_of_the_same_squared_error() -> None:
    a = real_images(200)
    soft = blurred(a)
    brighter = of_the_same_error(a, torch.ones_like(a), soft)
    assert perceptual.distance("ms-ssim", a, soft).mean() > 2 * perceptual.distance("ms-ssim", a, brighter).mean()


@pytest.mark.parametrize("name", ["laplacian", "ms-ssim"])
def test_the_gradient_is_finite_and_leads_back_to_the_image(name: str) -> None:
    target = real_images(2)
    for start in (1 - target, torch.zeros_like(target), torch.full_like(target, 0.5)):
        guess = start.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([guess], lr=0.03)
        first = perceptual.distance(name, guess, target).sum().item()
        for _ in range(40):
            optimiser.zero_grad()
            perceptual.distance(name, guess, target).sum().backward()  # type: ignore[no-untyped-call]
            assert guess.grad is not None
            assert torch.isfinite(guess.grad).all()
            optimiser.step()
        if not torch.equal(start, 1 - target):  # a negative's structure is the opposite one: beyond a flat floor
            assert perceptual.distance(name, guess, target).sum().item() < 0.7 * first
    assert math.isfinite(first)
