"""`latentry init`: a config that says what each key means, and is read back as it was."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import pytest

from training import config_file, init_command
from training.config import Config
from training.config_text import SECTIONS, TEXTS, commented

KEYS = [f"{section.name}.{key.name}" for section in fields(Config) for key in fields(getattr(Config(), section.name))]


def run(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    init_command.add_init_arguments(parser)
    return init_command.run_init(parser.parse_args(flags))


def test_every_key_is_explained_and_none_that_is_not_there() -> None:
    assert sorted(TEXTS) == sorted(KEYS)
    assert list(SECTIONS) == [section.name for section in fields(Config)]
    assert all(text.strip().endswith(".") and len(text) > 5 for text in [*TEXTS.values(), *SECTIONS.values()])


@pytest.mark.parametrize("name", [None, *config_file.presets()])
def test_what_is_written_is_read_back_equal(name: str | None) -> None:
    config = config_file.read_preset(name) if name else Config()
    assert config_file.parse(commented(config), "text") == config


def test_values_that_need_quoting_are_read_back_equal() -> None:
    data = replace(Config().data, path='/a "quoted" \\ päth', image_size=(64, 48), channels=3, labels=("Übel", "b"))
    config = replace(Config(), data=data)
    assert config_file.parse(commented(config), "text") == config


@pytest.mark.parametrize("key", KEYS)
def test_each_key_stands_once_below_its_meaning(key: str) -> None:
    section, _, name = key.partition(".")
    lines = commented(Config()).splitlines()
    part = lines[lines.index(f"[{section}]") :]
    found = [index for index, line in enumerate(part) if line.removeprefix("# ").startswith(f"{name} =")]
    assert part[found[0] - 1].startswith("# ")
    words = TEXTS[key].split()
    assert " ".join(words[:3]) in " ".join(part[: found[0]])


def test_lines_are_short_enough_to_read() -> None:
    assert max(map(len, commented(Config()).splitlines())) <= 102


def test_the_command_writes_a_presets_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--preset", "tiny", "--out", str(tmp_path / "mine.toml")) == 0
    assert config_file.read(tmp_path / "mine.toml") == config_file.read_preset("tiny")
    assert f"latentry train --config {tmp_path / 'mine.toml'}" in capsys.readouterr().out


def test_a_file_that_exists_is_left_alone_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text("mine")
    assert run("--out", str(tmp_path / "c.toml")) == 2
    assert "exists already: choose another, or add --replace" in capsys.readouterr().err
    assert (tmp_path / "c.toml").read_text() == "mine"
    assert run("--out", str(tmp_path / "c.toml"), "--replace") == 0
    assert config_file.read(tmp_path / "c.toml") == Config()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--preset", "fasion", "--out", "x.toml"], "did you mean fashion?"),
        (["--out", "."], "got the folder ., wanted a file"),
        (["--out", "nowhere/x.toml"], "cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    flags: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*flags) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
