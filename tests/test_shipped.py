"""The model that comes with the project, on real images: served batched, it answers as it does one by one."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import FASHION, ROOT, running_service, settings_for

from latentry import AsyncClient, Client, manifest
from latentry.attributes import stem
from latentry.manifest import embedded_models
from serving.server import Service

Images = np.ndarray[Any, np.dtype[np.uint8]]
FOLDER = ROOT / "models" / "fashion" / "1"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running_service(settings_for(embedded_models())) as service:
        yield service


@pytest.fixture(scope="module")
def decoder() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(FOLDER / "decoder.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def fashion_classes() -> Images:
    """Of the images of `fashion_images`."""
    raw = gzip.decompress((FASHION / "t10k-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=8)


def batches_run(service: Service, graph: str) -> float:
    labels = {"model": "fashion", "version": "1", "graph": graph}
    return service.metrics.registry.get_sample_value("latentry_batch_items_count", labels) or 0.0


def test_the_folder_is_whole_small_and_says_where_it_came_from() -> None:
    folder = manifest.read(FOLDER)
    about = folder.manifest
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8 << 20
    assert (about.image_shape, about.latent_dim, len(about.labels)) == ((28, 28, 1), 32, 10)
    assert about.likelihood.name == "gaussian"
    assert {"data", "config", "versions", "seed", "created"} <= set(about.provenance)
    assert about.aggregate_posterior is not None
    assert str(ROOT.parent) not in (FOLDER / "manifest.json").read_text()


def test_the_recorded_elbo_is_what_the_graphs_give(fashion_images: Images) -> None:
    """From the ONNX files alone, on all 10,000 test images: within what one posterior sample leaves to chance."""
    about = manifest.read(FOLDER).manifest
    cpu = {"providers": ["CPUExecutionProvider"]}
    encoder, decoder = (onnxruntime.InferenceSession(FOLDER / f"{g}.onnx", **cpu) for g in ("encoder", "decoder"))
    sigma, rng, elbos = about.likelihood.parameters["sigma"], np.random.default_rng(0), []
    for images in np.split(fashion_images, 20):
        mean, logvar = encoder.run(["mean", "logvar"], {"images": images})
        z = mean + np.exp(logvar / 2) * rng.standard_normal(mean.shape, np.float32)
        (decoded,) = decoder.run(["mean"], {"latents": z})
        squares = ((images / 255.0 - decoded) ** 2).reshape(len(images), -1).sum(1)
        log_p = -squares / (2 * sigma**2) - 784 * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
        kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum(1)
        elbos.append(log_p - kl)
    figures = np.concatenate(elbos)
    assert abs(figures.mean() - about.evaluation["elbo"]) < 1.0, figures.mean()


# The class with it and the class without.
CONTRASTS = {
    "sleeves": ("Pullover", "T-shirt/top"),
    "shaft": ("Ankle boot", "Sneaker"),
    "dress": ("Dress", "T-shirt/top"),
}


@pytest.mark.parametrize("name", CONTRASTS)
def test_an_edit_by_1_adds_the_attribute_and_by_minus_1_removes_it(
    name: str, fashion_images: Images, fashion_classes: Images
) -> None:
    """Seen by the pixels alone: most edited images are nearer to the mean image of the other class."""
    about = manifest.read(FOLDER).manifest
    attribute = about.attribute(name)
    assert 1 <= attribute.limit < 3
    for way in ("added", "removed"):
        assert about.evaluation[f"{stem(name)}_picture_{way}"] > 0.9
    having, without = (fashion_images[fashion_classes == about.labels.index(each)] for each in CONTRASTS[name])
    step = np.multiply(attribute.amount, attribute.direction)
    assert nearer(edited(without, step), having, without).mean() > 0.85
    assert nearer(edited(having, -step), without, having).mean() > 0.85


def edited(images: Images, step: np.ndarray[Any, Any]) -> Images:
    cpu = {"providers": ["CPUExecutionProvider"]}
    encoder, decoder = (onnxruntime.InferenceSession(FOLDER / f"{g}.onnx", **cpu) for g in ("encoder", "decoder"))
    (mean,) = encoder.run(["mean"], {"images": images})
    (drawn,) = decoder.run(["images"], {"latents": (mean + step).astype(np.float32)})
    return np.asarray(drawn)


def nearer(images: Images, ones: Images, others: Images) -> np.ndarray[Any, np.dtype[np.bool_]]:
    to_ones, to_others = (((images - those.mean(0)) ** 2).sum((1, 2, 3)) for those in (ones, others))
    return np.asarray(to_ones < to_others)


def test_reconstructions_look_like_the_originals(service: Service, fashion_images: Images) -> None:
    with Client(f"localhost:{service.port}", model="fashion") as client:
        images = fashion_images[:256]
        decoded = client.decode(client.encode(images).mean, dtype="float32").images
        far = client.decode(np.zeros((1, 32)), dtype="float32").images
    error = np.mean((images / 255.0 - decoded) ** 2)
    assert -10 * math.log10(error) > 20, "dB"
    assert error < 0.15 * np.mean((images / 255.0 - far) ** 2)


def test_samples_are_varied(service: Service) -> None:
    with Client(f"localhost:{service.port}", model="fashion") as client:
        samples = client.sample(64, seed=0).images.astype(np.float64).reshape(64, -1)
    distances = np.sqrt(((samples[:, None] - samples[None]) ** 2).mean(-1))
    assert np.median(distances[~np.eye(64, dtype=bool)]) > 30, "grey levels"


def test_concurrent_single_decodes_give_the_images_that_one_by_one_gives(
    service: Service, decoder: onnxruntime.InferenceSession
) -> None:
    z = np.random.default_rng(2).normal(size=(300, 32)).astype(np.float32)
    alone = np.concatenate([decoder.run(["images"], {"latents": z[i : i + 1]})[0] for i in range(300)])
    before = batches_run(service, "decoder")

    async def concurrently() -> Images:
        async with AsyncClient(f"localhost:{service.port}", model="fashion") as client:
            await client.info()
            busy = [asyncio.ensure_future(client.decode(np.zeros((1024, 32)))) for _ in range(3)]
            await asyncio.sleep(0.02)  # the device is busy now, so that what comes gathers
            parts = await asyncio.gather(*(client.decode(z[i : i + 1]) for i in range(300)))
            await asyncio.gather(*busy)
        return np.concatenate([part.images for part in parts])

    batched = asyncio.run(concurrently())
    assert batches_run(service, "decoder") - before < 250, "they were batched"
    assert np.abs(batched.astype(int) - alone.astype(int)).max() <= 1


def test_concurrent_single_encodes_give_the_means_that_one_by_one_gives(
    service: Service, fashion_images: Images
) -> None:
    images = fashion_images[:300]
    encoder = onnxruntime.InferenceSession(FOLDER / "encoder.onnx", providers=["CPUExecutionProvider"])
    alone = np.concatenate([encoder.run(["mean"], {"images": images[i : i + 1]})[0] for i in range(300)])
    before = batches_run(service, "encoder")

    async def concurrently() -> Any:
        async with AsyncClient(f"localhost:{service.port}", model="fashion") as client:
            await client.info()
            busy = [asyncio.ensure_future(client.encode(fashion_images[:1024])) for _ in range(3)]
            await asyncio.sleep(0.02)  # the device is busy now, so that what comes gathers
            parts = await asyncio.gather(*(client.encode(images[i : i + 1]) for i in range(300)))
            await asyncio.gather(*busy)
        return np.concatenate([part.mean for part in parts])

    batched = asyncio.run(concurrently())
    assert batches_run(service, "encoder") - before < 250, "they were batched"
    assert np.abs(batched - alone).max() < 1e-5


def test_the_wheel_carries_the_model_and_serves_it_by_default(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("latentry-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = "from latentry.manifest import embedded_models as e, read; print(read(e() / 'fashion' / '1').digest)"
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert ran.stdout.strip() == manifest.read(FOLDER).digest
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"latentry/py.typed", "serving/server.py", "training/fit.py", "latentry/v1/vae_pb2.pyi"} <= names
    assert not any(name.startswith(("tests/", "data/", "protos/")) for name in names)
    assert json.loads((FOLDER / "manifest.json").read_text())["format"] == 1
