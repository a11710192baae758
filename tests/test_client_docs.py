"""What docs/client.md and examples/python show runs against the models that come along."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import conditional_model
import pytest
from conftest import ROOT, running_service, settings_for
from PIL import Image

from latentry import Client
from latentry.cli import main
from training import config_file
from training.train_command import add_train_arguments

PAGE = (ROOT / "docs" / "client.md").read_text()
BEFORE = ("train", "export", "serve")  # what makes the conditional model and takes minutes
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.S | re.M)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the shipped models, and of a conditional one."""
    folder = tmp_path_factory.mktemp("models")
    model = conditional_model.write(folder / "made", 10).linear.folder
    manifest = json.loads((model / "manifest.json").read_text())
    labels = json.loads((ROOT / "models" / "fashion" / "1" / "manifest.json").read_text())["labels"]
    shutil.copytree(ROOT / "models", folder / "all")
    shutil.copytree(model, folder / "all" / manifest["name"] / "1")
    (folder / "all" / manifest["name"] / "1" / "manifest.json").write_text(json.dumps({**manifest, "labels": labels}))
    with running_service(settings_for(folder / "all")) as service:
        yield f"localhost:{service.port}"


def run(line: str, server: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Run a line of a shell, in this process."""
    command, _, target = line.partition("#")[0].partition(">")
    _, *argv = shlex.split(command)
    capfdbinary.readouterr()
    model = ["linear" if word == "conditional" else word for word in argv]
    assert main([*model, "--server", server]) == 0, f"{line}: {capfdbinary.readouterr().err!r}"
    if target:
        Path(target.strip()).write_bytes(capfdbinary.readouterr().out)


def test_the_page_runs_from_top_to_bottom(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, block in BLOCKS:
        if language == "python":
            code = block.replace("localhost:50051", server).replace('model="conditional"', 'model="linear"')
            exec(code, names)  # noqa: S102 - our own page
            for name in re.findall(r'\.save\("([^"]+)"', block):
                assert Path(name).exists(), name
        else:
            for line in block.splitlines():
                if line.split()[1] not in BEFORE:
                    run(line, server, capfdbinary)
    client = names["client"]
    assert isinstance(client, Client)
    client.close()
    for file in tmp_path.iterdir():
        if file.suffix != ".npz":
            with Image.open(file) as picture:
                assert (getattr(picture, "n_frames", 1) > 1) == (file.suffix in (".gif", ".webp"))


def test_the_page_makes_a_conditional_model_that_has_the_names_it_uses() -> None:
    lines = re.findall(rf"^latentry (?:{'|'.join(BEFORE)}) .*$", PAGE, re.M)
    train, export, serve = (shlex.split(line)[2:] for line in lines)
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    args = parser.parse_args(train)
    labels = config_file.read_preset(args.preset).data.labels
    assert args.conditional
    assert {*re.findall(r'classes="([^"]+)"', PAGE), *re.findall(r"--class (\w+)", PAGE)} == {"Sneaker"} <= set(labels)
    assert Path(export[0]) == Path(args.out)
    assert Path(export[-1]) == Path(serve[-1]) / "conditional" / "1"


def test_the_page_shows_every_call_and_every_command() -> None:
    python = "".join(block for language, block in BLOCKS if language == "python")
    shell = "".join(block for language, block in BLOCKS if language == "sh")
    calls = [name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")]
    for name in calls:
        assert f"client.{name}(" in python or name == "close", name
    for name in ("models", "encode", "decode", "sample", "interpolate", "reconstruct", "edit", "neighbours"):
        assert f"latentry {name}" in shell, name


@pytest.mark.parametrize("example", sorted((ROOT / "examples" / "python").glob("*.py")), ids=lambda path: path.name)
def test_the_examples_run(server: str, tmp_path: Path, example: Path) -> None:
    flags = ["--out", str(tmp_path)] if "--out" in example.read_text() else []
    done = subprocess.run(
        [sys.executable, str(example), "--server", server, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "images" in done.stdout or "image after" in done.stdout
    if flags:
        drawn = {file.name for file in tmp_path.iterdir()}
        assert {"decode.png", "sample.png", "walk.gif", "reconstruct.png", "edit.png", "neighbours.png"} <= drawn


@pytest.mark.parametrize(
    ("example", "argv", "said"),
    [
        ("every_call", ["a.png", "b.png"], "images: got 2, wanted three or more, or none"),
        ("first_image", ["--count", "0"], "--count: got 0, wanted 1 or more"),
        ("every_call", [], "every_call: INVALID_ARGUMENT: classes: got none, wanted one"),
        ("first_image", [], "first_image: INVALID_ARGUMENT: classes: got none, wanted one"),
    ],
)
def test_the_examples_say_in_a_line_what_is_wrong(
    serve: Any, tmp_path: Path, example: str, argv: list[str], said: str
) -> None:
    conditional_model.write(tmp_path / "models", 2)
    server = f"localhost:{serve(tmp_path / 'models').port}"
    command = [sys.executable, str(ROOT / "examples" / "python" / f"{example}.py"), "--server", server, *argv]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
