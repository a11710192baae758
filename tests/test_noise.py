"""Seeds that address vectors, the normal distribution, and its truncation."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from serving.latents import elementary, noise

GOLDEN = [
    [1074097652, 3184904290, 1069011715, 3180557408, 3215568409],
    [1052780693, 1058819519, 3204767887, 3194041717, 1059323239],
]  # the float32 bits
GOLDEN_RESAMPLED = {
    0.01: [3135973830, 3156196054, 984529718, 974032131, 1006389253, 3129771553],
    1.5: [3192440526, 3216367560, 1041547428, 1030881477, 1064819049, 3186554596],
    10.0: [3194502501, 3222232447, 1043064104, 1032564863, 1067031933, 3188327267],
}

SEEDS = st.integers(0, noise.MAX_SEED)
BOUNDS = st.floats(float(np.float32(0.01)), 10.0, width=32)


def test_any_part_of_a_seed_is_the_same_wherever_it_is_asked_for() -> None:
    whole = noise.standard_normals(seed=7, first=0, count=100, dim=30)
    for first, count in [(0, 1), (5, 5), (99, 1), (37, 63)]:
        part = noise.standard_normals(7, first, count, 30)
        assert part.tobytes() == whole[first : first + count].tobytes()


def test_the_bits_are_those_of_every_release() -> None:
    """A golden value: a change here changes every user's images."""
    drawn = noise.standard_normals(seed=2026, first=3, count=2, dim=5)
    assert drawn.view(np.uint32).tolist() == GOLDEN


def test_seeds_and_indices_reach_to_their_ends() -> None:
    last = noise.standard_normals(noise.MAX_SEED, noise.MAX_INDEX, 1, 65)
    assert np.isfinite(last).all()
    assert last.tobytes() != noise.standard_normals(noise.MAX_SEED, noise.MAX_INDEX - 1, 1, 65).tobytes()


def test_the_quantile_agrees_with_pythons_own() -> None:
    p = np.concatenate([np.linspace(1e-9, 1 - 1e-9, 20_001), [2.0**-54, 1e-300, 1e-12, 0.0749, 0.0751, 1 - 2.0**-53]])
    expected = np.array([NormalDist().inv_cdf(float(x)) for x in p])
    np.testing.assert_allclose(noise.normal_quantile(p), expected, rtol=1e-14, atol=4e-15)


def test_draws_are_standard_normal_and_independent() -> None:
    z = noise.standard_normals(seed=11, first=0, count=50_000, dim=20).astype(np.float64)
    n = z.size
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)
    correlations = np.corrcoef(z.T)[~np.eye(20, dtype=bool)]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(len(z))
    other = noise.standard_normals(seed=12, first=0, count=50_000, dim=20)
    assert abs((z * other).mean()) < 5 / np.sqrt(n)


@pytest.mark.parametrize(
    ("word", "expected"), [(0, -8.29), (2**64 - 1, 8.21), (2**63, 0.0), (2**62, -0.6745), (3 * 2**62, 0.6745)]
)
def test_every_word_makes_a_number_of_the_distribution(word: int, expected: float) -> None:
    """All ones too, whose part of (0, 1) ends at 1, where the quantile is infinite."""
    p = noise._unit(np.array([word], np.uint64))
    assert 0 < p[0] < 1
    assert noise.normal_quantile(p)[0] == pytest.approx(expected, abs=0.01)


class TestTruncated:
    @pytest.mark.parametrize("bound", GOLDEN_RESAMPLED)
    def test_the_bits_are_those_of_every_release(self, bound: float) -> None:
        drawn = noise.truncated_normals(seed=2026, first=3, count=2, dim=3, bound=bound, clamp=False)
        assert drawn.view(np.uint32).ravel().tolist() == GOLDEN_RESAMPLED[bound]

    @pytest.mark.parametrize("bound", [0.01, 0.5, 1.0, 2.0, 3.5, 10.0])
    def test_resampled_draws_have_the_truncated_distribution(self, bound: float) -> None:
        z = noise.truncated_normals(4, 0, 2000, 50, bound, clamp=False).ravel().astype(np.float64)
        assert np.abs(z).max() <= np.float32(bound)
        assert stats.kstest(z, stats.truncnorm(-bound, bound).cdf).pvalue > 1e-3

    @given(bound=BOUNDS, seed=SEEDS)
    @settings(max_examples=30, deadline=None)
    def test_each_resampled_number_is_the_quantile_of_its_own_word(self, bound: float, seed: int) -> None:
        """Against scipy, which has the standard number's probability from its own distribution function."""
        standard = noise.standard_normals(seed, 0, 50, 7).astype(np.float64)
        expected = stats.truncnorm(-bound, bound).ppf(stats.norm.cdf(standard))
        z = noise.truncated_normals(seed, 0, 50, 7, bound, clamp=False)
        np.testing.assert_allclose(z, expected, rtol=2e-6, atol=1e-7)

    @given(bound=BOUNDS, seed=SEEDS)
    @settings(max_examples=30, deadline=None)
    def test_clamped_draws_are_the_standard_ones_cut_off(self, bound: float, seed: int) -> None:
        standard = noise.standard_normals(seed, 0, 50, 7)
        z = noise.truncated_normals(seed, 0, 50, 7, bound, clamp=True)
        expected = [max(-bound, min(bound, float(x))) for x in standard.ravel()]
        assert z.ravel().tolist() == expected

    @given(
        seed=SEEDS,
        first=st.integers(0, noise.MAX_INDEX - 40),
        dim=st.integers(1, 9),
        bound=BOUNDS,
        clamp=st.booleans(),
        part=st.tuples(st.integers(0, 39), st.integers(1, 40)),
    )
    @settings(max_examples=60, deadline=None)
    def test_any_part_is_the_whole_s(
        self, seed: int, first: int, dim: int, bound: float, clamp: bool, part: tuple[int, int]
    ) -> None:
        start, count = part[0], min(part[1], 40 - part[0])
        whole = noise.truncated_normals(seed, first, 40, dim, bound, clamp)
        again = noise.truncated_normals(seed, first + start, count, dim, bound, clamp)
        assert again.tobytes() == whole[start : start + count].tobytes()
        assert whole.dtype == np.float32

    def test_a_wide_bound_changes_next_to_nothing(self) -> None:
        standard = noise.standard_normals(1, 0, 100, 30)
        np.testing.assert_allclose(noise.truncated_normals(1, 0, 100, 30, 10.0, clamp=False), standard, rtol=1e-6)

    @pytest.mark.parametrize("z", [-10.0, -8.0, -5.3, -2.0, -1.0, -0.3, -0.01])
    def test_tails_are_those_of_scipy(self, z: float) -> None:
        assert noise._below(z) == pytest.approx(stats.norm.cdf(z), rel=1e-13)


def test_elementary_functions_agree_with_numpys() -> None:
    x = np.concatenate([np.linspace(1e-12, 3.0, 5001), np.geomspace(1e-300, 1e300, 5001)])
    np.testing.assert_allclose(elementary.log(x), np.log(x), rtol=2e-15, atol=1e-15)
    np.testing.assert_allclose(elementary.arctan(x[x < 1e7]), np.arctan(x[x < 1e7]), rtol=1e-15)
    angles = np.linspace(0.0, np.pi, 5001)
    np.testing.assert_allclose(elementary.sin(angles), np.sin(angles), atol=3e-16)
