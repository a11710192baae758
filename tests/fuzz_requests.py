"""Messages for the fuzz tests: any message of a kind, right ones of each call, and those that are almost right."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import conditional_model
import fuzz_targets
import linear_model
import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st
from PIL import Image

from latentry.manifest import DECODER_FILE, ENCODER_FILE
from latentry.v1 import vae_pb2 as pb
from serving.inference import grpc_service_pb2 as oip

MAX_ITEMS = 16  # few, so that the bound is often met
H, W, C, Z = 12, 10, 1, 5
SHAPE = (H, W, C)
LABELS = ("boot", "bag", "coat")
SERVED = ("linear", "classed")
PIXELS = 20_000  # of one file: more than the model's, few enough for hundreds of requests


def write_models(repository: Path) -> None:
    """`linear`, which has the attribute `wide`, and `classed`, which is conditional."""
    plain, classed = (linear_model.write(repository, name, 1, SHAPE, Z) for name in SERVED)
    graphs = {
        ENCODER_FILE: linear_model.encoder(plain.shape, plain.w, plain.v),
        DECODER_FILE: linear_model.decoder(plain.shape, plain.u),
    }
    about = linear_model.manifest("linear", 1, SHAPE, Z)
    linear_model.save(plain.folder, graphs, replace(about, attributes={"wide": (1.0, 0.0, 0.0, -2.0, 0.0)}))
    about = replace(linear_model.manifest("classed", 1, SHAPE, Z), classes=len(LABELS), labels=LABELS)
    linear_model.save(classed.folder, conditional_model.graphs(classed, len(LABELS)), about)


# ---- any message ----


def _numbers(bits: int, signed: bool = True) -> st.SearchStrategy[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    odd = [0, 1, 2, Z, MAX_ITEMS, MAX_ITEMS + 1, 1 << 20, (1 << 20) + 1, high, high - 1, low]
    return st.sampled_from([each for each in odd if low <= each <= high]) | st.integers(low, high)


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


FILES = [
    *(file for seed in fuzz_targets.seeds("images") for file in pb.Images.FromString(seed[1:]).encoded.images),
    _png(1, PIXELS),
    _png(PIXELS, 1),
]
_LATENT = np.linspace(-1, 1, Z, dtype="<f4").tobytes()
_ODD_FLOATS = [0.0, -0.0, 1.0, -1.0, 0.01, 10.0, math.nan, math.inf, -math.inf, 1e38, 1e-45]
_STRINGS = ["", "linear", "..", "a/b", "\0", "x" * 70]
_WORDS: dict[str, list[str]] = {  # of fields whose names say what belongs there
    "name": [*SERVED, "wide", "images", "latents", "mean", "classes", "count", "seed"],
    "names": [*LABELS],
    "label": ["stable"],
    "model_name": [f"{name}_{kind}" for name in SERVED for kind in ("encoder", "decoder", "sample", "interpolate")],
    "model_version": ["1", "2", "-1", "9" * 30],
    "datatype": ["UINT8", "FP32", "INT32", "INT64", "UINT64", "BYTES", "FP64", "BOOL", "uint8"],
    "string_param": ["png", "crop", "linear", "spherical", "1", "-1", "nan", "1e999", "9" * 50, "resample", "fitted"],
}
_KEYS = [
    *("count", "seed", "first_index", "temperature", "truncation", "truncation_mode", "prior", "steps", "path"),
    *("easing", "loop", "exclude_end_points", "resize", "format", "quality", "frame_ms", "class", "timeout"),
    *("attribute.wide", "attribute.", "sequence_id", "triton_x", "binary_data", "", "\0"),
]
_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: _numbers(32),
    FieldDescriptor.TYPE_INT64: _numbers(64),
    FieldDescriptor.TYPE_UINT32: _numbers(32, signed=False),
    FieldDescriptor.TYPE_UINT64: _numbers(64, signed=False),
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 8) | _numbers(32),
    FieldDescriptor.TYPE_FLOAT: st.sampled_from(_ODD_FLOATS) | st.floats(width=32),
    FieldDescriptor.TYPE_DOUBLE: st.sampled_from([*_ODD_FLOATS, 1e300, 5e-324]) | st.floats(),
    FieldDescriptor.TYPE_BYTES: st.sampled_from([b"", bytes(4 * Z), _LATENT, 2 * _LATENT, bytes(H * W), *FILES])
    | st.binary(max_size=64),
}


def _value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type:
        return wild(field.message_type)
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from([*_STRINGS, *_WORDS.get(field.name, [])]) | _TEXT
    return _SCALARS[field.type]


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Any value of a field, for `put`."""
    if _is_map(field):
        entry = field.message_type.fields_by_name
        return st.dictionaries(st.sampled_from(_KEYS) | _TEXT, _value(entry["value"]), max_size=3)
    return st.lists(_value(field), max_size=9) if field.is_repeated else _value(field)


