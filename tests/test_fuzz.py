"""Whatever is sent, the answer is right or a refusal that the documentation names, and the server lives on."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import math
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_requests
import fuzz_targets
import grpc
import http2_frames as http2
import linear_model
import numpy as np
import pytest
from conftest import LONG, running_service, settings_for
from fuzz_requests import MAX_ITEMS, SERVED, SHAPE, VALID, H, W, Z, nearly, wild
from google.protobuf.descriptor import Descriptor
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_statuses import until

from latentry.v1 import vae_pb2 as pb
from serving.server import Service

SERVICE = pb.DESCRIPTOR.services_by_name["VaeService"]
RPCS = [method.name for method in SERVICE.methods]
STREAMS = [method.name for method in SERVICE.methods if method.server_streaming]
FEW = 4  # parts of a stream that are read before it is cancelled

# Each example is answered by a real server, on processors that other tests share.
wildly = settings(
    deadline=None, max_examples=120 if LONG else 40, suppress_health_check=list(HealthCheck), database=None
)
briefly = settings(wildly, max_examples=80 if LONG else 40)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    repository = tmp_path_factory.mktemp("fuzzed")
    fuzz_requests.write_models(repository)
    about = {"max_request_items": MAX_ITEMS, "default_model": "linear"}
    with running_service(settings_for(repository, **about)) as running:
        yield running


@pytest.fixture(scope="module")
def channel(service: Service) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"localhost:{service.port}") as opened:
        yield opened


# ---- what is promised ----


def _call(channel: grpc.Channel, rpc: str, body: bytes) -> list[bytes] | grpc.RpcError:
    """The replies' bytes, of a stream the first few; or the error that is a call."""
    path = f"/{SERVICE.full_name}/{rpc}"
    try:
        if rpc not in STREAMS:
            return [channel.unary_unary(path)(body, timeout=20)]
        replies = channel.unary_stream(path)(body, timeout=20)
        try:
            return list(itertools.islice(replies, FEW))
        finally:
            replies.cancel()
    except grpc.RpcError as error:
        return error


def _check(channel: grpc.Channel, rpc: str, request: Any) -> grpc.StatusCode:
    """The call ends as the documentation says; returns how."""
    answer = _call(channel, rpc, request.SerializeToString())
    if isinstance(answer, list):
        replies = [getattr(pb, f"{rpc}Response").FromString(each) for each in answer]
        if rpc in STREAMS:
            _check_parts(request, replies)
        else:
            _check_reply(rpc, request, replies[0])
        return grpc.StatusCode.OK
    return _check_refusal(answer, request)


