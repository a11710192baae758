"""Whatever is sent, the answer is right or a refusal that the documentation names, and the server lives on."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_targets
import grpc
import http2_frames as http2
import linear_model
import numpy as np
import pytest
from conftest import running_service, settings_for
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from latentry.v1 import vae_pb2 as pb
from serving.server import Service

RPCS = ("Encode", "Decode", "Sample", "Interpolate", "GetModel", "ListModels")
MAX_ITEMS = 16  # few, so that the bound is often met
H, W, C, Z = 12, 10, 1, 5

# Each example is answered by a real server, on processors that other tests share.
wildly = settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck), database=None)
briefly = settings(wildly, max_examples=80)


@pytest.fixture(scope="module")
def service(linear_repository: Path) -> Iterator[Service]:
    with running_service(settings_for(linear_repository, max_request_items=MAX_ITEMS)) as running:
        yield running


@pytest.fixture(scope="module")
def channel(service: Service) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"localhost:{service.port}") as opened:
        yield opened


# ---- messages ----


def _numbers(bits: int, signed: bool = True) -> st.SearchStrategy[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.sampled_from([0, 1, 2, Z, MAX_ITEMS, MAX_ITEMS + 1, high, high - 1, low]) | st.integers(low, high)


FILES = [file for seed in fuzz_targets.seeds("images") for file in pb.Images.FromString(seed[1:]).encoded.images]
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_INT32: _numbers(32),
    FieldDescriptor.TYPE_INT64: _numbers(64),
    FieldDescriptor.TYPE_UINT64: _numbers(64, signed=False),
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 6) | _numbers(32),
    FieldDescriptor.TYPE_FLOAT: st.sampled_from([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, 1e38]) | st.floats(width=32),
    FieldDescriptor.TYPE_BYTES: st.sampled_from([b"", bytes(4 * Z), bytes(H * W), *FILES]) | st.binary(max_size=64),
    FieldDescriptor.TYPE_STRING: st.sampled_from(["", "linear", "..", "a/b", "\0", "x" * 70])
    | st.text(st.characters(codec="utf-8"), max_size=20),
}


def _field(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    one = _wild(field.message_type) if field.message_type else SCALARS[field.type]
    return st.lists(one, max_size=9) if field.is_repeated else one


@st.composite
def _wild(draw: st.DrawFn, kind: Descriptor) -> Any:
    """Any message of this kind at all."""
    message = kind._concrete_class()
    for field in kind.fields:
        if draw(st.booleans()):
            _put(message, field, draw(_field(field)))
    return message


def _put(message: Any, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        message.ClearField(field.name)
        getattr(message, field.name).extend(value)
    elif field.message_type:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


@st.composite
def _tensor(draw: st.DrawFn, shape: tuple[int, ...], dtypes: tuple[type[np.generic], ...]) -> pb.Tensor:
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    size = (draw(st.integers(1, 4)), *shape)
    array = rng.random(size, np.float32)
    if draw(st.sampled_from(dtypes)) is np.uint8:
        return pb.Tensor(dtype=1, shape=size, data=(255 * array).astype(np.uint8).tobytes())
    return pb.Tensor(dtype=2, shape=size, data=array.tobytes())


LATENTS = _tensor((Z,), (np.float32,))
IMAGES = st.builds(lambda t: pb.Images(tensor=t), _tensor((H, W, C), (np.uint8, np.float32))) | st.builds(
    lambda files: pb.Images(encoded=pb.EncodedImages(images=files)),
    st.lists(st.sampled_from(FILES), min_size=1, max_size=3),
)
OUTPUT = st.builds(pb.ImageOutput, format=st.integers(0, 5), quality=st.integers(0, 100))
SEED = st.none() | st.integers(0, 2**64 - 1)
TEMPERATURE = st.none() | st.floats(0, 10, width=32)
VALID: dict[str, st.SearchStrategy[Any]] = {
    "Encode": st.builds(pb.EncodeRequest, images=IMAGES, resize=st.integers(1, 2), seed=SEED, temperature=TEMPERATURE),
    "Decode": st.builds(pb.DecodeRequest, latents=LATENTS, output=OUTPUT),
    "Sample": st.builds(
        pb.SampleRequest, count=st.integers(1, MAX_ITEMS), seed=SEED, temperature=TEMPERATURE, output=OUTPUT
    ),
    "Interpolate": st.builds(
        pb.InterpolateRequest, latents=LATENTS, steps=st.integers(2, 5), path=st.integers(0, 2), output=OUTPUT
    )
    | st.builds(pb.InterpolateRequest, images=IMAGES, resize=st.just(1), steps=st.integers(2, 5)),
    "GetModel": st.builds(pb.GetModelRequest),
    "ListModels": st.builds(pb.ListModelsRequest),
}


@st.composite
def _nearly_valid(draw: st.DrawFn, rpc: str) -> Any:
    """A request that makes sense but for one field, somewhere, and with fields that nobody knows."""
    request = draw(VALID[rpc])
    message = request
    while message.DESCRIPTOR.fields:
        field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
        if not field.message_type or field.is_repeated or not message.HasField(field.name) or draw(st.booleans()):
            _put(message, field, draw(_field(field)))
            break
        message = getattr(message, field.name)
    request.MergeFromString(draw(st.sampled_from([b"", b"\xfa\x3e\x03abc", b"\xf8\xff\xff\xff\x0f\x01"])))
    return request


# ---- what is promised ----


def _call(channel: grpc.Channel, rpc: str, body: bytes) -> Any:
    """The reply's bytes, or the error that is a call."""
    try:
        return channel.unary_unary(f"/latentry.v1.VaeService/{rpc}")(body, timeout=20)
    except grpc.RpcError as error:
        return error


