"""What the tests of training share: real images, and a small run that is made once."""

from __future__ import annotations

import atexit
import functools
import gzip
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.onnx._internal.exporter._registration import ONNXRegistry

from training import config_file
from training.config import Config
from training.fit import fit

# Models this small gain nothing from a second thread, and lose much to it whenever another process wants the core.
torch.set_num_threads(1)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # the same for processes of their own

# Most of a small export is torch's filling of a table that is the same each time.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]

FASHION = Path(__file__).resolve().parent.parent / "data" / "fashion-mnist"


@functools.cache
def fashion_images() -> NDArray[np.uint8]:
    """Fashion-MNIST's 10,000 test images, uint8 [N, 28, 28]."""
    raw = gzip.decompress((FASHION / "t10k-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)


@functools.cache
def fashion_labels() -> NDArray[np.uint8]:
    raw = gzip.decompress((FASHION / "t10k-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=8)


def small_set(folder: Path, n: int = 300) -> Path:
    """A .npz of the first `n` images and labels."""
    path = folder / "small.npz"
    np.savez(path, images=fashion_images()[:n], labels=fashion_labels()[:n])
    return path


def tiny(data: Path, **run: int) -> Config:
    """The preset of that name on `data`, on the CPU."""
    config = config_file.read_preset("tiny")
    return replace(config, data=replace(config.data, path=str(data)), run=replace(config.run, device="cpu", **run))


@functools.cache
def small_run() -> Path:
    """A finished run of 16 steps on 270 images, made once; tests only read it."""
    folder = Path(tempfile.mkdtemp(prefix="latentry-"))
    atexit.register(shutil.rmtree, folder)
    fit(tiny(small_set(folder), epochs=2), folder / "run", resume=False)
    return folder / "run"


def outside_data(name: str) -> Path:
    """A data set that is not in the repository; skips the test where there is none."""
    root = os.environ.get("LATENTRY_DATA")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"needs {name} in the folder that LATENTRY_DATA names")
    return Path(root) / name
