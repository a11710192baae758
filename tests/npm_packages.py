"""What tests need from npm: the packages of examples/node, `buf` among them, as its lock file pins them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from server_process import ROOT

EXAMPLE = ROOT / "examples" / "node"
_FILES = ("package.json", "package-lock.json")
_UNREACHABLE = ("EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENETUNREACH", "ENOTFOUND", "ETIMEDOUT")


def node_modules() -> Path:
    """The folder of that name; skips the test, with the reason, where npm is not or its registry cannot be reached.

    It lies in the user's cache, named by the lock file's digest, and so is fetched once a machine: 35 packages, 110 MB.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("no npm and node on this machine")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentry-tests"
    digest = hashlib.sha256(b"".join((EXAMPLE / file).read_bytes() for file in _FILES)).hexdigest()
    kept = cache / f"npm-{digest[:16]}"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _install(npm, cache, kept)
    return kept / "node_modules"


def _install(npm: str, cache: Path, kept: Path) -> None:
    """Whole or not at all, also when two processes do it at once."""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        for file in _FILES:
            shutil.copy(EXAMPLE / file, made)
        flags = [
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--prefer-offline",
            "--fetch-retries=1",
            "--loglevel=error",
        ]
        done = subprocess.run([npm, "ci", *flags], cwd=made, capture_output=True, text=True, check=False, timeout=200)
        if any(f"code {code}" in done.stderr for code in _UNREACHABLE):
            pytest.skip(f"npm reaches no registry: {done.stderr.strip().splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        with suppress(OSError):  # another process was first
            made.rename(kept)
