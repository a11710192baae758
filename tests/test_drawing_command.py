"""`latentry draw`, as a person types it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from drawing_fixtures import SHIPPED, run_of
from PIL import Image
from training_fixtures import FASHION

from training import disk
from training.drawing import catalogue, draw_command


def draw(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    draw_command.add_draw_arguments(parser)
    return draw_command.run_draw(parser.parse_args([str(argument) for argument in arguments]))


def test_a_run_gets_every_picture_that_it_can_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(run_of("dense"), "--out", tmp_path) == 0
    said = capsys.readouterr()
    unable = {"classes", "style-transfer"}
    wanted = {picture.file for picture in catalogue.catalogue() if picture.name not in unable}
    assert {path.name for path in tmp_path.iterdir()} == wanted
    assert set(said.out.splitlines()) == {str(tmp_path / name) for name in wanted}
    assert {line.split(":")[0] for line in said.err.splitlines() if line.startswith("left")} == {
        f"left out {name}" for name in unable
    }
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 1 << 20
        with Image.open(path) as picture:
            picture.load()


def test_a_model_folder_is_drawn_from_its_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["reconstructions", "samples", "interpolations", "traversals"]
    assert draw(SHIPPED, "--data", FASHION, "--out", tmp_path, "--only", ",".join(names)) == 0
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)
    assert capsys.readouterr().err == ""


def test_without_images_a_model_folder_still_gives_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert draw(SHIPPED) == 0
    assert [path.name for path in (tmp_path / "drawings" / "fashion-1").iterdir()] == ["samples.png"]
    assert "left out reconstructions: needs images: add --data PATH" in capsys.readouterr().err


def test_a_runs_pictures_go_into_the_run_unless_it_is_said_where(tmp_path: Path) -> None:
    link = tmp_path / "run"
    link.mkdir()
    for entry in run_of("dense").iterdir():
        (link / entry.name).symlink_to(entry)
    assert draw(link, "--only", "curves") == 0
    assert [path.name for path in (link / "drawings").iterdir()] == ["curves.png"]


def test_a_run_without_snapshots_says_how_to_get_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for entry in run_of("dense").iterdir():
        if entry.name != "snapshots":
            (tmp_path / entry.name).symlink_to(entry)
    assert draw(tmp_path, "--only", "manifold-animation") == 2
    assert "manifold-animation: the run kept no weights" in (error := capsys.readouterr().err)
    assert "`snapshots = true` in [run]" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SHIPPED, "--only", "manifld"], "did you mean manifold?"),
        ([SHIPPED, "--only", ""], "--only: got nothing, wanted one of reconstructions"),
        ([SHIPPED, "--only", "manifold"], "manifold: needs a model with 2 latents, this one has 32"),
        ([SHIPPED, "--only", "scatter", "--data", FASHION], "scatter: needs a model with 2 latents"),
        ([SHIPPED, "--only", "curves"], "curves: needs a run's log"),
        ([SHIPPED, "--only", "classes"], "classes: needs a conditional model"),
        ([SHIPPED, "--only", "samples", "--data", "absent"], "absent does not exist"),
        ([SHIPPED, "--out", SHIPPED / "pictures"], "inside the model folder"),
        ([FASHION], "got neither config.toml nor manifest.json"),
        (["absent"], "wanted a run's folder or a model folder"),
        ([SHIPPED, "--only", "samples", "--out", __file__], "cannot be made"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert draw(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("latentry: error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_stop_while_writing_leaves_the_old_picture_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(SHIPPED, "--only", "samples", "--out", tmp_path) == 0
    before = (tmp_path / "samples.png").read_bytes()

    def stopped(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, "write_synced", stopped)
    assert draw(SHIPPED, "--only", "reconstructions,samples", "--data", FASHION, "--out", tmp_path) == 130
    assert (tmp_path / "samples.png").read_bytes() == before
    assert not (tmp_path / "reconstructions.png").exists()
    assert "Stopped" in capsys.readouterr().err


def test_the_help_names_every_picture() -> None:
    assert [name.strip() for name in draw_command.NAMES.split(",")] == [it.name for it in catalogue.catalogue()]
