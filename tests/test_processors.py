"""Threads follow what the process may use, not what the host has."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import processors


@pytest.fixture
def host_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.usefixtures("host_of_16")
@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", 16), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1)]
)
def test_a_version_2_quota_counts(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert processors.available(tmp_path) == expected


@pytest.mark.usefixtures("host_of_16")
@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("300000", 3)])
def test_a_version_1_quota_counts(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert processors.available(tmp_path) == expected


@pytest.mark.usefixtures("host_of_16")
def test_without_a_control_group_affinity_decides(tmp_path: Path) -> None:
    assert processors.available(tmp_path) == 16
