"""The soak, short: the program that runs for ten minutes before a release runs here for seconds."""

from __future__ import annotations

import pytest
import soak
from conftest import LONG


@pytest.mark.timeout(180)
def test_every_check_of_the_soak_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """No wrong answer, no undocumented status, flat memory, nothing left over, the counts agree."""
    failed = soak.main(["--minutes", "1" if LONG else "0.12"])
    assert failed == 0, capsys.readouterr().out


def test_memory_is_flat_under_more_load_than_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    """The bounded queue refuses what it cannot hold."""
    failed = soak.main(["--minutes", "0.5" if LONG else "0.2", "--overload"])
    said = capsys.readouterr().out
    assert failed == 0, said
    assert "RESOURCE_EXHAUSTED" in said, "the server could do it all: this was no overload"


def test_the_check_of_memory_fails_when_the_queue_has_no_bound(capsys: pytest.CaptureFixture[str]) -> None:
    """Else it would prove nothing."""
    assert soak.main(["--minutes", "0.5" if LONG else "0.1", "--unbounded"]) == 1
    assert "FAILED memory" in capsys.readouterr().out
