"""Models in a Triton repository on disk: together, whole or not at all, whatever stops it; others are left alone."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import helper

from latentry import manifest
from latentry.manifest import ModelFolder, embedded_models, sha256
from latentry.onnx_parts import OnnxError
from training import lock, publication, triton_repository
from training.errors import ExportError
from training.triton_repository import publish

OLD = {"m_encoder/config.pbtxt": b"1", "m_encoder/1/model.onnx": b"1", "m_decoder/config.pbtxt": b"1"}
NEW = {"m_encoder/config.pbtxt": b"2", "m_decoder/config.pbtxt": b"2", "m_decoder/2/model.onnx": b"2"}
STOPS = [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with somebody else's model."""
    write(tmp_path / "repository", {"theirs/config.pbtxt": b"theirs"})
    return tmp_path / "repository"


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def held(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


THEIRS = {"theirs/config.pbtxt": b"theirs"}


def shipped(name: str) -> ModelFolder:
    return manifest.read(embedded_models() / name / "1")


class TestExport:
    def test_a_model_folder_becomes_models_of_a_repository(self, tmp_path: Path) -> None:
        names = triton_repository.export(shipped("mnist-binary"), tmp_path / "new" / "repository")
        assert names == [f"mnist-binary_{part}" for part in ("encoder", "decoder", "prior", "density", "reconstruct")]
        home = embedded_models() / "mnist-binary" / "1"
        graphs = {f"mnist-binary_{path.stem}/1/model.onnx": path.read_bytes() for path in home.glob("*.onnx")}
        files = held(tmp_path / "new" / "repository")
        assert len(graphs) == 4
        assert graphs.items() <= files.items()
        assert set(files) - set(graphs) == {f"{name}/config.pbtxt" for name in names} | {
            "mnist-binary_reconstruct/1/.keep"
        }
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["repository"]

    def test_it_takes_no_torch(self, tmp_path: Path) -> None:
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from latentry import manifest\nfrom training import triton_repository\n"
            f"folder = manifest.read(Path({str(embedded_models() / 'fashion' / '1')!r}))\n"
            f"triton_repository.export(folder, Path({str(tmp_path / 'repository')!r}))\n"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"

    def test_replacing_removes_an_earlier_prior_and_nothing_of_others(self, repository: Path) -> None:
        of = shipped("mnist-binary")
        triton_repository.export(of, repository)
        write(repository, {"mnist-binary_density/config.pbtxt": b'name: "mnist-binary_density"'})  # not ours any more
        graphs = {file: data for file, data in of.graphs.items() if file in ("encoder.onnx", "decoder.onnx")}
        about = replace(of.manifest, version=2, prior=None, files={file: sha256(data) for file, data in graphs.items()})
        triton_repository.export(replace(of, manifest=about, graphs=graphs), repository, overwrite=True)
        assert {path.name for path in repository.iterdir()} == {
            "theirs",
            "mnist-binary_density",
            "mnist-binary_encoder",
            "mnist-binary_decoder",
            "mnist-binary_reconstruct",
        }
        assert [path.name for path in (repository / "mnist-binary_encoder").iterdir() if path.is_dir()] == ["2"]

    def test_a_graph_that_no_model_folder_may_hold_is_refused(self, repository: Path) -> None:
        of = shipped("fashion")
        random = onnx.load_model_from_string(of.graph("decoder"))
        random.graph.node.append(helper.make_node("RandomNormalLike", ["latents"], ["noise"]))
        graphs = {**of.graphs, "decoder.onnx": random.SerializeToString()}
        with pytest.raises(OnnxError, match="RandomNormalLike"):
            triton_repository.export(replace(of, graphs=graphs), repository)
        assert held(repository) == THEIRS


class TestTaken:
    def test_an_existing_model_is_refused(self, repository: Path) -> None:
        assert publish(repository, OLD) == ["m_encoder", "m_decoder"]
        with pytest.raises(ExportError, match="m_encoder exists already: choose another repository, or add --replace"):
            publish(repository, NEW)
        assert held(repository) == {**THEIRS, **OLD}

    def test_replacing_leaves_only_the_new_files(self, repository: Path) -> None:
        publish(repository, OLD)
        publish(repository, NEW, overwrite=True)
        assert held(repository) == {**THEIRS, **NEW}

    def test_a_model_that_came_to_be_meanwhile_is_not_overwritten(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(triton_repository, "check", lambda *_, **__: write(repository, {"m_decoder/x": b"mine"}))
        with pytest.raises(ExportError, match="nothing was published"):
            publish(repository, NEW)
        assert held(repository) == {**THEIRS, "m_decoder/x": b"mine"}

    def test_a_link_or_a_file_is_not_replaced(self, repository: Path, tmp_path: Path) -> None:
        (repository / "m_decoder").symlink_to(tmp_path)
        with pytest.raises(ExportError, match="m_decoder: got a link or a file"):
            publish(repository, NEW, overwrite=True)
        with pytest.raises(ExportError, match=r"config\.pbtxt: got a file, wanted a folder or nothing"):
            publish(repository / "theirs" / "config.pbtxt", NEW)
        assert held(repository) == THEIRS

    def test_one_export_at_a_time(self, repository: Path) -> None:
        path = repository / ".latentry.lock"
        with (
            lock.held(path, repository, "export", ExportError, print),
            pytest.raises(ExportError, match="another export"),
        ):
            publish(repository, NEW)
        assert held(repository) == THEIRS


class TestStopped:
    """In the middle of it, at each of its renames."""

    @pytest.mark.parametrize("stop", STOPS)
    @pytest.mark.parametrize("at", range(5))
    def test_replacing_in_renames_brings_back_what_was_there(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, at: int
    ) -> None:
        monkeypatch.setattr(publication, "exchange_at_once", lambda one, other: False)
        publish(repository, OLD | {"m_prior/config.pbtxt": b"1"})
        with monkeypatch.context() as patch:
            stop_rename(patch, at, stop)
            with pytest.raises((KeyboardInterrupt, ExportError)):
                publish(repository, NEW, ["m_prior"], overwrite=True)
        assert held(repository) == {**THEIRS, **OLD, "m_prior/config.pbtxt": b"1"}
        assert [path.name for path in repository.parent.iterdir()] == ["repository"]
        publish(repository, NEW, ["m_prior"], overwrite=True)
        assert held(repository) == {**THEIRS, **NEW}

    @pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
    @pytest.mark.parametrize("stop", STOPS)
    @pytest.mark.parametrize("at", range(2))
    def test_replacing_by_exchange_brings_back_what_was_there(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, at: int
    ) -> None:
        publish(repository, OLD)
        exchange, calls = publication.exchange_at_once, []

        def stopping(one: Path, other: Path) -> bool:
            calls.append(other.name)
            done = len(calls) <= at and exchange(one, other)
            if not done:
                raise stop
            return done

        monkeypatch.setattr(publication, "exchange_at_once", stopping)
        with pytest.raises((KeyboardInterrupt, ExportError)):
            publish(repository, NEW, overwrite=True)
        assert calls == ["m_encoder", "m_decoder"][: at + 1]
        assert held(repository) == {**THEIRS, **OLD}
        assert [path.name for path in repository.parent.iterdir()] == ["repository"]

    @pytest.mark.parametrize("stop", STOPS)
    def test_a_first_export_leaves_no_folders(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
    ) -> None:
        stop_rename(monkeypatch, 1, stop)
        with pytest.raises((KeyboardInterrupt, ExportError)):
            publish(tmp_path / "new" / "repository", NEW)
        assert list(tmp_path.iterdir()) == []


def stop_rename(monkeypatch: pytest.MonkeyPatch, at: int, stop: BaseException) -> None:
    """Stop the rename after `at` of them; those that follow work."""
    rename, calls = Path.rename, []

    def stopping(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == at + 1:
            raise stop
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopping)


class TestKilled:
    def test_what_was_moved_away_comes_back(self, repository: Path) -> None:
        """Killed where models cannot be exchanged at once, between the two renames of m_encoder."""
        publish(repository, OLD)
        partial = repository.parent / ".repository.partial"
        write(partial, {"m_encoder/config.pbtxt": b"2"})
        (partial / "old").mkdir()
        (repository / "m_encoder").rename(partial / "old" / "m_encoder")
        with pytest.raises(ExportError, match="m_decoder exists already"):
            publish(repository, {"m_decoder/config.pbtxt": b"3"})
        publish(repository, {"m_density/config.pbtxt": b"3"})
        assert held(repository) == {**THEIRS, **OLD, "m_density/config.pbtxt": b"3"}
        assert not partial.exists()


class TestUnfinished:
    """Triton takes every folder in a repository for a model."""

    def seen(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        """The folders that are in the repository while files are written."""
        folders: set[str] = set()
        synced = triton_repository.write_synced

        def looking(path: Path, data: bytes) -> None:
            folders.update(each.name for each in repository.iterdir() if each.is_dir())
            synced(path, data)

        monkeypatch.setattr(triton_repository, "write_synced", looking)
        publish(repository, NEW)
        assert held(repository) == {**THEIRS, **NEW}
        return folders

    def test_it_lies_beside_the_repository(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.seen(repository, monkeypatch) == {"theirs"}

    def test_it_lies_in_it_where_nothing_may_be_beside_it(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(triton_repository.os, "access", lambda path, mode: path != repository.parent)
        assert self.seen(repository, monkeypatch) == {"theirs", ".partial"}
