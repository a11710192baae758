"""Models of every kind over the Open Inference Protocol: what is listed is given, and nothing is the server's fault."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import linear_model
import numpy as np
import oip_fixtures
import onnx
import pytest
from conftest import running_service, settings_for
from linear_model import LinearModel
from oip_fixtures import arrays, request
from onnx import TensorProto, helper

from latentry.manifest import (
    DECODER_FILE,
    DENSITY_FILE,
    ENCODER_FILE,
    FLOW,
    PRIOR_FILE,
    Likelihood,
    Prior,
)
from serving.inference import grpc_service_pb2 as oip
from serving.oip import faces
from serving.server import Service

Array = np.ndarray[Any, np.dtype[Any]]
Z = 5
FORMATS = ("", "float32", "png", "gif")


def _graph(node_inputs: str, output: str, nodes: list[Any], shape: list[Any]) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in
             ((node_inputs, ["N", Z]), (output, shape))]  # fmt: skip
    graph = helper.make_graph(nodes, "made", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _prior() -> onnx.ModelProto:
    return _graph("noise", "latents", [helper.make_node("Neg", ["noise"], ["latents"])], ["N", Z])


def _density() -> onnx.ModelProto:
    """log p(z) = -|z|, summed."""
    nodes = [
        helper.make_node("ReduceL1", ["latents", "axes"], ["size"], keepdims=0),
        helper.make_node("Neg", ["size"], ["log_prob"]),
    ]
    made = _graph("latents", "log_prob", nodes, ["N"])
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "axes"))
    return made


def _with_parameters(decoder: onnx.ModelProto, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """The decoder, which gives its logits too."""
    decoder.graph.node.append(helper.make_node("Reshape", ["logits", "shape"], ["parameters"]))
    decoder.graph.output.append(helper.make_tensor_value_info("parameters", TensorProto.FLOAT, ["N", *shape]))
    return decoder


def _write(repository: Path, name: str, **changes: Any) -> LinearModel:
    """A linear model with changes to its manifest, and the graphs that they speak of."""
    model = linear_model.write(repository, name)
    about = linear_model.manifest(name, 1, model.shape, Z)
    files = {
        ENCODER_FILE: linear_model.encoder(model.shape, model.w, model.v),
        DECODER_FILE: linear_model.decoder(model.shape, model.u),
    }
    if changes.pop("logits", False):
        files[DECODER_FILE] = _with_parameters(files[DECODER_FILE], model.shape)
    if "prior" in changes:
        files[PRIOR_FILE] = _prior()
    if changes.pop("density", False):
        files[DENSITY_FILE] = _density()
    linear_model.save(model.folder, files, replace(about, files=dict.fromkeys(files, "0" * 64), **changes))
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LinearModel]:
    repository = tmp_path_factory.mktemp("models")
    oip_fixtures.write_models(repository)
    shutil.rmtree(repository / "plain")
    flow, fitted = Prior(FLOW, Z, -5.0, -6.0), Prior("mixture", Z, -5.0, -6.0)
    logits = {"likelihood": Likelihood("continuous-bernoulli"), "logits": True}
    return {
        "learnt": _write(repository, "learnt", prior=flow, density=True),
        "no-density": _write(repository, "no-density", prior=flow),
        "fitted": _write(repository, "fitted", prior=fitted),
        "logits": _write(repository, "logits", **logits),
        "unscored": _write(repository, "unscored", likelihood=Likelihood("theirs")),
    }


@pytest.fixture(scope="module")
def service(models: dict[str, LinearModel]) -> Iterator[Service]:
    repository = models["learnt"].folder.parent.parent
    with running_service(settings_for(repository, default_model="learnt")) as service:
        yield service


@pytest.fixture(scope="module")
def stub(service: Service) -> Iterator[Any]:
    with oip_fixtures.calls(service.port) as stub:
        yield stub


@pytest.fixture
def pixels(models: dict[str, LinearModel]) -> Array:
    return np.random.default_rng(3).integers(0, 256, (2, *models["learnt"].shape), np.uint8)


def listed(stub: Any, name: str) -> list[str]:
    return [each.name for each in stub.ModelMetadata(oip.ModelMetadataRequest(name=name)).outputs]


def asked(name: str, pixels: Array, **more: Any) -> Any:
    """A request that is in order."""
    own, _, kind = name.rpartition("_")
    parameters = more.pop("parameters", {})
    if own == "linear":
        parameters["class"] = 1
    if kind == "interpolate":
        parameters["steps"] = 3
    tensors: dict[str, Array] = {"images": pixels}
    if kind in ("decoder", "interpolate", "edit"):
        tensors = {"latents": np.linspace(-1, 1, 2 * Z, dtype=np.float32).reshape(2, Z)}
    return request(name, {} if kind == "sample" else tensors, parameters=parameters, **more)


def names(stub: Any) -> list[str]:
    return [each.name for each in stub.RepositoryIndex(oip.RepositoryIndexRequest()).models]


def test_what_is_listed_is_given(stub: Any, pixels: Array) -> None:
    """All of it where nothing is chosen, and each by itself."""
    assert len(names(stub)) == 5 * 7 + 1
    for name in names(stub):
        outputs = listed(stub, name)
        assert list(arrays(stub.ModelInfer(asked(name, pixels)))) == outputs, name
        for output in outputs:
            assert list(arrays(stub.ModelInfer(asked(name, pixels, outputs=(output,))))) == [output], name


def test_in_no_form_is_it_the_servers_fault(stub: Any, pixels: Array) -> None:
    """Any outputs in any form come, and those that were asked for, or are refused."""
    came = 0
    for name, form in itertools.product(names(stub), FORMATS):
        every = listed(stub, name)
        for outputs in ((), *((each,) for each in every), every[::-1]):
            made = asked(name, pixels, outputs=tuple(outputs), parameters={"format": form} if form else {})
            call = stub.ModelInfer.future(made)
            if call.code() == grpc.StatusCode.OK:
                came += 1
                found = list(arrays(call.result()))
                assert found == list(outputs or found)
            else:
                assert call.code() == grpc.StatusCode.INVALID_ARGUMENT, (name, form, outputs, call.details())
                assert form, (name, outputs)
    assert came > 300


def test_scores_that_cannot_be_told_are_neither_listed_nor_given(stub: Any, pixels: Array) -> None:
    always = ["images", "latents", "squared_error"]
    assert listed(stub, "no-density_reconstruct") == always
    assert listed(stub, "unscored_reconstruct") == [*always, "kl"]
    for own, score in (("no-density", "kl"), ("no-density", "elbo"), ("unscored", "elbo")):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(asked(f"{own}_reconstruct", pixels, outputs=(score,)))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith(f"outputs: got '{score}', wanted images, latents, squared_error")


def test_scores_of_every_kind(stub: Any, models: dict[str, LinearModel], pixels: Array) -> None:
    """Held against the formulas: of N(0, I), of a learnt prior's density, of a decoder's logits."""
    x = pixels.reshape(2, -1) / 255.0
    for own in ("learnt", "fitted", "logits"):
        mean, logvar = (each.astype(np.float64) for each in models[own].encode(pixels))
        kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum(1)
        if own == "learnt":
            kl = np.abs(mean).sum(1) - 0.5 * (logvar + np.log(2 * np.pi * np.e)).sum(1)
        logits = mean @ models[own].u
        log_p = logits * x - np.logaddexp(0, logits)
        if own == "logits":
            log_p = logits * x - np.log(np.expm1(logits) / logits)
        found = arrays(stub.ModelInfer(asked(f"{own}_reconstruct", pixels)))
        np.testing.assert_allclose(found["kl"][:, 0], kl, rtol=1e-4)
        np.testing.assert_allclose(found["elbo"][:, 0], log_p.sum(1) - kl, rtol=1e-4)


def test_a_models_own_prior_is_drawn_from(stub: Any) -> None:
    """Which turns the sign of what N(0, I) gives: unasked where it was learnt, and where it was fitted if asked."""

    def drawn(own: str, **prior: str) -> Array:
        found: Array = arrays(stub.ModelInfer(request(f"{own}_sample", parameters={"seed": 3, **prior})))["latents"]
        return found

    standard = drawn("logits")
    assert (drawn("learnt") == -standard).all()
    assert (drawn("learnt", prior="standard") == standard).all()
    assert (drawn("fitted") == standard).all()
    assert (drawn("no-density", prior="fitted") == -standard).all()


def test_an_output_that_a_replaced_model_lacks_is_refused(
    serve: Any, tmp_path: Path, pixels: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when the request came, and the model that answers does not have it."""
    _write(tmp_path, "replaced", prior=Prior(FLOW, Z, -5.0, -6.0))
    before = faces._FACES[faces.RECONSTRUCT]

    def known_before(model: Any) -> Any:
        face = before(model)
        return replace(face, outputs=(*face.outputs, faces.Port("kl", "FP32", (1,))))

    monkeypatch.setattr(faces, "_FACES", {**faces._FACES, faces.RECONSTRUCT: known_before})
    with oip_fixtures.calls(serve(tmp_path).port) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(asked("replaced_reconstruct", pixels, outputs=("kl",)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "outputs: got kl, wanted latents, squared_error"
