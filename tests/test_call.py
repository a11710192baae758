"""The subcommands that call a running server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import conditional_model
import numpy as np
import pytest
from PIL import Image

from latentry.cli import main
from serving.server import Service


@pytest.fixture
def latentry(linear_service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, run in an empty folder against the linear model."""
    monkeypatch.chdir(tmp_path)
    server = ["--server", f"localhost:{linear_service.port}"]

    def run(*argv: str) -> int:
        return main([*argv, *server])

    run.server = server  # type: ignore[attr-defined]
    return run


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 10), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"in{i}.png")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "whole.npz", mean=np.zeros((2, 5)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-50])
    np.save(tmp_path / "words.npy", np.array([["a"]]))
    (tmp_path / "broken.png").write_bytes(b"png")
    (tmp_path / "folder.png").mkdir()
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
        np.save("one.npy", arrays["mean"][0])
    assert latentry("decode", "latents.npz", "--out", "all.npz") == 0
    with np.load("all.npz") as arrays:
        assert arrays["images"].shape == (3, 12, 10, 1)
    assert latentry("decode", "one.npy", "--out", "ONE.PNG") == 0
    assert Path("ONE.PNG").read_bytes().startswith(b"\x89PNG")
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


def test_an_interpolation_is_written_as_an_animation(latentry: Any, files: list[str]) -> None:
    assert latentry("interpolate", *files, "--loop", "--easing", "in-out", "--steps", "5", "--out", "walk.gif") == 0
    with Image.open("walk.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (12, 80, 0)
        assert gif.width >= 200, "enlarged, so that it can be seen"
    assert latentry("interpolate", *files, "--no-ends", "--out", "walk.webp", "--frame-ms", "200") == 0
    with Image.open("walk.webp") as webp:
        assert webp.n_frames == 2 * 23 + 1 - 2


def test_reconstruct_prints_the_worst_first_and_draws_pairs(
    latentry: Any, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert latentry("reconstruct", *files, "--out", "scores.npz") == 0
    with np.load("scores.npz") as arrays:
        worst = [files[at] for at in np.argsort(arrays["elbo"])]
        images, squared_error = arrays["images"], arrays["squared_error"]
    rows = capsys.readouterr().out.splitlines()[1:4]
    assert [row.split()[-1] for row in rows] == worst
    assert float(rows[0].split()[0]) == pytest.approx(squared_error[files.index(worst[0])], abs=1e-5)
    assert latentry("reconstruct", *files, "--out", "seen.png") == 0
    with Image.open("seen.png") as sheet, Image.open(worst[0]) as original:
        first, below = np.asarray(sheet)[:60:5, :50:5], np.asarray(sheet)[62:122:5, :50:5]
        assert first.tolist() == np.asarray(original).tolist()
        assert np.abs(below.astype(int) - images[files.index(worst[0]), :, :, 0]).max() <= 1
    before = sorted(Path().iterdir())
    assert latentry("reconstruct", *files) == 0
    assert sorted(Path().iterdir()) == before


def test_edit_moves_along_a_difference(latentry: Any, files: list[str]) -> None:
    one, two, three = files
    assert latentry("encode", *files) == 0
    assert latentry("edit", one, "--minus", two, "--plus", three, "--amount", "2", "--out", "edited.npz") == 0
    with np.load("latents.npz") as encoded, np.load("edited.npz") as edited:
        a, b, c = encoded["mean"]
        np.testing.assert_allclose(edited["latents"], [a + 2 * (c - b)], atol=1e-4)


def test_edit_lists_attributes(latentry: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert latentry("edit", "--list") == 0
    assert "linear 1 has no attributes" in capsys.readouterr().out


def test_neighbours_are_a_grid_or_a_walk(latentry: Any, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert latentry("neighbours", files[0], "--grid", "2x7", "--seed", "3") == 0
    assert "seed 3" in capsys.readouterr().out
    with Image.open("neighbours.png") as grid:
        assert grid.size == (7 * 52 - 2, 2 * 62 - 2)
    assert latentry("neighbours", files[0], "--walk", "6", "--step", "1", "--out", "walk.npz") == 0
    with np.load("walk.npz") as arrays:
        np.testing.assert_allclose(np.linalg.norm(np.diff(arrays["latents"], axis=0), axis=1), 1, rtol=1e-4)


def test_classes_are_given_by_name_or_by_number(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = conditional_model.write(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    path = model.linear.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": ["boot", "2", "bag"]}))
    server = f"localhost:{serve(tmp_path).port}"
    for given, classes in {("bag",): [2, 2], ("2",): [1, 1], ("0",): [0, 0], ("bag", "0"): [2, 0]}.items():
        flags = [word for one in given for word in ("--class", one)]
        assert main(["sample", "--count", "2", "--seed", "1", "--out", "x.npz", "--server", server, *flags]) == 0
        with np.load("x.npz") as arrays:
            expected = model.decode(arrays["latents"], np.array(classes)) * 255
            assert np.abs(arrays["images"] - expected).max() <= 0.51
    for wrong in ("-1", "3.0", "3", "hat"):
        capsys.readouterr()
        assert main(["sample", "--class", wrong, "--server", server]) == 1
        assert f"--class: got {wrong}, wanted one of boot, 2, bag, or 0 to 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("format_", "begins"), [("png", b"\x89PNG"), ("gif", b"GIF89a"), ("webp", b"RIFF"), ("npz", b"PK")]
)
def test_a_dash_writes_the_picture_and_nothing_else(
    latentry: Any, capfdbinary: pytest.CaptureFixture[bytes], format_: str, begins: bytes
) -> None:
    assert latentry("sample", "--count", "3", "--seed", "4", "--out", "-", "--format", format_) == 0
    piped = capfdbinary.readouterr()
    assert piped.out.startswith(begins)
    assert piped.err == b"seed 4\n"
    assert latentry("sample", "--count", "3", "--seed", "4", "--out", f"same.{format_}") == 0
    if format_ != "npz":  # which has the time in it
        assert Path(f"same.{format_}").read_bytes() == piped.out


def test_no_picture_is_written_to_a_terminal(
    latentry: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert latentry("sample", "--out", "-") == 1
    said = capsys.readouterr()
    assert (said.out, "--out: got - and a terminal, wanted a pipe" in said.err) == ("", True)


def test_a_bar_is_drawn_on_a_terminal_only(
    latentry: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert latentry("sample", "--count", "3000", "--out", "many.npz") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert latentry("sample", "--count", "3000", "--out", "many.npz") == 0
    said = capsys.readouterr().err
    assert "1 of 3000 images" in said
    assert said.endswith("\r\033[K"), "it is gone in the end"


def test_an_interrupt_leaves_nothing_half_written(
    latentry: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latentry.progress._show", interrupted)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert latentry("sample", "--count", "3000", "--out", "many.npz") == 130
    assert list(tmp_path.iterdir()) == []


COMMANDS = ["models", "encode", "decode", "sample", "interpolate", "reconstruct", "edit", "neighbours"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_how_it_is_typed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = capsys.readouterr().out
    examples = re.findall(rf"^  latentry {command} .*|^  latentry {command}$", shown, re.M)
    assert examples
    for flag in re.findall(r" (--[a-z-]+)", " ".join(line.partition("#")[0] for line in examples)):
        assert shown.count(flag) > 1, f"{flag} is no flag"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "--count", "-1"], "count: got -1"),
        (
            ["sample", "--out", "picture.bmp"],
            "--out: got picture.bmp, wanted a name that ends in .png or .gif or .webp or",
        ),
        (["sample", "--format", "gif"], "--format: got gif for samples.png, wanted it with --out - only"),
        (["encode", "in0.png", "--out", "-"], "wanted a name that ends in .npz"),
        (["sample", "--truncation", "0"], "truncation: got 0"),
        (["sample", "--class", "3"], "wanted none: linear is not conditional"),
        (["edit"], "images: got none, wanted one or more, before --plus and --minus, or --list"),
        (["edit", "in0.png", "--attribute", "hat"], "--attribute: got hat, wanted NAME=AMOUNT such as eyeglasses=1"),
        (["edit", "in0.png", "--attribute", "a=1", "--attribute", "a=2"], "--attribute: got a twice, wanted each once"),
        (["edit", "in0.png", "--attribute", "hat=1"], "got 'hat'"),
        (["edit", "in0.png", "--plus", "in1.png"], "plus and minus: got plus alone, wanted both or neither"),
        (["neighbours", "in0.png", "--grid", "5"], "--grid: got 5, wanted ROWSxCOLUMNS such as 5x7"),
        (["neighbours", "in0.png", "--grid", "0x5"], "rows"),
        (["neighbours", "in0.png", "--walk", "0"], "count: got 0"),
        (["interpolate", "in0.png", "in1.png", "--loop", "--no-ends"], "exclude_end_points"),
        (["interpolate", "in0.png", "in1.png", "--out", "x.gif", "--frame-ms", "5"], "frame_ms: got 5"),
        (["reconstruct", "nowhere.png"], "nowhere.png"),
        (["encode", "nowhere.png"], "nowhere.png"),
        (["encode", "in0.png", "--out", "x.png"], "wanted a name that ends in .npz"),
        (["decode", "in0.png"], "in0.png"),
        (["interpolate", "in0.png"], "one key frame"),
        (["interpolate", "in0.png", "x.npy"], "key frames: got 2 files, wanted images, or one .npz or .npy alone"),
        (["decode", "empty.npz"], "empty.npz: got no whole .npz or .npy file"),
        (["decode", "cut.npz"], "cut.npz: got no whole .npz or .npy file"),
        (["decode", "words.npy"], "words.npy: got latents of type <U1, wanted numbers"),
        (["sample", "--model", "other"], "wanted one of linear version 1"),
        (["sample", "--seed", "-1"], "seed: got -1, wanted a whole number, 0 to 2^64 - 1"),
        (["sample", "--out", "no/such/folder.png"], "no/such"),
        (["sample", "--out", "folder.png"], "--out: got folder.png, which is a folder, wanted a file's name"),
        (["sample", "--server", ""], "target: got '', wanted host:port"),
        (["sample", "--truncation-mode", "clamp"], "truncation_mode: got 'clamp' without truncation, wanted both"),
        (["edit", "in0.png"], "edit: got nothing to do, wanted --attribute, or --plus and --minus"),
        (["edit", "in0.png", "--attribute", "a=1", "--amount", "2"], "amount: got 2.0 without plus and minus"),
        (["edit", "--list", "in0.png"], "--list: got it with something to edit, wanted one or the other"),
        (["neighbours", "in0.png", "--walk", "5", "--spacing", "2"], "spacing: got it with a walk, wanted it with a"),
        (["neighbours", "in0.png", "--grid", "3x3", "--step", "2"], "step: got it with a grid, wanted it with a walk"),
        (["interpolate", "in0.png", "in1.png", "--frame-ms", "50"], "--frame-ms: got 50 for .png, wanted it for .gif"),
        (["encode", "in0.png", "broken.png", "in1.png"], "images[1] (broken.png): got 3 bytes that cannot be read"),
    ],
)
@pytest.mark.usefixtures("files")
def test_what_cannot_be_done_is_one_line_and_leaves_no_file(
    latentry: Any, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    before = sorted(Path().iterdir())
    assert main([*argv, *([] if "--server" in argv else latentry.server)]) == 1
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


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["neighbours", "a.png", "b.png"], "b.png: got one argument too many"),
        (["models", "--model", "fashion"], "--model: no such flag"),
        (["models", "--timeout-s", "0"], "got 0, wanted seconds, more than 0"),
        (["models", "--timeout-s", "nan"], "got nan, wanted seconds, more than 0"),
    ],
)
def test_flags_that_make_no_sense_are_told(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["models"], 0, ""),
        (["edit", "--list"], 0, ""),
        (["sample", "--count", "2", "--out", "there.png"], 0, ""),
        (["sample", "--count", "2", "--out", "-"], 1, "latentry: --out: got - and no standard output, wanted a pipe"),
    ],
)
def test_without_a_standard_output_there_is_no_traceback(
    linear_service: Service, tmp_path: Path, argv: list[str], status: int, said: str
) -> None:
    command = [sys.executable, "-m", "latentry", *argv, "--server", f"localhost:{linear_service.port}"]
    shell = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == bool(said)
    assert (tmp_path / "there.png").exists() == ("there.png" in argv)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output_is_told(linear_service: Service) -> None:
    command = [sys.executable, "-m", "latentry", "models", "--server", f"localhost:{linear_service.port}"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(r"latentry: .*No space left on device\n", done.stderr)
