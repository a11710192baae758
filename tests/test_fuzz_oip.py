"""Whatever is sent to the Open Inference Protocol, the answer is right or a refusal, and the server lives on."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fuzz_requests
import grpc
import numpy as np
import pytest
from conftest import LONG, running_service, settings_for
from fuzz_requests import MAX_ITEMS, inference, nearly, wild
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_statuses import until

from serving.inference import grpc_service_pb2 as oip
from serving.server import Service

Code = grpc.StatusCode
SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
INFER = oip.ModelInferRequest.DESCRIPTOR
OTHERS = [method.name for method in SERVICE.methods if "Infer" not in method.name]
ITEM_BYTES = {"UINT8": 1, "FP32": 4}

wildly = settings(
    deadline=None,
    max_examples=250 if LONG else 80,
    suppress_health_check=list(HealthCheck),
    database=None,
    print_blob=True,
)
briefly = settings(wildly, max_examples=25)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    repository = tmp_path_factory.mktemp("fuzzed")
    fuzz_requests.write_models(repository)
    with running_service(settings_for(repository, max_request_items=MAX_ITEMS)) as running:
        yield running


@pytest.fixture(scope="module")
def channel(service: Service) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"localhost:{service.port}") as opened:
        yield opened


@pytest.fixture(autouse=True)
def lives_on(service: Service, channel: grpc.Channel) -> Iterator[None]:
    """After each test a right request is answered, and nothing of the others is left over."""
    yield
    request = oip.ModelInferRequest(model_name="linear_sample")
    assert isinstance(_call(channel, "ModelInfer", request.SerializeToString()), bytes)
    until(lambda: service.metrics.registry.get_sample_value("latentry_in_flight") == 0)


# ---- what is promised ----


def _call(channel: grpc.Channel, rpc: str, body: bytes) -> Any:
    """The reply's bytes, or the error that is a call."""
    try:
        return channel.unary_unary(f"/{SERVICE.full_name}/{rpc}")(body, timeout=20)
    except grpc.RpcError as error:
        return error


def _check(channel: grpc.Channel, request: oip.ModelInferRequest) -> Code:
    """ModelInfer ends as it should; returns how."""
    answer = _call(channel, "ModelInfer", request.SerializeToString())
    if isinstance(answer, bytes):
        _check_response(request, oip.ModelInferResponse.FromString(answer))
        return Code.OK
    code = _check_refusal(answer)
    assert code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), (code, answer.details(), request)
    return code


def _check_refusal(answer: Any) -> Code:
    """Every refusal says why, and what is wrong with a request has details."""
    code: Code = answer.code()
    assert len(answer.details()) < 2000, "it says less than it was told"
    status = status_pb2.Status.FromString(dict(answer.trailing_metadata()).get("grpc-status-details-bin", b""))
    if code is Code.INVALID_ARGUMENT:
        refusal = error_details_pb2.BadRequest()
        assert status.details[0].Unpack(refusal)
        for violation in refusal.field_violations:
            assert violation.field
            assert re.match(r"got .*, wanted ", violation.description, re.DOTALL), violation.description
    elif code is Code.NOT_FOUND:
        assert status.details[0].Unpack(error_details_pb2.ErrorInfo())
    return code


def _check_response(request: oip.ModelInferRequest, response: oip.ModelInferResponse) -> None:
    assert (response.model_name, response.id) == (request.model_name, request.id)
    assert len(response.outputs) == len(response.raw_output_contents) > 0
    if request.outputs:
        assert [each.name for each in response.outputs] == [each.name for each in request.outputs]
    for about, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if about.datatype != "BYTES":
            assert len(data) == math.prod(about.shape) * ITEM_BYTES[about.datatype], about
        if about.datatype == "FP32":
            assert np.isfinite(np.frombuffer(data, "<f4")).all(), about.name


# ---- a little that says much ----


def _many(kind: str) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="linear_edit" if kind == "attributes" else "linear_sample")
    if kind in ("parameters", "attributes"):
        for i in range(100_000):
            request.parameters[f"attribute.{i}" if kind == "attributes" else str(i)].int64_param = 1
    elif kind == "inputs":
        for i in range(100_000):
            request.inputs.add(name=str(i), datatype="UINT8", shape=[1])
        request.raw_input_contents.extend([b"1"] * 100_000)
    elif kind == "outputs":
        for _ in range(100_000):
            request.outputs.add(name="images")
    else:
        request.model_name = "classed_sample"
        request.inputs.add(name=kind, datatype="INT32", shape=[3_000_000])
        request.raw_input_contents.append(bytes(12_000_000))
    return request


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("parameters", "parameters: got 100000 of them, wanted at most 1024"),
        ("attributes", "parameters: got 100000 of them, wanted at most 1024"),
        ("inputs", "inputs: got 100000 of them, wanted at most 1024"),
        ("outputs", "outputs: got 100000 of them, wanted at most 1024"),
        ("seed", "inputs[seed]: got 3000000 numbers, wanted one whole number from 0 to 18446744073709551615"),
        ("classes", f"inputs[classes]: got 3000000 classes, wanted at most {MAX_ITEMS}"),
    ],
)
def test_many_of_what_is_looked_at_one_by_one_are_refused_at_once(channel: grpc.Channel, kind: str, said: str) -> None:
    """Other calls wait meanwhile."""
    body = _many(kind).SerializeToString()
    refused = _call(channel, "ModelInfer", body)
    assert (refused.code(), refused.details()) == (Code.INVALID_ARGUMENT, said)


