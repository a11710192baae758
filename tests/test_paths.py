"""Paths between key frames: where they lead, what they keep, and that any part is made without the rest."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import geometric_slerp

from serving.latents.paths import Easing, Kind, Opposite, Path

KINDS: tuple[Kind, ...] = ("linear", "spherical", "catmull-rom")
EASINGS: tuple[Easing, ...] = ("none", "in", "out", "in-out")

NUMBERS = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))  # the first make equal key frames
KEYS = hnp.arrays(np.float32, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=NUMBERS)
CORNERS = np.array([[0.25, -1, 2], [1.5, 0.75, -0.5], [-2, 0.125, 1], [0, 3, -1.25]], np.float32)
# Float32 bits of the points 7 and 8 of each kind of loop through them.
GOLDEN: dict[Kind, list[int]] = {
    "linear": [3216875823, 1063178392, 1054168405, 3204758945, 1074809818, 3207244459],
    "spherical": [3221802007, 1066369295, 1059602915, 3214021356, 1076721372, 3204934876],
    "catmull-rom": [3219950942, 1061449714, 1058153562, 3205152105, 1076260894, 3211461416],
}


def some(count: int, dim: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(count).normal(size=(count, dim)).astype(np.float32)


def whole(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    return path.points(0, len(path))


def made(keys: Any, steps: int, kind: Kind = "linear", easing: Easing = "none", **how: bool) -> Any:
    return whole(Path(np.array(keys, np.float32), steps, kind, easing, **how))


def walked(keys: Any, *args: Any, **how: Any) -> Path | None:
    """None if the path does not exist."""
    try:
        return Path(keys, *args, **how)
    except Opposite:
        return None


class TestAnyPath:
    @given(
        keys=KEYS,
        steps=st.integers(2, 9),
        kind=st.sampled_from(KINDS),
        easing=st.sampled_from(EASINGS),
        loop=st.booleans(),
        ends=st.booleans(),
        data=st.data(),
    )
    @settings(max_examples=200, deadline=None)
    def test_any_part_is_the_whole_s_and_key_frames_are_in_it(
        self, keys: Any, steps: int, kind: Kind, easing: Easing, loop: bool, ends: bool, data: st.DataObject
    ) -> None:
        path = walked(keys, steps, kind, easing, loop, ends)
        if path is None:
            return
        points = whole(path)
        first = data.draw(st.integers(0, len(path)))
        count = data.draw(st.integers(0, len(path) - first))
        assert path.points(first, count).tobytes() == points[first : first + count].tobytes()
        assert points.dtype == np.float32
        assert np.isfinite(points).all()
        if loop or ends:
            assert points[:: steps - 1].tobytes() == keys.tobytes()
        else:
            assert points[steps - 2 :: steps - 1].tobytes() == keys[1:-1].tobytes()

    @given(keys=KEYS, steps=st.integers(2, 9), kind=st.sampled_from(KINDS), easing=st.sampled_from(EASINGS))
    @settings(max_examples=100, deadline=None)
    def test_a_loop_goes_on_from_the_open_path_to_the_first_key_frame(
        self, keys: Any, steps: int, kind: Kind, easing: Easing
    ) -> None:
        """Lines and arcs are what they are; a spline's neighbours over the seam are key frames of a longer walk."""
        loop = walked(keys, steps, kind, easing, loop=True)
        if loop is None:
            return
        assert len(loop) == len(keys) * (steps - 1)
        if kind != "catmull-rom":
            closed = np.concatenate([keys, keys[:1]])
            assert whole(loop).tobytes() == made(closed, steps, kind, easing)[:-1].tobytes()
        else:
            thrice = np.concatenate([keys, keys, keys, keys[:1]])
            assert whole(loop).tobytes() == made(thrice, steps, kind, easing)[len(loop) : 2 * len(loop)].tobytes()

    @given(keys=KEYS, kind=st.sampled_from(KINDS), easing=st.sampled_from(EASINGS), loop=st.booleans())
    @settings(max_examples=100, deadline=None)
    def test_between_equal_key_frames_it_stands_still(self, keys: Any, kind: Kind, easing: Easing, loop: bool) -> None:
        twice = np.repeat(keys, 2, axis=0)
        path = walked(twice, 5, kind, easing, loop)
        if path is not None:
            for i in range(len(keys)):
                assert (path.points(8 * i, 5) == keys[i]).all()

    @given(keys=KEYS, kind=st.sampled_from(KINDS), easing=st.sampled_from(EASINGS))
    @settings(max_examples=50, deadline=None)
    def test_without_ends_it_is_the_same_but_for_them(self, keys: Any, kind: Kind, easing: Easing) -> None:
        path = walked(keys, 4, kind, easing, ends=False)
        if path is not None:
            assert whole(path).tobytes() == made(keys, 4, kind, easing)[1:-1].tobytes()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("count", "loop", "length"), [(2, False, 0), (5, False, 3), (5, True, 5)])
    def test_two_steps_are_the_key_frames_alone(self, kind: Kind, count: int, loop: bool, length: int) -> None:
        keys = some(count, 3)
        assert made(keys, 2, kind, loop=loop).tobytes() == keys.tobytes()
        assert len(Path(keys, 2, kind, "none", loop, ends=False)) == length

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_last_key_frame_that_is_the_first_is_rested_at(self, kind: Kind) -> None:
        keys = some(4, 3)
        keys[3] = keys[0]
        points = made(keys, 6, kind, loop=True)
        assert len(points) == 20
        assert (points[15:] == keys[0]).all()
        assert not (points[1:15] == keys[0]).all(axis=1).any()

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_bits_do_not_depend_on_the_machine(self, kind: Kind) -> None:
        points = Path(CORNERS, 4, kind, "in-out", loop=True).points(7, 2)
        assert points.view(np.uint32).ravel().tolist() == GOLDEN[kind]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_part_of_a_long_path_costs_no_more_than_itself(self, kind: Kind) -> None:
        keys = some(2, 32)
        tracemalloc.start()
        try:
            path = Path(keys, (1 << 30) + 1, kind, "none")
            middle = path.points(1 << 29, 1)
            last = path.points(1 << 30, 1)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(path) == (1 << 30) + 1
        assert middle.tobytes() == made(keys, 3, kind)[1].tobytes()
        assert last.tobytes() == keys[1].tobytes()
        assert peak < 1 << 18

    @pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, 12), (11, 1), (5, -1)])
    def test_there_is_nothing_beyond_its_ends(self, first: int, count: int) -> None:
        with pytest.raises(IndexError, match="wanted 0 to 10"):
            Path(some(3, 2), 6, "linear", "none").points(first, count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("easing", "times"),
    [
        ("none", [0, 0.25, 0.5, 0.75, 1]),
        ("in", [0, 0.0625, 0.25, 0.5625, 1]),
        ("out", [0, 0.4375, 0.75, 0.9375, 1]),
        ("in-out", [0, 0.15625, 0.5, 0.84375, 1]),
    ],
)
def test_easing_is_the_time_of_a_leg(kind: Kind, easing: Easing, times: list[float]) -> None:
    fine = made(some(3, 4), 33, kind)  # in steps of 1/32
    points = made(some(3, 4), 5, kind, easing)
    for point, time in zip(points, [*times[:-1], *(1 + t for t in times)], strict=True):
        np.testing.assert_allclose(point, fine[round(time * 32)], atol=1e-6)


