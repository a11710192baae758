"""Loading and unloading over the Open Inference Protocol: on the administration's port alone, a model as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import linear_model
import oip_fixtures
import pytest
from conftest import running_service, settings_for
from oip_fixtures import request

from serving.inference import grpc_service_pb2 as oip

Code = grpc.StatusCode


@pytest.fixture
def stubs(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """Of the main port and of the administration's. Versions 1 and 2 are loaded, of `linear`, which is the default
    model, and of `other`."""
    for version in (1, 2):
        linear_model.write(tmp_path, "linear", version)
        linear_model.write(tmp_path, "other", version)
    more = {"versions": ("all",), "default_model": "linear", "labels": ("other:stable=1",), "admin_port": 0}
    with (
        running_service(settings_for(tmp_path, **more)) as service,
        oip_fixtures.calls(service.port) as main,
        oip_fixtures.calls(service.admin_port) as admin,
    ):
        yield main, admin


def load(stub: Any, name: str, **parameters: Any) -> None:
    stub.RepositoryModelLoad(_with(oip.RepositoryModelLoadRequest(model_name=name), parameters))


def unload(stub: Any, name: str, **parameters: Any) -> None:
    stub.RepositoryModelUnload(_with(oip.RepositoryModelUnloadRequest(model_name=name), parameters))


def _with(made: Any, parameters: dict[str, Any]) -> Any:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", bytes: "bytes_param"}
    for key, value in parameters.items():
        setattr(made.parameters[key], kinds[type(value)], value)
    return made


def index(stub: Any, ready: bool = False) -> dict[tuple[str, str], tuple[str, str]]:
    """State and reason of each encoder."""
    found = stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=ready)).models
    return {(m.name, m.version): (m.state, m.reason) for m in found if m.name.endswith("_encoder")}


def is_ready(stub: Any, name: str, version: str = "") -> bool:
    return bool(stub.ModelReady(oip.ModelReadyRequest(name=name, version=version)).ready)


@contextlib.contextmanager
def refused(code: grpc.StatusCode, words: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert (caught.value.code(), words in caught.value.details()) == (code, True), caught.value.details()


def test_the_main_port_says_where(stubs: tuple[Any, Any]) -> None:
    main, _ = stubs
    with refused(Code.FAILED_PRECONDITION, "administration's port"):
        load(main, "other")
    with refused(Code.FAILED_PRECONDITION, "administration's port"):
        unload(main, "other_encoder")
    assert is_ready(main, "other_encoder")


def test_who_administrates_does_not_infer_by_that(stubs: tuple[Any, Any]) -> None:
    main, admin = stubs
    sample = oip.ModelInferRequest(model_name="linear_sample")
    assert main.ModelInfer(sample).outputs
    with refused(Code.FAILED_PRECONDITION, "inference is on the main one"):
        admin.ModelInfer(sample)


def test_a_version_goes_and_comes_back(stubs: tuple[Any, Any]) -> None:
    main, admin = stubs
    unload(admin, "other_encoder", version=2)
    assert not is_ready(main, "other_sample", "2")
    assert is_ready(main, "other_sample", "1")
    assert index(admin)["other_encoder", "2"] == ("UNAVAILABLE", "unloaded")
    assert ("other_encoder", "2") not in index(admin, ready=True)
    load(admin, "other")  # the newest
    assert is_ready(main, "other_sample", "2")
    assert index(main)["other_encoder", "2"] == ("READY", "")
    unload(admin, "other", version="2", unload_dependents=False)
    load(admin, "other_sample", version="2")
    assert main.ModelInfer(request("other_sample")).model_version == "2"


def test_a_model_goes_whole_or_not_at_all(stubs: tuple[Any, Any], tmp_path: Path) -> None:
    main, admin = stubs
    with refused(Code.FAILED_PRECONDITION, "is called stable"):
        unload(admin, "other")
    with refused(Code.FAILED_PRECONDITION, "the default model"):
        unload(admin, "linear")
    assert len(index(main, ready=True)) == 4
    linear_model.write(tmp_path, "third", 1)
    linear_model.write(tmp_path, "third", 2)
    load(admin, "third", version=1)
    load(admin, "third_decoder")
    assert (is_ready(main, "third_encoder", "1"), is_ready(main, "third_encoder", "2")) == (True, True)
    unload(admin, "third_sample")
    assert not any(name == "third_encoder" for name, _ in index(main))
    with refused(Code.NOT_FOUND, "third_sample"):
        unload(admin, "third_sample")


def test_a_version_that_cannot_be_served_is_listed_with_its_reason(stubs: tuple[Any, Any], tmp_path: Path) -> None:
    main, admin = stubs
    broken = linear_model.write(tmp_path, "other", 3)
    (broken.folder / "encoder.onnx").write_bytes(b"nothing")
    with refused(Code.FAILED_PRECONDITION, "encoder.onnx"):
        load(admin, "other")
    for stub in (main, admin):
        state, reason = index(stub)["other_encoder", "3"]
        assert state == "UNAVAILABLE"
        assert "encoder.onnx" in reason
        assert str(tmp_path) not in reason
    assert main.ModelInfer(request("other_sample")).model_version == "2"


@pytest.mark.parametrize(
    ("name", "parameters", "code", "words"),
    [
        ("nobody", {}, Code.NOT_FOUND, "nobody"),
        ("../other", {}, Code.NOT_FOUND, "../other"),
        ("", {}, Code.NOT_FOUND, "model: got ''"),
        ("other", {"version": 9}, Code.NOT_FOUND, "version 9"),
        ("other", {"version": 0}, Code.INVALID_ARGUMENT, "parameters[version]"),
        ("other", {"version": "new"}, Code.INVALID_ARGUMENT, "parameters[version]"),
        ("other", {"version": True}, Code.INVALID_ARGUMENT, "parameters[version]"),
        ("other", {"config": "{}"}, Code.INVALID_ARGUMENT, "got 'config'"),
        ("other", {"file:1/model.onnx": b"x"}, Code.INVALID_ARGUMENT, "got 'file:1/model.onnx'"),
    ],
)
def test_what_cannot_be_loaded(
    stubs: tuple[Any, Any], name: str, parameters: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    _, admin = stubs
    with refused(code, words):
        load(admin, name, **parameters)


def test_there_is_one_repository(stubs: tuple[Any, Any]) -> None:
    for stub in stubs:
        with refused(Code.INVALID_ARGUMENT, "repository_name"):
            stub.RepositoryIndex(oip.RepositoryIndexRequest(repository_name="mine"))


def test_the_administrations_port_describes_too(stubs: tuple[Any, Any]) -> None:
    asked = oip.ModelMetadataRequest(name="linear_decoder")
    both = [stub.ModelMetadata(asked) for stub in stubs]
    assert both[0] == both[1]
    assert [each.name for each in both[0].inputs] == ["latents"]
