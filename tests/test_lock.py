"""One writer at a time: the second is refused by name, and kill -9 lets go."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from training_fixtures import ONE_THREAD

from training import lock, publication
from training.errors import ExportError, RunError

_HOLD = """
import sys, time
from pathlib import Path
from training import lock, publication
from training.errors import RunError
with lock.held(Path(sys.argv[1]), Path("run"), "training", RunError, print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def held(path: Path, warn: Callable[[str], None] = pytest.fail) -> contextlib.AbstractContextManager[None]:
    return lock.held(path, path.parent, "training", RunError, warn)


class TestASecondWriter:
    def test_is_refused_with_the_process_that_writes(self, path: Path) -> None:
        wanted = (
            f"{path.parent}: another training \\(process {os.getpid()} on {socket.gethostname()}\\) is writing here"
        )
        with held(path), pytest.raises(RunError, match=wanted), held(path):
            pytest.fail("two hold one lock")

    def test_leaves_the_first_its_lock(self, path: Path) -> None:
        with held(path):
            for _ in range(2):
                with pytest.raises(RunError), held(path):
                    pytest.fail("two hold one lock")
            assert path.exists()

    def test_gets_the_kind_of_error_that_it_asked_for(self, path: Path) -> None:
        with held(path), pytest.raises(ExportError, match="another export"):  # noqa: SIM117 - the second is to fail
            with lock.held(path, path.parent, "export", ExportError, pytest.fail):
                pytest.fail("two hold one lock")

    def test_comes_in_once_the_first_has_gone_and_nothing_is_left_behind(self, path: Path) -> None:
        for _ in range(2):
            with held(path):
                assert path.exists()
            assert not path.exists()

    def test_comes_in_after_the_first_was_killed(self, path: Path) -> None:
        command = [sys.executable, "-c", _HOLD, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=ONE_THREAD) as first:
            assert first.stdout is not None
            assert first.stdout.readline() == b"held\n"
            with pytest.raises(RunError, match=f"process {first.pid} on"), held(path):
                pytest.fail("two hold one lock")
            first.send_signal(signal.SIGKILL)
        assert path.exists()
        with held(path):
            assert path.read_text().startswith(f"process {os.getpid()} ")

    def test_that_opened_the_file_before_it_was_taken_away_locks_the_one_that_is_there(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, calls = fcntl.flock, []

        def late(descriptor: int, how: int) -> None:
            if not calls:
                path.unlink()  # as the first writer does when it ends, between our open and our flock
            calls.append(descriptor)
            whole(descriptor, how)

        monkeypatch.setattr(fcntl, "flock", late)
        with held(path), pytest.raises(RunError), held(path):
            pytest.fail("two hold one lock")
        assert len(calls) == 3


def test_a_file_system_without_locks_is_said_and_put_up_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held(path, said.append):
        pass
    assert said == [f"{path.parent}: its file system has no locks; see to it that only one training writes here"]


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be locked: No such file"), held(tmp_path / "nowhere" / ".lock"):
        pytest.fail("locked what is not there")


def test_two_exports_to_one_version_do_not_mix(tmp_path: Path) -> None:
    destination = tmp_path / "digits" / "1"
    destination.parent.mkdir()
    other = lock.held(destination.with_name(".1.lock"), destination, "export", ExportError, pytest.fail)
    with other, pytest.raises(ExportError, match=r"digits/1: another export \(process"):
        publication.publish(destination, {"manifest.json": b"{}"})
    assert not list(destination.parent.iterdir())
    publication.publish(destination, {"manifest.json": b"{}"})
    assert [path.name for path in destination.parent.iterdir()] == ["1"]
