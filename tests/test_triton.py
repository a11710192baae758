"""Triton's own schema reads the configs of a model repository, and they say what ONNX Runtime finds in the graphs."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import linear_model
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT
from generated_stubs import described, without_json_names
from google.protobuf import json_format, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from onnx import TensorProto, helper
from training_fixtures import fashion_images

from latentry import manifest
from latentry.manifest import Likelihood, Manifest, ModelFolder, embedded_models, sha256
from latentry.onnx_parts import OnnxError
from training import graphs, model, pbtxt, triton
from training.config import ModelConfig, ObjectiveConfig
from training.errors import ExportError

TRITONCLIENT = "2.73.0"
TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
LABELS = ("T-shirt/top", 'called "é"', "back\\slash", "two\nlines")


@functools.cache
def schema() -> FileDescriptorProto:
    """protos/inference/model_config.proto, compiled."""
    protoc = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos' / 'inference'}"]
    done = subprocess.run([*protoc, "--descriptor_set_out=/dev/stdout", "model_config.proto"], capture_output=True)
    assert done.returncode == 0, done.stderr
    (file,) = FileDescriptorSet.FromString(done.stdout).file
    return file


@functools.cache
def model_config() -> type[Any]:
    """Triton's ModelConfig, in a pool of its own."""
    pool = DescriptorPool()
    pool.Add(schema())
    return GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parse(text: bytes) -> Any:
    """A config.pbtxt as Triton reads it."""
    return text_format.Parse(text.decode(), model_config()())


