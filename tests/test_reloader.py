"""Versions side by side, labels, and changes of the repository while the service runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import linear_model
import numpy as np
import onnx
import pytest
from conftest import running_service, settings_for
from grpc_health.v1 import health_pb2, health_pb2_grpc
from test_metrics import scrape

from latentry import manifest
from latentry.v1 import admin_pb2 as apb
from latentry.v1 import admin_pb2_grpc, vae_pb2_grpc
from latentry.v1 import vae_pb2 as pb
from serving import rehearsal, repository
from serving.errors import BadModel, NoModel
from serving.rehearsal import RehearsalFailed
from serving.server import Service

SERVING = health_pb2.HealthCheckResponse.SERVING


class Served:
    """A service of a repository that the test changes, and stubs to it."""

    def __init__(self, root: Path, service: Service, channel: grpc.Channel, admin: grpc.Channel) -> None:
        self.root = root
        self.service = service
        self.vae = vae_pb2_grpc.VaeServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(admin)
        self.health = health_pb2_grpc.HealthStub(channel)

    def scan(self) -> dict[tuple[str, int], apb.VersionStatus]:
        reply = self.admin.Scan(apb.ScanRequest(), timeout=60)
        return {(status.name, status.version): status for status in reply.versions}

    def loaded(self) -> list[tuple[str, int]]:
        reply = self.vae.ListModels(pb.ListModelsRequest())
        return [(info.model.name, info.model.version) for info in reply.models]

    def answers(self, **selector: Any) -> int:
        """The version that answers."""
        reply = self.vae.Sample(pb.SampleRequest(model=pb.ModelSelector(**selector), count=1, seed=0), timeout=30)
        return int(reply.model.version)

    def metric(self, name: str, **labels: str) -> float:
        return scrape(self.service)(name, **labels)


Start = Callable[..., Served]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Serve `tmp_path` with the versions of the model `linear` that are asked for."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def begin(*versions: int, **settings: Any) -> Served:
            for version in versions:
                linear_model.write(tmp_path, version=version)
            service = stack.enter_context(running_service(settings_for(tmp_path, admin_port=0, **settings)))
            channels = [
                stack.enter_context(grpc.insecure_channel(f"localhost:{port}"))
                for port in (service.port, service.admin_port)
            ]
            return Served(tmp_path, service, *channels)

        yield begin


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


# ---- which versions serve ----


def test_the_newest_version_serves_unless_told_otherwise(start: Start) -> None:
    served = start(1, 2, 10)
    assert served.loaded() == [("linear", 10)]
    assert served.answers() == 10


def test_versions_serve_side_by_side(start: Start) -> None:
    served = start(1, 2, 3, versions=("latest:2",))
    assert served.loaded() == [("linear", 2), ("linear", 3)]
    assert [served.answers(), served.answers(version=2)] == [3, 2]
    code, said = refused(lambda: served.answers(version=1))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "version 1" in said


def test_listed_versions_serve_and_each_model_has_its_policy(start: Start, tmp_path: Path) -> None:
    linear_model.write(tmp_path, "other", 7)
    linear_model.write(tmp_path, "other", 8)
    served = start(1, 2, 3, versions=("all", "linear=1,3"))
    assert served.loaded() == [("linear", 1), ("linear", 3), ("other", 7), ("other", 8)]


def test_a_label_names_a_version_and_keeps_it_loaded(start: Start) -> None:
    served = start(1, 2, 3, labels=("linear:stable=1", "linear:canary=3"))
    assert served.loaded() == [("linear", 1), ("linear", 3)]
    assert [served.answers(label="stable"), served.answers(label="canary"), served.answers()] == [1, 3, 3]
    info = served.vae.GetModel(pb.GetModelRequest(model=pb.ModelSelector(label="stable"))).model
    assert (info.model.version, list(info.version_labels)) == (1, ["stable"])
    assert served.metric("latentry_labels", model="linear", label="stable", version="1") == 1
    code, said = refused(lambda: served.answers(label="none"))
    assert (code, "label 'none'" in said) == (grpc.StatusCode.NOT_FOUND, True)


def test_a_label_to_nothing_stops_the_start(start: Start) -> None:
    with pytest.raises(NoModel, match=r"linear:stable=9, but there is no .*linear/9"):
        start(1, labels=("linear:stable=9",))


def test_a_default_model_that_is_not_there_stops_the_start(start: Start) -> None:
    with pytest.raises(NoModel, match="--default-model: got none"):
        start(1, default_model="none")


def test_a_policy_that_leaves_nothing_stops_the_start(start: Start) -> None:
    with pytest.raises(NoModel, match="none of its versions"):
        start(1, versions=("5",))


def test_the_default_model_is_as_configured_and_a_new_model_does_not_take_its_place(start: Start) -> None:
    served = start(1)
    linear_model.write(served.root, "aardvark", 1, z=7)
    served.scan()
    reply = served.vae.ListModels(pb.ListModelsRequest())
    assert ([m.model.name for m in reply.models], reply.default_model) == (["aardvark", "linear"], "linear")
    other = start(default_model="aardvark")
    assert other.vae.GetModel(pb.GetModelRequest()).model.latent_dim == 7


@pytest.mark.parametrize("name", ["01", "latest", "-1", "1.0"])
def test_a_folder_that_is_no_version_stops_the_start_and_is_passed_over_later(start: Start, name: str) -> None:
    served = start(1)
    (served.root / "linear" / name).mkdir()
    served.scan()
    assert served.answers() == 1
    with pytest.raises(BadModel, match=f"linear/{name}: version: got {name}"):
        start()


def test_ten_thousand_versions_are_looked_through_quickly(start: Start) -> None:
    served = start(1)
    for version in range(2, 10_002):
        (served.root / "linear" / str(version)).mkdir()
    shutil.rmtree(served.root / "linear" / "10001")
    linear_model.write(served.root, version=10_001)
    served.scan()
    assert served.answers() == 10_001


# ---- what changes while it serves ----


def test_a_new_version_takes_over_and_the_old_one_goes(start: Start) -> None:
    served = start(1)
    linear_model.write(served.root, version=2)
    served.scan()
    assert served.loaded() == [("linear", 2)]
    assert served.answers() == 2
    assert served.metric("latentry_reloads_total", model="linear", outcome="loaded") == 2
    assert served.metric("latentry_reloads_total", model="linear", outcome="unloaded") == 1
    assert served.metric("latentry_model_load_seconds", model="linear", version="1") == 0, "its gauges go with it"


def test_new_versions_are_noticed_without_being_told(start: Start) -> None:
    served = start(1, reload_s=0.05)
    linear_model.write(served.root, version=2)
    watch = served.health.Watch(health_pb2.HealthCheckRequest(service="linear"), timeout=30)
    while served.answers() != 2:
        pass
    assert next(watch).status == SERVING


@pytest.mark.parametrize("how", ["half copied", "changed byte", "not a graph", "not finite", "no manifest"])
def test_a_bad_version_is_refused_says_why_and_the_old_one_goes_on(start: Start, how: str) -> None:
    served = start(1)
    bad = linear_model.write(served.root, version=2)
    spoil(bad, how)
    status = served.scan()["linear", 2]
    assert status.state == apb.VERSION_STATE_REFUSED
    assert status.reason
    assert str(served.root) not in status.reason
    assert (served.answers(), served.loaded()) == (1, [("linear", 1)])
    info = served.vae.GetModel(pb.GetModelRequest()).model
    assert [(r.version, r.reason) for r in info.refused_versions] == [(2, status.reason)]
    assert served.metric("latentry_refused_versions", model="linear") == 1
    assert served.metric("latentry_reloads_total", model="linear", outcome="refused") == 1
    served.scan()
    assert served.metric("latentry_reloads_total", model="linear", outcome="refused") == 1, "not tried in vain"
    shutil.rmtree(bad.folder)
    linear_model.write(served.root, version=2)
    assert served.scan()["linear", 2].state == apb.VERSION_STATE_READY
    assert served.answers() == 2
    assert served.metric("latentry_refused_versions", model="linear") == 0


def spoil(bad: linear_model.LinearModel, how: str) -> None:
    folder = bad.folder
    graphs = {name: onnx.load(folder / name) for name in ("encoder.onnx", "decoder.onnx")}
    about = linear_model.manifest("linear", 2, bad.shape, 5)
    if how == "half copied":
        (folder / "decoder.onnx").write_bytes((folder / "decoder.onnx").read_bytes()[:500])
    elif how == "changed byte":
        (folder / "encoder.onnx").write_bytes((folder / "encoder.onnx").read_bytes()[:-1] + b"\0")
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    elif how == "not a graph":
        graphs["decoder.onnx"].graph.node[0].op_type = "NoSuchOperator"
        linear_model.save(folder, graphs, about)
    elif how == "not finite":
        sick = linear_model.decoder(bad.shape, bad.u * np.nan)
        linear_model.save(folder, {**graphs, "decoder.onnx": sick}, about)


def test_a_version_written_anew_is_loaded_anew(start: Start) -> None:
    served = start(1)
    before = served.vae.GetModel(pb.GetModelRequest()).model
    shutil.rmtree(served.root / "linear" / "1")
    linear_model.write(served.root, version=1, z=9)
    served.scan()
    after = served.vae.GetModel(pb.GetModelRequest()).model
    assert (before.latent_dim, after.latent_dim) == (5, 9)
    assert before.model.digest != after.model.digest


def test_a_version_spoiled_in_place_goes_on_as_it_was(start: Start) -> None:
    served = start(1, 2)
    (served.root / "linear" / "2" / "decoder.onnx").write_bytes(b"")
    status = served.scan()["linear", 2]
    assert (status.state, bool(status.reason)) == (apb.VERSION_STATE_READY, True)
    assert (served.answers(), served.loaded()) == (2, [("linear", 2)])


def test_a_labelled_version_spoiled_in_place_is_not_said_to_be_gone(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    served = start(1, 2, labels=("linear:stable=1",))
    (served.root / "linear" / "1" / "decoder.onnx").write_bytes(b"")
    assert served.scan()["linear", 1].state == apb.VERSION_STATE_READY
    assert "refused linear version 1" in caplog.text
    assert "is gone" not in caplog.text


def test_a_version_that_vanishes_is_unloaded_and_the_one_before_serves(start: Start) -> None:
    served = start(1, 2)
    shutil.rmtree(served.root / "linear" / "2")
    served.scan()
    assert served.loaded() == [("linear", 1)]


@pytest.mark.parametrize("how", ["gone", "empty", "unreadable"])
def test_a_repository_that_vanishes_changes_nothing(start: Start, how: str) -> None:
    served = start(1)
    aside = served.root.with_name("aside")
    served.root.rename(aside)
    if how != "gone":
        served.root.mkdir()
    if how == "unreadable":
        served.root.rmdir()
        served.root.write_bytes(b"")
    assert served.scan()["linear", 1].state == apb.VERSION_STATE_READY
    assert served.answers() == 1
    assert served.metric("latentry_repository_scan_failures_total") == 1
    if served.root.is_dir():
        served.root.rmdir()
    served.root.unlink(missing_ok=True)
    aside.rename(served.root)
    linear_model.write(served.root, version=2)
    served.scan()
    assert served.answers() == 2


def test_the_last_model_of_all_stays(start: Start) -> None:
    served = start(1)
    shutil.rmtree(served.root / "linear")
    (served.root / "other" / "1").mkdir(parents=True)
    served.scan()
    assert served.answers() == 1


def test_health_tells_of_each_model_by_its_name(start: Start) -> None:
    served = start(1)

    def status(name: str) -> str:
        try:
            reply = served.health.Check(health_pb2.HealthCheckRequest(service=name))
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))

    def eventually(name: str, wanted: str) -> None:
        for _ in range(1000):
            if status(name) == wanted:
                return
        assert status(name) == wanted

    linear_model.write(served.root, "other", 1)
    assert (status("linear"), status("other")) == ("SERVING", "NOT_FOUND")
    served.scan()
    eventually("other", "SERVING")
    shutil.rmtree(served.root / "other")
    served.scan()
    eventually("other", "NOT_SERVING")
    assert status("") == "SERVING"


def test_calls_under_way_are_finished_by_the_version_that_they_began_with(start: Start) -> None:
    """The old version is freed after its last call, however many rows that has."""
    served = start(1, max_batch_size=1)
    calls = [served.vae.Sample.future(pb.SampleRequest(count=1000, seed=i), timeout=60) for i in range(3)]
    linear_model.write(served.root, version=2)
    served.scan()
    assert {call.result().model.version for call in calls} <= {1, 2}
    assert served.answers() == 2


def test_reloads_under_load_fail_no_call_and_mix_no_versions(start: Start) -> None:
    served = start(1)
    models = {1: linear_model.write(served.root.with_name("truth"), version=1)}
    stop = threading.Event()
    problems: list[str] = []
    answered: set[int] = set()

    def load() -> None:
        z = np.random.default_rng(0).normal(size=(3, 5)).astype("<f4")
        tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=z.shape, data=z.tobytes())
        output = pb.ImageOutput(format=pb.IMAGE_FORMAT_RAW_FLOAT32)
        while not stop.is_set():
            try:
                reply = served.vae.Decode(pb.DecodeRequest(latents=tensor, output=output), timeout=30)
            except grpc.RpcError as error:
                problems.append(f"{error.code()} {error.details()}")
                continue
            got = np.frombuffer(reply.images.tensor.data, "<f4").reshape(3, 12, 10, 1)
            if not np.allclose(got, models[reply.model.version].decode(z), atol=1e-5):
                problems.append(f"version {reply.model.version} answered with another's numbers")
            answered.add(reply.model.version)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(2, 6):
        models[version] = linear_model.write(served.root.with_name("truth"), version=version)
        linear_model.write(served.root, version=version)
        served.scan()
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert answered == {1, 2, 3, 4, 5}


def test_a_version_loaded_while_a_scan_is_busy_elsewhere_is_not_dropped(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scan looks again at each model when it comes to it."""
    served = start(1)
    linear_model.write(served.root, "aaa", 1)
    busy, go_on = threading.Event(), threading.Event()
    rehearse = rehearsal.rehearse

    async def slow(folder: Path, *args: Any, **options: Any) -> None:
        if folder.parent.name == "aaa":
            busy.set()
            await asyncio.to_thread(go_on.wait, 20)
        await rehearse(folder, *args, **options)

    monkeypatch.setattr("serving.loading.rehearse", slow)
    scan = served.admin.Scan.future(apb.ScanRequest(), timeout=60)
    assert busy.wait(20)
    linear_model.write(served.root, version=2)
    served.admin.LoadModel(apb.LoadModelRequest(name="linear", version=2), timeout=30)
    shutil.rmtree(served.root / "linear" / "1")
    go_on.set()
    scan.result()
    assert served.loaded() == [("aaa", 1), ("linear", 2)]


