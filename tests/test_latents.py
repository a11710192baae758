"""Seeds that address images, the normal distribution, and paths between key frames."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from serving import latents

GOLDEN = [
    [1074097652, 3184904290, 1069011715, 3180557408, 3215568409],
    [1052780693, 1058819519, 3204767887, 3194041717, 1059323239],
]  # the float32 bits


def test_any_part_of_a_seed_is_the_same_wherever_it_is_asked_for() -> None:
    whole = latents.standard_normals(seed=7, first=0, count=100, dim=30)
    for first, count in [(0, 1), (5, 5), (99, 1), (37, 63)]:
        part = latents.standard_normals(7, first, count, 30)
        assert part.tobytes() == whole[first : first + count].tobytes()


def test_the_bits_are_those_of_every_release() -> None:
    """A golden value: a change here changes every user's images."""
    drawn = latents.standard_normals(seed=2026, first=3, count=2, dim=5)
    assert drawn.view(np.uint32).tolist() == GOLDEN


def test_seeds_and_indices_reach_to_their_ends() -> None:
    last = latents.standard_normals(latents.MAX_SEED, latents.MAX_INDEX, 1, 65)
    assert np.isfinite(last).all()
    assert last.tobytes() != latents.standard_normals(latents.MAX_SEED, latents.MAX_INDEX - 1, 1, 65).tobytes()


def test_the_quantile_agrees_with_pythons_own() -> None:
    p = np.concatenate([np.linspace(1e-9, 1 - 1e-9, 20_001), [2.0**-54, 1e-300, 1e-12, 0.0749, 0.0751, 1 - 2.0**-53]])
    expected = np.array([NormalDist().inv_cdf(float(x)) for x in p])
    np.testing.assert_allclose(latents.normal_quantile(p), expected, rtol=1e-14, atol=4e-15)


def test_draws_are_standard_normal_and_independent() -> None:
    z = latents.standard_normals(seed=11, first=0, count=50_000, dim=20).astype(np.float64)
    n = z.size
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)
    correlations = np.corrcoef(z.T)[~np.eye(20, dtype=bool)]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(len(z))
    other = latents.standard_normals(seed=12, first=0, count=50_000, dim=20)
    assert abs((z * other).mean()) < 5 / np.sqrt(n)


def test_a_straight_path_goes_through_its_key_frames() -> None:
    keys = np.array([[0, 0], [4, 8], [4, 0]], np.float32)
    path = latents.linear_path(keys, steps=5)
    assert path.tolist() == [[0, 0], [1, 2], [2, 4], [3, 6], [4, 8], [4, 6], [4, 4], [4, 2], [4, 0]]


def test_a_spherical_path_keeps_its_length_and_its_key_frames() -> None:
    keys = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3]], np.float32)
    path = latents.spherical_path(keys, steps=4)
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), 3.0, rtol=1e-6)
    assert path[[0, 3, 6]].tolist() == keys.tolist()
    cosines = (path[:-1] * path[1:]).sum(1) / 9
    np.testing.assert_allclose(np.arccos(cosines), np.pi / 6, rtol=1e-5)


def test_a_spherical_path_goes_evenly_from_one_length_to_another() -> None:
    keys = np.array([[10, 0, 0], [-1, 0.01, 0]], np.float32)
    lengths = np.linalg.norm(latents.spherical_path(keys, steps=4), axis=1)
    np.testing.assert_allclose(lengths, [10, 7, 4, 1], rtol=1e-4)


@pytest.mark.parametrize("keys", [[[1, 1], [1, 1]], [[0, 0], [2, 0]], [[1, 0], [2, 0]]])
def test_a_spherical_path_without_an_angle_is_the_straight_one(keys: list[list[float]]) -> None:
    frames = np.array(keys, np.float32)
    np.testing.assert_allclose(latents.spherical_path(frames, 5), latents.linear_path(frames, 5), atol=1e-6)


def test_opposite_key_frames_have_no_spherical_path() -> None:
    keys = np.array([[1, 0], [1, 1], [-2, -2]], np.float32)
    with pytest.raises(ValueError, match="1"):
        latents.spherical_path(keys, 5)
