"""No row depends on the other rows of its batch, as far as a precision's rounding lets that be seen.

CPUs give each row the same bits in every batch. GPUs choose other kernels for other batch sizes, and their rounding is
played here, on GPUs that only pretend, by noise after each layer: normal, with a deviation of one rounding of the type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import linear_model
import numpy as np
import onnx
import pytest
import variant_graphs
from conftest import ROOT
from linear_model import LinearModel
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from test_devices import FakeGpus, gpus  # noqa: F401 - a fixture

from latentry import manifest
from latentry.manifest import PRECISIONS
from serving import engine
from serving.bad_graph import BadGraph
from serving.devices import CPU, CUDA, Device
from serving.engine import Graph

Array = np.ndarray[Any, np.dtype[Any]]

FOLDER = ROOT / "models" / "fashion" / "1"
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Sigmoid"}


class Rows(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    """Rows in batches of eight, for the calibration."""

    def __init__(self, name: str, rows: Array) -> None:
        self._batches = iter([{name: rows[i : i + 8]} for i in range(0, len(rows), 8)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory, fashion_images: Array) -> dict[str, onnx.ModelProto]:
    """The shipped model's encoder and decoder, quantised as one does: QDQ, per channel, calibrated on real images."""
    images = fashion_images[1000:1016]
    encoder = Graph((FOLDER / "encoder.onnx").read_bytes(), Device(CPU), {})
    rows = {"encoder": images, "decoder": encoder.run(images, frozenset({"mean"}))["mean"]}
    folder, made = tmp_path_factory.mktemp("int8"), {}
    for kind, name in (("encoder", "images"), ("decoder", "latents")):
        quantize_static(
            str(FOLDER / f"{kind}.onnx"),
            str(folder / kind),
            Rows(name, rows[kind]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        made[kind] = onnx.load(folder / kind)
    return made


def noisy(model: onnx.ModelProto, deviation: float) -> bytes:
    """The graph with every layer's output multiplied by 1 + noise, which is another in every run."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = []
    for i, node in enumerate(model.graph.node):
        nodes.append(node)
        if node.op_type in LAYERS:
            exact, out = f"exact{i}", node.output[0]
            nodes[-1] = onnx.NodeProto()
            nodes[-1].CopyFrom(node)
            nodes[-1].output[0] = exact
            about = {"scale": deviation, "dtype": TensorProto.FLOAT, "seed": float(i)}
            nodes += [
                helper.make_node("RandomNormalLike", [exact], [f"noise{i}"], **about),
                helper.make_node("Mul", [exact, f"noise{i}"], [f"error{i}"]),
                helper.make_node("Add", [exact, f"error{i}"], [out]),
            ]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made.SerializeToString()


def graph(data: bytes, precision: str, provider: str = CPU) -> Graph:
    return Graph(data, Device(provider), {}, (1, 4) if provider == CUDA else (), precision)


ROUNDINGS = {"fp32": 2**-11, "fp16": 2**-11, "bf16": 2**-8, "int8": 2**-11}
"""TF32 keeps 11 bits, as fp16 does, and bf16 8; int8 is computed in TF32 where a device has no kernels for it."""


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpus_rounding_is_let_pass(
    gpus: FakeGpus,  # noqa: F811 - the fixture
    int8: dict[str, onnx.ModelProto],
    kind: str,
    precision: str,
) -> None:
    model = int8[kind] if precision == "int8" else onnx.load(FOLDER / f"{kind}.onnx")
    rounding = graph(noisy(model, ROUNDINGS[precision]), precision, CUDA)
    for _ in range(5):
        rounding.check_rows()


def test_what_is_let_pass_for_a_coarse_precision_is_not_for_a_finer_one(
    gpus: FakeGpus,  # noqa: F811 - the fixture
    int8: dict[str, onnx.ModelProto],
) -> None:
    """A quantised value that moves by little moves a whole step, once it is on the edge between two."""
    data = noisy(int8["decoder"], ROUNDINGS["int8"])
    graph(data, "int8", CUDA).check_rows()
    for finer, provider in (("fp32", CUDA), ("fp16", CUDA), ("int8", CPU)):
        with pytest.raises(BadGraph, match="a row changes by"):
            graph(data, finer, provider).check_rows()
    with pytest.raises(BadGraph, match="a row changes by"):
        graph(noisy(onnx.load(FOLDER / "decoder.onnx"), ROUNDINGS["bf16"]), "fp32", CUDA).check_rows()


def test_on_the_cpu_a_quantised_models_rows_are_the_same_bits_in_every_batch(
    int8: dict[str, onnx.ModelProto], fashion_images: Array
) -> None:
    latents = np.random.default_rng(0).normal(size=(33, 32)).astype(np.float32)
    rows = {"encoder": fashion_images[:33], "decoder": latents}
    for kind, model in int8.items():
        one = graph(model.SerializeToString(), "int8")
        one.check_rows()
        names = frozenset(one.outputs)
        alone = [one.run(row[None], names) for row in rows[kind]]
        for size in (2, 7, 33):
            together = [one.run(rows[kind][i : i + size], names) for i in range(0, 33, size)]
            for name in names:
                got, wanted = (np.concatenate([each[name] for each in runs]) for runs in (together, alone))
                assert got.tobytes() == wanted.tobytes()


def mixing(model: onnx.ModelProto, value: str, how: str) -> bytes:
    """The graph with `value` made of all rows of the batch."""
    at = next(i for i, node in enumerate(model.graph.node) if value in node.output)
    model.graph.node[at].output[0] = "apart"
    if how == "normalised":  # batch normalisation that was exported in training mode
        width = model.graph.initializer
        weights = next(numpy_helper.to_array(each) for each in width if each.name in ("u", "weight", "weight_in"))
        ones, zeros = np.ones(weights.shape[1], np.float32), np.zeros(weights.shape[1], np.float32)
        width.extend(numpy_helper.from_array(each, name) for each, name in ((ones, "ones"), (zeros, "nought")))
        inputs = ["apart", "ones", "nought", "nought", "ones"]
        nodes = [helper.make_node("BatchNormalization", inputs, [value, "m", "s"], training_mode=1)]
    elif how == "sized":  # each row is divided by the number of rows
        nodes = [
            helper.make_node("Shape", ["apart"], ["rows"], start=0, end=1),
            helper.make_node("Cast", ["rows"], ["count"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["apart", "count"], [value]),
        ]
    else:  # a fifth of the batch's mean is taken from each row
        nodes = [
            helper.make_node("ReduceMean", ["apart", "rows"], ["middle_row"]),
            helper.make_node("Mul", ["middle_row", "fifth"], ["part"]),
            helper.make_node("Sub", ["apart", "part"], [value]),
        ]
        constants = {"rows": np.array([0]), "fifth": np.float32(0.2)}
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), n) for n, each in constants.items())
    for node in reversed(nodes):
        model.graph.node.insert(at + 1, node)
    return model.SerializeToString()


@pytest.mark.parametrize("how", ["normalised", "centred", "sized"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_that_read_each_other_are_refused_in_every_precision(tmp_path: Path, precision: str, how: str) -> None:
    model: LinearModel = linear_model.write(tmp_path)
    if precision != "fp32":
        variant_graphs.add(model, precision)
    decoder = onnx.load_from_string(manifest.read(model.folder).graph("decoder", precision))
    with pytest.raises(BadGraph, match=r"a row changes by .* with the other rows of its batch"):
        graph(mixing(decoder, "logits", how), precision).check_rows()
    graph(linear_model.decoder(model.shape, model.u).SerializeToString(), precision).check_rows()


def test_every_precision_has_its_tolerance() -> None:
    assert tuple(engine._ROUNDING) == PRECISIONS
    assert sorted(engine._ROUNDING.values()) == list(engine._ROUNDING.values()), "coarser precisions, wider tolerances"
