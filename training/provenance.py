"""Where a model came from, for its manifest. Names no path of the machine that it was trained on."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training import config_file
from training.trained import Trained

_LIBRARIES = ("latentry", "torch", "numpy", "onnx", "onnxscript", "lightning-fabric")


def provenance(trained: Trained) -> dict[str, Any]:
    """Data, config, versions, seed, revision and date, as plain values. `created` is when the weights were written, not
    when they were exported, so that two exports of one checkpoint are alike."""
    config = config_file.to_dict(trained.config)
    config["data"]["path"] = trained.dataset.name
    config["data"]["cache"] = ""
    return {
        "data": trained.dataset.provenance(),
        "config": config,
        "seed": trained.config.run.seed,
        "steps": trained.step,
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "git_revision": git_revision(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        **({} if trained.written is None else {"created": trained.written.isoformat(timespec="seconds")}),
    }


def git_revision() -> str | None:
    """The commit that this package is at, `-dirty` if it was changed since; None outside a checkout of it."""
    git = shutil.which("git")
    if git is None:
        return None
    if not _run(git, "ls-files", "__init__.py"):  # installed into an environment inside someone else's repository
        return None
    return _run(git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None


def _run(git: str, *arguments: str) -> str:
    command = [git, "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603 - fixed