def _check(channel: grpc.Channel, rpc: str, request: Any) -> grpc.StatusCode:
    """The call ends as the documentation says; returns how."""
    answer = _call(channel, rpc, request.SerializeToString())
    if isinstance(answer, bytes):
        _check_reply(rpc, request, getattr(pb, f"{rpc}Response").FromString(answer))
        return grpc.StatusCode.OK
    code = answer.code()
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), (code, answer.details(), request)
    status = status_pb2.Status.FromString(dict(answer.trailing_metadata())["grpc-status-details-bin"])
    assert (status.code, status.message) == (code.value[0], answer.details())
    (packed,) = status.details
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        refusal = error_details_pb2.BadRequest()
        assert packed.Unpack(refusal)
        for violation in refusal.field_violations:
            assert _exists(request.DESCRIPTOR, violation.field), (violation.field, request)
            assert re.match(r"got .*, wanted ", violation.description, re.DOTALL), violation.description
    else:
        assert packed.Unpack(error_details_pb2.ErrorInfo())
    return code


def _exists(kind: Descriptor, path: str) -> bool:
    """Whether the message has such a field, or oneof."""
    name, _, rest = re.sub(r"\[\d+\]", "", path).partition(".")
    if name in kind.oneofs_by_name:
        return not rest
    field = kind.fields_by_name.get(name)
    if field is None or not rest:
        return field is not None
    return field.message_type is not None and _exists(field.message_type, rest)


def _check_reply(rpc: str, request: Any, reply: Any) -> None:
    if rpc == "Encode":
        n = _count(request.images)
        drawn = [reply.latents] if request.HasField("seed") else []
        for tensor in (reply.mean, reply.logvar, *drawn):
            assert _floats(tensor).shape == (n, Z)
    elif rpc == "Decode":
        assert _count(reply.images) == request.latents.shape[0]
    elif rpc == "Sample":
        assert _count(reply.images) == request.count
        assert _floats(reply.latents).shape == (request.count, Z)
        assert not request.HasField("seed") or reply.seed == request.seed
    elif rpc == "Interpolate":
        keys = request.latents.shape[0] if request.HasField("latents") else _count(request.images)
        n = (keys - 1) * (request.steps - 1) + 1
        assert _count(reply.images) == n
        assert _floats(reply.latents).shape == (n, Z)
    elif rpc == "GetModel":
        assert (reply.model.model.name, reply.model.latent_dim) == ("linear", Z)
    else:
        assert [info.model.name for info in reply.models] == ["linear"]


def _floats(tensor: pb.Tensor) -> linear_model.Array:
    array = np.frombuffer(tensor.data, np.float32).reshape(tuple(tensor.shape))
    assert tensor.dtype == pb.DATA_TYPE_FLOAT32
    assert np.isfinite(array).all()
    return array


