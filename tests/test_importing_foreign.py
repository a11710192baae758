"""Foreign graphs that cannot be taken are refused by file, node and remedy; those that only look odd are taken."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_model import ForeignModel
from onnx import TensorProto, helper, numpy_helper

from latentry.manifest import ManifestError, sha256
from training.errors import ExportError, TrainingError
from training.importing import folder, wrap
from training.importing.options import Options

Edit = Callable[[onnx.ModelProto], None]
_NODE, _PORT = helper.make_node, helper.make_tensor_value_info
MODEL = ForeignModel()
IMAGES = np.random.default_rng(3).integers(0, 256, (5, 8, 6, 1), np.uint8)


def imported(
    place: Path, encoder: onnx.ModelProto | None = None, decoder: onnx.ModelProto | None = None, **said: Any
) -> tuple[folder.Imported, dict[str, bytes]]:
    """The files of a model folder made of two graphs, those of `MODEL` where none is given."""
    paths = place / "theirs-enc.onnx", place / "theirs-dec.onnx"
    for path, proto in zip(paths, (encoder or MODEL.encoder(), decoder or MODEL.decoder()), strict=True):
        path.write_bytes(proto.SerializeToString())
    return folder.build(*paths, "theirs", 1, Options(**said))


def encode(files: dict[str, bytes], images: Any = IMAGES) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(files["encoder.onnx"], providers=["CPUExecutionProvider"])
    return list(session.run(["mean", "logvar"], {"images": images}))


def matmul(proto: onnx.ModelProto) -> onnx.NodeProto:
    """The node that makes the mean."""
    return next(node for node in proto.graph.node if node.output[0] == "mean")


def add_noise(proto: onnx.ModelProto) -> None:
    matmul(proto).output[0] = "quiet"
    proto.graph.node.append(_NODE("RandomNormalLike", ["quiet"], ["noise"], name="epsilon"))
    proto.graph.node.append(_NODE("Add", ["quiet", "noise"], ["mean"]))


def add_custom(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("their.ops", 1))
    proto.graph.node.append(_NODE("Warp", ["flat"], ["warped"], name="warper", domain="their.ops"))
    matmul(proto).input[0] = "warped"


def add_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(_PORT("labels", TensorProto.INT64, ["n"]))


def break_weight(proto: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    numbers = numpy_helper.to_array(weight).copy()
    numbers[3, 1] = np.nan
    weight.CopyFrom(numpy_helper.from_array(numbers, "w"))


def age(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 99


def train_batch_norm(proto: onnx.ModelProto) -> None:
    matmul(proto).output[0] = "raw mean"
    for name in ("s", "b", "m", "v2"):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), name))
    inputs, outputs = ["raw mean", "s", "b", "m", "v2"], ["mean", "m new", "v new"]
    proto.graph.node.append(_NODE("BatchNormalization", inputs, outputs, name="norm", training_mode=1))


def mix_rows(proto: onnx.ModelProto) -> None:
    matmul(proto).output[0] = "raw mean"
    proto.graph.node.append(_NODE("ReduceMean", ["raw mean"], ["middle"], axes=[0], keepdims=1))
    proto.graph.node.append(_NODE("Sub", ["raw mean", "middle"], ["mean"]))


def lose_batch(proto: onnx.ModelProto) -> None:
    for port in [*proto.graph.input, *proto.graph.output]:
        port.type.tensor_type.shape.dim[0].dim_value = 1
    proto.graph.initializer.append(numpy_helper.from_array(np.array([48], np.int64), "one row"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 48], np.int64), "a row"))
    flatten = next(node for node in proto.graph.node if node.op_type == "Flatten")
    flatten.CopyFrom(_NODE("Reshape", ["float", "one row"], ["row"], name="to one row"))
    proto.graph.node.insert(2, _NODE("Reshape", ["row", "a row"], ["flat"]))


def give_integers(proto: onnx.ModelProto) -> None:
    matmul(proto).output[0] = "real mean"
    proto.graph.node.append(_NODE("Cast", ["real mean"], ["mean"], to=TensorProto.INT32))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (add_noise, r"theirs-enc.onnx: draws at random: RandomNormalLike \(node epsilon\); leave noise out"),
        (add_custom, r"theirs-enc.onnx: a custom operator.*their.ops: Warp \(node warper\)"),
        (add_input, r"theirs-enc.onnx: inputs: got picture, labels, wanted one alone"),
        (break_weight, r"theirs-enc.onnx: weights that are no numbers: initializer w .*NaN"),
        (age, r"theirs-enc.onnx: newer than the installed ONNX Runtime: opset 99 .*opset_version=18"),
        (train_batch_norm, r"theirs-enc.onnx: training-mode batch normalisation: BatchNormalization \(node norm\)"),
        (mix_rows, r"theirs-enc.onnx: an image's numbers change by .* \(model\.eval\(\)\)"),
        (lose_batch, r"theirs-enc.onnx: Reshape \(node to one row.*\) fails at a batch of 2: .*dynamic_shapes"),
        (give_integers, r"theirs-enc.onnx: got the output mean int32 \[N, 3\], wanted float32, float16 or float64"),
    ],
)
def test_what_no_folder_may_hold_is_refused_by_file_node_and_remedy(tmp_path: Path, edit: Edit, says: str) -> None:
    encoder = MODEL.encoder()
    edit(encoder)
    with pytest.raises((TrainingError, ManifestError), match=says) as refused:
        imported(tmp_path, encoder)
    assert "\n" not in str(refused.value)


def test_an_output_that_is_not_needed_goes_with_its_noise(tmp_path: Path) -> None:
    encoder = MODEL.encoder()
    encoder.graph.node.append(_NODE("RandomNormalLike", ["mean"], ["noise"]))
    encoder.graph.node.append(_NODE("Add", ["mean", "noise"], ["z"]))
    encoder.graph.output.append(_PORT("z", TensorProto.FLOAT, ["n", 3]))
    _, files = imported(tmp_path, encoder)
    kinds = {node.op_type for node in onnx.load_from_string(files["encoder.onnx"]).graph.node}
    assert "RandomNormalLike" not in kinds
    np.testing.assert_allclose(encode(files)[0], MODEL.encode(IMAGES)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_freed_and_the_node_is_named(tmp_path: Path, batch: int) -> None:
    fixed = ForeignModel(batch=batch)
    done, files = imported(tmp_path, fixed.encoder(), fixed.decoder())
    assert f"theirs-dec.onnx was exported for a batch of {batch} alone; freed it: the shape in Reshape into shape" in (
        done.notes
    )
    np.testing.assert_allclose(encode(files)[0], MODEL.encode(IMAGES)[0], rtol=0, atol=1e-5)


def test_a_fixed_batch_before_an_open_side_is_freed_too(tmp_path: Path) -> None:
    encoder = ForeignModel(batch=1).encoder()
    flatten = next(node for node in encoder.graph.node if node.op_type == "Flatten")
    encoder.graph.initializer.append(numpy_helper.from_array(np.array([1, -1], np.int64), "rows"))
    flatten.CopyFrom(_NODE("Reshape", ["float", "rows"], ["flat"]))  # as torch writes x.reshape(x.shape[0], -1)
    _, files = imported(tmp_path, encoder)
    np.testing.assert_allclose(encode(files)[0], MODEL.encode(IMAGES)[0], rtol=0, atol=1e-5)


def test_weights_beside_the_graph_are_taken_in(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "theirs" / "enc.onnx"
    onnx.save(MODEL.encoder(), path, save_as_external_data=True, location="enc.data", size_threshold=0)
    _, decoder = MODEL.write(tmp_path)
    done, files = folder.build(path, decoder, "theirs", 1, Options())
    assert set(done.manifest.provenance["imported"]["encoder"]["files"]) == {"enc.onnx", "enc.data"}
    np.testing.assert_allclose(encode(files)[0], MODEL.encode(IMAGES)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("location", ["../elsewhere.data", "/elsewhere.data", "sub/w.data", "link.data", "absent.data"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "elsewhere.data").write_bytes(bytes(4096))
    (tmp_path / "theirs" / "link.data").symlink_to(tmp_path / "elsewhere.data")
    encoder = MODEL.encoder()
    weight = next(tensor for tensor in encoder.graph.initializer if tensor.name == "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    with pytest.raises(ExportError, match=f"enc.onnx: the weight w lies in {re.escape(location)}.* beside the graph"):
        imported(tmp_path / "theirs", encoder)


def test_the_bytes_that_are_hashed_are_those_that_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir()
    path, data = tmp_path / "theirs" / "enc.onnx", tmp_path / "theirs" / "enc.data"
    onnx.save(MODEL.encoder(), path, save_as_external_data=True, location="enc.data", size_threshold=0)
    digest, read_bytes = sha256(data.read_bytes()), Path.read_bytes

    def and_then_it_changes(file: Path) -> bytes:
        content = read_bytes(file)
        if file == data:
            file.write_bytes(bytes(len(content)))
        return content

    monkeypatch.setattr(Path, "read_bytes", and_then_it_changes)
    _, decoder = MODEL.write(tmp_path)
    done, files = folder.build(path, decoder, "theirs", 1, Options())
    assert done.manifest.provenance["imported"]["encoder"]["files"]["enc.data"] == digest
    np.testing.assert_allclose(encode(files)[0], MODEL.encode(IMAGES)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"location": "w" * 5000}, "the weight w lies in w{100}[.]{3}: got no such file"),
        ({"location": "w\x1b[2J\n.bin"}, r"the weight w lies in w\\x1b\[2J\\n.bin: got no such file"),
        ({"location": "w.bin", "offset": "x"}, "the weight w: got an offset or a length that is no number"),
        ({"location": "w.bin", "offset": "-8"}, "the weight w: got 24 bytes from -8 of a file of 16"),
        ({"location": "w.bin", "offset": "8", "length": "9"}, "the weight w: got 9 bytes from 8 of a file of 16"),
    ],
)
def test_weights_that_cannot_be_had_are_refused_in_one_line(tmp_path: Path, about: dict[str, str], says: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    encoder = MODEL.encoder()
    weight = next(tensor for tensor in encoder.graph.initializer if tensor.name == "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in about.items():
        weight.external_data.add(key=key, value=value)
    with pytest.raises(ExportError, match=says) as refused:
        imported(tmp_path, encoder)
    assert str(refused.value).isprintable()


def sides(proto: onnx.ModelProto, index: int, *dims: int) -> None:
    """Set sides of the input; the first one is the outputs' too."""
    for axis, side in enumerate(dims, start=index):
        for port in [*proto.graph.input, *(proto.graph.output if axis == 0 else [])]:
            port.type.tensor_type.shape.dim[axis].dim_value = side