def _check_refusal(answer: Any, request: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = answer.code()
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
    """Whether the message has such a field, or oneof; of a stream's request, whether what it streams has."""
    if kind.name.startswith("Stream") and _exists(kind.fields[0].message_type, path):
        return True
    name, _, rest = re.sub(r"\[\d+\]", "", path).partition(".")
    if name in kind.oneofs_by_name:
        return not rest
    field = kind.fields_by_name.get(name)
    if field is None or not rest:
        return field is not None
    return field.message_type is not None and _exists(field.message_type, rest)


def _check_reply(rpc: str, request: Any, reply: Any) -> None:
    if rpc == "GetModel":
        assert (reply.model.model.name, reply.model.latent_dim) == (request.model.name or "linear", Z)
    elif rpc == "ListModels":
        assert [info.model.name for info in reply.models] == sorted(SERVED)
    else:
        n = _wanted(rpc, request)
        assert reply.model.name == (request.model.name or "linear")
        for field, tensor in reply.ListFields():
            if field.message_type is pb.Tensor.DESCRIPTOR:
                assert _floats(tensor).shape[0] == n, field.name
        if "images" in reply.DESCRIPTOR.fields_by_name and not getattr(request, "omit_images", False):
            _check_images(reply.images, n, request.output.format)
        if request.DESCRIPTOR.fields_by_name.get("seed") and request.HasField("seed"):
            assert reply.seed == request.seed


def _wanted(rpc: str, request: Any) -> int:
    """How many items are answered."""
    if rpc == "Sample":
        return int(request.count)
    if rpc == "Interpolate":
        keys = _given(request)
        ends = 0 if request.loop else -1 if request.exclude_end_points else 1
        return (keys if request.loop else keys - 1) * (request.steps - 1) + ends
    if rpc == "Neighbours":
        return int(request.walk.count or request.grid.rows * request.grid.columns)
    return _given(request)


def _given(request: Any) -> int:
    if "latents" in request.DESCRIPTOR.fields_by_name and request.HasField("latents"):
        return int(request.latents.shape[0])
    images = request.images
    return int(images.tensor.shape[0]) if images.HasField("tensor") else len(images.encoded.images)


def _floats(tensor: pb.Tensor) -> linear_model.Array:
    array = np.frombuffer(tensor.data, np.float32).reshape(tuple(tensor.shape))
    assert tensor.dtype == pb.DATA_TYPE_FLOAT32
    assert np.isfinite(array).all()
    return array


def _check_images(images: pb.Images, n: int, form: int) -> None:
    """So many images, as files, as the frames of one file or as an array."""
    if form in (pb.IMAGE_FORMAT_GIF, pb.IMAGE_FORMAT_ANIMATED_WEBP):
        (file,) = images.encoded.images
        with Image.open(io.BytesIO(file)) as animation:
            assert getattr(animation, "n_frames", 1) == n
    elif images.WhichOneof("kind") == "encoded":
        assert len(images.encoded.images) == n
    else:
        size = math.prod(images.tensor.shape) * (1 if images.tensor.dtype == pb.DATA_TYPE_UINT8 else 4)
        assert tuple(images.tensor.shape) == (n, *SHAPE)
        assert len(images.tensor.data) == size


def _check_parts(request: Any, replies: list[Any]) -> None:
    """The first parts of a stream follow each other, and have as many items as they are to."""
    samples = request.DESCRIPTOR.fields[0].name == "sample"
    whole = request.sample if samples else request.interpolate
    first = whole.first_index if samples else request.first_frame
    end = first + whole.count if samples else _wanted("Interpolate", whole)
    at = first
    for k, reply in enumerate(replies):
        wanted = min(request.chunk_items or (MAX_ITEMS if k else 1), end - at)
        assert (reply.first_index if samples else reply.first_frame) == at
        assert _floats(reply.part.latents).shape == (wanted, Z)
        _check_images(reply.part.images, wanted, whole.output.format)
        at += wanted
    assert at == end or len(replies) == FEW


def _lives_on(service: Service, channel: grpc.Channel) -> None:
    sampled = pb.SampleRequest(count=2, seed=1).SerializeToString()
    assert isinstance(_call(channel, "Sample", sampled), list)
    until(lambda: service.metrics.registry.get_sample_value("latentry_in_flight") == 0)  # streams end a little later
    for model, graph in itertools.product(SERVED, ("encoder", "decoder")):
        labels = {"model": model, "version": "1", "graph": graph}
        assert service.metrics.registry.get_sample_value("latentry_queue_items", labels) == 0


# ---- messages over the wire ----


@pytest.mark.parametrize("rpc", RPCS)
def test_any_message_is_answered_or_told_which_field_is_wrong(
    service: Service, channel: grpc.Channel, rpc: str
) -> None:
    @wildly
    @given(wild(getattr(pb, f"{rpc}Request").DESCRIPTOR))
    def check(request: Any) -> None:
        _check(channel, rpc, request)

    check()
    _lives_on(service, channel)


@pytest.mark.parametrize("rpc", RPCS)
def test_a_message_that_is_almost_right_is_answered_or_told_which_field_is_wrong(
    service: Service, channel: grpc.Channel, rpc: str
) -> None:
    codes = set()

    @settings(wildly, max_examples=120 if LONG else 60)
    @given(nearly(VALID[rpc]) | VALID[rpc])
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
            body += draw(wild(getattr(pb, f"{rpc}Request").DESCRIPTOR)).SerializeToString()
        return bytes(body)

    @wildly
    @given(bodies())
    @example(b"\x0a\x03\x0a\x01\xff")  # a name that is not UTF-8
    @example(b"\x0a\x04\x1a\x02\xed\xa0")  # a label of half a surrogate
    @example(b"\x0b" * 5000)  # groups in groups
    def check(body: bytes) -> None:
        answer = _call(channel, rpc, body)
        expected = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        assert isinstance(answer, list) or answer.code() in expected, (answer.code(), answer.details())

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


def test_atheris_finds_nothing_in_a_few_seconds(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has no build for this Python or system")
    program = Path(fuzz_targets.__file__)
    enough = ["-max_total_time=10"] if LONG else ["-max_total_time=1", "-runs=20000"]
    command = [sys.executable, "-W", "ignore", program, ",".join(fuzz_targets.TARGETS), *enough]
    command += [f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, cwd=program.parent.parent, capture_output=True, text=True, timeout=120, check=False)
    found = [path.read_bytes() for path in tmp_path.iterdir()]
    assert not found, f"{found[0]!r}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, done.stderr[-3000:]
    # libFuzzer's last words, one for each target: it did run them, on more than the seeds.
    runs = [int(n) for n in re.findall(r"^Done (\d+) runs in", done.stderr, re.MULTILINE)]
    assert len(runs) == len(fuzz_targets.TARGETS), done.stderr[-3000:]
    assert min(runs) > 20, runs
