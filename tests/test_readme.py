"""What the README shows is what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, running_service, settings_for
from PIL import Image

from latentry.cli import main
from latentry.manifest import embedded_models

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [block for of, block in found if of == language]


def test_the_ten_lines_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    with running_service(settings_for(embedded_models())) as service:
        assert "localhost:50051" in code
        exec(code.replace("localhost:50051", f"localhost:{service.port}"), {})  # noqa: S102 - our own README
    for name, size in {"samples.png": (8 * 30 - 2, 8 * 30 - 2), "walk.png": (10 * 30 - 2, 28)}.items():
        with Image.open(name) as picture:
            assert picture.size == size


def test_every_latentry_command_has_the_flags_that_it_is_shown_with(capsys: pytest.CaptureFixture[str]) -> None:
    joined = [block.replace("\\\n", " ") for block in blocks("sh")]
    lines = [line.partition("#")[0] for block in joined for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("latentry ")]
    commands += [shlex.split(line) for line in re.findall(r"`(latentry [a-z]+ [^`]*)`", README)]
    assert len(commands) >= 6
    for _, name, *arguments in commands:
        action = arguments[:1] if name == "admin" else []
        with pytest.raises(SystemExit, match="0"):
            main([name, *action, "--help"])
        shown = capsys.readouterr().out
        for argument in arguments:
            if argument.startswith("--"):
                assert argument in shown, f"latentry {name} has no {argument}"


def test_every_target_of_make_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = re.findall(r"`make ([a-z -]+)[^`]*`|^make ([a-z-]+)", README, re.M)
    targets = {target for groups in shown for group in groups for target in group.split()}
    assert {"demo", "test", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), f"no target {target}"


def test_every_file_of_the_tree_and_every_link_exists() -> None:
    (tree,) = blocks("")
    parent = Path()
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            parent = ROOT / name
        assert (parent if not line.startswith(" ") else parent / name).exists(), line
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / link).exists(), link