class TestLines:
    def test_go_through_their_key_frames(self) -> None:
        path = made([[0, 0], [4, 8], [4, 0]], steps=5)
        assert path.tolist() == [[0, 0], [1, 2], [2, 4], [3, 6], [4, 8], [4, 6], [4, 4], [4, 2], [4, 0]]

    def test_go_back_to_the_first_in_a_loop(self) -> None:
        path = made([[0, 0], [4, 8], [4, 0]], steps=3, loop=True)
        assert path.tolist() == [[0, 0], [2, 4], [4, 8], [4, 4], [4, 0], [2, 0]]


class TestArcs:
    def test_keep_their_length_and_their_key_frames(self) -> None:
        keys = [[3, 0, 0], [0, 3, 0], [0, 0, 3]]
        path = made(keys, 4, "spherical")
        np.testing.assert_allclose(np.linalg.norm(path, axis=1), 3.0, rtol=1e-6)
        assert path[[0, 3, 6]].tolist() == keys
        cosines = (path[:-1] * path[1:]).sum(1) / 9
        np.testing.assert_allclose(np.arccos(cosines), np.pi / 6, rtol=1e-5)

    def test_go_evenly_from_one_length_to_another(self) -> None:
        lengths = np.linalg.norm(made([[10, 0, 0], [-1, 0.01, 0]], 4, "spherical"), axis=1)
        np.testing.assert_allclose(lengths, [10, 7, 4, 1], rtol=1e-4)

    @pytest.mark.parametrize("apart", [3.0, 1.0, 1e-2, 1e-5])
    def test_agree_with_scipys(self, apart: float) -> None:
        """From small angles to nearly opposite key frames."""
        keys = np.array([[1, 0, 0], [np.cos(apart), 0.6 * np.sin(apart), 0.8 * np.sin(apart)]], np.float32)
        a, b = (key / np.linalg.norm(key) for key in keys.astype(np.float64))
        np.testing.assert_allclose(made(keys, 9, "spherical"), geometric_slerp(a, b, np.linspace(0, 1, 9)), atol=3e-7)

    @pytest.mark.parametrize("keys", [[[1, 1], [1, 1]], [[0, 0], [2, 0]], [[1, 0], [2, 0]], [[0, 0], [0, 0]]])
    def test_without_an_angle_are_straight(self, keys: list[list[float]]) -> None:
        np.testing.assert_allclose(made(keys, 5, "spherical"), made(keys, 5), atol=1e-6)

    @pytest.mark.parametrize(
        ("keys", "loop", "at"),
        [
            ([[1, 0], [1, 1], [-2, -2]], False, 1),
            ([[1, 0], [-1, 0], [1, 0]], False, 0),
            ([[1, 0], [-3, 0]], True, 0),
            ([[1, 0], [0, 1], [-1, 1e-4]], True, 2),
        ],
    )
    def test_do_not_join_opposites(self, keys: list[list[float]], loop: bool, at: int) -> None:
        with pytest.raises(Opposite) as caught:
            made(keys, 5, "spherical", loop=loop)
        assert caught.value.at == at
        made(keys, 5, "catmull-rom", loop=loop)

    def test_join_opposites_in_no_loop(self) -> None:
        assert len(made([[1, 0], [0, 1], [-1, 0]], 5, "spherical")) == 9