def session(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


@functools.cache
def shipped(name: str) -> ModelFolder:
    return manifest.read(embedded_models() / name / "1")


@functools.cache
def conditional() -> ModelFolder:
    """An untrained model that takes labels and gives parameters, as our exporter writes it."""
    shape = (6, 5, 3)
    config = ModelConfig(kind="dense-norm", latent_dim=4, hidden=(8,), conditional=True)
    vae = model.build(config, ObjectiveConfig(likelihood="gaussian-predicted"), shape, len(LABELS))
    encoder, decoder = graphs.wrapped(vae.eval())
    files = {
        "encoder.onnx": graphs.export_encoder(encoder, shape, {}),
        "decoder.onnx": graphs.export_decoder(decoder, 4, {}),
    }
    digests = {file: sha256(data) for file, data in files.items()}
    likelihood = Likelihood('"quoted"\n\\é')
    about = Manifest("a.b-c_d", 7, shape, 4, likelihood, digests, labels=LABELS, classes=len(LABELS))
    return ModelFolder(Path("a.b-c_d/7"), about, "", files)


def folder(name: str) -> ModelFolder:
    return conditional() if name == "conditional" else shipped(name)


def configs(of: ModelFolder, **settings: Any) -> dict[str, Any]:
    """The parsed configs of a model's repository, by the models' names."""
    files = triton.repository(of.manifest, of.graphs, **settings)
    return {path.split("/")[0]: parse(data) for path, data in files.items() if path.endswith("/config.pbtxt")}


def graph_of(of: ModelFolder, name: str) -> bytes:
    """The graph that Triton serves under that name."""
    return of.graph(name.removeprefix(f"{of.manifest.name}_"))


class TestSchema:
    def test_it_is_the_one_that_tritonclient_carries(self, tmp_path: Path) -> None:
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path)]
        done = subprocess.run([*fetch, f"tritonclient=={TRITONCLIENT}"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"tritonclient {TRITONCLIENT} cannot be fetched here: {done.stderr[-200:]}")
        (wheel,) = tmp_path.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            theirs = described(archive.read("tritonclient/grpc/model_config_pb2.py"))
        assert without_json_names(schema()) == theirs

    @pytest.mark.parametrize(
        ("right", "wrong"),
        [
            ("max_batch_size", "most_batch_size"),
            ("TYPE_UINT8", "TYPE_BYTES"),
            ("dims: [ 28", 'dims: [ "28"'),
            ("zero_data: true", "zero_data: 2"),
        ],
    )
    def test_what_it_does_not_know_is_refused(self, right: str, wrong: str) -> None:
        text = encoder_config()
        parse(text.encode())
        assert right in text
        with pytest.raises(text_format.ParseError):
            parse(text.replace(right, wrong, 1).encode())


def encoder_config() -> str:
    return triton.repository(shipped("fashion").manifest, shipped("fashion").graphs)[
        "fashion_encoder/config.pbtxt"
    ].decode()


def differences(config: Any, data: bytes) -> list[str]:
    """Where a config differs from its graph by the rules of Triton's onnxruntime backend: the same names and types, a
    free batch axis first, and behind it what `reshape` says, or else `dims`."""
    found = []
    graph = session(data)
    types = model_config().DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    for side, ports in (("input", graph.get_inputs()), ("output", graph.get_outputs())):
        said = {each.name: each for each in getattr(config, side)}
        if set(said) != {port.name for port in ports}:
            found.append(f"{side}s {sorted(said)}")
            continue
        for port in ports:
            each = said[port.name]
            dims = list(each.reshape.shape if each.HasField("reshape") else each.dims)
            if not isinstance(port.shape[0], str) or dims != port.shape[1:]:
                found.append(f"{port.name} {dims}")
            if types[each.data_type].name != TYPES[port.type]:
                found.append(f"{port.name} type")
            if not each.dims or np.prod(each.dims) != np.prod(dims):
                found.append(f"{port.name} reshaped")
    return found


class TestConfigs:
    @pytest.mark.parametrize("name", ["fashion", "mnist-binary", "conditional"])
    def test_they_say_what_onnx_runtime_finds_in_the_graphs(self, name: str) -> None:
        parts = configs(folder(name))
        fp32 = {file for file in folder(name).graphs if file.count(".") == 1}
        expected = {file.removesuffix(".onnx") for file in fp32} | {"reconstruct"}
        assert set(parts) == {f"{folder(name).manifest.name}_{part}" for part in expected}
        del parts[f"{folder(name).manifest.name}_reconstruct"]
        for each, config in parts.items():
            assert differences(config, graph_of(folder(name), each)) == []

    def test_a_wrong_one_is_noticed(self) -> None:
        config = configs(conditional())["a.b-c_d_decoder"]
        data = conditional().graph("decoder")

        def changed(change: Any) -> list[str]:
            wrong = type(config)()
            wrong.CopyFrom(config)
            change(wrong)
            return differences(wrong, data)

        assert changed(lambda it: None) == []
        assert changed(lambda it: it.output[0].dims.__setitem__(0, 7)) == ["images [7, 5, 3]"]
        assert changed(lambda it: it.output.pop()) == ["outputs ['images', 'mean']"]
        assert changed(lambda it: it.input[1].ClearField("reshape")) == ["labels [1]"]
        assert changed(lambda it: setattr(it.input[0], "data_type", 2)) == ["latents type"]

    def test_every_field_of_an_encoder(self) -> None:
        image = {"dataType": "TYPE_UINT8", "dims": ["28", "28", "1"]}
        zeros = {"images": {**image, "zeroData": True}}
        facts = {
            **shipped("fashion").manifest.graph_metadata("encoder"),
            "latentry.model": "fashion",
            "latentry.version": "1",
            "latentry.sha256": sha256((embedded_models() / "fashion" / "1" / "encoder.onnx").read_bytes()),
        }
        assert json_format.MessageToDict(configs(shipped("fashion"), max_batch_size=16)["fashion_encoder"]) == {
            "name": "fashion_encoder",
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "versionPolicy": {"latest": {"numVersions": 1}},
            "maxBatchSize": 16,
            "input": [{"name": "images", **image}],
            "output": [{"name": name, "dataType": "TYPE_FP32", "dims": ["32"]} for name in ("mean", "logvar")],
            "dynamicBatching": {},
            "modelWarmup": [
                {"name": f"{size} of zeros", "batchSize": size, "inputs": zeros} for size in (1, 16)
            ],
            "parameters": {key: {"stringValue": value} for key, value in facts.items()},
        }  # fmt: skip

    def test_every_field_of_an_ensemble(self) -> None:
        assert json_format.MessageToDict(configs(conditional())["a.b-c_d_reconstruct"]) == {
            "name": "a.b-c_d_reconstruct",
            "platform": "ensemble",
            "versionPolicy": {"latest": {"numVersions": 1}},
            "maxBatchSize": 64,
            # Triton 2.51 refuses an ensemble whose inputs have a `reshape`
            "input": [
                {"name": "images", "dataType": "TYPE_UINT8", "dims": ["6", "5", "3"]},
                {"name": "labels", "dataType": "TYPE_INT64", "dims": ["1"]},
            ],
            "output": [
                {"name": "reconstructions", "dataType": "TYPE_UINT8", "dims": ["6", "5", "3"]},
                {"name": "latents", "dataType": "TYPE_FP32", "dims": ["4"]},
            ],
            "ensembleScheduling": {
                "step": [
                    {
                        "modelName": "a.b-c_d_encoder",
                        "modelVersion": "7",
                        "inputMap": {"images": "images", "labels": "labels"},
                        "outputMap": {"mean": "latents"},
                    },
                    {
                        "modelName": "a.b-c_d_decoder",
                        "modelVersion": "7",
                        "inputMap": {"latents": "latents", "labels": "labels"},
                        "outputMap": {"images": "reconstructions"},
                    },
                ]
            },
            "parameters": {
                "latentry.labels": {"stringValue": json.dumps(LABELS)},
                "latentry.model": {"stringValue": "a.b-c_d"},
                "latentry.version": {"stringValue": "7"},
            },
        }

    @pytest.mark.parametrize("name", ["fashion", "mnist-binary", "conditional"])
    def test_what_the_steps_of_an_ensemble_hand_on_fits(self, name: str) -> None:
        parts = configs(folder(name))
        ensemble = parts[f"{folder(name).manifest.name}_reconstruct"]

        def port(each: Any) -> tuple[int, list[int]]:
            return each.data_type, list(each.dims)

        known = {each.name: port(each) for each in ensemble.input}
        for step in ensemble.ensemble_scheduling.step:
            config = parts[step.model_name]
            assert dict(step.input_map).keys() == {each.name for each in config.input}
            assert all(known[step.input_map[each.name]] == port(each) for each in config.input)
            known |= {step.output_map[each.name]: port(each) for each in config.output if each.name in step.output_map}
        assert {each.name: port(each) for each in ensemble.output}.items() <= known.items()

    def test_facts_come_back_letter_by_letter(self) -> None:
        config = configs(conditional())["a.b-c_d_encoder"]
        assert config.parameters["latentry.likelihood"].string_value == '"quoted"\n\\é'
        assert tuple(json.loads(config.parameters["latentry.labels"].string_value)) == LABELS

    def test_any_text_is_written_so_that_the_schema_reads_it(self) -> None:
        text = "".join(map(chr, range(0x300))) + "\U0001f600 7\x007'\""
        assert parse(f"name: {pbtxt.quoted(text)}".encode()).name == text
        assert pbtxt.quoted(text).isascii()

    def test_a_batch_of_one_is_warmed_once(self) -> None:
        warmups = configs(shipped("fashion"), max_batch_size=1)["fashion_decoder"].model_warmup
        assert [warmup.batch_size for warmup in warmups] == [1]


class TestGraphs:
    def test_they_are_those_of_the_model_folder_and_give_its_bits(self) -> None:
        files = triton.repository(shipped("fashion").manifest, shipped("fashion").graphs)
        home = embedded_models() / "fashion" / "1"
        images = fashion_images()[:33, ..., np.newaxis].copy()
        theirs, ours = (
            reconstructed(encoder, decoder, images)
            for encoder, decoder in (
                (files["fashion_encoder/1/model.onnx"], files["fashion_decoder/1/model.onnx"]),
                ((home / "encoder.onnx").read_bytes(), (home / "decoder.onnx").read_bytes()),
            )
        )
        assert all(np.array_equal(one, other) for one, other in zip(theirs, ours, strict=True))
        assert np.abs(theirs[0].astype(int) - images).mean() < 20, "no reconstructions"

    def test_another_precision_is_another_pair(self) -> None:
        with_variant = variant(shipped("fashion"))
        files = triton.repository(with_variant.manifest, with_variant.graphs, precision="int8")
        assert files["fashion_encoder/1/model.onnx"] == with_variant.graphs["encoder.int8.onnx"]
        assert files["fashion_decoder/1/model.onnx"] == with_variant.graphs["decoder.int8.onnx"]
        config = parse(files["fashion_encoder/config.pbtxt"])
        assert config.parameters["latentry.precision"].string_value == "int8"


def reconstructed(encoder: bytes, decoder: bytes, images: Any) -> list[Any]:
    (latents,) = session(encoder).run(["mean"], {"images": images})
    return [*session(decoder).run(["images", "mean"], {"latents": latents}), latents]


def variant(of: ModelFolder) -> ModelFolder:
    """The same with graphs that say they are int8."""
    files = {}
    for graph in ("encoder", "decoder"):
        proto = onnx.load_model_from_string(of.graph(graph))
        helper.set_model_props(proto, of.manifest.graph_metadata(graph, "int8"))
        files[f"{graph}.int8.onnx"] = proto.SerializeToString()
    digests = {file: sha256(data) for file, data in files.items()}
    about = replace(of.manifest, files={**of.manifest.files, **digests}, variants={"int8": {"psnr_db": 40.0}})
    return replace(of, manifest=about, graphs={**of.graphs, **files})


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"precision": "bf16"}, "precision: got bf16, wanted one that the model has: fp32, fp16, int8"),
            ({"max_batch_size": 0}, "max_batch_size: got 0, wanted 1 to 4096"),
            ({"max_batch_size": 4097}, "max_batch_size: got 4097, wanted 1 to 4096"),
        ],
    )
    def test_settings_that_cannot_be(self, settings: Mapping[str, Any], message: str) -> None:
        with pytest.raises(ExportError, match=f"^{message}$"):
            configs(shipped("fashion"), **settings)

    def test_a_fixed_batch(self) -> None:
        fixed = linear_model.encoder((28, 28, 1), np.zeros((784, 32)), np.zeros((784, 32)), batch=8)
        message = r"encoder\.onnx: images: got shape \[8, 28, 28, 1\], wanted a free batch axis first"
        with pytest.raises(ExportError, match=message):
            configs_with(fixed.SerializeToString())

    def test_a_free_axis_behind_the_batch(self) -> None:
        proto = onnx.load_model_from_string(shipped("fashion").graph("encoder"))
        proto.graph.output[1].type.tensor_type.shape.dim[1].dim_param = "any"
        with pytest.raises(ExportError, match=r"logvar: got shape \[0, 0\], wanted .* fixed axes behind it"):
            configs_with(proto.SerializeToString())

    def test_a_type_that_a_model_folder_does_not_have(self) -> None:
        proto = onnx.load_model_from_string(shipped("fashion").graph("encoder"))
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
        with pytest.raises(ExportError, match="mean: got ONNX's type 11, wanted uint8, float32 or int64"):
            configs_with(proto.SerializeToString())

    def test_an_encoder_without_a_mean(self) -> None:
        proto = onnx.load_model_from_string(shipped("fashion").graph("encoder"))
        proto.graph.output[0].name = "mu"
        with pytest.raises(ExportError, match=r"encoder\.onnx: got outputs mu, logvar, wanted mean"):
            configs_with(proto.SerializeToString())

    def test_what_is_no_graph(self) -> None:
        with pytest.raises(OnnxError, match=r"encoder\.onnx: not ONNX"):
            configs_with(b"not a graph")


def configs_with(encoder: bytes) -> dict[str, Any]:
    of = shipped("fashion")
    return configs(replace(of, graphs={**of.graphs, "encoder.onnx": encoder}))
