"""Checkpoints that survive a kill at any moment, a full disk, and being cut short.

    RUN/checkpoints/step-000001200.ckpt  =  torch.save's bytes + their SHA-256

Each is written beside its name, synced, and renamed; the last two are kept. Reading believes only the digest, and
falls back to the one before. Knows nothing of what is inside.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from training.disk import write_atomically
from training.errors import CheckpointError

KEPT = 2
_NAME = re.compile(r"step-(\d{9,})\.ckpt")
_DIGEST_BYTES = 32


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`, then forget all but the last two.

    Raises `RunError` if it cannot be written, for example to a full disk; the checkpoints before are left intact.
    """
    path = _path(folder, step)
    write(path, state)
    kept = [other for other in _paths(folder) if _step(other) <= step][:KEPT]
    for other in _paths(folder):
        if other not in kept:  # old ones, and newer ones, which were found damaged when the run was resumed
            other.unlink(missing_ok=True)
    return path


def written(folder: Path, step: int) -> datetime:
    """When the checkpoint of `step` was written."""
    return datetime.fromtimestamp(_path(folder, step).stat().st_mtime, timezone.utc)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state` with its digest, whole or not at all. Raises `RunError` if the disk does not take it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomically(path, payload + hashlib.sha256(payload).digest())


def load(folder: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """The state in the newest whole checkpoint. What is cut short or damaged is said through `warn` and passed over.

    Raises `CheckpointError` if none is whole.
    """
    paths = _paths(folder)
    if not paths:
        raise CheckpointError(f"{folder}: no checkpoint to go on from")
    for index, path in enumerate(paths):
        try:
            return read(path)
        except CheckpointError as error:
            before = (
                f"falling back to {paths[index + 1].name}, the one before" if index + 1 < len(paths) else "none is left"
            )
            warn(f"{error}; {before}")
    raise CheckpointError(f"{folder}: none of its {len(paths)} checkpoints is whole")


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; raises `CheckpointError` if it is cut short or damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    payload, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{path}: cut short or damaged ({len(data)} bytes do not match their SHA-256)")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not a checkpoint: {error}") from error
    return state


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint in `folder`, None if there is none."""
    return next(map(_step, _paths(folder)), None)


def is_whole(path: Path) -> bool:
    """Whether `path` is there and holds what `write` wrote."""
    with contextlib.suppress(CheckpointError):
        read(path)
        return True
    return False


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.ckpt"


def _paths(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
