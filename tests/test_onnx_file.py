"""What an ONNX file of a model folder may be: what is refused, with the file, the node and the remedy, and where."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import linear_model
import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from conftest import ROOT, running_service, settings_for
from linear_model import LinearModel
from onnx import TensorProto, helper, numpy_helper

from latentry import manifest, onnx_file, onnx_functions, onnx_runtime, weights
from latentry.manifest import DECODER_FILE, ENCODER_FILE, ManifestError
from latentry.onnx_parts import OnnxError
from serving.errors import BadModel
from serving.rehearsal import RehearsalFailed, rehearse

SHAPE, Z = (4, 3, 1), 2
U = np.random.default_rng(0).normal(size=(Z, 12)).astype(np.float32)

node, port = helper.make_node, helper.make_tensor_value_info
Spoil = Callable[[onnx.ModelProto], None]


def decoder() -> onnx.ModelProto:
    return linear_model.decoder(SHAPE, U)


def check(model: onnx.ModelProto) -> None:
    onnx_file.check(model.SerializeToString(), "decoder.onnx")


def refusal(spoil: Spoil) -> str:
    """What is said of a decoder that is sound but for one thing: one line that begins with the file."""
    model = decoder()
    check(model)
    spoil(model)
    with pytest.raises(OnnxError) as caught:
        check(model)
    said = str(caught.value)
    assert said.startswith("decoder.onnx: ")
    assert said.isprintable()
    return said


def after(*nodes: onnx.NodeProto) -> Spoil:
    """These nodes between the latents and the rest; the last of them makes `moved`."""

    def spoil(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[0] = "moved"
        for at, each in enumerate(nodes):
            model.graph.node.insert(at, each)

    return spoil


def initializer(name: str, value: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def with_constants(spoil: Spoil, *constants: onnx.TensorProto) -> Spoil:
    def both(model: onnx.ModelProto) -> None:
        spoil(model)
        model.graph.initializer.extend(constants)

    return both


def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "branch", [], [port(nodes[-1].output[0], TensorProto.FLOAT, None)])


def in_a_branch(each: onnx.NodeProto, sound: onnx.NodeProto) -> Spoil:
    choice = node("If", ["yes"], ["moved"], then_branch=branch(each), else_branch=branch(sound))
    return with_constants(after(choice), initializer("yes", np.array(True)))


def in_a_function(model: onnx.ModelProto, *nodes: onnx.NodeProto, inputs: tuple[str, ...] = ("x",)) -> None:
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("mine", "Move", list(inputs), ["y"], list(nodes), opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    after(node("Move", ["latents"], ["moved"], domain="mine"))(model)


def loads(model: onnx.ModelProto) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


# ---- what is refused ----


class TestRandom:
    @pytest.mark.parametrize("kind", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
    def test_a_random_operator(self, kind: str) -> None:
        said = refusal(after(node(kind, ["latents"], ["moved"], name="noise")))
        assert f"draws at random: {kind} (node noise); leave noise out of the graph" in said

    def test_a_random_operator_in_a_subgraph_without_a_name(self) -> None:
        said = refusal(in_a_branch(node("RandomNormalLike", ["latents"], ["r"]), node("Identity", ["latents"], ["s"])))
        assert "draws at random: RandomNormalLike (node r); " in said

    def test_a_random_operator_in_a_function(self) -> None:
        said = refusal(lambda model: in_a_function(model, node("RandomUniformLike", ["x"], ["y"], name="deep")))
        assert "draws at random: RandomUniformLike (node deep); " in said

    def test_dropout_unless_it_is_off_whatever_happens(self) -> None:
        drop = after(node("Dropout", ["latents", "half", "training"], ["moved"], name="drop"))
        half = initializer("half", np.float32(0.5))
        on, off = initializer("training", np.array(True)), initializer("training", np.array(False))
        assert "draws at random: Dropout (node drop); dropout in training mode; export the model in evaluation" in (
            refusal(with_constants(drop, half, on))
        )

        def from_outside(model: onnx.ModelProto) -> None:
            with_constants(drop, half, off)(model)
            model.graph.input.append(port("training", TensorProto.BOOL, []))

        assert "Dropout (node drop)" in refusal(from_outside), "what is an input may be true"
        for sound in (with_constants(drop, half, off), after(node("Dropout", ["latents"], ["moved"]))):
            model = decoder()
            sound(model)
            check(model)
            assert loads(model)

    def test_dropout_that_a_name_of_an_inner_graph_turns_on(self) -> None:
        """The body's own `training` is true; the graph around it has another, which is false."""

        def spoil(model: onnx.ModelProto) -> None:
            nodes = [
                node("Dropout", ["x", "half", "training"], ["made"], name="drop"),
                node("Identity", ["go"], ["go_on"]),
                node("Identity", ["training"], ["still"]),
            ]
            flag = TensorProto.BOOL
            given = [("i", TensorProto.INT64), ("go", flag), ("training", flag), ("x", TensorProto.FLOAT)]
            made = [("go_on", flag), ("still", flag), ("made", TensorProto.FLOAT)]
            inputs, outputs = (
                [port(name, kind, None if kind == TensorProto.FLOAT else []) for name, kind in side]
                for side in (given, made)
            )
            body = helper.make_graph(nodes, "body", inputs, outputs)
            loop = node("Loop", ["once", "", "yes", "latents"], ["_", "moved"], body=body)
            constants = {"training": False, "yes": True, "once": 1, "half": np.float32(0.5)}
            with_constants(after(loop), *(initializer(name, value) for name, value in constants.items()))(model)

        assert "draws at random: Dropout (node drop)" in refusal(spoil)

    def test_dropout_whose_mode_is_an_attribute_of_a_function(self) -> None:
        def spoil(model: onnx.ModelProto) -> None:
            mode = node("Constant", [], ["training"])
            mode.attribute.add(name="value", ref_attr_name="mode", type=onnx.AttributeProto.TENSOR)
            half = node("Constant", [], ["half"], value=initializer("half", np.float32(0.5)))
            in_a_function(model, mode, half, node("Dropout", ["x", "half", "training"], ["y"], name="drop"))
            model.functions[0].attribute.append("mode")
            model.graph.node[0].attribute.append(helper.make_attribute("mode", initializer("m", np.array(True))))

        assert "draws at random: Dropout (node drop)" in refusal(spoil)

    def test_a_random_operator_in_what_a_function_has_for_an_attribute(self) -> None:
        def spoil(model: onnx.ModelProto) -> None:
            in_a_function(model, node("Neg", ["x"], ["y"]))
            draws = branch(node("RandomNormal", [], ["r"], name="deep", shape=[1]))
            model.functions[0].attribute_proto.append(helper.make_attribute("body", draws))

        assert "draws at random: RandomNormal (node deep)" in refusal(spoil)


