"""Checkpoints: whole or passed over, and the last good one survives a full disk."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import pytest
import torch

from training import checkpoint
from training.errors import CheckpointError, RunError


def state(step: int) -> dict[str, object]:
    return {"step": step, "weights": torch.full((1000,), float(step))}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load(folder: Path) -> tuple[int, list[str]]:
    """The step of the checkpoint that is believed, and what was said on the way."""
    said: list[str] = []
    return checkpoint.load(folder, said.append)["step"], said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 10, 20 and 30 were saved."""
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, state(step))
    return tmp_path


def test_the_newest_comes_back_as_it_was(folder: Path) -> None:
    loaded = checkpoint.load(folder, pytest.fail)
    assert loaded["step"] == 30
    assert torch.equal(loaded["weights"], torch.full((1000,), 30.0))


def test_the_last_two_are_kept(folder: Path) -> None:
    assert names(folder) == ["step-000000020.ckpt", "step-000000030.ckpt"]


@pytest.mark.parametrize("size", [0, 10, 1000, -1])
def test_one_cut_short_is_passed_over_and_said_so(folder: Path, size: int) -> None:
    newest = folder / "step-000000030.ckpt"
    newest.write_bytes(newest.read_bytes()[:size])
    step, said = load(folder)
    assert step == 20
    assert len(said) == 1
    assert "step-000000030.ckpt: cut short or damaged" in said[0]
    assert "falling back to step-000000020.ckpt" in said[0]


def test_a_changed_byte_is_noticed(folder: Path) -> None:
    newest = folder / "step-000000030.ckpt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert load(folder)[0] == 20


def test_with_none_whole_the_error_says_so(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints is whole"):
        load(folder)


def test_with_none_at_all_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        load(tmp_path)


def test_code_in_a_checkpoint_is_not_run(folder: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("code of the checkpoint was run",)

    buffer = io.BytesIO()
    torch.save({"step": Attack()}, buffer, pickle_module=pickle)
    payload = buffer.getvalue()
    (folder / "step-000000040.ckpt").write_bytes(payload + hashlib.sha256(payload).digest())
    step, said = load(folder)
    assert step == 30
    assert "step-000000040.ckpt: not a checkpoint" in said[0]


def test_a_full_disk_leaves_the_last_good_one(folder: Path) -> None:
    partial = folder / ".step-000000040.ckpt.partial"
    partial.symlink_to("/dev/full")  # a real "no space left on device", from the kernel
    with pytest.raises(RunError, match=r"step-000000040.ckpt: cannot be written: No space left on device"):
        checkpoint.save(folder, 40, state(40))
    assert names(folder) == ["step-000000020.ckpt", "step-000000030.ckpt"]
    assert load(folder) == (30, [])


def test_a_half_written_file_of_a_killed_run_is_not_a_checkpoint(folder: Path) -> None:
    (folder / ".step-000000040.ckpt.partial").write_bytes(b"half")
    assert load(folder) == (30, [])
    checkpoint.save(folder, 40, state(40))
    assert names(folder) == ["step-000000030.ckpt", "step-000000040.ckpt"]
