"""What lies around a latent: grids on planes, and random walks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.latents import neighbours, noise
from serving.latents.neighbours import NoPlane

SEEDS = st.integers(0, noise.MAX_SEED)
BASE = np.array([0.5, -0.0, 3.25, -1.125, 2.0], np.float32)
GOLDEN_GRID = [1054844875, 1043740454, 1080194003, 3214521416, 1073832651]  # float32 bits of its first point
GOLDEN_WALK = [1058472790, 1071185567, 1078627673, 3232653763, 1081737593]  # of its last


class TestGrid:
    def test_points_lie_on_the_plane_that_was_asked_for(self) -> None:
        directions = np.array([[0, 0, 2, 0, 0], [3, 0, 5, 0, 0]], np.float32)  # made orthogonal: the third, the first
        points = neighbours.grid(BASE, 3, 4, 0.5, 0, directions).reshape(3, 4, 5)
        for i in range(3):
            for j in range(4):
                expected = [0.5 + (j - 1.5) / 2, 0, 3.25 + (i - 1) / 2, -1.125, 2]
                assert points[i, j].tolist() == expected

    @given(seed=SEEDS, rows=st.integers(1, 6), columns=st.integers(1, 6), dim=st.integers(2, 40))
    @settings(max_examples=50, deadline=None)
    def test_neighbours_are_the_spacing_apart_at_right_angles(
        self, seed: int, rows: int, columns: int, dim: int
    ) -> None:
        base = np.linspace(-1, 1, dim, dtype=np.float32)
        points = neighbours.grid(base, rows, columns, 0.25, seed).astype(np.float64)
        np.testing.assert_allclose(points.mean(axis=0), base, atol=1e-6)
        points = points.reshape(rows, columns, dim)
        down, along = np.diff(points, axis=0), np.diff(points, axis=1)
        np.testing.assert_allclose(np.linalg.norm(down, axis=2), 0.25, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(along, axis=2), 0.25, atol=1e-6)
        if rows > 1 and columns > 1:
            assert abs(down[0, 0] @ along[0, 0]) < 1e-6

    def test_the_first_direction_is_kept_and_lengths_do_not_count(self) -> None:
        directions = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
        points = neighbours.grid(BASE, 3, 3, 1.0, 0, directions).reshape(3, 3, 5).astype(np.float64)
        first = directions[0] / np.linalg.norm(directions[0])
        np.testing.assert_allclose(points[2, 1] - points[1, 1], first, atol=1e-6)
        assert (points[1, 2] - points[1, 1]) @ directions[1] > 0
        scaled = neighbours.grid(BASE, 3, 3, 1.0, 0, directions * np.array([[1e-30], [1e5]], np.float32))
        np.testing.assert_allclose(scaled.reshape(3, 3, 5), points, atol=1e-5)

    def test_the_middle_is_the_base_bit_for_bit(self) -> None:
        assert neighbours.grid(BASE, 3, 5, 0.5, 9)[7].tobytes() == BASE.tobytes()
        assert neighbours.grid(BASE, 1, 1, 0.5, 9).tobytes() == BASE.tobytes()

    def test_a_smaller_grid_is_the_middle_of_a_larger_one(self) -> None:
        large = neighbours.grid(BASE, 5, 5, 0.5, 9).reshape(5, 5, 5)
        small = neighbours.grid(BASE, 1, 3, 0.5, 9)
        assert small.tobytes() == large[2, 1:4].tobytes()

    def test_the_bits_are_those_of_every_release(self) -> None:
        points = neighbours.grid(BASE, 2, 2, 0.5, 2026)
        assert points[0].view(np.uint32).tolist() == GOLDEN_GRID

    @pytest.mark.parametrize(
        ("directions", "got"),
        [
            ([[0, 0], [1, 0]], "a first direction of zero"),
            ([[0, 1], [0, 0]], "a second direction of zero"),
            ([[1, 3], [2, 6]], "parallel directions"),
            ([[0.1, 0.2], [-0.3, -0.6]], "parallel directions"),  # but for the rounding of float32
        ],
    )
    def test_there_is_no_plane_without_two_directions(self, directions: Any, got: str) -> None:
        with pytest.raises(NoPlane, match=got) as caught:
            neighbours.grid(BASE[:2], 3, 3, 0.5, 0, np.array(directions, np.float32))
        assert (caught.value.field, caught.value.got) == ("directions", got)

    def test_one_latent_has_a_line_but_no_plane(self) -> None:
        base = np.array([1.0], np.float32)
        row = neighbours.grid(base, 1, 3, 0.5, 0, np.array([[1], [-3]], np.float32))
        column = neighbours.grid(base, 3, 1, 0.5, 0, np.array([[1], [-3]], np.float32))
        assert (row.tolist(), column.tolist()) == ([[1.5], [1.0], [0.5]], [[0.5], [1.0], [1.5]])
        assert sorted(neighbours.grid(base, 1, 3, 0.5, 4).ravel()) == [0.5, 1.0, 1.5]
        with pytest.raises(NoPlane) as caught:
            neighbours.grid(base, 2, 3, 0.5, 0)
        assert (caught.value.field, caught.value.wanted) == ("rows", "1 row or 1 column")


class TestRandomWalk:
    @given(seed=SEEDS, dim=st.integers(1, 40), count=st.integers(1, 40), longer=st.integers(0, 40))
    @settings(max_examples=50, deadline=None)
    def test_begins_with_the_base_and_the_shorter_walk_and_keeps_step(
        self, seed: int, dim: int, count: int, longer: int
    ) -> None:
        base = np.linspace(-0.0, 2, dim, dtype=np.float32)
        walk = neighbours.random_walk(base, count, 0.25, seed)
        assert walk.shape == (count, dim)
        assert walk[0].tobytes() == base.tobytes()
        assert neighbours.random_walk(base, count + longer, 0.25, seed)[:count].tobytes() == walk.tobytes()
        steps = np.diff(walk.astype(np.float64), axis=0)
        np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.25, atol=3e-6)

    def test_goes_along_the_vectors_of_its_seed(self) -> None:
        walk = neighbours.random_walk(BASE, 4, 2.0, 5).astype(np.float64)
        ways = noise.standard_normals(5, 0, 4, 5).astype(np.float64)
        for k in range(1, 4):
            np.testing.assert_allclose(walk[k] - walk[k - 1], 2 * ways[k] / np.linalg.norm(ways[k]), atol=1e-6)

    def test_spreads_as_the_root_of_its_steps(self) -> None:
        ends = [neighbours.random_walk(BASE, 101, 0.5, seed)[-1] - BASE for seed in range(400)]
        square = float((np.array(ends) ** 2).sum(1).mean())
        assert square == pytest.approx(100 * 0.5**2, rel=0.2)

    def test_a_number_that_is_zero_is_a_step_of_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(neighbours, "standard_normals", lambda *_: np.zeros((2, 1), np.float32))
        assert neighbours.random_walk(np.ones(1, np.float32), 3, 0.5, 0).tolist() == [[1], [1], [1]]

    def test_the_bits_are_those_of_every_release(self) -> None:
        walk = neighbours.random_walk(BASE, 100, 0.5, 2026)
        assert walk[-1].view(np.uint32).tolist() == GOLDEN_WALK
