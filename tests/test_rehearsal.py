"""The rehearsal: what the server's process would import and what it read, with bounded time, and nothing left lying."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import linear_model
import numpy as np
import onnx
import pytest
from conftest import ROOT
from onnx import helper, numpy_helper
from server_process import ServerProcess

from latentry import manifest
from latentry.manifest import DECODER_FILE, ENCODER_FILE
from serving import engine, rehearsal
from serving.bad_graph import BadGraph
from serving.rehearsal import RehearsalFailed, rehearse

PLANTED = "import pathlib; (pathlib.Path(__file__).parent / 'ran').touch()\nraise ImportError('planted')\n"
REHEARSE = """
import asyncio, pathlib, sys
from latentry import manifest
from serving.rehearsal import rehearse
folder = pathlib.Path(sys.argv[1])
pathlib.Path("numpy.py").write_text(sys.argv[2])  # from now on: this process has the real one
asyncio.run(rehearse(folder, 4, manifest.read(folder).digest))
"""


def digest_of(folder: Path) -> str:
    return manifest.sha256((folder / "manifest.json").read_bytes())


@asynccontextmanager
async def endless(tmp_path: Path) -> AsyncIterator[int]:
    """The process of a rehearsal that never ends by itself, while it runs the graph."""
    model = linear_model.write(tmp_path)
    linear_model.make_endless(model)
    task = asyncio.create_task(rehearse(model.folder, 4, digest_of(model.folder), 60))
    try:
        give_up = time.monotonic() + 30
        while not (pids := [pid for pid in children() if "onnxruntime" in Path(f"/proc/{pid}/maps").read_text()]):
            assert time.monotonic() < give_up
            assert not task.done()
            await asyncio.sleep(0.01)
        yield pids[0]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not Path(f"/proc/{pids[0]}").exists()


def children() -> list[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return [int(pid) for each in lists for pid in each.read_text().split()]


# ---- what it imports ----


@pytest.mark.parametrize("start", ["-c", "-m", "script"])
def test_what_lies_in_the_working_directory_is_not_imported(tmp_path: Path, start: str) -> None:
    """Whichever way the process was started: `-c` and `-m` look into the working directory first."""
    model = linear_model.write(tmp_path / "models")
    for place in ("here", "elsewhere"):
        (tmp_path / place).mkdir()
    script = tmp_path / ("here" if start == "-m" else "elsewhere") / "asks.py"
    script.write_text(REHEARSE)
    how = {"-c": ["-c", REHEARSE], "-m": ["-m", "asks"], "script": [str(script)]}[start]
    folder = os.path.relpath(model.folder, tmp_path / "here")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *how, folder, PLANTED]
    done = subprocess.run(
        command, cwd=tmp_path / "here", env=environment, timeout=60, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "here" / "numpy.py").exists()
    assert not (tmp_path / "here" / "ran").exists()


def test_a_checkout_that_is_the_working_directory_is_the_code_that_runs_and_the_libraries_are_the_servers(
    tmp_path: Path,
) -> None:
    model = linear_model.write(tmp_path / "models")
    for package in ("latentry", "serving"):
        (tmp_path / package).symlink_to(ROOT / package)
    command = [sys.executable, "-c", REHEARSE, str(model.folder), PLANTED]
    done = subprocess.run(command, cwd=tmp_path, timeout=60, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()


def test_a_server_takes_up_a_version_past_what_was_planted_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear_model.write(tmp_path / "models")
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("server_process.ROOT", tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    server = ServerProcess(tmp_path / "models", "--reload-s", "0.1")
    try:
        server.wait_until_serving()
        (tmp_path / "here" / "numpy.py").write_text(PLANTED)
        linear_model.write(tmp_path / "new", version=2).folder.rename(tmp_path / "models" / "linear" / "2")
        give_up = time.monotonic() + 30
        while not re.search(r"(loaded|refused) linear version 2", server.log):
            assert time.monotonic() < give_up, server.log
            time.sleep(0.05)
        assert "loaded linear version 2" in server.log
    finally:
        server.close()
    assert not (tmp_path / "here" / "ran").exists()


# ---- what it may use ----


async def test_it_steps_back_but_does_not_starve_and_its_processor_time_is_limited(tmp_path: Path) -> None:
    async with endless(tmp_path) as pid:
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max cpu time +120 +130 ", limits, re.MULTILINE)
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")


async def test_a_graph_that_uses_up_its_processor_time_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "CPU_S", 3)
    model = linear_model.write(tmp_path)
    linear_model.make_endless(model)
    with pytest.raises(RehearsalFailed, match="no end of its first run after 3 s of processor time") as caught:
        await rehearse(model.folder, 4, digest_of(model.folder), 60)
    assert not caught.value.transient


@pytest.mark.parametrize(("max_batch", "sizes"), [(1, {1}), (6, {1, 6}), (64, {1, 64}), (512, {1, 64})])
def test_the_largest_batch_that_is_tried_has_64_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_batch: int, sizes: set[int]
) -> None:
    seen = set()
    run = engine.Graph.run

    def watched(graph: engine.Graph, rows: engine.Array, outputs: frozenset[str]) -> dict[str, np.ndarray]:
        seen.add(len(rows))
        return run(graph, rows, outputs)

    monkeypatch.setattr(engine.Graph, "run", watched)
    rehearsal.run(manifest.read(linear_model.write(tmp_path).folder), max_batch)
    assert seen == sizes | {3, 7}, "three more, to see that rows do not depend on each other, and seven twice"


# ---- what it tries ----


def spoilt(root: Path, *nodes: onnx.NodeProto, **constants: np.ndarray) -> Path:
    """A model with these nodes between the latents and the rest of its decoder; the last of them makes `moved`."""
    model = linear_model.write(root)
    decoder = linear_model.decoder(model.shape, model.u)
    decoder.graph.node[0].input[0] = "moved"
    for at, node in enumerate(nodes):
        decoder.graph.node.insert(at, node)
    decoder.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graphs = {ENCODER_FILE: onnx.load(model.folder / ENCODER_FILE), DECODER_FILE: decoder}
    linear_model.save(model.folder, graphs, linear_model.manifest("linear", 1, model.shape, 5))
    return model.folder


def test_a_graph_that_draws_a_little_noise_is_found_by_running_it_twice(tmp_path: Path) -> None:
    """Whatever a look at the file does not see: here it is not looked at."""
    draw = helper.make_node("RandomNormalLike", ["latents"], ["noise"], scale=1e-4)
    folder = spoilt(tmp_path, draw, helper.make_node("Add", ["latents", "noise"], ["moved"]))
    with pytest.raises(BadGraph, match=r"decoder\.onnx: output \w+: two runs on the same rows differ by "):
        rehearsal.run(manifest.read(folder), 4)


def test_a_node_s_name_forges_no_line_of_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither in what we raise nor by what ONNX Runtime prints itself."""
    evil = 'x\n{"event": "loaded forged version 9"}\n\x1b[2J'
    shape = helper.make_node("Shape", ["latents"], ["sizes"])
    nodes = [shape, helper.make_node("Mul", ["sizes", "two"], ["twice"])]
    folder = spoilt(
        tmp_path, *nodes, helper.make_node("Reshape", ["latents", "twice"], ["moved"], name=evil), two=np.array([2, 1])
    )
    with pytest.raises(BadGraph, match=r"a batch of 1 fails: .*loaded forged version 9") as caught:
        rehearsal.run(manifest.read(folder), 4)
    assert str(caught.value).isprintable()
    assert "reshape_helper" not in str(caught.value), "nor where in its sources it was raised"
    assert capfd.readouterr() == ("", "")


