"""`latentry export`: the same bytes twice, precisions as asked, Triton from a run or from a model folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from training_fixtures import ONE_THREAD, small_run

from latentry import manifest as manifests
from latentry.cli import main


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/small/1 with a variant of each precision."""
    folder = tmp_path_factory.mktemp("models") / "small" / "1"
    assert main(["export", str(small_run()), "--to", str(folder), *flags("fp16", "bf16", "int8", "int8")]) == 0
    return folder


def flags(*precisions: str) -> list[str]:
    return [flag for precision in precisions for flag in ("--precision", precision)]


def test_two_exports_of_one_checkpoint_are_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    """In another process, whose sets and dictionaries are in another order."""
    again = tmp_path / "small" / "1"
    command = [sys.executable, "-m", "latentry", "export", str(small_run()), "--to", str(again)]
    environment = {**ONE_THREAD, "PYTHONHASHSEED": "12345"}
    subprocess.run([*command, *flags("int8", "bf16", "fp16")], check=True, env=environment, capture_output=True)
    assert files(again) == files(exported)
    assert len(files(again)) == 11


def test_the_folder_holds_what_was_asked_for(exported: Path) -> None:
    read = manifests.read(exported)
    assert read.manifest.precisions == ("fp32", "fp16", "bf16", "int8")
    for precision in read.manifest.precisions:
        for part in ("encoder", "decoder"):
            session = onnxruntime.InferenceSession(read.graph(part, precision))
            said = session.get_modelmeta().custom_metadata_map
            assert said.get("latentry.precision", "fp32") == precision
            assert said["latentry.graph"] == part


def test_a_precision_outside_its_tolerance_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.precision import variant

    monkeypatch.setitem(variant.TOLERANCES, "bf16", variant.Tolerance(0.05, 200.0, 0.005))
    assert main(["export", str(small_run()), "--to", str(tmp_path / "small" / "1"), *flags("bf16")]) == 2
    assert "bf16: psnr_db against fp32: got" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_triton_from_a_run_and_from_its_folder_are_the_same(exported: Path, tmp_path: Path) -> None:
    from_run, from_folder = tmp_path / "a", tmp_path / "b"
    for source, repository in ((small_run(), from_run), (exported, from_folder)):
        to = str(repository / "small" / "1")
        assert main(["export", str(source), "--to", to, "--format", "triton", *flags("int8")]) == 0
    assert files(from_run) == files(from_folder)
    assert (from_run / "small_decoder" / "1" / "model.onnx").read_bytes() == (
        exported / "decoder.int8.onnx"
    ).read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--format", "triton", *flags("fp16", "int8")], "--precision: got fp16 and int8, wanted one for Triton"),
        (["--format", "triton", "--to", "small/latest"], "--to: wanted a path that ends in NAME/VERSION"),
        (["--max-batch-size", "8"], "--max-batch-size: wanted only with --format triton"),
        ([], "got a model folder, wanted a run"),
        (["--format", "triton", "--data", "x.npz"], "--data: wanted only for a run"),
    ],
)
def test_what_makes_no_sense_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(["export", str(exported), "--to", str(tmp_path / "small" / "2"), *more]) != 0
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_triton_needs_no_torch(exported: Path, tmp_path: Path) -> None:
    """From a model folder."""
    arguments = ["export", str(exported), "--to", str(tmp_path / "small" / "1"), "--format", "triton"]
    code = f"import sys; sys.modules['torch'] = None; from latentry.cli import main; sys.exit(main({arguments!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, capture_output=True)
    assert (tmp_path / "small_encoder" / "config.pbtxt").exists()
