"""Publishing a model folder: whole or not at all, whatever stops it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from training_fixtures import small_run

from latentry import manifest
from training import export, publication
from training.errors import ExportError


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "models" / "small" / "1"


@pytest.mark.parametrize("path", ["small/0", "small/latest", "Small/1", "small/01"])
def test_a_path_without_name_and_version_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ExportError, match="wanted a path that ends in NAME/VERSION"):
        export.export(small_run(), tmp_path / path)


def test_an_existing_version_is_refused(destination: Path) -> None:
    publication.publish(destination, {"a": b"1"})
    with pytest.raises(ExportError, match="exists already: choose another version, or add --replace"):
        export.export(small_run(), destination)
    assert (destination / "a").read_bytes() == b"1"


def test_replacing_leaves_only_the_new_files(destination: Path) -> None:
    publication.publish(destination, {"a": b"1"})
    publication.publish(destination, {"b": b"2"}, overwrite=True)
    assert [path.name for path in destination.iterdir()] == ["b"]
    assert [path.name for path in destination.parent.iterdir()] == ["1"]


def test_a_version_that_came_to_be_meanwhile_is_not_overwritten(destination: Path) -> None:
    publication.publish(destination, {"a": b"1"})
    with pytest.raises(ExportError, match="exists already"):
        publication.publish(destination, {"b": b"2"})
    assert [path.name for path in destination.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_a_version_is_replaced_in_one_step(destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publication.publish(destination, {"a": b"1"})
    monkeypatch.setattr(Path, "rename", None)  # with two renames there would be a moment without the version
    publication.publish(destination, {"b": b"2"}, overwrite=True)
    assert [path.name for path in destination.iterdir()] == ["b"]
    assert [path.name for path in destination.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_stopped_between_the_renames_the_old_version_comes_back(
    destination: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    publication.publish(destination, {"a": b"1"})
    rename = Path.rename

    def stopping(path: Path, target: Path) -> Path:
        if path.name == ".1.partial":
            raise stop
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopping)
    monkeypatch.setattr(publication, "exchange_at_once", lambda one, other: False)
    with pytest.raises((KeyboardInterrupt, ExportError)):
        publication.publish(destination, {"b": b"2"}, overwrite=True)
    assert [path.name for path in destination.iterdir()] == ["a"]
    assert [path.name for path in destination.parent.iterdir()] == ["1"]


def test_killed_between_the_renames_the_next_export_brings_the_old_version_back(destination: Path) -> None:
    publication.publish(destination, {"a": b"1"})
    destination.rename(destination.with_name(".1.retired"))
    with pytest.raises(ExportError, match="exists already"):
        export.export(small_run(), destination)
    assert (destination / "a").read_bytes() == b"1"


def test_a_link_or_a_file_is_not_replaced(destination: Path, tmp_path: Path) -> None:
    destination.parent.mkdir(parents=True)
    destination.symlink_to(tmp_path)
    with pytest.raises(ExportError, match="got a link or a file"):
        export.export(small_run(), destination, overwrite=True)
    assert destination.is_symlink()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_stopped_in_the_middle_it_leaves_nothing_new(
    destination: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    publication.publish(destination, {"a": b"1"})
    publish_until(monkeypatch, stop, destination)
    assert (destination / "a").read_bytes() == b"1"
    assert [path.name for path in destination.parent.iterdir()] == ["1"]


def test_a_first_export_that_is_stopped_leaves_no_folders(destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_until(monkeypatch, KeyboardInterrupt(), destination)
    assert not destination.parent.parent.exists()


def publish_until(monkeypatch: pytest.MonkeyPatch, stop: BaseException, destination: Path) -> None:
    def write(path: Path, data: bytes) -> None:
        if path.name == "second":
            raise stop
        path.write_bytes(data)

    files: Mapping[str, bytes] = {"first": b"1", "second": b"2"}
    monkeypatch.setattr(publication, "write_synced", write)
    expected = ExportError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        publication.publish(destination, files)


def test_what_a_killed_export_left_is_no_hindrance(destination: Path) -> None:
    (destination.parent / ".1.partial").mkdir(parents=True)
    (destination.parent / ".1.partial" / "half").write_bytes(b"half")
    publication.publish(destination, {"a": b"1"})
    assert [path.name for path in destination.iterdir()] == ["a"]
    assert [path.name for path in destination.parent.iterdir()] == ["1"]


def test_what_was_read_is_replaced_only_if_it_is_still_that(destination: Path) -> None:
    """Figures are added to a folder by publishing it anew: an export in between must not be undone by that."""
    publication.publish(destination, {"manifest.json": b"old"})
    read = manifest.sha256(b"old")
    publication.publish(destination, {"manifest.json": b"new"}, overwrite=True, instead_of=read)
    with pytest.raises(ExportError, match="has changed meanwhile; nothing was published: run the command again"):
        publication.publish(destination, {"manifest.json": b"old and more"}, overwrite=True, instead_of=read)
    assert (destination / "manifest.json").read_bytes() == b"new"
    assert [path.name for path in destination.parent.iterdir()] == ["1"]