class TestFunctions:
    """A runtime puts a function in the place of its calls, unless it has an operator of that name itself."""

    @pytest.mark.parametrize("domain", ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"])
    @pytest.mark.parametrize("overload", ["", "mine"])
    def test_of_a_domain_of_the_runtime(self, domain: str, overload: str) -> None:
        def spoil(model: onnx.ModelProto) -> None:
            body = [node("Sub", ["x", "x"], ["y"])]
            opsets = [helper.make_opsetid("", 18)]
            function = helper.make_function(domain, "RandomNormalLike", ["x"], ["y"], body, opsets)
            function.overload = overload
            model.functions.append(function)
            call = node("RandomNormalLike", ["latents"], ["noise"], domain=domain)
            after(call, node("Add", ["latents", "noise"], ["moved"]))(model)

        wanted = f"a function in a runtime's own domain: RandomNormalLike of {domain or 'ai.onnx'}; export it with"
        assert wanted in refusal(spoil)

    def test_a_call_of_an_overload_that_the_file_has_not(self) -> None:
        def spoil(model: onnx.ModelProto) -> None:
            in_a_function(model, node("Neg", ["x"], ["y"]))
            model.graph.node[0].overload = "other"

        assert "a custom operator, of the domain mine: Move" in refusal(spoil)

    @staticmethod
    def doubling(model: onnx.ModelProto, depth: int, calls: int = 2, *, reverse: bool = False) -> None:
        """Function k calls function k - 1 twice: all of them stand for 2^depth nodes."""
        in_a_function(model, node("Neg", ["x"], ["y"]))
        model.functions[0].name = "F0"
        model.graph.node[0].op_type = f"F{depth}"
        for k in range(1, depth + 1):
            halves = [node(f"F{k - 1}", [a], [b], domain="mine") for a, b in (("xt", "ty"), ("xy",))[calls == 1]]
            opsets = [helper.make_opsetid("mine", 1)]
            model.functions.append(helper.make_function("mine", f"F{k}", ["x"], ["y"], halves, opsets))
        if reverse:
            functions = list(model.functions)[::-1]
            del model.functions[:]
            model.functions.extend(functions)

    def test_that_stand_for_more_nodes_than_memory_holds(self) -> None:
        assert "too many nodes: more than 100,000, with the functions in" in refusal(lambda m: self.doubling(m, 26))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_that_call_each_other_very_deep(self, *, reverse: bool) -> None:
        model = decoder()
        self.doubling(model, 99, 1, reverse=reverse)
        check(model)
        assert loads(model)
        said = refusal(lambda deeper: self.doubling(deeper, 100, 1, reverse=reverse))
        assert "functions within functions: F" in said
        refusal(lambda deepest: self.doubling(deepest, 3000, 1, reverse=reverse))

    def test_count_once_for_each_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = decoder()
        self.doubling(model, 6)
        inlined = onnx.inliner.inline_local_functions(model)
        monkeypatch.setattr(onnx_functions, "MAX_NODES", len(inlined.graph.node))
        check(model)
        monkeypatch.setattr(onnx_functions, "MAX_NODES", len(inlined.graph.node) - 1)
        with pytest.raises(OnnxError, match="too many nodes"):
            check(model)

    def test_that_call_themselves(self) -> None:
        def spoil(model: onnx.ModelProto) -> None:
            in_a_function(model, node("Back", ["x"], ["y"], domain="mine"))
            back = [node("Move", ["x"], ["y"], domain="mine")]
            opsets = [helper.make_opsetid("mine", 1)]
            model.functions.append(helper.make_function("mine", "Back", ["x"], ["y"], back, opsets))

        assert "a function that calls itself: Move; " in refusal(spoil)

    def test_that_are_defined_twice(self) -> None:
        def spoil(model: onnx.ModelProto) -> None:
            in_a_function(model, node("Neg", ["x"], ["y"]))
            model.functions.append(model.functions[0])

        assert "a function that is defined twice" in refusal(spoil)

    def test_nodes_of_subgraphs_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = decoder()
        many = [node("Neg", [f"r{k}"], [f"r{k + 1}"]) for k in range(50)]
        choice = branch(node("Identity", ["latents"], ["r0"]), *many)
        in_a = node("If", ["yes"], ["moved"], then_branch=choice, else_branch=branch(node("Abs", ["latents"], ["s"])))
        with_constants(after(in_a), initializer("yes", np.array(True)))(model)
        check(model)
        monkeypatch.setattr(onnx_functions, "MAX_NODES", 50)
        with pytest.raises(OnnxError, match="too many nodes"):
            check(model)


class TestBatchNormalisation:
    inputs = ("latents", "gamma", "beta", "m", "v")
    vectors = tuple(initializer(name, np.ones(Z, np.float32)) for name in inputs[1:])

    def test_in_training_mode(self) -> None:
        norm = node("BatchNormalization", self.inputs, ["moved", "m2", "v2"], "bn1", training_mode=1)
        said = refusal(with_constants(after(norm), *self.vectors))
        assert "training-mode batch normalisation: BatchNormalization (node bn1); rows would depend" in said
        assert "model.eval()" in said

    def test_with_more_outputs_than_one(self) -> None:
        norm = node("BatchNormalization", self.inputs, ["moved", "running_mean"], "bn1")
        assert "BatchNormalization (node bn1)" in refusal(with_constants(after(norm), *self.vectors))

    def test_but_not_in_evaluation_mode(self) -> None:
        model = decoder()
        with_constants(after(node("BatchNormalization", self.inputs, ["moved"])), *self.vectors)(model)
        check(model)
        assert loads(model)


class TestBatch:
    def test_a_fixed_input(self) -> None:
        said = refusal(lambda model: model.CopyFrom(linear_model.decoder(SHAPE, U, batch=1)))
        assert "fixed batch: input latents [1, 2]; wanted a free first axis: export it with dynamic shapes" in said

    def test_a_fixed_output(self) -> None:
        def spoil(model: onnx.ModelProto) -> None:
            model.graph.output[1].type.tensor_type.shape.dim[0].dim_value = 8

        assert "fixed batch: output mean [8, 4, 3, 1]" in refusal(spoil)

    @pytest.mark.parametrize("shape", [None, []])
    def test_an_output_that_has_none(self, shape: list[int] | None) -> None:
        def spoil(model: onnx.ModelProto) -> None:
            model.graph.output[0].CopyFrom(port("images", TensorProto.UINT8, shape))

        assert "fixed batch: output images" in refusal(spoil)


class TestOutsideTheFile:
    @staticmethod
    def point(tensor: onnx.TensorProto, location: str) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    @pytest.mark.parametrize("location", ["weights.bin", "../../secret", "*/_ORT_MEM_ADDR_/*"])
    def test_weights_of_an_initializer(self, location: str) -> None:
        said = refusal(lambda model: self.point(model.graph.initializer[0], location))
        assert f"weights outside the file: initializer u, in {location}; save it without external data" in said

    def test_weights_of_a_constant_in_a_branch(self) -> None:
        value = initializer("value", np.ones((1, Z), np.float32))
        self.point(value, "elsewhere")
        each = node("Constant", [], ["r"], name="held", value=value)
        said = refusal(in_a_branch(each, node("Identity", ["latents"], ["s"])))
        assert "weights outside the file: Constant (node held), in elsewhere" in said


class TestOperators:
    def test_of_an_unknown_domain(self) -> None:
        said = refusal(after(node("Magic", ["latents"], ["moved"], name="trick", domain="com.example")))
        assert "a custom operator, of the domain com.example: Magic (node trick); wanted one of ai.onnx, " in said

    @pytest.mark.parametrize("kind", ["EPContext", "PythonOp"])
    def test_that_carry_code(self, kind: str) -> None:
        said = refusal(after(node(kind, ["latents"], ["moved"], name="blob", domain="com.microsoft")))
        assert f"code that is not ONNX: {kind} (node blob)" in said

    def test_a_function_of_the_file_and_the_runtimes_own_are_fine(self) -> None:
        model = decoder()
        in_a_function(model, node("Neg", ["x"], ["y"]))
        check(model)
        assert loads(model)
        model = decoder()
        after(node("Gelu", ["latents"], ["moved"], domain="com.microsoft"))(model)
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        check(model)
        assert loads(model)

    def test_a_loop_is_fine(self, tmp_path: Path) -> None:
        model = linear_model.write(tmp_path)
        linear_model.make_endless(model)
        onnx_file.check_folder(manifest.read(model.folder))


class TestVersions:
    def test_an_opset_and_an_ir_version_newer_than_the_runtime(self) -> None:
        def opset(model: onnx.ModelProto) -> None:
            model.opset_import[0].version = 99

        def ir_version(model: onnx.ModelProto) -> None:
            model.ir_version = 99

        said = refusal(opset)
        assert "newer than the installed ONNX Runtime: opset 99 and IR version 9, of which " in said
        assert onnxruntime.__version__ in said
        assert "export with opset_version=18, or install a newer onnxruntime" in said
        assert "IR version 99" in refusal(ir_version)

    def test_the_newest_that_are_taken_are_the_newest_that_the_runtime_loads(self) -> None:
        newest = onnx_runtime.newest()
        assert newest is not None
        for field, top in zip(("opset", "ir"), newest, strict=True):
            for version in (top, top + 1):
                model = decoder()
                if field == "opset":
                    model.opset_import[0].version = version
                else:
                    model.ir_version = version
                assert (onnx_runtime.too_old_for(model) is None) == loads(model) == (version == top)


class TestWeights:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_nan(self, dtype: type[np.floating]) -> None:
        values = np.ones((3, 5), dtype)
        values[1, 2] = np.nan
        said = refusal(lambda model: model.graph.initializer.append(initializer("w", values)))
        assert "weights that are no numbers: initializer w holds NaN (1 of 15); export an earlier checkpoint" in said

    @pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE])
    def test_nan_in_a_tensor_that_is_not_raw(self, kind: int) -> None:
        sick = helper.make_tensor("w", kind, [2], [1.0, float("nan")])
        assert not sick.raw_data
        assert "initializer w holds NaN (1 of 2)" in refusal(lambda model: model.graph.initializer.append(sick))

    def test_nan_in_constants(self) -> None:
        value = initializer("value", np.full((1, Z), np.nan, np.float32))
        said = refusal(
            after(node("Constant", [], ["c"], name="held", value=value), node("Add", ["latents", "c"], ["moved"]))
        )
        assert "Constant (node held) holds NaN" in said
        plain = after(node("Constant", [], ["c"], value_float=float("nan")), node("Add", ["latents", "c"], ["moved"]))
        assert "Constant (node c) holds NaN" in refusal(plain)

    def test_nan_in_what_a_function_has_for_an_attribute(self) -> None:
        def spoil(model: onnx.ModelProto) -> None:
            weight = node("Constant", [], ["c"])
            weight.attribute.add(name="value", ref_attr_name="w", type=onnx.AttributeProto.TENSOR)
            in_a_function(model, weight, node("Add", ["x", "c"], ["y"]))
            sick = helper.make_attribute("w", initializer("w", np.full(Z, np.nan, np.float32)))
            model.functions[0].attribute_proto.append(sick)

        assert "attribute w of the function Move holds NaN (2 of 2)" in refusal(spoil)

    @pytest.mark.parametrize("name", ["FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"])
    def test_every_byte_is_judged_as_onnx_judges_it(self, name: str) -> None:
        kind = getattr(TensorProto, name, None)
        if kind is None:
            pytest.skip("this onnx does not know it")
        for byte in range(256):
            tensor = helper.make_tensor("w", kind, [1], bytes([byte]), raw=True)
            (value,) = numpy_helper.to_array(tensor).astype(np.float32)
            said = weights.not_finite(tensor, infinite_too=True)
            wanted = "NaN (1 of 1)" if np.isnan(value) else "infinity (1 of 1)" if np.isinf(value) else None
            assert said == wanted, byte

    def test_infinity_in_what_multiplies_but_not_in_a_bound(self) -> None:
        def spoil(model: onnx.ModelProto) -> None:
            values = U.copy()
            values[0, 0] = -np.inf
            model.graph.initializer[0].CopyFrom(initializer("u", values))

        assert "initializer u holds infinity (1 of 24)" in refusal(spoil)
        model = decoder()
        clip = node("Min", ["latents", "most"], ["moved"])
        with_constants(after(clip), initializer("most", np.array([np.inf, 3], np.float32)))(model)
        check(model)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_any_bits_are_judged_as_numpy_judges_them(self, dtype: type[np.floating]) -> None:
        bits = np.random.default_rng(1).integers(0, 256, 8 * 60_000, np.uint8)
        values = np.concatenate([bits.view(dtype), np.array([np.nan, np.inf, -np.inf, 0, -0.0], dtype)])
        said = weights.not_finite(initializer("w", values), infinite_too=True)
        assert said == f"NaN ({np.isnan(values).sum()} of {len(values)})"
        no_nan = values[~np.isnan(values)]
        said = weights.not_finite(initializer("w", no_nan), infinite_too=True)
        assert said == f"infinity ({np.isinf(no_nan).sum()} of {len(no_nan)})"
        assert weights.not_finite(initializer("w", values[np.isfinite(values)]), infinite_too=True) is None