# ---- over the wire ----


def test_any_request_is_answered_or_told_what_is_wrong(channel: grpc.Channel) -> None:
    @wildly
    @given(wild(INFER))
    def check(request: oip.ModelInferRequest) -> None:
        _check(channel, request)

    check()


def test_a_request_that_is_almost_right_is_answered_or_told_what_is_wrong(channel: grpc.Channel) -> None:
    codes: Counter[Code] = Counter()

    @settings(wildly, max_examples=500 if LONG else 320)
    @given(nearly(inference()))
    def check(request: oip.ModelInferRequest) -> None:
        codes[_check(channel, request)] += 1

    check()
    assert min(codes[Code.OK], codes[Code.INVALID_ARGUMENT]) > 20, codes


def test_right_requests_are_answered(channel: grpc.Channel) -> None:
    """What the tests here spoil is right before."""

    @settings(wildly, max_examples=60)
    @given(inference())
    def check(request: oip.ModelInferRequest) -> None:
        assert _check(channel, request) is Code.OK

    check()


def test_any_bytes_as_a_request_are_answered_or_refused(channel: grpc.Channel) -> None:
    @st.composite
    def bodies(draw: st.DrawFn) -> bytes:
        body = bytearray(draw(inference()).SerializeToString())
        how = draw(st.integers(0, 2))
        if how == 0:
            body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
        elif how == 1:
            del body[draw(st.integers(0, len(body))) :]
        else:
            body += draw(wild(INFER)).SerializeToString()
        return bytes(body)

    @wildly
    @given(bodies())
    @example(b"\x0a\x01\xff")  # a name that is not UTF-8
    @example(b"\x0b" * 5000)  # groups in groups
    def check(body: bytes) -> None:
        answer = _call(channel, "ModelInfer", body)
        assert isinstance(answer, bytes) or _check_refusal(answer) in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), answer

    check()


@pytest.mark.parametrize("rpc", OTHERS)
def test_any_other_call_is_answered_or_refused(channel: grpc.Channel, rpc: str) -> None:
    """Nothing is loaded, unloaded or shared on this port, whoever asks."""
    kind = SERVICE.methods_by_name[rpc].input_type
    expected = {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.FAILED_PRECONDITION}

    @briefly
    @given(wild(kind).map(lambda request: request.SerializeToString()) | st.binary(max_size=50))
    def check(body: bytes) -> None:
        answer = _call(channel, rpc, body)
        if isinstance(answer, bytes):
            GetMessageClass(SERVICE.methods_by_name[rpc].output_type).FromString(answer)
        else:
            assert _check_refusal(answer) in expected, (answer.code(), answer.details())

    check()


def test_each_request_of_a_stream_has_its_answer_in_its_place(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
    refused = answered = 0

    @settings(wildly, max_examples=60 if LONG else 40)
    @given(st.lists(nearly(inference()) | wild(INFER) | inference(), max_size=9))
    def check(requests: list[oip.ModelInferRequest]) -> None:
        nonlocal refused, answered
        replies = [
            oip.ModelStreamInferResponse.FromString(each)
            for each in stream((each.SerializeToString() for each in requests), timeout=20)
        ]
        for request, reply in itertools.zip_longest(requests, replies):
            response = reply.infer_response
            assert (response.model_name, response.id) == (request.model_name, request.id)
            if reply.error_message:
                refused += 1
                assert not response.outputs
                assert "internal" not in reply.error_message.lower(), reply.error_message
            else:
                answered += 1
                _check_response(request, response)

    check()
    assert min(refused, answered) > 20


def test_a_stream_ends_at_bytes_that_are_no_request(channel: grpc.Channel) -> None:
    """What came before is answered; the end says what is wrong."""
    right = oip.ModelInferRequest(model_name="linear_sample", id="1").SerializeToString()
    replies = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")(
        iter([right, b"\x0a\x01\xff"]), timeout=20
    )
    assert oip.ModelStreamInferResponse.FromString(next(replies)).infer_response.id == "1"
    with pytest.raises(grpc.RpcError) as ended:
        next(replies)
    assert _check_refusal(ended.value) is Code.INVALID_ARGUMENT
