"""docs/operations.md speaks of settings, flags, metrics and exit statuses that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentry.cli import main
from serving import errors
from serving.settings import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "operations.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", TEXT)


def test_every_setting_that_is_named_exists() -> None:
    named = {word for code in CODE for word in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", code)}
    named = {word for word in named if not word.startswith(("latentry_", "container_"))}
    assert len(named) > 15
    assert named <= set(Settings.model_fields)


def test_every_default_in_the_table_of_knobs_is_the_default() -> None:
    knobs = re.findall(r"^\| `(\w+)` \(([0-9.]+)\) \|", TEXT, re.M)
    assert len(knobs) == 5
    for key, value in knobs:
        assert Settings.model_fields[key].default == float(value), key


def test_every_metric_that_is_named_is_in_the_table_of_metrics() -> None:
    named = set(re.findall(r"`(latentry_\w+)`", TEXT))
    assert len(named) > 10
    assert named <= set(re.findall(r"`(latentry_\w+)`", (DOCS / "metrics.md").read_text()))


def test_every_flag_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("serve", "health"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    shown = capsys.readouterr().out
    for flag in {flag for code in CODE for flag in re.findall(r"--[a-z][a-z-]+", code)}:
        assert flag in shown, flag


def test_the_table_of_exit_statuses_is_the_errors_own() -> None:
    kinds = {errors.StartError, *errors.StartError.__subclasses__()}
    documented = re.findall(r"^\| ([0-9]) \|", TEXT, re.M)
    assert documented == ["0", *(str(code) for code in sorted({kind.exit_code for kind in kinds}))]


def test_every_status_that_we_raise_is_in_the_table() -> None:
    def kinds(of: type[errors.ServiceError]) -> set[type[errors.ServiceError]]:
        return {of, *(kind for each in of.__subclasses__() for kind in kinds(each))}

    documented = set(re.findall(r"`([A-Z_]+)`", TEXT))
    assert {kind.code.name for kind in kinds(errors.ServiceError)} - {"UNKNOWN"} <= documented