def test_labels_move_while_a_version_is_being_loaded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A roll-back does not wait for a candidate that hangs."""
    served = start(1, 2, versions=("all",), labels=("linear:stable=2",))
    busy, go_on = threading.Event(), threading.Event()

    async def hang(*args: Any, **options: Any) -> None:
        busy.set()
        await asyncio.to_thread(go_on.wait, 20)

    monkeypatch.setattr("serving.loading.rehearse", hang)
    linear_model.write(served.root, version=3)
    scan = served.admin.Scan.future(apb.ScanRequest(), timeout=60)
    assert busy.wait(20)
    served.admin.SetLabel(apb.SetLabelRequest(name="linear", label="stable", version=1), timeout=5)
    assert served.answers(label="stable") == 1
    served.admin.UnloadModel(apb.UnloadModelRequest(name="linear", version=2), timeout=5)
    go_on.set()
    scan.result()
    assert served.loaded() == [("linear", 1), ("linear", 3)]


@pytest.mark.parametrize("error", [MemoryError("no memory"), OSError(11, "Resource temporarily unavailable")])
def test_what_may_mend_itself_is_tried_again_and_holds_up_no_other_model(
    start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    served = start(1)
    monkeypatch.setattr("serving.reloader._TRY_AGAIN_S", 0.0)
    tries: list[Path] = []

    async def fail(folder: Path, *args: Any, **options: Any) -> None:
        tries.append(folder)
        if folder.parent.name == "aaa":
            raise error

    monkeypatch.setattr("serving.loading.rehearse", fail)
    linear_model.write(served.root, "aaa", 1)
    linear_model.write(served.root, version=2)
    status = served.scan()
    assert (status["aaa", 1].state, served.answers()) == (apb.VERSION_STATE_REFUSED, 2)
    served.scan()
    assert len([folder for folder in tries if folder.parent.name == "aaa"]) == 2
    monkeypatch.setattr("serving.loading.rehearse", rehearsal.rehearse)
    assert served.scan()["aaa", 1].state == apb.VERSION_STATE_READY


def test_a_version_spoilt_and_mended_in_place_is_refused_no_more(start: Start) -> None:
    served = start(1)
    encoder = served.root / "linear" / "1" / "encoder.onnx"
    encoder.rename(served.root / "aside")
    assert served.scan()["linear", 1].reason
    (served.root / "aside").rename(encoder)
    before = served.metric("latentry_reloads_total", model="linear", outcome="loaded")
    assert served.scan()["linear", 1].reason == ""
    assert served.metric("latentry_refused_versions", model="linear") == 0
    assert served.metric("latentry_reloads_total", model="linear", outcome="loaded") == before, "the same needs no load"


def test_weights_of_the_same_size_and_time_are_noticed(start: Start) -> None:
    """As tar and rsync leave them."""
    served = start(1)
    folder = served.root / "linear" / "1"
    times = {file.name: file.stat() for file in folder.iterdir()}
    before = served.vae.GetModel(pb.GetModelRequest()).model.model.digest
    other = linear_model.write(served.root.with_name("other"), version=1).folder
    about = linear_model.manifest("linear", 1, (12, 10, 1), 5)
    graphs = {"encoder.onnx": onnx.load(other / "encoder.onnx"), "decoder.onnx": onnx.load(other / "decoder.onnx")}
    scale = next(i for i in graphs["decoder.onnx"].graph.initializer if i.name == "u")
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(2), "u"))
    linear_model.save(folder, graphs, about)
    for file in folder.iterdir():
        assert file.stat().st_size == times[file.name].st_size
        os.utime(file, ns=(times[file.name].st_atime_ns, times[file.name].st_mtime_ns))
    served.scan()
    assert served.vae.GetModel(pb.GetModelRequest()).model.model.digest != before


def test_a_load_that_is_given_up_changes_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start(1, 2, versions=("1",))
    busy, go_on = threading.Event(), threading.Event()

    async def hang(*args: Any, **options: Any) -> None:
        busy.set()
        await asyncio.to_thread(go_on.wait, 20)

    monkeypatch.setattr("serving.loading.rehearse", hang)
    call = served.admin.LoadModel.future(apb.LoadModelRequest(name="linear", version=2), timeout=60)
    assert busy.wait(20)
    call.cancel()
    go_on.set()
    monkeypatch.setattr("serving.loading.rehearse", rehearsal.rehearse)
    served.scan()
    assert served.loaded() == [("linear", 1)]


def test_a_version_that_is_here_for_its_label_only_answers_who_names_it(start: Start) -> None:
    served = start(1, 2, versions=("1",), labels=("linear:canary=2",))
    assert [served.answers(), served.answers(label="canary"), served.answers(version=2)] == [1, 2, 2]
    served.admin.LoadModel(apb.LoadModelRequest(name="linear", version=2))
    assert served.answers() == 2, "an administrator who loads it means it"


def test_a_labelled_version_stays_when_its_folder_goes(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    served = start(1, 2, labels=("linear:stable=1",))
    shutil.rmtree(served.root / "linear" / "1")
    for _ in range(2):
        served.scan()
    assert served.answers(label="stable") == 1
    assert caplog.text.count("linear version 1 is gone from the repository") == 1


def test_the_default_model_stays_the_default(start: Start) -> None:
    linear_served = start(1)
    linear_model.write(linear_served.root, "other", 1, z=7)
    linear_served.scan()
    code, said = refused(lambda: linear_served.admin.UnloadModel(apb.UnloadModelRequest(name="linear", version=1)))
    assert (code, "only version of the default model" in said) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    shutil.rmtree(linear_served.root / "linear")
    linear_served.scan()
    assert linear_served.vae.GetModel(pb.GetModelRequest()).model.model.name == "linear"


@pytest.mark.parametrize("policy", ["linear=9", "nix=1"])
def test_a_policy_for_what_is_not_there_stops_the_start(start: Start, policy: str) -> None:
    with pytest.raises(NoModel, match="chooses none of its versions"):
        start(1, versions=("latest", policy))


def test_the_reason_of_a_refusal_names_no_path_outside_the_repository(start: Start, tmp_path: Path) -> None:
    served = start(1)
    bad = linear_model.write(served.root, version=2).folder
    (bad / "encoder.onnx").rename(served.root.with_name("elsewhere.onnx"))
    (bad / "encoder.onnx").symlink_to(served.root.with_name("elsewhere.onnx"))
    reason = served.scan()["linear", 2].reason
    assert "outside" in reason
    assert "elsewhere" not in reason


def test_rows_that_depend_on_each_other_are_refused(start: Start) -> None:
    """As batch normalisation does that was exported in training mode: it would mix one call's data into another's."""
    served = start(1)
    bad = linear_model.write(served.root, version=2)
    graph = linear_model.decoder(bad.shape, bad.u)
    node = onnx.helper.make_node
    graph.graph.node[0].output[0] = "raw"
    graph.graph.node.insert(1, node("ReduceMean", ["raw", "axes"], ["centre"], keepdims=1))
    graph.graph.node.insert(2, node("Sub", ["raw", "centre"], ["logits"]))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "axes"))
    about = linear_model.manifest("linear", 2, bad.shape, 5)
    linear_model.save(
        bad.folder, {"encoder.onnx": onnx.load(bad.folder / "encoder.onnx"), "decoder.onnx": graph}, about
    )
    status = served.scan()["linear", 2]
    assert (status.state, served.answers()) == (apb.VERSION_STATE_REFUSED, 1)
    assert "with the other rows of its batch" in status.reason


# ---- the administrator ----


def test_versions_are_listed_with_what_became_of_them(start: Start) -> None:
    served = start(1, 2, 3, versions=("latest:2",), labels=("linear:stable=2",))
    spoil(linear_model.write(served.root, version=4), "half copied")
    served.scan()
    listed = served.admin.ListVersions(apb.ListVersionsRequest()).versions
    states = [(status.version, status.state, list(status.labels)) for status in listed]
    ready, available, no = apb.VERSION_STATE_READY, apb.VERSION_STATE_AVAILABLE, apb.VERSION_STATE_REFUSED
    assert states == [(1, available, []), (2, ready, ["stable"]), (3, ready, []), (4, no, [])]


def test_an_administrator_rolls_back(start: Start) -> None:
    served = start(1, 2)
    reply = served.admin.LoadModel(apb.LoadModelRequest(name="linear", version=1))
    assert reply.status.state == apb.VERSION_STATE_READY
    served.admin.UnloadModel(apb.UnloadModelRequest(name="linear", version=2))
    served.scan()
    assert (served.loaded(), served.answers()) == ([("linear", 1)], 1), "a scan does not undo it"
    served.admin.LoadModel(apb.LoadModelRequest(name="linear", version=2))
    assert served.answers() == 2


def test_an_administrator_moves_labels(start: Start) -> None:
    served = start(1, 2, versions=("all",), labels=("linear:stable=1",))
    served.admin.SetLabel(apb.SetLabelRequest(name="linear", label="stable", version=2))
    served.scan()
    assert served.answers(label="stable") == 2, "a scan does not undo it"
    served.admin.SetLabel(apb.SetLabelRequest(name="linear", label="stable", version=0))
    served.scan()
    assert refused(lambda: served.answers(label="stable"))[0] is grpc.StatusCode.NOT_FOUND
    assert served.metric("latentry_labels", model="linear", label="stable", version="2") == 0


@pytest.mark.parametrize(
    ("rpc", "request_", "code", "said"),
    [
        ("LoadModel", apb.LoadModelRequest(name="linear", version=9), "NOT_FOUND", "version 9"),
        ("LoadModel", apb.LoadModelRequest(name="../etc", version=1), "INVALID_ARGUMENT", "name: got '../etc'"),
        ("LoadModel", apb.LoadModelRequest(name="linear", version=0), "INVALID_ARGUMENT", "version: got 0"),
        ("LoadModel", apb.LoadModelRequest(name="linear", version=2), "FAILED_PRECONDITION", "2 is refused"),
        ("UnloadModel", apb.UnloadModelRequest(name="none", version=1), "NOT_FOUND", "'none' version 1"),
        ("UnloadModel", apb.UnloadModelRequest(name="linear", version=1), "FAILED_PRECONDITION", "the only model"),
        ("SetLabel", apb.SetLabelRequest(name="linear", label="x", version=9), "FAILED_PRECONDITION", "not loaded"),
        (
            "SetLabel",
            apb.SetLabelRequest(name="linear", label="a b", version=1),
            "INVALID_ARGUMENT",
            "label: got 'a b'",
        ),
        ("SetLogLevel", apb.SetLogLevelRequest(level="loud"), "INVALID_ARGUMENT", "level: got 'loud'"),
    ],
)
def test_what_an_administrator_cannot_have_is_said(start: Start, rpc: str, request_: Any, code: str, said: str) -> None:
    served = start(1)
    spoil(linear_model.write(served.root, version=2), "half copied")
    got, words = refused(lambda: getattr(served.admin, rpc)(request_))
    assert (got.name, said in words) == (code, True), words
    assert served.answers() == 1


def test_a_labelled_version_is_not_unloaded(start: Start) -> None:
    served = start(1, 2, labels=("linear:stable=1",))
    code, said = refused(lambda: served.admin.UnloadModel(apb.UnloadModelRequest(name="linear", version=1)))
    assert (code, "called stable" in said) == (grpc.StatusCode.FAILED_PRECONDITION, True)


def test_changes_of_one_model_at_once_are_made_one_after_another(start: Start) -> None:
    served = start(1, 2, 3, versions=("1",))
    calls = [
        served.admin.LoadModel.future(apb.LoadModelRequest(name="linear", version=version), timeout=60)
        for version in (2, 3, 2, 3, 2, 3)
    ]
    assert [call.result().status.state for call in calls] == [apb.VERSION_STATE_READY] * 6
    assert served.loaded() == [("linear", 1), ("linear", 2), ("linear", 3)]
    assert served.metric("latentry_reloads_total", model="linear", outcome="loaded") == 3, "each was loaded once"


def test_there_is_no_administration_unless_asked_for(linear_service: Service) -> None:
    with grpc.insecure_channel(f"localhost:{linear_service.port}") as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        assert refused(lambda: admin.ListVersions(apb.ListVersionsRequest()))[0] is grpc.StatusCode.UNIMPLEMENTED


# ---- the rehearsal ----


def test_a_version_whose_run_never_ends_is_refused_and_the_old_one_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start(1)
    monkeypatch.setattr(rehearsal, "TIMEOUT_S", 3.0)
    linear_model.make_endless(linear_model.write(served.root, version=2))
    status = served.scan()["linear", 2]
    assert (status.state, status.reason) == (apb.VERSION_STATE_REFUSED, "no end of its first run after 3 s")
    assert served.answers() == 1


async def test_a_rehearsal_that_is_killed_fails_alone(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path)
    linear_model.make_endless(model)

    async def kill_the_child() -> None:
        while True:
            for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
                for pid in child.read_text().split():
                    if b"serving.rehearsal" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(int(pid), 9)
                        return
            await asyncio.sleep(0.01)

    killer = asyncio.create_task(kill_the_child())
    with pytest.raises(RehearsalFailed, match="SIGKILL") as caught:
        await rehearsal.rehearse(model.folder, 4, manifest.read(model.folder).digest, 60)
    assert caught.value.transient
    await killer


async def test_a_rehearsal_says_what_is_wrong(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path)
    await rehearsal.rehearse(model.folder, 4, manifest.read(model.folder).digest, 60)
    digest = manifest.read(model.folder).digest
    (model.folder / "encoder.onnx").unlink()
    with pytest.raises(RehearsalFailed, match=r"encoder\.onnx: No such file or directory") as caught:
        await rehearsal.rehearse(model.folder, 4, digest, 60)
    assert not caught.value.transient


def test_a_fingerprint_changes_with_what_it_is_of(tmp_path: Path) -> None:
    assert repository.fingerprint(tmp_path / "none") == ()
    model = linear_model.write(tmp_path)
    first = repository.fingerprint(model.folder)
    assert repository.fingerprint(model.folder) == first
    (model.folder / "more").write_bytes(b"")
    assert repository.fingerprint(model.folder) != first