async def test_functions_that_stand_for_millions_of_nodes_end_the_rehearsal_at_once(tmp_path: Path) -> None:
    folder = spoilt(tmp_path, helper.make_node("F25", ["latents"], ["moved"], domain="mine"))
    decoder = onnx.load(folder / DECODER_FILE)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    decoder.opset_import.append(opsets[1])
    for k in range(26):
        halves = [helper.make_node(f"F{k - 1}", [a], [b], domain="mine") for a, b in ("xt", "ty")]
        body = halves if k else [helper.make_node("Neg", ["x"], ["y"])]
        decoder.functions.append(helper.make_function("mine", f"F{k}", ["x"], ["y"], body, opsets))
    graphs = {ENCODER_FILE: onnx.load(folder / ENCODER_FILE), DECODER_FILE: decoder}
    linear_model.save(folder, graphs, linear_model.manifest("linear", 1, (4, 3, 1), 5))
    with pytest.raises(RehearsalFailed, match=r"decoder\.onnx: too many nodes: more than 100,000, ") as caught:
        await rehearse(folder, 4, digest_of(folder), 60)
    assert not caught.value.transient


async def test_a_folder_that_is_not_what_the_server_read_any_more_is_tried_again(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path)
    read = digest_of(model.folder)
    await rehearse(model.folder, 4, read)
    path = model.folder / "manifest.json"
    path.write_text(path.read_text().replace("-1.5", "-1.25"))
    with pytest.raises(RehearsalFailed, match=r"linear/1: changed while it was rehearsed$") as caught:
        await rehearse(model.folder, 4, read)
    assert caught.value.transient
    await rehearse(model.folder, 4, digest_of(model.folder))