@st.composite
def wild(draw: st.DrawFn, kind: Descriptor) -> Any:
    """Any message of this kind at all."""
    message = kind._concrete_class()
    for field in kind.fields:
        if draw(st.booleans()):
            put(message, field, draw(values(field)))
    return message


def put(message: Any, field: FieldDescriptor, value: Any) -> None:
    """Make it the field's value."""
    if _is_map(field):
        message.ClearField(field.name)
        for key, each in value.items():
            getattr(message, field.name)[key].CopyFrom(each)
    elif field.is_repeated:
        message.ClearField(field.name)
        getattr(message, field.name).extend(value)
    elif field.message_type:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


# ---- right messages ----


@st.composite
def _tensor(draw: st.DrawFn, shape: tuple[int, ...], floats: bool, least: int = 1, most: int = 4) -> pb.Tensor:
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    size = (draw(st.integers(least, most)), *shape)
    array = rng.random(size, np.float32)
    if floats:
        return pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=size, data=array.tobytes())
    return pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=size, data=(255 * array).astype(np.uint8).tobytes())


def latents(least: int = 1, most: int = 4) -> st.SearchStrategy[pb.Tensor]:
    """float32 [N, Z]"""
    return _tensor((Z,), True, least, most)


def images(least: int = 1, most: int = 4) -> st.SearchStrategy[pb.Images]:
    """So many, in every form."""
    tensors = st.booleans().flatmap(lambda floats: _tensor(SHAPE, floats, least, most))
    files = st.lists(st.sampled_from(FILES), min_size=least, max_size=most)
    return tensors.map(lambda t: pb.Images(tensor=t)) | files.map(
        lambda each: pb.Images(encoded=pb.EncodedImages(images=each))
    )


def _output(animated: bool = False) -> st.SearchStrategy[pb.ImageOutput]:
    frame_ms = st.just(0) | st.integers(20, 10_000)
    kinds = st.integers(0, 7 if animated else 5)
    return st.builds(pb.ImageOutput, format=kinds, quality=st.integers(0, 100), frame_ms=frame_ms)


OUTPUT, ANIMATED = _output(), _output(animated=True)
SEED = st.none() | st.integers(0, 2**64 - 1)
INDEX = st.just(0) | st.integers(0, 2**62)
TEMPERATURE = st.none() | st.floats(0, 10, width=32)
TRUNCATION = st.none() | st.floats(0.0625, 10, width=32)
RESIZE = st.integers(1, 2)
CHUNK = st.integers(0, MAX_ITEMS)

