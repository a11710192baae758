"""What loaded models and idle versions cost a server: memory, threads, files that are opened, modules."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from linear_model import LinearModel
from server_process import server_process

from latentry import manifest
from serving import again, engine, slices
from serving.bad_graph import BadGraph
from serving.devices import CPU, Device

SHIPPED = ROOT / "models" / "fashion" / "1"
GRAPHS = ("encoder.onnx", "decoder.onnx")
WEIGHTS_MIB = sum((SHIPPED / file).stat().st_size for file in GRAPHS) / (1 << 20)
IMAGES = frozenset({"images"})

# What a server that starts has no use for: each takes tens of milliseconds and megabytes.
NEVER = {
    *("torch", "training", "onnx", "onnxscript", "ml_dtypes", "scipy", "sklearn", "matplotlib", "opentelemetry"),
    *("pydantic_settings", "dotenv", "grpc_channelz"),
}

# Starts a service as `latentry serve` does, and looks at its repository once more; then says which files were opened.
STARTS = """\
import asyncio, json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in ("open", "os.scandir") else None)
import serving.cli
from pathlib import Path
from serving.server import Service
from serving.settings import Settings

async def main():
    service = Service(Settings(models=Path(sys.argv[1]), port=0, metrics_port=0, device="cpu", reload_s=0))
    await service.start()
    opened.append("started")
    await service.reloader.scan()
    print(json.dumps({"opened": opened, "modules": sorted(sys.modules)}), flush=True)
    await service.stop()

asyncio.run(main())
"""


def add_models(repository: Path, names: list[str]) -> Path:
    """Copies of the shipped model in fp32."""
    for name in names:
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        for file in GRAPHS:
            shutil.copyfile(SHIPPED / file, folder / file)
        about = json.loads((SHIPPED / manifest.MANIFEST_FILE).read_text())
        about |= {"name": name, "variants": {}, "files": {file: about["files"][file] for file in GRAPHS}}
        (folder / manifest.MANIFEST_FILE).write_text(json.dumps(about))
    return repository


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a service with three versions, of which the newest is served, opened and imported."""
    repository = add_models(tmp_path_factory.mktemp("versions"), ["fashion"])
    newest = repository / "fashion" / "3"
    (repository / "fashion" / "1").rename(newest)
    about = json.loads((newest / manifest.MANIFEST_FILE).read_text()) | {"version": 3}
    (newest / manifest.MANIFEST_FILE).write_text(json.dumps(about))
    for idle in ("1", "2"):
        shutil.copytree(newest, newest.parent / idle)
    command = [sys.executable, "-c", STARTS, str(repository)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])


# ---- a server ----


def test_ten_models_cost_their_weights_and_no_more_threads(tmp_path: Path) -> None:
    seen = {}
    for number in (1, 10):
        repository = add_models(tmp_path / str(number), [f"m{n}" for n in range(number)])
        with server_process(repository, "--threads", "4", "--reload-s", "0") as server:
            seen[number] = server.threads(), server.rss_mib()
    # Those of the event loop and of gRPC come and go; a graph with threads of its own would add three.
    assert seen[10][0] <= seen[1][0] + 6
    assert seen[10][1] - seen[1][1] < 9 * 2.5 * WEIGHTS_MIB


def test_versions_that_are_not_served_are_not_opened(started: Any) -> None:
    opened = [each for each in started["opened"] if "/fashion/" in each]
    assert {Path(each).name for each in opened if "/fashion/3/" in each} >= {manifest.MANIFEST_FILE, *GRAPHS}
    assert not [each for each in opened if "/fashion/3" not in each]


def test_a_look_at_the_repository_opens_no_file_of_what_is_loaded(started: Any) -> None:
    looked = started["opened"][started["opened"].index("started") :]
    assert [each for each in looked if each.endswith("/fashion")], "it looked"
    assert not [each for each in looked if Path(each).name in (manifest.MANIFEST_FILE, *GRAPHS)]


def test_a_server_that_starts_imports_nothing_that_it_does_not_need(started: Any) -> None:
    assert "onnxruntime" in started["modules"]
    assert not NEVER & set(started["modules"])


def test_the_message_of_onnx_files_is_that_of_onnx_whichever_is_imported_first() -> None:
    ours = "from latentry import onnx_message; import sys; a = onnx_message.model_type()"
    for code in (f"{ours}; assert 'onnx' not in sys.modules; import onnx", f"import onnx; {ours}"):
        check = "assert onnx.ModelProto is a; assert onnx.helper.make_opsetid('', 18).version == 18"
        subprocess.run([sys.executable, "-c", f"{code}; {check}"], cwd=ROOT, check=True, timeout=60)