def _count(images: pb.Images) -> int:
    if images.WhichOneof("kind") == "encoded":
        return len(images.encoded.images)
    size = math.prod(images.tensor.shape) * (1 if images.tensor.dtype == pb.DATA_TYPE_UINT8 else 4)
    assert len(images.tensor.data) == size
    return int(images.tensor.shape[0])


def _lives_on(service: Service, channel: grpc.Channel) -> None:
    sampled = pb.SampleRequest(count=2, seed=1).SerializeToString()
    assert isinstance(_call(channel, "Sample", sampled), bytes)
    assert service.metrics.registry.get_sample_value("latentry_in_flight") == 0
    for graph in ("encoder", "decoder"):
        labels = {"model": "linear", "version": "1", "graph": graph}
        assert service.metrics.registry.get_sample_value("latentry_queue_items", labels) == 0


# ---- messages over the wire ----


@pytest.mark.parametrize("rpc", RPCS)
def test_any_message_is_answered_or_told_which_field_is_wrong(
    service: Service, channel: grpc.Channel, rpc: str
) -> None:
    @wildly
    @given(_wild(getattr(pb, f"{rpc}Request").DESCRIPTOR))
    def check(request: Any) -> None:
        _check(channel, rpc, request)

    check()
    _lives_on(service, channel)


@pytest.mark.parametrize("rpc", RPCS)
def test_a_message_that_is_almost_right_is_answered_or_told_which_field_is_wrong(
    service: Service, channel: grpc.Channel, rpc: str
) -> None:
    codes = set()

    @wildly
    @given(_nearly_valid(rpc))
    def check(request: Any) -> None:
        codes.add(_check(channel, rpc, request))

    check()
    assert grpc.StatusCode.OK in codes, "none of the messages was right"
    _lives_on(service, channel)


@pytest.mark.parametrize("rpc", RPCS)
def test_any_bytes_as_a_message_are_answered_or_refused(service: Service, channel: grpc.Channel, rpc: str) -> None:
    @st.composite
    def bodies(draw: st.DrawFn) -> bytes:
        """Noise; a right message with a byte changed, or cut; or two messages in one."""
        body = bytearray(draw(VALID[rpc]).SerializeToString())
        how = draw(st.integers(0, 3))
        if how == 0 or not body:
            return draw(st.binary(max_size=200))
        if how == 1:
            body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
        elif how == 2:
            del body[draw(st.integers(0, len(body))) :]
        else:
            body += draw(_wild(getattr(pb, f"{rpc}Request").DESCRIPTOR)).SerializeToString()
        return bytes(body)

    @wildly
    @given(bodies())
    @example(b"\x0a\x03\x0a\x01\xff")  # a name that is not UTF-8
    @example(b"\x0a\x04\x1a\x02\xed\xa0")  # a label of half a surrogate
    @example(b"\x0b" * 5000)  # groups in groups
    def check(body: bytes) -> None:
        answer = _call(channel, rpc, body)
        expected = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        assert isinstance(answer, bytes) or answer.code() in expected, (answer.code(), answer.details())

    check()
    _lives_on(service, channel)


# ---- bytes on the ports ----

METHOD = "/latentry.v1.VaeService/Sample"
CONVERSATION = http2.PREFACE + http2.settings() + http2.call(METHOD, pb.SampleRequest(count=1).SerializeToString())
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@st.composite
def _frames(draw: st.DrawFn) -> bytes:
    """A connection of frames that mostly make no sense."""
    parts = [http2.PREFACE]
    for _ in range(draw(st.integers(0, 8))):
        payload = draw(st.binary(max_size=40) | st.just(http2.header_block(METHOD)))
        flags, stream = draw(st.sampled_from([0, 1, 4, 5, 8, 255])), draw(st.sampled_from([0, 1, 2, 3, 2**31 - 1]))
        parts.append(http2.frame(draw(st.integers(0, 12)), payload, flags=flags, stream=stream))
    return b"".join(parts)


def _with_header(name: bytes, value: bytes) -> bytes:
    """A right call with one more header field, of any bytes."""
    field = b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
    body = pb.SampleRequest(count=1).SerializeToString()
    block = http2.frame(http2.HEADERS, http2.header_block(METHOD) + field, flags=http2.END_HEADERS, stream=1)
    return http2.PREFACE + http2.settings() + block + http2.message(body, 1)


