"""`latentry verify`: every check is made and said, whatever failed before it; the exit status says whether one did."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import conditional_model
import linear_model
import numpy as np
import onnx
import pytest
from conftest import ROOT
from linear_model import LinearModel
from onnx import TensorProto, helper, numpy_helper
from training_fixtures import small_run

from latentry import manifest as manifests
from latentry import verify_command
from latentry.manifest import DECODER_FILE, DENSITY_FILE, ENCODER_FILE, PRIOR_FILE, Manifest, Prior
from latentry.verification import Check
from serving import verification
from serving.bad_graph import BadGraph
from serving.engine import Graph
from training import export, publication, trained

node, port = helper.make_node, helper.make_tensor_value_info
Graphs = dict[str, onnx.ModelProto]


def verify(capsys: pytest.CaptureFixture[str], *flags: object) -> tuple[int, str]:
    """The exit status and what is printed."""
    parser = argparse.ArgumentParser()
    verify_command.add_verify_arguments(parser)
    status = verify_command.run_verify(parser.parse_args([str(flag) for flag in flags]))
    said = capsys.readouterr()
    return status, said.out + said.err


def table(said: str) -> dict[tuple[str, str], str]:
    """By check and file, the verdict with its note."""
    rows = [(line, re.split(" {2,}", line, maxsplit=2)) for line in said.split("\n\n")[0].splitlines()]
    for column in (1, 2):
        assert len({line.index(f"  {row[column]}") for line, row in rows}) == 1, "the columns are aligned"
    return {(check, what): result for _, (check, what, result) in rows}


def failures(said: str) -> dict[tuple[str, str], str]:
    return {where: result for where, result in table(said).items() if result.startswith("FAILED")}


@pytest.fixture
def model(tmp_path: Path) -> LinearModel:
    """A model to spoil."""
    return linear_model.write(tmp_path)


def about(model: LinearModel, **changes: Any) -> Manifest:
    return replace(linear_model.manifest("linear", 1, model.shape, 5), **changes)


def pair(model: LinearModel) -> Graphs:
    return {ENCODER_FILE: linear_model.encoder(model.shape, model.w, model.v),
            DECODER_FILE: linear_model.decoder(model.shape, model.u)}  # fmt: skip


def save(model: LinearModel, graphs: Graphs, **changes: Any) -> Path:
    linear_model.save(model.folder, graphs, about(model, files=dict.fromkeys(graphs, "0" * 64), **changes))
    return model.folder


def onnx_file(
    nodes: list[onnx.NodeProto], given: tuple[Any, ...], made: tuple[Any, ...], **held: Any
) -> onnx.ModelProto:
    """A graph from one float32 input to one output, each a name and the sizes of an item, and its initializers."""
    ports = [port(name, TensorProto.FLOAT, ["N", *sizes]) for name, *sizes in (given, made)]
    weights = [numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "graph", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


# ---- a folder that is sound ----


def test_every_check_of_every_graph_is_in_the_table(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = verify(capsys, model.folder)
    checks = ("loads", "finite", "rows apart", "repeatable")
    wanted = {("files", str(model.folder)), ("parity", "torch")}
    wanted |= {(check, file) for check in ("ONNX", *checks) for file in (ENCODER_FILE, DECODER_FILE)}
    rows = table(said)
    assert set(rows) == wanted
    assert rows.pop(("parity", "torch")) == "skipped: no --run to compare with"
    assert all(result.split(":")[0] == "ok" for result in rows.values())
    assert (status, said.splitlines()[-1]) == (0, f"{model.folder}: nothing failed")


@pytest.mark.parametrize("name", ["fashion", "mnist-binary"])
def test_the_models_that_come_along_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = verify(capsys, ROOT / "models" / name / "1")
    assert (status, failures(said)) == (0, {})


def test_torch_is_not_wanted_without_a_run(model: LinearModel) -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom latentry import verify_command as c\nimport argparse\n"
    code += "p = argparse.ArgumentParser(); c.add_verify_arguments(p)\n"
    code += "status = c.run_verify(p.parse_args(sys.argv[1:])); assert 'training' not in sys.modules; sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code, str(model.folder)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_priors_and_densities_are_run_too(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    w, axes = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32), np.array([1])
    prior = onnx_file([node("MatMul", ["noise", "w"], ["latents"])], ("noise", 6), ("latents", 5), w=w)
    square = node("ReduceSumSquare", ["latents", "axes"], ["log_prob"], keepdims=0)
    files = {PRIOR_FILE: prior, DENSITY_FILE: onnx_file([square], ("latents", 5), ("log_prob",), axes=axes)}
    folder = save(model, {**pair(model), **files}, prior=Prior("mixture", 6, -5.0, -7.0))
    status, said = verify(capsys, folder)
    rows = table(said)
    assert status == 0
    assert all(rows["repeatable", file] == "ok" for file in (PRIOR_FILE, DENSITY_FILE))
    folder = save(model, {**pair(model), **files}, prior=Prior("mixture", 7, -5.0, -7.0))
    status, said = verify(capsys, folder)
    assert status == 1
    assert "input noise: got items of [6], the manifest says [7]" in failures(said)["loads", PRIOR_FILE]


# ---- a folder that is not ----


def test_a_changed_byte_fails_and_the_graphs_are_looked_at_all_the_same(
    model: LinearModel, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model.folder / DECODER_FILE
    path.write_bytes(path.read_bytes().replace(b"linear", b"limear"))
    status, said = verify(capsys, model.folder)
    assert list(failures(said)) == [("files", str(model.folder))]
    assert "decoder.onnx: SHA-256: got " in said
    assert (status, said.splitlines()[-1]) == (1, f"{model.folder}: 1 checks failed")
    assert table(said)["repeatable", DECODER_FILE] == "ok"


def test_a_missing_graph_fails_and_the_other_is_checked(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    (model.folder / ENCODER_FILE).unlink()
    status, said = verify(capsys, model.folder)
    rows = table(said)
    assert status == 1
    assert "encoder.onnx: No such file" in failures(said)["files", str(model.folder)]
    assert rows["loads", ENCODER_FILE] == "skipped: its file is not one to load"
    assert rows["rows apart", DECODER_FILE] == "ok"


def test_without_a_manifest_there_is_nothing_to_check_against(
    model: LinearModel, capsys: pytest.CaptureFixture[str]
) -> None:
    (model.folder / "manifest.json").write_text("{}")
    status, said = verify(capsys, model.folder)
    assert status == 1
    assert "format: got None, wanted 1" in said
    assert table(said)["graphs", str(model.folder)].startswith("skipped: without a manifest")


def test_a_file_too_large_is_not_read(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(model.folder / DECODER_FILE, 3 << 30)  # a hole
    status, said = verify(capsys, model.folder)
    assert status == 1
    assert "decoder.onnx: got 3221225472 bytes, wanted at most 2147483648" in said
    assert table(said)["ONNX", DECODER_FILE] == "skipped: it cannot be read"


def test_a_graph_that_is_unfit_by_its_bytes_is_not_loaded(
    model: LinearModel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(model, {**pair(model), DECODER_FILE: linear_model.decoder(model.shape, model.u * np.nan)})
    status, said = verify(capsys, folder)
    assert status == 1
    assert list(failures(said)) == [("ONNX", DECODER_FILE)]
    assert "initializer u holds NaN" in said
    assert table(said)["loads", DECODER_FILE].startswith("skipped")


def test_outputs_that_the_manifest_does_not_know_fail(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = linear_model.encoder(model.shape, model.w, model.v)
    encoder.graph.output[0].name = encoder.graph.node[3].output[0] = "mu"
    status, said = verify(capsys, save(model, {**pair(model), ENCODER_FILE: encoder}))
    assert status == 1
    assert "encoder.onnx: outputs: got mu, logvar, wanted mean, logvar" in failures(said)["loads", ENCODER_FILE]


def test_rows_that_depend_on_each_other_fail(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = linear_model.decoder(model.shape, model.u)
    mixed.graph.node[0].output[0] = "raw"
    mixed.graph.node.insert(1, node("ReduceMean", ["raw", "axes"], ["centre"], keepdims=1))
    mixed.graph.node.insert(2, node("Sub", ["raw", "centre"], ["logits"]))
    mixed.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    status, said = verify(capsys, save(model, {**pair(model), DECODER_FILE: mixed}))
    assert status == 1
    assert list(failures(said)) == [("rows apart", DECODER_FILE)]


def test_outputs_that_are_not_finite_fail(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    sick = linear_model.decoder(model.shape, model.u)
    sick.graph.node[0].output[0] = "raw"
    sick.graph.node.insert(1, node("Div", ["raw", "raw"], ["logits"]))
    status, said = verify(capsys, save(model, {**pair(model), DECODER_FILE: sick}))
    assert status == 1
    assert "output mean: not finite for an input of zeros" in failures(said)["finite", DECODER_FILE]


class _Forgetful(Graph):
    """A graph whose outputs change from run to run, as no graph of plain operators on the CPU does."""

    def __init__(self, step: float) -> None:
        self.inputs = {"latents": (np.float32, ("N", 5))}
        self.outputs = {"mean": (np.float32, ("N", 5))}
        self._input, self._classes = "latents", 0
        self._step, self._runs = np.float32(step), 0

    def run(self, rows: Any, outputs: frozenset[str]) -> dict[str, Any]:
        self._runs += 1
        return dict.fromkeys(outputs, rows + self._step * self._runs)


def test_runs_that_differ_fail() -> None:
    graph = _Forgetful(1e-3)
    with pytest.raises(BadGraph, match=r"output mean: two runs on the same rows differ by 0.001; wanted the same bits"):
        graph.check_repeats()
    _Forgetful(0).check_repeats()


def test_rows_are_printed_as_checks_are_made(
    model: LinearModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may hang what tries it: then it is known which file, and in what."""
    seen = []

    def hangs(whole: manifests.ModelFolder) -> Iterator[Check]:
        seen.append(capsys.readouterr().out)
        yield Check("loads", ENCODER_FILE, "ok")
        seen.append(capsys.readouterr().out)

    monkeypatch.setattr(verification, "of_graphs", hangs)
    verify(capsys, model.folder)
    assert [len(each.splitlines()) for each in seen] == [3, 1]
    assert seen[0].splitlines()[2].startswith("ONNX        encoder.onnx ")
    assert seen[1].startswith("loads       encoder.onnx ")