_ONE = {"names": st.lists(st.sampled_from(LABELS), min_size=1, max_size=1)}
_MODEL: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.builds(  # with one class for all, if it wants any
    lambda names: {"model": pb.ModelSelector(name="classed"), "classes": pb.Classes(names=names)}, _ONE["names"]
)
_FRAMES = st.integers(2, 5)
_BASES = st.builds(lambda t: {"latents": t}, latents()) | st.builds(lambda i: {"images": i}, images())
_BASE = st.builds(lambda t: {"latents": t}, latents(1, 1)) | st.builds(lambda i: {"images": i}, images(1, 1))
_KEY_FRAMES = st.builds(lambda t: {"latents": t}, latents(2)) | st.builds(lambda i: {"images": i}, images(2, 3))
_GRID = st.builds(
    lambda rows, columns, spacing: {"grid": pb.NeighbourGrid(rows=rows, columns=columns, spacing=spacing)},
    st.integers(1, 4),
    st.integers(1, 4),
    st.none() | st.floats(0.125, 10, width=32),
)
_WALK = st.builds(lambda count: {"walk": pb.NeighbourWalk(count=count)}, st.integers(1, MAX_ITEMS))
_DIFFERENCES = st.lists(
    st.builds(pb.Difference, plus_latents=latents(), minus_images=images(), amount=st.none() | st.just(0.5)), max_size=2
)
_AMOUNTS = st.lists(st.builds(pb.AttributeAmount, name=st.just("wide"), amount=st.floats(-9, 9, width=32)), max_size=1)


def _build(kind: Any, *parts: st.SearchStrategy[dict[str, Any]], **fields: st.SearchStrategy[Any]) -> Any:
    """Messages of parts that are fields by name, and of fields."""
    return st.builds(
        lambda parts, fields: kind(**{**fields, **{name: each for part in parts for name, each in part.items()}}),
        st.tuples(*parts),
        st.fixed_dictionaries(fields),
    )


_SAMPLE = _build(
    pb.SampleRequest,
    _MODEL,
    count=st.integers(1, MAX_ITEMS),
    seed=SEED,
    first_index=INDEX,
    temperature=TEMPERATURE,
    truncation=TRUNCATION,
    truncation_mode=st.integers(0, 2),
    prior=st.integers(0, 1),
    output=OUTPUT,
)


def _interpolation(output: st.SearchStrategy[pb.ImageOutput]) -> Any:
    ends = st.sampled_from([{}, {"loop": True}, {"exclude_end_points": True}])
    numbers = {"steps": st.integers(3, 5), "path": st.sampled_from([0, 1, 3]), "easing": st.integers(0, 4)}
    return _build(pb.InterpolateRequest, _MODEL, _KEY_FRAMES, ends, resize=RESIZE, output=output, **numbers)


VALID: dict[str, st.SearchStrategy[Any]] = {
    "Encode": _build(
        pb.EncodeRequest, _MODEL, images=images(), resize=RESIZE, seed=SEED, first_index=INDEX, temperature=TEMPERATURE
    ),
    "Decode": _build(pb.DecodeRequest, _MODEL, latents=latents(), output=OUTPUT),
    "Sample": _SAMPLE,
    "StreamSample": st.builds(pb.StreamSampleRequest, sample=_SAMPLE, chunk_items=CHUNK),
    "Interpolate": _interpolation(ANIMATED),
    "StreamInterpolate": st.builds(
        pb.StreamInterpolateRequest,
        interpolate=_interpolation(OUTPUT),
        chunk_items=CHUNK,
        first_frame=st.integers(0, 2),
    ),
    "Reconstruct": _build(
        pb.ReconstructRequest,
        _MODEL,
        images=images(),
        resize=RESIZE,
        seed=SEED,
        first_index=INDEX,
        output=OUTPUT,
        omit_images=st.booleans(),
    ),
    "Edit": _build(pb.EditRequest, _BASES, resize=RESIZE, attributes=_AMOUNTS, differences=_DIFFERENCES, output=OUTPUT)
    | _build(pb.EditRequest, _MODEL, _BASES, resize=RESIZE, differences=_DIFFERENCES, output=OUTPUT),
    "Neighbours": _build(pb.NeighboursRequest, _MODEL, _BASE, _GRID, resize=RESIZE, seed=SEED, output=OUTPUT)
    | _build(pb.NeighboursRequest, _MODEL, _BASE, _WALK, resize=RESIZE, seed=SEED, output=ANIMATED),
    "GetModel": st.builds(pb.GetModelRequest),
    "ListModels": st.builds(pb.ListModelsRequest),
}


# ---- right requests of the Open Inference Protocol ----