KNOWN_HEADERS = ("grpc-timeout", "grpc-encoding", "x-request-id", "latentry-priority", "authorization", "traceparent")
HEADERS = st.builds(
    _with_header,
    st.sampled_from([name.encode() for name in (*KNOWN_HEADERS, "any", "any-bin", "te")]) | st.binary(max_size=20),
    st.sampled_from([b"99999999H", b"0n", b"-1S", b"gzip", b"Bearer x\n"]) | st.binary(max_size=100),
).filter(lambda data: data.count(b":path") == 1)  # of which there is a test above


def _mutated(whole: bytes) -> st.SearchStrategy[bytes]:
    def change(at: int, byte: int, again: int) -> bytes:
        changed = bytearray(whole)
        changed[at] = byte
        return bytes(changed) + whole[again:]

    return st.builds(change, st.integers(0, len(whole) - 1), st.integers(0, 255), st.integers(0, len(whole)))


def _say(port: int, data: bytes) -> bytes:
    """Say `data`, then no more; what the server says until it hangs up, which it does."""
    with http2.connection(port, b"") as peer:
        with contextlib.suppress(OSError):  # it may have heard enough
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
        return http2.read_until_closed(peer)


def test_a_conversation_by_hand_is_answered(service: Service) -> None:
    """What the tests below spoil is right before."""
    with http2.connection(service.port, CONVERSATION) as peer:
        received = b""
        while not any(kind == http2.HEADERS and flags & http2.END_STREAM for kind, flags, *_ in http2.frames(received)):
            received += peer.recv(1 << 16)
        assert any(kind == http2.DATA and len(data) > H * W for kind, _, _, data in http2.frames(received))


def test_a_path_that_is_not_text_does_not_end_the_server(service: Service, channel: grpc.Channel) -> None:
    """grpcio 1.84 and 1.85 close their port at this, for one request of whoever reaches it."""
    _say(service.port, CONVERSATION.replace(b"Service/Sample", b"Service/Sam\xd2le"))
    _lives_on(service, channel)


def test_any_bytes_on_the_grpc_port_leave_the_server_well(service: Service, channel: grpc.Channel) -> None:
    @briefly
    @given(st.binary(max_size=300) | _mutated(CONVERSATION) | _frames() | HEADERS)
    @example(SCRAPE)
    @example(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03")  # a TLS greeting
    def check(data: bytes) -> None:
        _say(service.port, data)
        _lives_on(service, channel)

    check()


def test_any_bytes_on_the_metrics_port_leave_it_well(service: Service, channel: grpc.Channel) -> None:
    @briefly
    @given(st.binary(max_size=300) | _mutated(SCRAPE))
    @example(CONVERSATION)
    @example(b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n")
    @example(b"GET /metrics?name[]=%ff&&=& HTTP/1.1\r\nAccept: \xff\r\n\r\n")
    @example(b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nx")
    def check(data: bytes) -> None:
        _say(service.metrics_port, data)

    check()
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=10) as page:
        assert b"latentry_in_flight 0.0" in page.read()
    _lives_on(service, channel)


# ---- atheris ----


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_seeds_pass_every_target(target: str) -> None:
    """Without atheris too."""
    for seed in (b"", *fuzz_targets.seeds(target)):
        fuzz_targets.TARGETS[target](seed)


@pytest.mark.parametrize("depth", [10, 300, 900, 991, 992, 5000])
def test_values_in_values_are_read_or_refused(depth: int) -> None:
    """At about a thousand levels JSON can still be read, but not written again."""
    text = fuzz_targets.seeds("parse")[1].replace(b'"digits"', b"[" * depth + b"]" * depth)
    fuzz_targets.parse(text)


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_atheris_finds_nothing_in_a_few_seconds(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has no build for this Python or system")
    program = Path(fuzz_targets.__file__)
    command = [sys.executable, "-W", "ignore", program, target, "-max_total_time=3", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, cwd=program.parent.parent, capture_output=True, text=True, timeout=60, check=False)
    found = [path.read_bytes() for path in tmp_path.iterdir()]
    assert not found, f"{found[0]!r}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, done.stderr[-3000:]
