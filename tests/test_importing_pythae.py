"""pythae's networks, exported by torch alone, become models that a server answers with as torch does."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentry import Client, manifest
from serving.latents.noise import standard_normals
from serving.server import Service
from training.import_command import add_import_arguments, run_import

_PACKAGES = ("pythae==0.1.2", "imageio==2.37.0")  # what it imports beside torch and what training needs
_HERE = Path(__file__).resolve().parent
_SEED, _LATENTS = 11, 16


@pytest.fixture(scope="module")
def pythae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pythae in a folder of its own, without its dependencies; skips where there is no index to have it from."""
    folder = tmp_path_factory.mktemp("pythae")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "--retries",
        "1",
        "--timeout",
        "15",
    ]
    done = subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--only-binary", ":all:", "--target", str(folder), *_PACKAGES],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        pytest.skip(f"pythae cannot be had from the package index: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="module")
def graphs(pythae: Path, tmp_path_factory: pytest.TempPathFactory, fashion_images: Any) -> Path:
    """The exported graphs, and torch's answers in `dense.npz` and `conv.npz`."""
    folder = tmp_path_factory.mktemp("graphs")
    given = folder / "given.npz"
    np.savez(given, images=fashion_images[:9], latents=standard_normals(_SEED, 0, 7, _LATENTS))
    script = f"import sys; sys.path.append({str(pythae)!r}); sys.argv[1:] = {[str(given), str(folder)]!r}; "
    script += f"import runpy; runpy.run_path({str(_HERE / 'pythae_graphs.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("name", ["dense-legacy", "dense-dynamo", "conv-legacy"])
def test_the_server_answers_as_pythae_does(
    graphs: Path, name: str, tmp_path: Path, fashion_images: Any, serve: Callable[..., Service]
) -> None:
    parser = argparse.ArgumentParser()
    add_import_arguments(parser)
    paths = [f"--{part}={graphs / f'{name}-{part}.onnx'}" for part in ("encoder", "decoder")]
    assert run_import(parser.parse_args([*paths, f"--to={tmp_path / 'pythae' / '1'}"])) == 0
    assert (
        max(
            value
            for figure, value in manifest.read(tmp_path / "pythae" / "1").manifest.evaluation.items()
            if figure in ("parity_encoder_relative", "parity_decoder_mean")
        )
        < 2e-5
    )
    wanted = np.load(graphs / f"{name.split('-')[0]}.npz")
    service = serve(tmp_path)
    with Client(f"localhost:{service.port}") as client:
        posterior = client.encode(fashion_images[:9])
        sampled = client.sample(7, seed=_SEED, dtype="float32")
        decoded = client.decode(sampled.latents)
    np.testing.assert_allclose(posterior.mean, wanted["mean"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(posterior.logvar, wanted["logvar"], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(sampled.latents, standard_normals(_SEED, 0, 7, _LATENTS))
    np.testing.assert_allclose(sampled.images, wanted["drawn"], rtol=0, atol=2e-6)
    assert np.abs(decoded.images - np.rint(wanted["drawn"] * 255)).max() <= 1