def barry_goldman(four: Any, t: float) -> Any:
    """The point between the second and the third, in centripetal times: Barry & Goldman (1988), by repeated lines."""
    knots = np.cumsum([0.0, *(np.sqrt(np.linalg.norm(b - a)) for a, b in itertools.pairwise(four))])
    time = knots[1] + t * (knots[2] - knots[1])

    def line(i: int, j: int, a: Any, b: Any) -> Any:
        return ((knots[j] - time) * a + (time - knots[i]) * b) / (knots[j] - knots[i])

    a = [line(i, i + 1, four[i], four[i + 1]) for i in range(3)]
    b = [line(i, i + 2, a[i], a[i + 1]) for i in range(2)]
    return line(1, 2, b[0], b[1])


class TestSplines:
    def test_are_those_of_barry_and_goldman(self) -> None:
        keys = some(6, 4).astype(np.float64) * np.array([[1], [5], [0.1], [3], [1], [0.01]])
        keys = keys.astype(np.float32).astype(np.float64)
        points = made(keys, 9, "catmull-rom")
        ends = [2 * keys[0] - keys[1], *keys, 2 * keys[-1] - keys[-2]]  # beyond an end it goes on as it came
        for leg, step in itertools.product(range(5), range(1, 8)):
            expected = barry_goldman(ends[leg : leg + 4], step / 8)
            np.testing.assert_allclose(points[8 * leg + step], expected, rtol=1e-5, atol=1e-6)

    @given(keys=KEYS, steps=st.integers(2, 9), easing=st.sampled_from(EASINGS))
    @settings(max_examples=50, deadline=None)
    def test_through_two_key_frames_are_the_straight_line(self, keys: Any, steps: int, easing: Easing) -> None:
        np.testing.assert_array_equal(
            made(keys[:2], steps, "catmull-rom", easing), made(keys[:2], steps, "linear", easing)
        )

    @pytest.mark.parametrize("loop", [False, True])
    def test_have_no_corners(self, loop: bool) -> None:
        points = made(some(6, 3), 1001, "catmull-rom", loop=loop).astype(np.float64)
        points = np.concatenate([points, points[:2]]) if loop else points
        ways = np.diff(points, axis=0)
        ways /= np.linalg.norm(ways, axis=1)[:, None]
        assert (ways[:-1] * ways[1:]).sum(1).min() > 0.999

    def test_hardly_move_between_key_frames_that_are_hardly_different(self) -> None:
        """As encoded twice in other batches; a uniform spline would leave and come back."""
        keys = np.array([[0, 0], [4, 0], [4, 1e-6], [4, 4]], np.float32)
        leg = made(keys, 11, "catmull-rom")[10:21]
        assert np.abs(leg - keys[1]).max() < 2e-6
