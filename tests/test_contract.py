"""The contract between training and serving: what is exported is what is loaded, served and called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import running_service, settings_for
from training_fixtures import small_set

from latentry import Client, manifest
from latentry.cli import main
from training import trained

TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=["gaussian", "bernoulli"])
def run_and_repository(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model trained for a moment on real images, and the repository that it was exported to, by the command."""
    folder = tmp_path_factory.mktemp("contract")
    run, model = str(folder / "run"), str(folder / "models" / "tiny" / "3")
    flags = ["--preset", "tiny", "--data", str(small_set(folder, 600)), "--likelihood", request.param]
    assert main(["train", *flags, "--out", run]) == 0
    assert main(["export", run, "--to", model]) == 0
    return folder / "run", folder / "models"


def test_what_training_exports_serving_serves_with_the_same_numbers(
    run_and_repository: tuple[Path, Path], fashion_images: np.ndarray
) -> None:
    run, repository = run_and_repository
    model = trained.load(run).model.cpu().eval()
    images = fashion_images[:33]
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        mean, logvar = model.encoder(x)
        means = model.likelihood.mean(model.decoder(mean)).permute(0, 2, 3, 1).numpy()
    with running_service(settings_for(repository)) as service, Client(f"localhost:{service.port}") as client:
        info = client.info()
        posterior = client.encode(images)
        floats = client.decode(mean.numpy(), dtype="float32").images
        pixels = client.decode(mean.numpy()).images
    about = manifest.read(repository / "tiny" / "3").manifest
    assert (info.model.name, info.model.version, info.likelihood.name) == ("tiny", 3, about.likelihood.name)
    assert dict(info.evaluation) == dict(about.evaluation)
    assert info.latent_dim == mean.shape[1]
    np.testing.assert_allclose(posterior.mean, mean.numpy(), atol=TOLERANCE * 10, rtol=TOLERANCE * 10)
    np.testing.assert_allclose(posterior.logvar, logvar.numpy(), atol=TOLERANCE * 10, rtol=TOLERANCE * 10)
    np.testing.assert_allclose(floats, means, atol=TOLERANCE)
    assert np.abs(pixels - means * 255).max() <= 0.5 + 255 * TOLERANCE


def test_the_card_and_the_preview_come_along(run_and_repository: tuple[Path, Path]) -> None:
    folder = run_and_repository[1] / "tiny" / "3"
    assert {path.name for path in folder.iterdir()} == {
        *("manifest.json", "encoder.onnx", "decoder.onnx", "README.md", "preview.png"),
    }
    assert (folder / "preview.png").read_bytes().startswith(b"\x89PNG")