def test_names_of_a_graph_and_of_a_manifest_move_no_cursor(
    model: LinearModel, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "e\x1b[2J\nvil"
    encoder = linear_model.encoder(model.shape, model.w, model.v)
    encoder.graph.output.append(port(evil, TensorProto.FLOAT, ["N", 5]))
    encoder.graph.node.append(node("Neg", ["mean"], [evil]))
    folder = save(model, {**pair(model), ENCODER_FILE: encoder})
    path = folder / "manifest.json"
    about = json.loads(path.read_text())
    about["likelihood"]["name"] = "x\x1b[2J\ny"
    path.write_text(json.dumps(about))
    status, said = verify(capsys, folder)
    assert status == 1
    assert r"got mean, logvar, e\x1b[2J\nvil" in failures(said)["loads", ENCODER_FILE]
    assert r"the manifest says x\x1b[2J\ny" in failures(said)["loads", DECODER_FILE]
    assert all(line.isprintable() for line in said.splitlines())


@pytest.mark.parametrize("flags", [["--data", "x"], ["--run", "nowhere"]])
def test_flags_that_make_no_sense(flags: list[str], model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = verify(capsys, model.folder, *flags)
    assert (status, said.count("\n")) == (2, 1)
    assert verify(capsys, model.folder / "nowhere")[0] == 2


# ---- conditional models ----


def test_a_conditional_model_is_run_with_its_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = verify(capsys, conditional_model.write(tmp_path, 10).linear.folder)
    assert (status, failures(said)) == (0, {})
    assert all(table(said)["repeatable", file] == "ok" for file in (ENCODER_FILE, DECODER_FILE))


def test_a_conditional_model_that_knows_too_few_classes_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = verify(capsys, conditional_model.write(tmp_path, 10, known=9).linear.folder)
    assert status == 1
    assert {what for _, what in failures(said)} == {ENCODER_FILE, DECODER_FILE}
    assert "a batch of 3 fails: " in failures(said)["rows apart", ENCODER_FILE]


# ---- other precisions ----


def rounded(model: LinearModel, step: float) -> tuple[Graphs, dict[str, float]]:
    """The pair with weights rounded to multiples of `step`, and in numpy how far that is from the pair as it was, on
    1,000 standard normal latents and on the images of them: what export would have written into the manifest."""
    other = replace(
        model, **{name: np.rint(getattr(model, name) / step).astype(np.float32) * np.float32(step) for name in "wvu"}
    )
    latents = np.random.default_rng(9).normal(size=(1000, 5))
    means = [each.decode(latents.astype(np.float32)) for each in (model, other)]
    levels = [np.rint(255 * mean) for mean in means]
    posteriors = [each.encode(levels[0]) for each in (model, other)]
    figures = {
        "encoder_relative": max(
            float((np.abs(b - a) / (1 + np.abs(a))).max()) for a, b in zip(*posteriors, strict=True)
        ),
        "decoder_mean": float(np.abs(means[1] - means[0]).max()),
        "decoder_levels": float(np.abs(levels[1] - levels[0]).max()),
        "psnr_db": float(-10 * np.log10(np.square((levels[1] - levels[0]) / 255).mean())),
    }
    return {f"{file.removesuffix('.onnx')}.int8.onnx": graph for file, graph in pair(other).items()}, figures


def test_a_precision_is_as_close_as_the_manifest_says(model: LinearModel, capsys: pytest.CaptureFixture[str]) -> None:
    variants, figures = rounded(model, 1 / 64)
    folder = save(model, {**pair(model), **variants}, variants={"int8": figures})
    status, said = verify(capsys, folder)
    assert (status, failures(said)) == (0, {})
    assert table(said)["as close", "int8 against fp32"].startswith("ok: ")


@pytest.mark.parametrize("figure", ["encoder_relative", "decoder_mean", "decoder_levels", "psnr_db"])
def test_a_precision_that_is_further_off_than_the_manifest_says_fails(
    model: LinearModel, capsys: pytest.CaptureFixture[str], figure: str
) -> None:
    variants, figures = rounded(model, 1 / 4)
    untrue = {**figures, figure: figures[figure] + 20 if figure == "psnr_db" else figures[figure] / 20}
    folder = save(model, {**pair(model), **variants}, variants={"int8": untrue})
    status, said = verify(capsys, folder)
    assert status == 1
    assert list(failures(said)) == [("as close", "int8 against fp32")]
    assert f"FAILED: {figure}: got " in said


def test_a_precision_of_which_a_graph_is_missing_is_not_compared(
    model: LinearModel, capsys: pytest.CaptureFixture[str]
) -> None:
    variants, figures = rounded(model, 1 / 64)
    folder = save(model, {**pair(model), **variants}, variants={"int8": figures})
    (folder / "encoder.int8.onnx").unlink()
    _, said = verify(capsys, folder)
    assert table(said)["as close", "int8 against fp32"] == "skipped: not all four graphs are loaded"


# ---- against torch ----


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of the small run."""
    destination = tmp_path_factory.mktemp("models") / "small" / "1"
    publication.publish(destination, export.build(trained.load(small_run()), "small", 1)[1])
    return destination


def test_the_graphs_of_a_run_agree_with_torch(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = verify(capsys, exported, "--run", small_run())
    rows = table(said)
    assert (status, failures(said)) == (0, {})
    assert "step 16" in rows["run", str(small_run())]
    assert rows["parity", f"{ENCODER_FILE}, {DECODER_FILE}"].startswith("ok: encoder_relative ")


def test_graphs_of_other_weights_fail_with_the_figure(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = manifests.read(exported)
    decoder = onnx.load_from_string(whole.graphs[DECODER_FILE])
    weight = next(
        each for each in decoder.graph.initializer if len(each.dims) == 2 and each.data_type == TensorProto.FLOAT
    )
    weight.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(weight), weight.name))
    files = {**whole.graphs, DECODER_FILE: decoder.SerializeToString()}
    changed = replace(whole.manifest, files={name: manifests.sha256(data) for name, data in files.items()})
    publication.publish(tmp_path / "small" / "1", {**files, "manifest.json": changed.to_json().encode()})
    status, said = verify(capsys, tmp_path / "small" / "1", "--run", small_run())
    assert status == 1
    assert list(failures(said)) == [("parity", f"{ENCODER_FILE}, {DECODER_FILE}")]
    assert "ONNX Runtime and torch disagree: decoder: difference of the mean: got " in said


def test_a_folder_that_is_no_run_fails_and_leaves_parity_out(
    model: LinearModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = verify(capsys, model.folder, "--run", tmp_path)
    assert status == 1
    assert list(failures(said)) == [("run", str(tmp_path))]
    assert table(said)["parity", f"{ENCODER_FILE}, {DECODER_FILE}"] == "skipped: the run is not loaded"


def test_without_torch_parity_is_left_out(
    model: LinearModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "training.verification", None)
    status, said = verify(capsys, model.folder, "--run", tmp_path)
    assert status == 0
    assert "is not installed: pip install 'latentry[training]'" in table(said)["parity", "torch"]
