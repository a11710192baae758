"""The arena: what is taken never overlaps, what is given back is there again, and no memory is an answer."""

from __future__ import annotations

import errno
import os
import threading
from itertools import pairwise

import numpy as np
import pytest

from serving.handover.arena import Arena, attach

MEBIBYTE = 1 << 20


def test_places_never_overlap_and_all_of_it_is_there_again() -> None:
    arena, rng = Arena(MEBIBYTE), np.random.default_rng(0)
    taken: dict[int, int] = {}
    for _ in range(5000):
        if taken and rng.random() < 0.5:
            place = list(taken)[rng.integers(len(taken))]
            del taken[place]
            arena.give(place)
        else:
            size = int(2 ** rng.uniform(0, 18))
            place = arena.take(size)
            if place >= 0:
                taken[place] = size
        spans = sorted((place, place + size) for place, size in taken.items())
        assert all(end <= after for (_, end), (after, _) in pairwise(spans))
        assert not spans or (spans[0][0] >= 0 and spans[-1][1] <= MEBIBYTE)
    for place in taken:
        arena.give(place)
    assert arena.taken == 0
    assert arena.take(MEBIBYTE) == 0  # neighbours were joined again
    assert arena.take(1) == -1


def test_what_is_full_says_so_and_what_is_too_large_too() -> None:
    arena = Arena(MEBIBYTE)
    assert arena.take(MEBIBYTE + 1) == -1
    places = [arena.take(4096) for _ in range(256)]
    assert sorted(places) == [4096 * k for k in range(256)]
    assert arena.take(1) == -1
    arena.give(places[7])
    assert arena.take(4096) == places[7]


def test_both_processes_see_one_memory() -> None:
    arena = Arena(MEBIBYTE)
    other = attach(os.dup(arena.descriptor), MEBIBYTE)
    arena.memory[4096:4100] = b"here"
    assert other[4096:4100] == b"here"


def test_memory_that_could_be_taken_away_is_not_attached() -> None:
    descriptor = os.memfd_create("loose", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, MEBIBYTE)
    with pytest.raises(ValueError, match="arena"):
        attach(descriptor, MEBIBYTE)
    arena = Arena(MEBIBYTE)
    with pytest.raises(ValueError, match="arena"):
        attach(os.dup(arena.descriptor), 2 * MEBIBYTE)
    with pytest.raises(OSError, match="Operation not permitted"):
        os.ftruncate(arena.descriptor, 4096)


def test_exhausted_memory_is_an_answer_and_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(4 * MEBIBYTE)
    first = arena.take(MEBIBYTE)

    def none(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", none)
        assert arena.take(MEBIBYTE) == -1
        arena.give(first)
        assert arena.take(MEBIBYTE) == first  # what was promised stays
    assert arena.take(MEBIBYTE) >= 0


def test_what_is_lent_is_there_again_once_the_last_array_of_it_has_gone() -> None:
    arena = Arena(MEBIBYTE)
    place = arena.take(8192)
    lent = arena.lend(place, 8192)
    images = np.ndarray((2, 4096), np.uint8, lent)
    part = images[1:].reshape(64, 64)
    del lent, images
    assert arena.taken == 1
    arena.close()  # the engine process has gone; what it answered is still there
    part[...] = 7
    assert part.sum() == 7 * 4096
    thread = threading.Thread(target=lambda array: array.sum(), args=(part,))
    del part
    thread.start()
    thread.join()
    del thread
    assert arena.taken == 0
