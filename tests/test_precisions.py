"""Which precision answers: as the settings and the device say, or the model is refused; never another in silence."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import linear_model
import numpy as np
import pytest
import variant_graphs
from conftest import running_service, settings_for
from linear_model import LinearModel
from onnx import helper
from test_devices import FakeGpus, gpus  # noqa: F401 - a fixture
from test_metrics import scrape
from test_reloader import Start, start  # noqa: F401 - a fixture
from test_served_priors import with_prior

from latentry import Client, manifest
from latentry.cli import main
from latentry.manifest import PRECISIONS
from latentry.v1 import admin_pb2 as apb
from latentry.v1 import vae_pb2 as pb
from serving import doctor, engine, loading, precisions, rehearsal
from serving.bad_graph import BadGraph, NoKernel
from serving.devices import CPU, CUDA, TENSORRT, Device
from serving.errors import BadModel, ConfigError
from serving.rehearsal import RehearsalFailed
from serving.server import Service
from serving.settings import Precision, Settings

Z = np.random.default_rng(4).normal(size=(6, 5)).astype(np.float32)
IMAGES = np.random.default_rng(5).integers(0, 256, (6, 12, 10, 1), np.uint8)
BY_ROUNDING = 0.05  # int8's; the variants are shifted by a multiple of it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    """The linear model in all precisions."""
    return variant_graphs.add(linear_model.write(tmp_path_factory.mktemp("variants")), "fp16", "bf16", "int8")


def repository(model: LinearModel) -> Path:
    return model.folder.parent.parent


def check_answers(model: LinearModel, precision: str, service: Service) -> None:
    """Whether encoder and decoder are those of this precision, and all that tells of it says so."""
    with Client(f"localhost:{service.port}") as client:
        means = client.encode(IMAGES).mean
        images = client.decode(Z, dtype="float32").images
        (info,) = client.models()
    others = set(PRECISIONS) - {precision}
    assert np.abs(means - variant_graphs.encode(model, precision, IMAGES)).max() < 2 * BY_ROUNDING
    assert np.abs(images - variant_graphs.decode(model, precision, Z)).max() < BY_ROUNDING
    for other in others:
        assert np.abs(images - variant_graphs.decode(model, other, Z)).mean() > BY_ROUNDING
    assert info.precision == precision
    (loaded,) = service.catalog.all()
    labels = {"digest": loaded.digest, "provider": info.provider}
    about = {"model": "linear", "version": "1", **labels}
    value = scrape(service)
    assert value("latentry_model_info", precision=precision, **about) == 1
    assert not any(value("latentry_model_info", precision=other, **about) for other in others)


# ---- which one ----


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_that_is_named_answers(serve: Any, model: LinearModel, precision: str) -> None:
    check_answers(model, precision, serve(repository(model), precision=precision))


def test_on_the_cpu_auto_is_fp32(serve: Any, model: LinearModel) -> None:
    check_answers(model, "fp32", serve(repository(model)))


@pytest.mark.parametrize(("there", "expected"), [((), "fp32"), (("bf16", "int8"), "fp32"), (("fp16", "int8"), "fp16")])
@pytest.mark.parametrize("tensorrt", [False, True])
def test_on_a_gpu_auto_is_fp16_where_the_model_has_it(
    gpus: FakeGpus,  # noqa: F811 - the fixture
    serve: Any,
    tmp_path: Path,
    there: tuple[str, ...],
    expected: str,
    tensorrt: bool,
) -> None:
    model = variant_graphs.add(linear_model.write(tmp_path / "models"), *there)
    cache = {"tensorrt_cache": tmp_path} if tensorrt else {}
    service = serve(tmp_path / "models", device="cuda:0,1", max_batch_size=4, **cache)
    assert {loaded.provider for loaded in service.catalog.all()} == {TENSORRT if tensorrt else CUDA}
    check_answers(model, expected, service)


@pytest.mark.parametrize("provider", [CPU, CUDA, TENSORRT])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_name_counts_for_more_than_the_device(model: LinearModel, provider: str, precision: str) -> None:
    assert precisions.choose(precision, provider, manifest.read(model.folder).manifest) == precision


def test_every_precision_of_the_model_can_be_named_and_all_are_told(serve: Any, model: LinearModel) -> None:
    assert set(Precision.__args__) == {"auto", *PRECISIONS}  # type: ignore[attr-defined]
    with Client(f"localhost:{serve(repository(model), precision='int8').port}") as client:
        assert list(client.models()[0].precisions) == ["fp32", "fp16", "bf16", "int8"]


def test_a_precision_that_there_is_not_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(precision="fp8")
    assert str(caught.value) == "--precision: got 'fp8', wanted one of auto, fp32, fp16, bf16, int8"


def test_what_is_loaded_says_its_precision_in_the_log_and_in_the_list(
    serve: Any, model: LinearModel, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, logger="serving")
    service = serve(repository(model), precision="int8")
    assert "loaded linear version 1: 12x10x1, 5 latents, in int8" in caplog.text
    assert main(["models", "--server", f"localhost:{service.port}"]) == 0
    assert "  CPUExecutionProvider int8  " in capsys.readouterr().out


def test_the_prior_is_the_same_in_every_precision(tmp_path: Path) -> None:
    """Equal seeds give equal latents, whatever the decoder computes in."""
    model, _ = with_prior(tmp_path, "flow")
    variant_graphs.add(model, "int8")
    drawn = {}
    for precision in ("fp32", "int8"):
        settings = settings_for(tmp_path, precision=precision)
        with running_service(settings) as service, Client(f"localhost:{service.port}") as client:
            drawn[precision] = client.sample(7, seed=11)
    assert drawn["fp32"].latents.tobytes() == drawn["int8"].latents.tobytes()
    assert np.abs(drawn["fp32"].images.astype(int) - drawn["int8"].images).mean() > 5, "decoded otherwise"


# ---- refused ----


def test_a_model_without_the_precision_that_is_named_stops_the_start(serve: Any, tmp_path: Path) -> None:
    variant_graphs.add(linear_model.write(tmp_path), "fp16")
    with pytest.raises(BadModel) as caught:
        serve(tmp_path, precision="int8")
    assert str(caught.value) == (
        "bad model: linear version 1 comes in fp32, fp16, wanted int8; "
        "export it again with `latentry export --precision int8`, or serve with --precision auto"
    )
    assert caught.value.exit_code == 5


def test_a_new_version_without_the_precision_is_refused_and_the_old_one_goes_on(
    start: Start,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    first = variant_graphs.add(linear_model.write(tmp_path), "int8")
    served = start(precision="int8")
    linear_model.write(tmp_path, version=2)
    status = served.scan()["linear", 2]
    assert status.state == apb.VERSION_STATE_REFUSED
    assert status.reason.startswith("linear version 2 comes in fp32, wanted int8; export it again with")
    assert (served.answers(), served.loaded()) == (1, [("linear", 1)])
    info = served.vae.GetModel(pb.GetModelRequest()).model
    assert [(refused.version, refused.reason) for refused in info.refused_versions] == [(2, status.reason)]
    with Client(f"localhost:{served.service.port}") as client:
        images = client.decode(Z, dtype="float32").images
    assert np.abs(images - variant_graphs.decode(first, "int8", Z)).max() < BY_ROUNDING
    variant_graphs.add(linear_model.write(tmp_path, version=3), "int8")
    served.scan()
    assert served.answers() == 3
    assert served.vae.GetModel(pb.GetModelRequest()).model.precision == "int8"


async def test_what_cpus_cannot_run_is_refused_on_them_and_left_to_the_gpu_by_the_rehearsal(
    serve: Any, tmp_path: Path
) -> None:
    model = linear_model.write(tmp_path)
    variant_graphs.add(model, "bf16", decoder_bf16=variant_graphs.bf16_throughout(model))
    with pytest.raises(BadModel, match=r"decoder\.bf16\.onnx: .* cannot run it on cpu: .*MatMul.*; --precision fp32 "):
        serve(tmp_path, precision="bf16")
    whole = manifest.read(model.folder)
    with pytest.raises(NoKernel):
        engine.load_graphs(whole, Device(CPU), (), "bf16")
    await rehearsal.rehearse(model.folder, 4, whole.digest, 60, precision="bf16")


async def test_the_rehearsal_tries_the_precision_that_is_to_serve_and_no_other(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path)
    sick = linear_model.decoder(model.shape, model.u)
    sick.graph.node.insert(0, helper.make_node("Log", ["latents"], ["gone"]))  # of a zero
    sick.graph.node[1].input[0] = "gone"
    variant_graphs.add(model, "fp16", "int8", decoder_int8=sick)
    digest = manifest.read(model.folder).digest
    with pytest.raises(RehearsalFailed, match=r"linear/1/decoder\.int8\.onnx: output mean: not finite"):
        await rehearsal.rehearse(model.folder, 4, digest, 60, precision="int8")
    for sound in ("fp32", "fp16"):
        await rehearsal.rehearse(model.folder, 4, digest, 60, precision=sound)


def test_a_graph_of_another_precision_than_its_name_says_is_refused(tmp_path: Path) -> None:
    model = variant_graphs.add(linear_model.write(tmp_path), "int8")
    whole = manifest.read(model.folder)
    for here, there in (("decoder.onnx", "decoder.int8.onnx"), ("decoder.int8.onnx", "decoder.onnx")):
        swapped = manifest.ModelFolder(
            whole.path, whole.manifest, whole.digest, {**whole.graphs, here: whole.graphs[there]}
        )
        wanted, got = ("int8", "fp32") if "int8" in here else ("fp32", "int8")
        with pytest.raises(BadGraph) as caught:
            engine.load_graphs(swapped, Device(CPU), (), wanted)
        assert str(caught.value) == (
            f"{model.folder / here}: metadata latentry.precision: got {got}, the manifest says {wanted}"
        )


# ---- memory ----


def test_nothing_of_the_other_precisions_is_kept_nor_any_bytes_once_it_is_loaded(
    serve: Any, model: LinearModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While graphs are loaded already the others are gone; bytes have no weak references, so they say so themselves."""
    alive: set[str] = set()
    while_loading: list[set[str]] = []
    loaded: list[dict[str, engine.Graph]] = []

    class Told(bytes):
        file = ""

        def __del__(self) -> None:
            alive.discard(self.file)

    def read(folder: Path) -> manifest.ModelFolder:
        whole = real_read(folder)
        graphs = {}
        for file, data in whole.graphs.items():
            graphs[file] = Told(data)
            graphs[file].file = file
            alive.add(file)
        return manifest.ModelFolder(whole.path, whole.manifest, whole.digest, graphs)

    def load_graphs(*args: Any) -> Any:
        while_loading.append(set(alive))
        loaded.append(real_load(*args))
        return loaded[-1]

    real_read, real_load = manifest.read, engine.load_graphs
    monkeypatch.setattr(manifest, "read", read)
    monkeypatch.setattr(loading, "load_graphs", load_graphs)
    service = serve(repository(model), precision="int8")
    served = {"encoder.int8.onnx", "decoder.int8.onnx"}
    assert while_loading == [served]
    assert not alive, "a restart reads the files again"
    for graph in loaded[0].values():
        graph.restart()
    check_answers(model, "int8", service)


# ---- the doctor ----


def test_the_doctor_says_what_would_be_served_and_what_would_not(model: LinearModel) -> None:
    def said(**flags: Any) -> tuple[str, str]:
        flags = {"models": repository(model), "port": 0, "metrics_port": 0, "device": "cpu", **flags}
        (finding,) = [each for each in doctor.examine(None, flags) if each.what == "models"]
        return finding.verdict, finding.text

    assert said()[1].endswith(" MiB in fp32")
    assert said(precision="int8")[1].endswith(" MiB in int8")


def test_the_doctor_finds_the_model_that_would_stop_the_start(linear_repository: Path) -> None:
    flags = {"models": linear_repository, "port": 0, "metrics_port": 0, "device": "cpu", "precision": "int8"}
    (finding,) = [each for each in doctor.examine(None, flags) if each.what == "models"]
    assert finding.verdict == "problem"
    assert finding.text.startswith("linear version 1 comes in fp32, wanted int8; ")
