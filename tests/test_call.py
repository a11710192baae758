"""The subcommands that call a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentry.cli import main
from serving.server import Service


@pytest.fixture
def latentry(linear_service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, run in an empty folder against the linear model."""
    monkeypatch.chdir(tmp_path)
    return lambda *argv: main([*argv, "--server", f"localhost:{linear_service.port}"])


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 10), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"in{i}.png")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "whole.npz", mean=np.zeros((2, 5)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-50])
    np.save(tmp_path / "words.npy", np.array([["a"]]))
    return [f"in{i}.png" for i in range(3)]


def test_models_prints_shapes_and_figures(latentry: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert latentry("models") == 0
    printed = capsys.readouterr().out
    assert "linear 1  12x10x1  5 latents  bernoulli" in printed
    assert "elbo -1.5" in printed


def test_encode_then_decode(latentry: Any, files: list[str]) -> None:
    assert latentry("encode", *files, "--seed", "3") == 0
    with np.load("latents.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == dict.fromkeys(("mean", "logvar", "latents"), (3, 5))
        np.save("some.npy", arrays["mean"][:2])
    assert latentry("decode", "latents.npz", "--out", "all.npz") == 0
    with np.load("all.npz") as arrays:
        assert arrays["images"].shape == (3, 12, 10, 1)
    assert latentry("decode", "some.npy") == 0
    with Image.open("decoded.png") as grid:
        assert grid.width > 2 * 10


def test_sample_writes_the_same_grid_for_the_same_seed(latentry: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert latentry("sample", "--count", "9", "--seed", "4", "--out", "a.png") == 0
    assert latentry("sample", "--count", "9", "--seed", "4", "--out", "b.png") == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert "seed 4" in capsys.readouterr().out
    assert latentry("sample", "--count", "2", "--out", "c.npz") == 0
    with np.load("c.npz") as arrays:
        assert arrays["seed"].dtype == np.uint64


def test_interpolate_between_files_and_latents(latentry: Any, files: list[str]) -> None:
    assert latentry("interpolate", *files, "--steps", "4", "--out", "walk.npz") == 0
    with np.load("walk.npz") as arrays:
        assert arrays["images"].shape == (7, 12, 10, 1)
    assert latentry("interpolate", "walk.npz", "--steps", "2", "--path", "spherical") == 0
    with Image.open("interpolation.png") as strip:
        assert strip.mode == "L"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "--count", "-1"], "count: got -1"),
        (["sample", "--out", "picture.gif"], "--out: got picture.gif, wanted a name that ends in .png or .npz"),
        (["encode", "nowhere.png"], "nowhere.png"),
        (["encode", "in0.png", "--out", "x.png"], "wanted a name that ends in .npz"),
        (["decode", "in0.png"], "in0.png"),
        (["interpolate", "in0.png"], "one key frame"),
        (["interpolate", "in0.png", "x.npy"], "key frames: got 2 files, wanted images, or one .npz or .npy alone"),
        (["decode", "empty.npz"], "empty.npz: got no whole .npz or .npy file"),
        (["decode", "cut.npz"], "cut.npz: got no whole .npz or .npy file"),
        (["decode", "words.npy"], "words.npy: got latents of type <U1, wanted numbers"),
        (["sample", "--model", "other"], "wanted one of linear version 1"),
        (["sample", "--seed", "-1"], "seed: got -1, wanted 0 to 2^64 - 1"),
        (["sample", "--out", "no/such/folder.png"], "no/such"),
    ],
)
@pytest.mark.usefixtures("files")
def test_what_cannot_be_done_is_one_line_and_leaves_no_file(
    latentry: Any, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    before = sorted(Path().iterdir())
    assert latentry(*argv) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(Path().iterdir()) == before


@pytest.mark.usefixtures("impatient")
def test_without_a_server_the_line_says_so(capsys: pytest.CaptureFixture[str], free_port: int) -> None:
    assert main(["models", "--server", f"localhost:{free_port}", "--timeout-s", "10"]) == 1
    said = capsys.readouterr().err
    assert f"(is `latentry serve` running at localhost:{free_port}, and" in said
    assert said.count("\n") == 1


def test_an_unknown_command_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["smaple"])
    assert "interpolate" in capsys.readouterr().err