class TestBytes:
    @pytest.mark.parametrize("data", [b"", b"not a graph", b"\x08\x08" * 50, b"\x89PNG\r\n\x1a\n" * 9])
    def test_that_are_no_onnx(self, data: bytes) -> None:
        with pytest.raises(OnnxError, match=r"encoder.onnx: not ONNX, or cut short: got \d+ bytes"):
            onnx_file.check(data, "encoder.onnx")

    def test_that_are_cut_short(self) -> None:
        data = (ROOT / "models" / "fashion" / "1" / "encoder.onnx").read_bytes()
        onnx_file.check(data, "encoder.onnx")
        for share in (0.001, 0.1, 0.5, 0.9, 0.999):
            with pytest.raises(OnnxError, match="cut short"):
                onnx_file.check(data[: int(share * len(data))], "encoder.onnx")

    def test_whose_names_are_not_text(self) -> None:
        data = decoder().SerializeToString()
        for name in (b"Sigmoid", b"logits", b"latents", b"scale"):
            spoilt = data.replace(name, name[:-2] + b"\xff\xfe")
            with pytest.raises(OnnxError, match=r"decoder.onnx: not ONNX: a name is not UTF-8; export it again"):
                onnx_file.check(spoilt, "decoder.onnx")

    def test_whose_names_would_write_on_the_terminal(self) -> None:
        said = refusal(after(node("Bernoulli", ["latents"], ["moved"], name="a\nb\x1b[2J" + "x" * 5000)))
        assert r"Bernoulli (node a\nb\x1b[2Jxxx" in said
        assert len(said) < 400

    def test_of_a_file_too_large_are_not_read(self, tmp_path: Path) -> None:
        model = linear_model.write(tmp_path)
        os.truncate(model.folder / DECODER_FILE, 3 << 30)  # a hole: it takes no disk
        tracemalloc.start()
        try:
            with pytest.raises(ManifestError, match=r"decoder\.onnx: got 3221225472 bytes, wanted at most 2147483648"):
                manifest.read(model.folder)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("name", ["fashion", "mnist-binary"])
