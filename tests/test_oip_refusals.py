"""What the Open Inference Protocol's calls refuse, each with a sentence that names the field."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import oip_fixtures
import pytest
from conftest import running_service, settings_for
from oip_fixtures import arrays, request

from serving.inference import grpc_service_pb2 as oip
from serving.server import Service

Code = grpc.StatusCode
INVALID, MISSING, LATE = Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED
IMAGES = np.zeros((2, 12, 10, 1), np.uint8)
Z = np.zeros((2, 5), np.float32)
NAN = float("nan")
ROUNDS = 500


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    repository = tmp_path_factory.mktemp("models")
    oip_fixtures.write_models(repository)
    with running_service(settings_for(repository)) as service:
        yield service


@pytest.fixture(scope="module")
def stub(service: Service) -> Iterator[Any]:
    with oip_fixtures.calls(service.port) as stub:
        yield stub


def refusal(call: Callable[[Any], Any], request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=20)
    return caught.value.code(), caught.value.details()


def changed(made: Any, change: Callable[[Any], object]) -> Any:
    change(made)
    return made


def encoder(**changes: Any) -> Any:
    """A request that is in order, but for these changes to its first input."""
    made = request("plain_encoder", {"images": IMAGES})
    for name, value in changes.items():
        if isinstance(value, list):
            del getattr(made.inputs[0], name)[:]
            getattr(made.inputs[0], name).extend(value)
        else:
            setattr(made.inputs[0], name, value)
    return made


def with_files(raw: bytes, shape: list[int]) -> Any:
    made = encoder(datatype="BYTES", shape=shape)
    made.raw_input_contents[0] = raw
    return made


def typed(datatype: str, shape: list[int], **contents: Any) -> Any:
    made = oip.ModelInferRequest(model_name="plain_encoder")
    made.inputs.add(name="images", datatype=datatype, shape=shape, contents=contents)
    return made


def sample(**parameters: Any) -> Any:
    return request("plain_sample", parameters=parameters)


def walk(**parameters: Any) -> Any:
    return request("plain_interpolate", {"latents": Z}, parameters=parameters)


def asked(name: str, **parameters: Any) -> Any:
    """For an output with parameters."""
    made = request("plain_decoder", {"latents": Z}, outputs=(name,))
    for key, value in parameters.items():
        oip_fixtures.set_parameter(made.outputs[0].parameters[key], value)
    return made


def of_input(**parameters: Any) -> Any:
    made = encoder()
    for key, value in parameters.items():
        oip_fixtures.set_parameter(made.inputs[0].parameters[key], value)
    return made


CASES = {
    # models and versions
    "no model": (oip.ModelInferRequest(), MISSING, "model: got ''"),
    "unknown model": (request("nobody_encoder", {"images": IMAGES}), MISSING, "plain_encoder"),
    "own name": (request("plain", {"images": IMAGES}), MISSING, "model: got 'plain'"),
    "no such call": (request("plain_edit", {"latents": Z}), MISSING, "model: got 'plain_edit'"),
    "unknown version": (request("plain_encoder", {"images": IMAGES}, model_version="7"), MISSING,
                        "model: got 'plain_encoder' version 7, wanted one of plain_encoder version 2"),
    "version no number": (request("plain_encoder", {"images": IMAGES}, model_version="new"), INVALID, "model_version"),
    "version below zero": (request("plain_encoder", {"images": IMAGES}, model_version="-1"), INVALID, "model_version"),
    "version too long": (request("plain_encoder", model_version="9" * 99), INVALID, "model_version"),
    # inputs
    "input missing": (request("plain_encoder"), INVALID, "inputs[images]: got none, wanted UINT8 [-1, 12, 10, 1]"),
    "wrong name": (request("plain_encoder", {"pictures": IMAGES}), INVALID, "inputs: got 'pictures', wanted"),
    "name twice": (changed(encoder(), lambda r: r.MergeFrom(encoder())), INVALID, "inputs: got 'images' twice"),
    "another call's": (request("plain_encoder", {"images": IMAGES, "latents": Z}), INVALID, "inputs: got 'latents'"),
    "both of two": (request("plain_interpolate", {"images": IMAGES, "latents": Z}, parameters={"steps": 3}), INVALID,
                    "inputs: got latents and images, wanted one of them"),
    "none of two": (request("plain_interpolate", parameters={"steps": 3}), INVALID, "latents or images"),
    "wrong datatype": (request("plain_decoder", {"latents": np.zeros((2, 5), np.int64)}), INVALID,
                       "inputs[latents].datatype: got 'INT64', wanted FP32"),
    "unknown datatype": (encoder(datatype="FP16"), INVALID,
                         "inputs[images].datatype: got 'FP16', wanted UINT8, FP32 or BYTES"),
    "no datatype": (encoder(datatype=""), INVALID, "inputs[images].datatype"),
    "no shape": (encoder(shape=[]), INVALID, "inputs[images].shape"),
    "shape with a zero": (encoder(shape=[0, 12, 10, 1]), INVALID, "inputs[images].shape"),
    "shape below zero": (encoder(shape=[-1, 12, 10, 1]), INVALID, "inputs[images].shape"),
    "shape not the bytes": (encoder(shape=[3, 12, 10, 1]), INVALID,
                            "inputs[images].raw_input_contents: got 240 bytes, wanted 360 bytes"),
    "huge shape": (encoder(shape=[2**62] * 8), INVALID, "inputs[images].raw_input_contents"),
    "many sides": (encoder(shape=[1] * 5000), INVALID, "inputs[images].shape"),
    "not the model's shape": (encoder(shape=[2, 10, 12, 1]), INVALID, "inputs[images].shape: got [2, 10, 12, 1]"),
    "not the model's latents": (request("plain_decoder", {"latents": Z[:, :4]}), INVALID, "inputs[latents].shape"),
    "latents not finite": (request("plain_decoder", {"latents": Z + np.float32(NAN)}), INVALID,
                           "inputs[latents]: got nan at [0, 0], wanted finite numbers"),
    "pixels above 1": (request("plain_encoder", {"images": IMAGES + np.float32(2)}), INVALID,
                       "inputs[images]: got 2 to 2, wanted FP32 pixels from 0 to 1"),
    "one key frame": (request("plain_interpolate", {"latents": Z[:1]}, parameters={"steps": 3}), INVALID,
                      "inputs[latents]: got one key frame"),
    "too many": (request("plain_decoder", {"latents": np.zeros((1025, 5), np.float32)}), INVALID,
                 "inputs[latents].shape"),
    "shared memory": (of_input(shared_memory_region="r"), INVALID, "inputs[images].parameters"),
    # raw contents
    "raw of nothing": (changed(request("plain_sample"), lambda r: r.raw_input_contents.append(b"")), INVALID,
                       "raw_input_contents: got 1 entries, wanted 0"),
    "raw twice": (changed(encoder(), lambda r: r.raw_input_contents.append(b"")), INVALID, "got 2 entries, wanted 1"),
    "raw and typed": (changed(encoder(), lambda r: r.inputs[0].contents.uint_contents.append(1)), INVALID,
                      "inputs[images].contents"),
    "neither": (typed("UINT8", [1, 12, 10, 1]), INVALID, "inputs[images].contents.uint_contents: got 0"),
    "typed too few": (typed("UINT8", [1, 12, 10, 1], uint_contents=[1] * 119), INVALID, "got 119, wanted 120"),
    "typed elsewhere": (typed("UINT8", [1, 12, 10, 1], int_contents=[1] * 120), INVALID, "got int_contents, wanted"),
    "typed too large": (typed("UINT8", [1, 12, 10, 1], uint_contents=[1] * 119 + [256]), INVALID, "got 256"),
    "typed files too few": (typed("BYTES", [2], bytes_contents=[b"x"]), INVALID, "bytes_contents: got 1"),
    # BYTES
    "length beyond the end": (with_files(struct.pack("<I", 9) + b"abc", [1]), INVALID, "inputs[images].raw"),
    "length cut off": (with_files(b"\1\0", [1]), INVALID, "inputs[images].raw"),
    "huge length": (with_files(b"\xff\xff\xff\xff", [1]), INVALID, "inputs[images].raw"),
    "fewer elements": (with_files(struct.pack("<I", 1) + b"a", [2]), INVALID, "got 1 elements, wanted 2"),
    "more elements": (with_files((struct.pack("<I", 1) + b"a") * 3, [2]), INVALID, "got more than 2 elements"),
    "no picture": (with_files(struct.pack("<I", 3) + b"abc", [1]), INVALID, "inputs[images][0]: got"),
    "very many elements": (with_files(b"\0" * (1 << 20), [1 << 18]), INVALID, "inputs[images].shape"),
    "files in a square": (with_files(struct.pack("<I", 0) * 4, [2, 2]), INVALID, "[N] or [N, 1]"),
    # outputs
    "no such output": (asked("pixels"), INVALID, "outputs: got 'pixels', wanted images, mean"),
    "output twice": (request("plain_decoder", {"latents": Z}, outputs=("mean", "mean")), INVALID, "'mean' twice"),
    "draw without a seed": (request("plain_encoder", {"images": IMAGES}, outputs=("latents",)), INVALID, "seed"),
    "mean beside files": (request("plain_decoder", {"latents": Z}, outputs=("mean", "images"),
                                  parameters={"format": "png"}), INVALID, "outputs: got mean beside images as files"),
    "unknown format": (asked("images", format="bmp"), INVALID, "outputs[images].parameters[format]: got 'bmp'"),
    "classification": (asked("images", classification=3), INVALID, "outputs[images].parameters"),
    "format of the mean": (asked("mean", format="png"), INVALID, "outputs[mean].parameters"),
    "animated decoder": (asked("images", format="gif"), INVALID, "parameters[format]: got 'gif', wanted one of uint8"),
    "quality": (asked("images", format="jpeg", quality=101), INVALID,
                "outputs[images].parameters[quality]: got 101, wanted 1 to 100"),
    "quality of the request": (request("plain_decoder", {"latents": Z}, parameters={"format": "jpeg", "quality": 101}),
                               INVALID, "parameters[quality]: got 101"),
    "frames of no animation": (sample(frame_ms=50), INVALID, "parameters: got 'frame_ms', wanted one of count"),
    "frames too short": (walk(steps=3, format="gif", frame_ms=5), INVALID,
                         "parameters[frame_ms]: got 5, wanted 20 to 10000"),
    # parameters
    "unknown parameter": (sample(sed=1), INVALID, "parameters: got 'sed', wanted one of count, seed"),
    "another call's parameter": (sample(steps=4), INVALID, "parameters: got 'steps'"),
    "empty parameter": (changed(sample(), lambda r: r.parameters["seed"].SetInParent()), INVALID, "parameters[seed]"),
    "count 0": (sample(count=0), INVALID, "parameters[count]: got 0, wanted a whole number from 1 to 1024"),
    "count too large": (sample(count=1025), INVALID, "parameters[count]"),
    "count a truth": (sample(count=True), INVALID, "parameters[count]: got True"),
    "count twice": (request("plain_sample", {"count": np.array([1])}, parameters={"count": 1}), INVALID,
                    "inputs[count]"),
    "two counts": (request("plain_sample", {"count": np.array([1, 2])}), INVALID, "inputs[count]: got 2 numbers"),
    "float count": (request("plain_sample", {"count": np.ones(1, np.float32)}), INVALID, "inputs[count].datatype"),
    "seed below zero": (sample(seed=-1), INVALID, "parameters[seed]: got -1"),
    "seed tensor below zero": (request("plain_sample", {"seed": np.array([-1])}), INVALID, "inputs[seed]: got -1"),
    "seed not a number": (sample(seed=NAN), INVALID, "parameters[seed]: got nan"),
    "seed a fraction": (sample(seed="1.5"), INVALID, "parameters[seed]: got '1.5'"),
    "seed too long": (sample(seed="1" * 5000), INVALID, "parameters[seed]"),
    "seed above 64 bits": (sample(seed=str(2**64)), INVALID, "parameters[seed]"),
    "index below zero": (sample(first_index=-1), INVALID, "parameters[first_index]"),
    "index too large": (sample(count=2, first_index=2**63 - 1), INVALID, "parameters[first_index]"),
    "temperature no number": (sample(temperature="warm"), INVALID, "parameters[temperature]: got 'warm'"),
    "temperature NaN": (sample(temperature=NAN), INVALID, "parameters[temperature]: got nan"),
    "temperature too high": (sample(temperature=1e300), INVALID, "parameters[temperature]"),
    "truncation 0": (sample(truncation=0.0), INVALID, "parameters[truncation]"),
    "truncation mode": (sample(truncation_mode="cut"), INVALID, "parameters[truncation_mode]: got 'cut', wanted one"),
    "no such prior": (sample(prior="fitted"), INVALID,
                      "parameters[prior]: got fitted, wanted standard: plain has no other"),
    "class of a model without": (sample(**{"class": 1}), INVALID, "parameters[class]: got 1, wanted none: plain"),
    "steps missing": (walk(), INVALID, "parameters[steps]: got none"),
    "steps 1": (walk(steps=1), INVALID, "parameters[steps]: got 1"),
    "path through opposites": (request("plain_interpolate", {"latents": np.stack([Z[0] + 1, -Z[0] - 1])},
                                       parameters={"steps": 3, "path": "spherical"}), INVALID,
                               "parameters[path]: got spherical with key frames 0 and 1"),
    "path a number": (walk(steps=3, path=1), INVALID, "parameters[path]: got 1, wanted one of linear"),
    "loop a word": (walk(steps=3, loop="yes"), INVALID, "parameters[loop]: got 'yes', wanted a boolean"),
    "resize": (request("plain_encoder", {"images": IMAGES}, parameters={"resize": "fit"}), INVALID,
               "parameters[resize]"),
    "attribute": (request("moved_edit", {"latents": Z}, parameters={"attribute.hat": 1.0}), INVALID,
                  "parameters[attribute.hat]: got 'hat', wanted one of wide"),
    "attributes too many": (request("moved_edit", {"latents": Z},
                                    parameters={"attribute.hat": 1.0, "attribute.wide": 1.0}), INVALID,
                            "parameters: got 2 of them, wanted at most 1"),
    "attribute beyond float32": (request("moved_edit", {"latents": Z}, parameters={"attribute.wide": 1e300}), INVALID,
                                 "parameters[attribute.wide]: got inf"),
    "moved too far": (request("moved_edit", {"latents": Z + np.float32(1e6)}, parameters={"attribute.wide": 1}),
                      INVALID, "inputs[latents]: got latents that are moved to"),
    "attribute NaN": (request("moved_edit", {"latents": Z}, parameters={"attribute.wide": NAN}), INVALID,
                      "parameters[attribute.wide]"),
    "timeout": (sample(timeout=-5), INVALID, "parameters[timeout]"),
    # classes
    "no class": (request("linear_encoder", {"images": IMAGES}), INVALID, "inputs[classes]: got none, wanted one, or 2"),
    "class too large": (request("linear_sample", parameters={"class": 3}), INVALID, "parameters[class]: got 3"),
    "class as text too large": (request("linear_sample", parameters={"class": "3"}), INVALID,
                                "parameters[class]: got 3, wanted 0 to 2"),
    "class beyond int32": (request("linear_sample", parameters={"class": 2**40}), INVALID,
                           "parameters[class]: got 1099511627776, wanted"),
    "classes beyond int32": (request("linear_sample", {"classes": np.array([2**40])}), INVALID,
                             "inputs[classes]: got 1099511627776, wanted"),
    "classes too large": (request("linear_encoder", {"images": IMAGES, "classes": np.array([0, 3])}), INVALID,
                          "inputs[classes][1]: got 3, wanted 0 to 2"),
    "unknown class": (request("linear_sample", parameters={"class": "shoe"}), INVALID,
                      "parameters[class]: got 'shoe', wanted one of boot, bag, coat"),
    "class NaN": (request("linear_sample", parameters={"class": NAN}), INVALID, "parameters[class]"),
    "class twice": (request("linear_sample", {"classes": np.array([1])}, parameters={"class": 1}), INVALID, "classes"),
    "classes not as many": (request("linear_encoder", {"images": IMAGES, "classes": np.array([0, 1, 2])}), INVALID,
                            "inputs[classes]: got 3 classes"),
    "classes no text": (request("linear_encoder", {"images": IMAGES, "classes": [b"\xff", b"bag"]}), INVALID,
                        "inputs[classes][0]: got"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_request_is_told_what_is_wrong(stub: Any, case: str) -> None:
    made, code, words = CASES[case]
    got = refusal(stub.ModelInfer, made)
    assert got[0] == code
    assert words in got[1]
    assert len(got[1]) < 1000


def test_what_clients_add_by_themselves_is_tolerated(stub: Any) -> None:
    theirs = {"sequence_id": 5, "sequence_start": True, "sequence_end": True, "priority": 1, "timeout": 10_000_000,
              "binary_data_output": True, "triton_enable_empty_final_response": True, "content_type": "np"}  # fmt: skip
    made = request("plain_encoder", {"images": IMAGES}, outputs=("mean",), parameters=theirs)
    made.inputs[0].parameters["binary_data_size"].int64_param = 240
    made.inputs[0].parameters["content_type"].string_param = "np"
    made.outputs[0].parameters["binary_data"].bool_param = True
    assert list(arrays(stub.ModelInfer(made))) == ["mean"]


@pytest.mark.parametrize(
    "name", ["SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting", "LogSettings"]
)
def test_calls_that_are_not_offered_say_so(stub: Any, name: str) -> None:
    code, words = refusal(getattr(stub, name), getattr(oip, f"{name}Request")())
    assert code == Code.UNIMPLEMENTED
    assert "cannot be had" in words


@pytest.mark.parametrize("name", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_descriptions_of_nothing(stub: Any, name: str) -> None:
    kind = getattr(oip, f"{name}Request")
    assert refusal(getattr(stub, name), kind(name="nobody_encoder"))[0] == MISSING
    assert refusal(getattr(stub, name), kind(name="plain_encoder", version="5"))[0] == MISSING
    code, words = refusal(getattr(stub, name), kind(name="plain_encoder", version="one"))
    assert (code, words) == (INVALID, "model_version: got 'one', wanted a whole number, or nothing")


def test_a_timeout_that_passes_while_it_waits_is_told(stub: Any) -> None:
    made = request("plain_sample", parameters={"count": 1024, "timeout": 1})
    code, words = refusal(stub.ModelInfer, made)
    assert code == Code.DEADLINE_EXCEEDED
    assert "deadline" in words


def test_no_request_whatever_is_a_fault_of_the_server(stub: Any, service: Service) -> None:
    """Requests with some of their bytes changed, cut out or doubled: answered, or refused with a reason."""
    rng = random.Random(7)  # noqa: S311 # nothing secret
    good = [encoder(), sample(count=2, seed=3), walk(steps=3), asked("images", format="png")]
    known = [*good, *(made for made, _, _ in CASES.values())]
    whole = [made.SerializeToString(deterministic=True) for made in known if made.ByteSize() < 2000]
    seen = set()
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(ROUNDS):
            data = bytearray(rng.choice(whole))
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(data) + 1)
                data[at : at + rng.randrange(3)] = rng.choice(
                    (b"", bytes([rng.randrange(256)]), bytes(data[at : at + 9]))
                )
            try:
                call(bytes(data), timeout=20)
                seen.add(Code.OK)
            except grpc.RpcError as error:
                seen.add(error.code())
    assert {Code.OK, INVALID, MISSING} <= seen <= {Code.OK, INVALID, MISSING, LATE}