@pytest.mark.parametrize("dims", [(-1,), (0,), (-1, 1, -1, -1)])
def test_sides_that_no_tensor_has_are_open(tmp_path: Path, dims: tuple[int, ...]) -> None:
    encoder = MODEL.encoder()
    sides(encoder, 0, *dims)
    _, files = imported(tmp_path, encoder, image_shape=(8, 6, 1), layout="nchw")
    np.testing.assert_allclose(encode(files)[0], MODEL.encode(IMAGES)[0], rtol=0, atol=1e-5)


def name_a_type(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 999


def call_itself(proto: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    body = [_NODE("F", ["a"], ["b"], domain="f")]
    proto.functions.append(helper.make_function("f", "F", ["a"], ["b"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("f", 1))
    proto.graph.node.append(_NODE("F", ["mean"], ["unused"], domain="f"))


def break_shape(proto: onnx.ModelProto) -> None:
    for port in [*proto.graph.input, *proto.graph.output]:
        port.type.tensor_type.shape.dim[0].dim_value = 1
    flatten = next(node for node in proto.graph.node if node.op_type == "Flatten")
    flatten.CopyFrom(_NODE("Reshape", ["float", "rows"], ["flat"]))
    proto.graph.initializer.append(
        TensorProto(name="rows", dims=[2], data_type=TensorProto.INT64, raw_data=b"\x01" + bytes(12))
    )


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda proto: sides(proto, 2, 1 << 20, 1 << 20), r"theirs-enc.onnx: got picture .* sides up to 4096"),
        (lambda proto: sides(proto, 2, 1 << 40, 1 << 40), r"theirs-enc.onnx: got picture .* sides up to 4096"),
        (lambda proto: sides(proto, 0, 1 << 40), r"theirs-enc.onnx: got a batch of 1099511627776, wanted a free one"),
        (
            lambda proto: sides(proto, 0, 4096, 1, 4096, 4096),
            r"theirs-enc.onnx: got a batch of 4096 of 16777216 numbers",
        ),
        (name_a_type, r"theirs-enc.onnx: got the input picture type 999"),
        (call_itself, r"theirs-enc.onnx: .*calls itself"),
        (break_shape, r"theirs-enc.onnx: ONNX Runtime .* cannot load it"),
        (
            lambda proto: proto.graph.node.reverse(),
            r"theirs-enc.onnx: not valid ONNX: .* sorted, however input 'raw' of node",
        ),
    ],
)
def test_broken_graphs_are_refused_in_one_line(tmp_path: Path, edit: Edit, says: str) -> None:
    encoder = MODEL.encoder()
    edit(encoder)
    with pytest.raises((TrainingError, ManifestError), match=says) as refused:
        imported(tmp_path, encoder)
    assert str(refused.value).isprintable()
    assert "foreign/" not in str(refused.value)


def test_a_graph_that_gives_nan_by_itself_is_told_so(tmp_path: Path) -> None:
    decoder = MODEL.decoder()
    next(node for node in decoder.graph.node if node.op_type == "Sigmoid").input[0] = "root"
    decoder.graph.node.insert(3, _NODE("Sqrt", ["raw"], ["root"]))
    with pytest.raises(ExportError, match=r"theirs-dec.onnx: gives NaN or infinity .* before it was wrapped"):
        imported(tmp_path, None, decoder)


def test_outputs_that_are_not_needed_are_said_to_be_left_out(tmp_path: Path) -> None:
    encoder = MODEL.encoder()
    encoder.graph.node.append(_NODE("SequenceConstruct", ["flat"], ["features"]))
    encoder.graph.node.append(_NODE("Neg", ["mean"], ["less"]))
    encoder.graph.output.append(helper.make_tensor_sequence_value_info("features", TensorProto.FLOAT, None))
    encoder.graph.output.append(_PORT("less", TensorProto.FLOAT, ["n", 3]))
    done, files = imported(tmp_path, encoder)
    assert done.left_out == ("less float32 [N, 3] of theirs-enc.onnx", "features, a sequence, of theirs-enc.onnx")
    assert done.manifest.provenance["imported"]["left_out"] == list(done.left_out)
    np.testing.assert_allclose(encode(files)[0], MODEL.encode(IMAGES)[0], rtol=0, atol=1e-5)


def test_names_with_escapes_and_markdown_stay_text(tmp_path: Path) -> None:
    encoder, odd = MODEL.encoder(), "mu\x1b[2J\n| `a` | b |"
    matmul(encoder).output[0] = encoder.graph.output[0].name = odd
    encoder.producer_name = "evil\n# injected \x1b[31m | <b>"
    done, files = imported(tmp_path, encoder)
    assert all(line.isprintable() for line in (*done.guesses, *done.left_out, *done.notes))
    card = files["README.md"].decode()
    assert all(line.isprintable() for line in card.splitlines())
    assert "\n# injected" not in card
    (row,) = (line for line in card.splitlines() if line.startswith("| encoder |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "\\<b\\>" in row


def test_a_file_too_large_is_refused_unread(tmp_path: Path) -> None:
    paths = MODEL.write(tmp_path)
    with paths[1].open("r+b") as file:
        file.truncate(3 << 30)  # of which the disk holds nothing
    with pytest.raises(ExportError, match=r"theirs-dec.onnx: got 3221225472 bytes .* half precision"):
        folder.build(*paths, "theirs", 1, Options())


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "not ONNX, or cut short"), (b"hello, world", "not ONNX"), (None, "got nothing, wanted")]
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    paths = MODEL.write(tmp_path)
    paths[0].unlink()
    if content is not None:
        paths[0].write_bytes(content)
    with pytest.raises((TrainingError, ManifestError), match=f"theirs-enc.onnx: {says}"):
        folder.build(*paths, "theirs", 1, Options())


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    paths = MODEL.write(tmp_path)
    paths[0].write_bytes(paths[0].read_bytes().replace(b"picture", b"pict\xffre"))
    with pytest.raises(ExportError, match=r"theirs-enc.onnx: got a name that is not UTF-8"):
        folder.build(*paths, "theirs", 1, Options())


def test_an_old_opset_is_converted(tmp_path: Path) -> None:
    encoder = MODEL.encoder()
    encoder.opset_import[0].version, encoder.ir_version = 9, 4
    _, files = imported(tmp_path, encoder)
    assert onnx.load_from_string(files["encoder.onnx"]).opset_import[0].version == 18
    np.testing.assert_allclose(encode(files)[0], MODEL.encode(IMAGES)[0], rtol=0, atol=1e-5)


def test_functions_of_the_file_become_nodes(tmp_path: Path) -> None:
    encoder = MODEL.encoder()
    opsets = [helper.make_opsetid("", 17)]
    body = [_NODE("MatMul", ["a", "b"], ["c"])]
    encoder.functions.append(helper.make_function("their.functions", "Layer", ["a", "b"], ["c"], body, opsets))
    encoder.opset_import.append(helper.make_opsetid("their.functions", 1))
    layer = matmul(encoder)
    layer.op_type, layer.domain = "Layer", "their.functions"
    _, files = imported(tmp_path, encoder)
    assert [opset.domain for opset in onnx.load_from_string(files["encoder.onnx"]).opset_import] == [""]
    np.testing.assert_allclose(encode(files)[0], MODEL.encode(IMAGES)[0], rtol=0, atol=1e-5)


def test_names_inside_branches_find_what_they_name(tmp_path: Path) -> None:
    """A branch of an If takes the input and a weight from outside; names like ours are no trouble either."""
    encoder = MODEL.encoder()
    matmul(encoder).output[0] = "images"  # as our own input is called
    encoder.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    out = [_PORT("latentry/0/Cast", TensorProto.FLOAT, None)]
    branches = {
        "then_branch": helper.make_graph([_NODE("MatMul", ["flat", "w"], ["latentry/0/Cast"])], "then", [], out),
        "else_branch": helper.make_graph([_NODE("Identity", ["images"], ["latentry/0/Cast"])], "else", [], out),
    }
    encoder.graph.node.append(_NODE("If", ["always"], ["mean"], **branches))
    _, files = imported(tmp_path, encoder)
    np.testing.assert_allclose(encode(files)[0], MODEL.encode(IMAGES)[0], rtol=0, atol=1e-5)


def test_notes_of_the_exporter_stay_behind(tmp_path: Path) -> None:
    encoder = MODEL.encoder()
    encoder.doc_string = encoder.graph.node[0].doc_string = "/home/someone/train.py"
    encoder.metadata_props.add(key="path", value="/home/someone")
    encoder.graph.node[0].metadata_props.add(key="trace", value="/home/someone/train.py")
    _, files = imported(tmp_path, encoder)
    assert not any(b"/home/someone" in content for content in files.values())


def unscaled(nodes: Any, levels: str, port: Any, kind: int) -> str:
    return levels


def untransposed(nodes: Any, port: Any) -> tuple[str, str]:
    mean = nodes.reshape("foreign/" + port.name, port.shape)
    return nodes.add("Cast", nodes.add("Mul", mean, nodes.constant(255.0)), to=TensorProto.UINT8), mean


@pytest.mark.parametrize(
    ("function", "wrong", "says"),
    [("_scaled", unscaled, "encoder: relative"), ("_pictures", untransposed, "decoder: difference of the mean")],
)
def test_a_wrapped_graph_that_disagrees_is_refused_with_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, wrong: Any, says: str
) -> None:
    colour = ForeignModel(shape=(8, 6, 3))
    imported(tmp_path, colour.encoder(), colour.decoder())
    monkeypatch.setattr(wrap, function, wrong)
    with pytest.raises(ExportError, match=rf"disagree: {says}.*: got [0-9.e+]+, wanted at most"):
        imported(tmp_path, colour.encoder(), colour.decoder())