def test_the_models_that_come_along_are_sound(name: str) -> None:
    onnx_file.check_folder(manifest.read(ROOT / "models" / name / "1"))


# ---- what a server makes of it ----


def spoilt(root: Path, version: int) -> LinearModel:
    """A model whose decoder draws noise; digests and all else are right."""
    model = linear_model.write(root, version=version)
    noisy = linear_model.decoder(model.shape, model.u)
    after(node("RandomNormalLike", ["latents"], ["noise"], name="eps"), node("Add", ["latents", "noise"], ["moved"]))(
        noisy
    )
    about = linear_model.manifest("linear", version, model.shape, 5)
    graphs = {ENCODER_FILE: onnx.load(model.folder / ENCODER_FILE), DECODER_FILE: noisy}
    linear_model.save(model.folder, graphs, about)
    return model


NOISE = r"decoder\.onnx: draws at random: RandomNormalLike \(node eps\); leave noise out"


def test_a_server_does_not_start_with_it_and_says_why(tmp_path: Path) -> None:
    spoilt(tmp_path, 1)
    with pytest.raises(BadModel, match=NOISE), running_service(settings_for(tmp_path)):
        pass


async def test_a_server_that_runs_refuses_it_in_the_rehearsal(tmp_path: Path) -> None:
    model = spoilt(tmp_path, 2)
    digest = manifest.read(model.folder).digest
    with pytest.raises(RehearsalFailed, match=NOISE) as caught:
        await rehearse(model.folder, 4, digest)
    assert not caught.value.transient


def test_a_graph_that_is_not_served_is_looked_at_too(tmp_path: Path) -> None:
    """A folder is sound or it is not, whatever the machine that loads it would run."""
    model = linear_model.write(tmp_path)
    whole = manifest.read(model.folder)
    sick = linear_model.decoder(model.shape, model.u * np.nan).SerializeToString()
    with pytest.raises(OnnxError, match=r"1/decoder\.int8\.onnx: weights that are no numbers: initializer u holds NaN"):
        onnx_file.check_folder(replace(whole, graphs={**whole.graphs, "decoder.int8.onnx": sick}))