@st.composite
def _input(draw: st.DrawFn, name: str, kind: str, least: int = 1) -> tuple[Any, bytes]:
    """An input and its raw contents."""
    if kind == "BYTES":
        files = draw(st.lists(st.sampled_from(FILES), min_size=least, max_size=4))
        raw = b"".join(struct.pack("<I", len(each)) + each for each in files)
        return oip.ModelInferRequest.InferInputTensor(name=name, datatype=kind, shape=[len(files)]), raw
    tensor = draw(_tensor((Z,) if name == "latents" else SHAPE, kind == "FP32", least))
    return oip.ModelInferRequest.InferInputTensor(name=name, datatype=kind, shape=tensor.shape), tensor.data


_IMAGES = st.sampled_from(["UINT8", "FP32", "BYTES"]).flatmap(lambda kind: _input("images", kind))
_LATENTS = _input("latents", "FP32")
_PARAMETERS: dict[str, st.SearchStrategy[oip.InferParameter]] = {
    "seed": st.builds(oip.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    "first_index": st.builds(oip.InferParameter, int64_param=INDEX),
    "temperature": st.builds(oip.InferParameter, double_param=st.floats(0, 10)),
    "count": st.builds(oip.InferParameter, string_param=st.integers(1, MAX_ITEMS).map(str)),
    "steps": st.builds(oip.InferParameter, int64_param=_FRAMES),
    "resize": st.builds(oip.InferParameter, string_param=st.sampled_from(["crop", "stretch"])),
    "format": st.builds(oip.InferParameter, string_param=st.sampled_from(["uint8", "float32"])),
    "loop": st.builds(oip.InferParameter, bool_param=st.booleans()),
    "attribute.wide": st.builds(oip.InferParameter, double_param=st.floats(-9, 9)),
}
_FACES: dict[str, tuple[st.SearchStrategy[Any], tuple[str, ...], tuple[str, ...]]] = {  # input, needed, possible
    "encoder": (_IMAGES, ("resize",), ("seed", "first_index", "temperature")),
    "decoder": (_LATENTS, (), ("format",)),
    "sample": (st.none(), (), ("count", "seed", "temperature", "first_index", "format")),
    "interpolate": (_input("latents", "FP32", 2), ("steps",), ("loop", "format")),
    "reconstruct": (_IMAGES, ("resize",), ("seed", "first_index", "format")),
    "edit": (_LATENTS | _IMAGES, ("resize",), ("attribute.wide", "format")),
}


@st.composite
def inference(draw: st.DrawFn) -> oip.ModelInferRequest:
    """A right request of ModelInfer."""
    kind = draw(st.sampled_from(sorted(_FACES)))
    given, needed, possible = _FACES[kind]
    request = oip.ModelInferRequest(model_name=f"linear_{kind}", id=draw(_TEXT))
    chosen = draw(given)
    if chosen is not None:
        request.inputs.append(chosen[0])
        request.raw_input_contents.append(chosen[1])
    for name in (*needed, *draw(st.lists(st.sampled_from(possible), unique=True))):
        request.parameters[name].CopyFrom(draw(_PARAMETERS[name]))
    return request


# ---- messages that are almost right ----


@st.composite
def nearly(draw: st.DrawFn, right: st.SearchStrategy[Any]) -> Any:
    """A message that makes sense but for one field, somewhere, and with fields that nobody knows."""
    request = message = draw(right)
    while message.DESCRIPTOR.fields:
        field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
        inside = _inside(message, field)
        if not inside or draw(st.booleans()):
            put(message, field, draw(values(field)))
            break
        message = draw(st.sampled_from(inside))
    request.MergeFromString(draw(st.sampled_from([b"", b"\xfa\x3e\x03abc", b"\xf8\xff\xff\xff\x0f\x01"])))
    return request


def _inside(message: Any, field: FieldDescriptor) -> list[Any]:
    """The messages that a field holds."""
    if not field.message_type:
        return []
    if _is_map(field):
        return [getattr(message, field.name)[key] for key in sorted(getattr(message, field.name))]
    if field.is_repeated:
        return list(getattr(message, field.name))
    return [getattr(message, field.name)] if message.HasField(field.name) else []