# ---- a graph ----


def loaded(linear: LinearModel, threads: int = 1) -> engine.Graph:
    return engine.load_graph(manifest.read(linear.folder), "decoder", Device(CPU, threads=threads))


def latents(rows: int) -> Any:
    return np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32)


def copied(linear: LinearModel, place: Path) -> LinearModel:
    shutil.copytree(linear.folder, place / linear.folder.parent.name / linear.folder.name)
    return LinearModel(**{**vars(linear), "folder": place / linear.folder.parent.name / linear.folder.name})


def test_a_graph_is_restarted_from_its_file_although_that_has_been_removed(linear: LinearModel, tmp_path: Path) -> None:
    model = copied(linear, tmp_path)
    graph = loaded(model)
    before = graph.run(latents(3), IMAGES)["images"]
    shutil.rmtree(model.folder)
    graph.restart()
    np.testing.assert_array_equal(graph.run(latents(3), IMAGES)["images"], before)


def test_a_graph_is_not_restarted_from_a_file_that_was_written_over(linear: LinearModel, tmp_path: Path) -> None:
    model = copied(linear, tmp_path)
    graph = loaded(model)
    with (model.folder / "decoder.onnx").open("r+b") as file:
        file.write(b"another")
    with pytest.raises(BadGraph, match="its file was written over since it was loaded"):
        graph.restart()


def test_a_file_that_is_gone_already_is_kept_in_memory(tmp_path: Path) -> None:
    assert again.reader(tmp_path / "gone", b"bytes", manifest.sha256(b"bytes"))() == b"bytes"
    (tmp_path / "gone").write_bytes(b"another")
    assert again.reader(tmp_path / "gone", b"bytes", manifest.sha256(b"bytes"))() == b"bytes"


@pytest.mark.parametrize(("slow_row_s", "threads"), [(0.0, 3), (60.0, 1)])
def test_only_a_graph_that_takes_long_for_a_row_has_threads_of_its_own(
    linear: LinearModel, monkeypatch: pytest.MonkeyPatch, slow_row_s: float, threads: int
) -> None:
    made: list[int] = []

    def session(model: bytes, device: Device, *rest: Any) -> Any:
        made.append(device.threads)
        return real(model, device, *rest)

    real = engine._session
    monkeypatch.setattr(engine, "_session", session)
    monkeypatch.setattr(engine, "_SLOW_ROW_S", slow_row_s)
    graph = loaded(linear, threads=3)
    graph.restart()
    assert made[-1] == threads
    np.testing.assert_allclose(graph.run(latents(100), IMAGES)["images"], 255 * linear.decode(latents(100)), atol=0.51)


# ---- slices ----


@pytest.mark.parametrize("rows", [1, 31, 63, 64, 65, 200, 1024])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_slices_are_as_large_as_can_be_and_give_the_rows_in_their_order(rows: int, threads: int) -> None:
    sizes: list[int] = []

    def work(some: Any) -> dict[str, Any]:
        sizes.append(len(some))
        return {"twice": 2 * some, "same": some}

    given = np.arange(rows)
    results = slices.run(work, given, threads)
    np.testing.assert_array_equal(results["twice"], 2 * given)
    np.testing.assert_array_equal(results["same"], given)
    assert len(sizes) == max(1, min(threads, rows // slices.LEAST))
    assert max(sizes) - min(sizes) <= 1


def test_slices_run_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=30)

    def work(some: Any) -> dict[str, Any]:
        together.wait()
        return {"rows": some}

    assert len(slices.run(work, np.zeros(3 * slices.LEAST), 3)["rows"]) == 3 * slices.LEAST


@pytest.mark.parametrize("bad", [0, 1])
def test_a_slice_that_fails_is_told_once_the_others_have_ended(bad: int) -> None:
    ended = []

    def work(some: Any) -> dict[str, Any]:
        if some[0] == bad * slices.LEAST:
            raise ValueError("lost")
        time.sleep(0.05)
        ended.append(len(some))
        return {"rows": some}

    with pytest.raises(ValueError, match="lost"):
        slices.run(work, np.arange(2 * slices.LEAST), 2)
    assert ended == [slices.LEAST]
