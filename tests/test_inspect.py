"""`latentry inspect`: what it prints is what the files hold, and files are only read."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import linear_model
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT
from linear_model import LinearModel
from onnx import helper, numpy_helper

from latentry import inspect_command, manifest
from latentry.manifest import CARD_FILE, DECODER_FILE, ENCODER_FILE, sha256

FASHION = ROOT / "models" / "fashion" / "1"
MNIST = ROOT / "models" / "mnist-binary" / "1"


def inspect(capsys: pytest.CaptureFixture[str], *flags: object) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    inspect_command.add_inspect_arguments(parser)
    status = inspect_command.run_inspect(parser.parse_args([str(flag) for flag in flags]))
    said = capsys.readouterr()
    return status, said.out + said.err


def found(capsys: pytest.CaptureFixture[str], path: Path) -> Any:
    status, said = inspect(capsys, path, "--json")
    assert status == 0
    return json.loads(said)


def save(model: LinearModel, file: str, graph: onnx.ModelProto, **changes: Any) -> Path:
    """The model with another graph, or one more."""
    graphs = {name: onnx.load(model.folder / name) for name in (ENCODER_FILE, DECODER_FILE)} | {file: graph}
    about = linear_model.manifest("linear", 1, model.shape, 5)
    about = replace(about, files=dict.fromkeys(graphs, "0" * 64), **changes)
    linear_model.save(model.folder, graphs, about)
    return model.folder


@pytest.fixture
def model(tmp_path: Path) -> LinearModel:
    """A model to change."""
    return linear_model.write(tmp_path)


# ---- for programs ----


@pytest.mark.parametrize("file", ["encoder.onnx", "decoder.onnx", "prior.onnx", "density.onnx"])
def test_it_says_of_a_graph_what_onnx_and_the_runtime_say(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    graph = found(capsys, MNIST)["graphs"][file]
    proto = onnx.load(MNIST / file)
    session = onnxruntime.InferenceSession(MNIST / file, providers=["CPUExecutionProvider"])
    types = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    for side, ports in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert graph[side] == [{"name": each.name, "type": types[each.type], "shape": each.shape} for each in ports]
    assert graph["operators"] == dict(Counter(node.op_type for node in proto.graph.node))
    arrays = [numpy_helper.to_array(each) for each in proto.graph.initializer]
    sizes: Counter[str] = Counter()
    for array in arrays:
        sizes[str(array.dtype)] += array.size
    assert graph["weights"] == dict(sizes)
    assert graph["bytes"] == (MNIST / file).stat().st_size
    assert (graph["opsets"], graph["ir_version"]) == ({"ai.onnx": 18}, proto.ir_version)
    assert graph["metadata"] == session.get_modelmeta().custom_metadata_map
    assert list(graph["providers"]) == onnxruntime.get_available_providers()
    assert (graph["providers"]["CPUExecutionProvider"], graph["problem"]) == ("loads", None)


def test_it_says_of_a_folder_what_the_manifest_says(capsys: pytest.CaptureFixture[str]) -> None:
    whole = manifest.read(MNIST)
    said = found(capsys, MNIST)
    assert (said["digest"], said["card"]) == (whole.digest, str(MNIST / "README.md"))
    about = said["manifest"]
    assert (about["name"], about["version"], about["latent_dim"]) == ("mnist-binary", 1, whole.manifest.latent_dim)
    assert (about["image_shape"], about["labels"]) == ([28, 28, 1], list("0123456789"))
    assert whole.manifest.prior is not None
    assert about["prior"]["noise_dim"] == whole.manifest.prior.noise_dim
    assert about["precisions"] == {"fp32": {}, **whole.manifest.variants}
    assert about["evaluation"] == dict(whole.manifest.evaluation)
    assert set(said["graphs"]) == {file.name for file in MNIST.glob("*.onnx")}


def test_operators_and_weights_of_subgraphs_count_too(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    before = found(capsys, model.folder)["graphs"][DECODER_FILE]["operators"]
    linear_model.make_endless(model)
    operators = found(capsys, model.folder)["graphs"][DECODER_FILE]["operators"]
    assert Counter(operators) - Counter(before) == Counter({"Loop": 1, "Identity": 1, "Neg": 1})


def test_a_graph_that_no_folder_may_hold_is_shown_with_its_problem_and_not_loaded(
    model: LinearModel, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = linear_model.decoder(model.shape, model.u, batch=3)
    path = model.folder / "lone.onnx"
    path.write_bytes(fixed.SerializeToString())
    (graph,) = found(capsys, path)["graphs"].values()
    assert graph["problem"].startswith("lone.onnx: fixed batch: input latents [3, 5]")
    assert set(graph["providers"].values()) == {"not tried"}
    assert graph["inputs"] == [{"name": "latents", "type": "float32", "shape": [3, 5]}]
    assert "problem" in inspect(capsys, path)[1]


def test_a_graph_that_the_runtime_cannot_load_says_why(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    graph = linear_model.decoder(model.shape, model.u)
    graph.graph.node[1].op_type = "NoSuchOperator"
    folder = save(model, DECODER_FILE, graph)
    said = found(capsys, folder)["graphs"][DECODER_FILE]["providers"]["CPUExecutionProvider"]
    assert "NoSuchOperator" in said


def test_weights_in_other_files_are_not_read(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    path = model.folder / "pointing.onnx"
    graph = linear_model.decoder(model.shape, model.u)
    onnx.save(graph, path, save_as_external_data=True, location="pipe", size_threshold=0)
    (model.folder / "pipe").unlink()
    os.mkfifo(model.folder / "pipe")  # who reads it waits for ever
    (said,) = found(capsys, path)["graphs"].values()
    assert "weights outside the file: initializer u, in pipe" in said["problem"]


# ---- for people ----


def test_what_people_read(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = inspect(capsys, FASHION)
    assert status == 0
    lines = [" ".join(line.split()) for line in said.splitlines()]
    for line in (
        "model fashion version 1",
        "images 28 x 28 x 1 (height, width, channels)",
        "likelihood gaussian sigma 0.07912",
        "prior N(0, I)",
        f"precisions {', '.join(manifest.read(FASHION).manifest.precisions)}",
        f"card {FASHION / 'README.md'}",
        "decoder.onnx",
        "inputs latents float32 [batch, 32]",
        "outputs images uint8 [batch, 28, 28, 1]; mean float32 [batch, 28, 28, 1]",
        f"size {(FASHION / 'encoder.onnx').stat().st_size:,} bytes",
        "latentry.graph encoder",
    ):
        assert line in lines
    assert "CPUExecutionProvider (loads)" in " ".join(lines)
    assert all(len(line) <= 120 for line in said.splitlines() if str(ROOT) not in line)


def test_a_lone_graph_needs_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes((FASHION / "encoder.onnx").read_bytes())
    status, said = inspect(capsys, path)
    assert (status, said.splitlines()[0]) == (0, "mine.onnx")


def test_precisions_come_with_what_was_measured(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"encoder_relative": 0.0123456, "psnr_db": 48.5}
    save(model, "encoder.fp16.onnx", onnx.load(model.folder / ENCODER_FILE))
    graphs = {name: onnx.load(model.folder / name) for name in (ENCODER_FILE, DECODER_FILE)}
    graphs |= {f"{part}.fp16.onnx": graphs[f"{part}.onnx"] for part in ("encoder", "decoder")}
    about = linear_model.manifest("linear", 1, model.shape, 5)
    about = replace(about, files=dict.fromkeys(graphs, "0" * 64), variants={"fp16": figures})
    linear_model.save(model.folder, graphs, about)
    assert found(capsys, model.folder)["manifest"]["precisions"] == {"fp32": {}, "fp16": figures}
    lines = [" ".join(line.split()) for line in inspect(capsys, model.folder)[1].splitlines()]
    assert "precisions fp32, fp16" in lines
    assert "fp16 encoder_relative 0.01235, psnr_db 48.5" in lines


def test_the_card(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(capsys, FASHION, "--card") == (0, (FASHION / "README.md").read_text().rstrip() + "\n")
    status, said = inspect(capsys, model.folder, "--card")
    assert (status, said) == (1, f"latentry inspect: {model.folder}: no README.md among its files\n")
    text = "# Σ\x1b[2J\n\tx"
    about = manifest.read(model.folder).manifest
    (model.folder / CARD_FILE).write_text(text)
    files = {**about.files, CARD_FILE: sha256(text.encode())}
    (model.folder / "manifest.json").write_text(replace(about, files=files).to_json())
    assert inspect(capsys, model.folder, "--card")[1] == "# Σ?[2J\n\tx\n", "a stranger's text moves no cursor"


def test_the_card_is_the_bytes_whose_digest_was_checked(
    model: LinearModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = manifest.read(model.folder).manifest
    (model.folder / CARD_FILE).write_text("sound")
    (model.folder / "manifest.json").write_text(
        replace(about, files={**about.files, CARD_FILE: sha256(b"sound")}).to_json()
    )
    read = manifest.read

    def then_somebody_writes(folder: Path) -> manifest.ModelFolder:
        whole = read(folder)
        (folder / CARD_FILE).write_text("forged")
        return whole

    assert inspect(capsys, model.folder, "--card") == (0, "sound\n")
    monkeypatch.setattr(manifest, "read", then_somebody_writes)
    status, said = inspect(capsys, model.folder, "--card")
    assert (status, said) == (
        1, f"latentry inspect: {model.folder}: README.md changed while it was read; try again\n"
    )  # fmt: skip


def test_a_graph_has_no_card(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = inspect(capsys, model.folder / ENCODER_FILE, "--card")
    assert (status, said.count("\n")) == (1, 1)
    assert "encoder.onnx: got a file, wanted a model folder" in said


@pytest.mark.parametrize("flags", [[], ["--json"], ["--card"]])
def test_a_path_where_nothing_is(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = inspect(capsys, tmp_path / "no\x1b[2Jpe", *flags)
    wanted = "no such file or folder; wanted a model folder, NAME/VERSION, or a FILE.onnx"
    assert (status, said) == (1, f"latentry inspect: {tmp_path}/no\\x1b[2Jpe: {wanted}\n")


@pytest.mark.parametrize(
    "changes", [{"name": "\x1b[2Jx\n"}, {"files": {"\x1b[2J\n": "0" * 64}}, {"evaluation": {"a\x1b[2J\n": "much"}}]
)
def test_a_manifest_s_names_move_no_cursor(
    changes: dict[str, Any], model: LinearModel, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model.folder / "manifest.json"
    about = json.loads(path.read_text())
    for key, value in changes.items():
        about[key] = {**about[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(about))
    status, said = inspect(capsys, model.folder)
    assert (status, said.count("\n")) == (1, 1)
    assert r"\x1b[2J" in said
    assert said[:-1].isprintable()


def test_names_from_a_file_move_no_cursor(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    graph = linear_model.decoder(model.shape, model.u)
    graph.graph.input[0].name = graph.graph.node[0].input[0] = "z\x1b[2J\n"
    graph.producer_name = "\x07bell"
    helper.set_model_props(graph, {"key\x1b": "line\x1b one\nline two"})
    path = model.folder / "lone.onnx"
    path.write_bytes(graph.SerializeToString())
    status, said = inspect(capsys, path)
    assert status == 0
    assert all(line.isprintable() for line in said.splitlines())
    assert r"z\x1b[2J\n float32 [N, 5]" in said


# ---- what cannot be read ----


@pytest.mark.parametrize("data", [b"", b"not a graph"])
def test_a_file_that_is_no_graph(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.onnx").write_bytes(data)
    status, said = inspect(capsys, tmp_path / "x.onnx")
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith("latentry inspect: x.onnx: not ONNX, or cut short")


def test_a_folder_that_was_tampered_with(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    (model.folder / DECODER_FILE).write_bytes(b"x")
    status, said = inspect(capsys, model.folder)
    assert (status, said.count("\n")) == (1, 1)
    assert "decoder.onnx: SHA-256: got " in said


def test_a_file_too_large_and_one_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.onnx").touch()
    os.truncate(tmp_path / "x.onnx", 3 << 30)  # a hole
    status, said = inspect(capsys, tmp_path / "x.onnx")
    assert (status, said.count("\n")) == (1, 1)
    assert "got 3221225472 bytes, wanted at most 2147483648" in said
    assert inspect(capsys, tmp_path / "nowhere" / "1")[0] == 1


INSPECT = """
import argparse, sys
from latentry import inspect_command
parser = argparse.ArgumentParser()
inspect_command.add_inspect_arguments(parser)
assert not {"onnx", "onnxruntime"} & set(sys.modules), "so that --help is quick"
assert inspect_command.run_inspect(parser.parse_args(sys.argv[1:])) == 0
assert not {"torch", "training", "serving", "grpc"} & set(sys.modules)
print(next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mib(path: Path) -> int:
    """What inspecting it takes in a process of its own, which loads neither torch nor the server."""
    done = subprocess.run(
        [sys.executable, "-c", INSPECT, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "CPUExecutionProvider (loads)" in " ".join(done.stdout.split())
    return int(done.stdout.splitlines()[-1])


def test_neither_torch_nor_the_server_is_loaded_and_nothing_is_run(model: LinearModel) -> None:
    """A runtime that optimised would work out what a graph makes of constants: here of a gibibyte of zeros."""
    graph = linear_model.decoder(model.shape, model.u)
    nodes = [
        helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["latents", "nothing"], ["moved"]),
    ]
    graph.graph.node[0].input[0] = "moved"
    for at, node in enumerate(nodes):
        graph.graph.node.insert(at, node)
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1 << 28]), "huge"))
    (model.folder / "lone.onnx").write_bytes(graph.SerializeToString())
    assert peak_mib(model.folder / "lone.onnx") < 500
