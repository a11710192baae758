"""Other projects' clients of the Open Inference Protocol get what our own client gets.

Each runs in a process of its own, with its package in a folder that pytest keeps (`.pytest_cache`): two schemas of the
protocol under different file names cannot be loaded into one process.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oip_fixtures
import pytest
from conftest import ROOT, running_service, settings_for
from oip_fixtures import Models
from PIL import Image

from latentry import Client
from serving.server import Service

CLIENTS = Path(__file__).parent / "oip_clients"
Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return oip_fixtures.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def service(models: Models) -> Iterator[Service]:
    with running_service(settings_for(models.plain.folder.parent.parent, versions=("all",), admin_port=0)) as service:
        yield service


@pytest.fixture
def tritonclient(pytestconfig: pytest.Config) -> Path:
    return oip_fixtures.tritonclient(pytestconfig)


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(f"localhost:{service.port}", model="plain", version=1) as client:
        yield client


@pytest.fixture
def pixels(models: Models, tmp_path: Path) -> Array:
    made = np.random.default_rng(3).integers(0, 256, (4, *models.plain.shape), np.uint8)
    np.save(tmp_path / "pixels.npy", made)
    Image.fromarray(made[1, ..., 0]).save(tmp_path / "image.png")
    return made


def run(script: str, package: Path, *args: object) -> Any:
    """What a client's script prints."""
    command = [sys.executable, str(CLIENTS / script), *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(package)}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_tritons_client(
    tritonclient: Path, service: Service, client: Client, pixels: Array, models: Models, tmp_path: Path
) -> None:
    told = run("triton_client.py", tritonclient, service.port, service.admin_port, tmp_path)
    assert (told["live"], told["ready"], told["model_ready"]) == (True, True, [True, False, False])
    assert told["server"]["name"] == "latentry"
    assert told["metadata"]["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": ["-1", "12", "10", "1"]}]
    config = told["config"]["config"]
    assert (config["max_batch_size"], config["dynamic_batching"]) == (1024, {})
    assert {(m["name"], m["version"], m["state"]) for m in told["index"]["models"]} >= {("moved_edit", "4", "READY")}
    assert (told["id"], told["seed"], told["async_error"]) == ("r1", 7, "")
    assert told["refused"][0] == "StatusCode.INVALID_ARGUMENT"
    assert told["refused"][1].startswith("inputs[latents].shape")
    assert told["not_here"][0] == "StatusCode.UNIMPLEMENTED"
    (stats,) = told["statistics"]["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == ("5", "2")
    assert stats["inference_stats"]["success"]["count"] == "2"
    assert told["png"] == [4, *["89504e47"] * 4]
    assert told["stream"] == [1, told["stream"][1], 3]
    assert told["stream"][1].startswith("parameters[seed]: got -1")
    assert told["aio_stream"] == [1, 2]
    *there, no_load, no_unload = told["administration"]
    assert there == [True, False, True]
    assert no_load == no_unload
    assert no_load[0] == "StatusCode.FAILED_PRECONDITION"

    replies = np.load(tmp_path / "replies.npz")
    mean = client.encode(pixels).mean
    assert (replies["mean"] == mean).all()
    assert (replies["of_aio"] == mean).all()
    np.testing.assert_allclose(mean, models.plain.encode(pixels)[0], rtol=1e-4, atol=1e-5)
    assert (replies["of_file"] == client.encode(pixels[1:2]).mean).all()
    with Image.open(io.BytesIO(replies["png"].tobytes())) as image:
        assert (np.asarray(image)[..., None] == client.decode(mean).images[0]).all()
    assert (replies["sampled"] == client.sample(3, seed=7, temperature=0.5).images).all()
    assert (replies["by_tensor"] == client.sample(3, seed=7).latents).all()
    assert (replies["elbo"][:, 0] == client.reconstruct(pixels).elbo).all()


def test_tritons_client_shares_a_process_with_our_stubs(tritonclient: Path) -> None:
    code = "import serving.inference.grpc_service_pb2, tritonclient.grpc; print('both')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tritonclient), str(ROOT)))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("both\n", "")


def test_the_stubs_of_mlserver(
    pytestconfig: pytest.Config, service: Service, client: Client, pixels: Array, tmp_path: Path
) -> None:
    package = oip_fixtures.installed(pytestconfig, "mlserver==1.7.1")
    told = run("mlserver_stubs.py", package, service.port, tmp_path)
    assert (told["live"], told["ready"], told["id"]) == (True, True, "m")
    assert told["inputs"] == [[-1, 12, 10, 1]]
    assert told["outputs"] == ["mean", "logvar"]
    assert (np.array(told["mean"], np.float32).reshape(4, 5) == client.encode(pixels).mean).all()
    drawn = np.array(told["latents"], np.float32).reshape(1, 5)
    assert (drawn == client.sample(1, seed=7, temperature=0.5).latents).all()
    assert told["seed"] == 7
    assert told["digest"] == service.catalog.get("plain", 1).digest
    assert told["refused"][0] == "INVALID_ARGUMENT"
    assert "inputs[images].contents" in told["refused"][1]


def test_the_example_of_the_documentation(tritonclient: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "oip.md").read_text(), re.S)
    shown = "print(mean.shape, mean.dtype, len(sampled.as_numpy('images')), first_file[:4])"
    with running_service(settings_for(ROOT / "models")) as service:
        program = example.replace("localhost:50051", f"localhost:{service.port}") + shown
        environment = {**os.environ, "PYTHONPATH": str(tritonclient)}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        with Client(f"localhost:{service.port}", model="fashion") as client:
            assert (done.stdout, done.stderr) == (f"(2, {client.info().latent_dim}) float32 8 b'\\x89PNG'\n", "")


@pytest.mark.skipif("KSERVE_PYTHON" not in os.environ, reason="KSERVE_PYTHON names no Python that has kserve")
def test_kserves_client(service: Service, client: Client, pixels: Array, tmp_path: Path) -> None:
    command = [os.environ["KSERVE_PYTHON"], str(CLIENTS / "kserve_client.py"), str(service.port), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["live"], told["ready"], told["model_ready"]) == (True, True, True)
    for binary in (False, True):
        assert (np.array(told[f"mean_{binary}"], np.float32) == client.encode(pixels).mean).all()
    assert told["images"] == ["89504e47"] * 2
    assert (np.array(told["latents"], np.float32) == client.sample(2, seed=7, temperature=0.5).latents).all()
