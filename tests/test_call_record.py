"""What the record of a call makes of its stages."""

from __future__ import annotations

import pytest

from serving.batches import Run
from serving.call import Call

SECOND = 1_000_000_000


def run(started_s: float, seconds: float) -> Run:
    return Run(1, 0, int(started_s * SECOND), seconds)


def test_what_overlaps_counts_once() -> None:
    """Two batches on two devices, whose rows were submitted together: from 0, running from 1 to 3 and from 2 to 4."""
    call = Call("Sample")
    call.ran("decoder", 1.0, run(1.0, 2.0))
    call.ran("decoder", 2.0, run(2.0, 2.0))
    assert call.seconds == pytest.approx({"queue": 1.0, "inference": 3.0})
    assert len(call.stages) == 4


def test_what_follows_adds_up() -> None:
    """Encoder from 1 to 2 after a second in the queue; decoder submitted at 3, running from 5 to 6."""
    call = Call("Reconstruct")
    call.ran("encoder", 1.0, run(1.0, 1.0))
    call.ran("decoder", 2.0, run(5.0, 1.0))
    assert call.seconds == pytest.approx({"queue": 3.0, "inference": 2.0})


def test_a_stream_keeps_the_first_stages_and_all_seconds() -> None:
    call = Call("StreamSample", most_stages=4)
    for k in range(10):
        call.ran("decoder", 0.5, run(k + 0.5, 0.5))
    assert len(call.stages) == 4
    assert call.seconds == pytest.approx({"queue": 5.0, "inference": 5.0})
