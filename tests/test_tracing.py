"""Traces: the spans of a call under its caller's trace, as a collector gets them over OTLP."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving import tracing
from serving.batches import Run
from serving.call import Call, Stage
from serving.errors import ConfigError
from serving.tracing import Tracing

MS = 1_000_000
NOW = 1_700_000_000_000_000_000
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that keeps what it gets, and can be told to hang."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.may_answer.wait(30)
        for group in request.resource_spans:
            self.resources.append({a.key: a.value.string_value for a in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        (span,) = self.named(name)
        return span


def listen(collector: Collector, port: int = 0) -> tuple[grpc.Server, str]:
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, f"http://127.0.0.1:{port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    server, collector.endpoint = listen(collector)  # type: ignore[attr-defined]
    yield collector
    collector.may_answer.set()
    server.stop(None).wait()


def encode_call(run: Run | None = None, **changes: Any) -> Call:
    """A call of 10 ms: reading 1 to 2, waiting 2 to 5, inference 5 to 8, writing 8 to 9."""
    run = run or Run(rows=3, padding=1, started_ns=NOW + 5 * MS, seconds=0.003)
    stages = [
        Stage("codec_in", NOW + 1 * MS, 0.001),
        Stage("queue", NOW + 2 * MS, 0.003, "encoder"),
        Stage("inference", run.started_ns, run.seconds, "encoder", run),
        Stage("codec_out", NOW + 8 * MS, 0.001),
    ]
    about: dict[str, Any] = {"model": "fashion", "version": "1", "items": 3, "request_id": "r-1", "stages": stages}
    return Call("Encode", started_ns=NOW, **{**about, **changes})


def end(
    to: Tracing, call: Call, *metadata: tuple[str, str | bytes], code: grpc.StatusCode = grpc.StatusCode.OK
) -> None:
    to.ended(call, code, 0.010, metadata)


async def close(tracing: Tracing, timeout_s: float = 10) -> None:
    await asyncio.to_thread(tracing.close, timeout_s)


def attributes(span: Span) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def test_a_call_is_a_tree_of_spans_with_its_stages_in_order(collector: Any) -> None:
    sender = Tracing(collector.endpoint, 1.0)
    end(sender, encode_call())
    await close(sender)
    root = collector.one("latentry.v1.VaeService/Encode")
    children = [collector.one(name) for name in ("codec_in", "queue", "inference", "codec_out")]
    assert (root.kind, root.parent_span_id) == (Span.SPAN_KIND_SERVER, b"")
    assert {(child.trace_id, child.parent_span_id) for child in children} == {(root.trace_id, root.span_id)}
    times = [((s.start_time_unix_nano - NOW) / MS, (s.end_time_unix_nano - NOW) / MS) for s in (root, *children)]
    assert times == [(0, 10), (1, 2), (2, 5), (5, 8), (8, 9)]
    assert attributes(root) == {
        "rpc.system": "grpc",
        "rpc.service": "latentry.v1.VaeService",
        "rpc.method": "Encode",
        "rpc.grpc.status_code": 0,
        "latentry.model": "fashion",
        "latentry.version": "1",
        "latentry.items": 3,
        "latentry.request_id": "r-1",
        "latentry.priority": "interactive",
    }
    assert [attributes(child) for child in children] == [{}, *2 * [{"latentry.graph": "encoder"}], {}]
    assert {resource["service.name"] for resource in collector.resources} == {"latentry"}


async def test_the_calls_of_a_batch_share_its_span_with_links_both_ways(collector: Any) -> None:
    run = Run(rows=6, padding=2, started_ns=NOW + 5 * MS, seconds=0.003)
    sender = Tracing(collector.endpoint, 1.0)
    for _ in range(2):
        end(sender, encode_call(run))
    await close(sender)
    batch, members = collector.one("batch"), collector.named("inference")
    assert batch.parent_span_id == b""
    assert len({span.trace_id for span in (batch, *members)}) == 3
    assert attributes(batch) == {"latentry.rows": 6, "latentry.padding": 2, "latentry.graph": "encoder"}
    assert batch.end_time_unix_nano - batch.start_time_unix_nano == 3 * MS
    assert {link.span_id for link in batch.links} == {member.span_id for member in members}
    assert [[link.span_id for link in member.links] for member in members] == [[batch.span_id]] * 2


async def test_a_call_that_ends_long_after_its_batch_still_links_to_it(
    collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_BATCH_OPEN_S", 0)
    run = Run(rows=6, padding=0, started_ns=NOW + 5 * MS, seconds=0.003)
    sender = Tracing(collector.endpoint, 1.0)
    end(sender, encode_call(run))
    await until(lambda: not sender._open)
    end(sender, encode_call(run))
    await close(sender)
    batch = collector.one("batch")
    assert len(batch.links) == 1
    assert [member.links[0].span_id for member in collector.named("inference")] == [batch.span_id] * 2


async def test_the_callers_trace_is_continued(collector: Any) -> None:
    sender = Tracing(collector.endpoint, 0.0)
    end(
        sender, encode_call(), ("user-agent", "x"), ("traceparent", SAMPLED), ("tracestate", "vendor=1"), ("k-bin", b"")
    )
    await close(sender)
    root = collector.one("latentry.v1.VaeService/Encode")
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.trace_state) == (TRACE, PARENT, "vendor=1")
    inference = collector.one("inference")
    assert (inference.trace_id.hex(), inference.trace_state) == (TRACE, "vendor=1")
    remote = SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    assert (root.flags & remote, inference.flags & remote) == (remote, 0), "whether the parent is another process's"


async def test_a_caller_that_does_not_sample_is_respected(collector: Any) -> None:
    sender = Tracing(collector.endpoint, 1.0)
    end(sender, encode_call(), ("traceparent", UNSAMPLED))
    await close(sender)
    assert collector.spans == []


@pytest.mark.parametrize(
    "metadata",
    [
        [("traceparent", "")],
        [("traceparent", "00-short-01")],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01")],
        [("traceparent", f"ff-{TRACE}-{PARENT}-01")],
        [("traceparent", SAMPLED + "-more")],
        [("traceparent", "0" * 5000)],
        [("traceparent", SAMPLED), ("traceparent", UNSAMPLED)],
        [("traceparent", SAMPLED.encode())],
        [("tracestate", "vendor=1")],
    ],
)
async def test_a_malformed_trace_context_is_ignored_in_silence(
    collector: Any, metadata: list[tuple[str, str | bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    sender = Tracing(collector.endpoint, 1.0)
    end(sender, encode_call(), *metadata)
    await close(sender)
    root = collector.one("latentry.v1.VaeService/Encode")
    assert root.parent_span_id == b""
    assert root.trace_id.hex() != TRACE
    assert caplog.records == []


@given(st.text(max_size=600), st.text(max_size=600))
def test_no_header_breaks_a_call(parent: str, state: str) -> None:
    tracing._context([("traceparent", parent), ("tracestate", state)])
    tracing._context([("traceparent", SAMPLED), ("tracestate", state)])


async def test_of_calls_without_a_parent_a_share_is_traced(collector: Any) -> None:
    sender = Tracing(collector.endpoint, 0.25)
    for _ in range(800):
        end(sender, encode_call(stages=[]))
    await close(sender)
    assert 130 < len(collector.spans) < 270, "within six standard deviations of 200"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.OK, Status.STATUS_CODE_UNSET),
        (grpc.StatusCode.INVALID_ARGUMENT, Status.STATUS_CODE_UNSET),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Status.STATUS_CODE_UNSET),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Status.STATUS_CODE_ERROR),
        (grpc.StatusCode.UNAVAILABLE, Status.STATUS_CODE_ERROR),
        (grpc.StatusCode.INTERNAL, Status.STATUS_CODE_ERROR),
    ],
)
async def test_what_is_the_servers_fault_is_an_error(collector: Any, code: grpc.StatusCode, status: int) -> None:
    sender = Tracing(collector.endpoint, 1.0)
    end(sender, encode_call(stages=[]), code=code)
    await close(sender)
    (span,) = collector.spans
    assert attributes(span)["rpc.grpc.status_code"] == code.value[0]
    assert span.status.code == status


async def test_stages_lie_within_their_call_though_the_clock_was_set(collector: Any) -> None:
    sender = Tracing(collector.endpoint, 1.0)
    hour = 3600 * 1000 * MS
    stages = [Stage("codec_in", NOW - hour, 0.001), Stage("queue", NOW + 1, 7200.0), Stage("codec_out", NOW + hour, 1)]
    end(sender, encode_call(stages=stages))
    await close(sender)
    for span in collector.spans:
        assert NOW <= span.start_time_unix_nano <= span.end_time_unix_nano <= NOW + 10 * MS, span.name


async def test_a_long_request_id_is_cut(collector: Any) -> None:
    sender = Tracing(collector.endpoint, 1.0)
    end(sender, encode_call(stages=[], request_id="x" * 100_000))
    await close(sender)
    assert attributes(collector.spans[0])["latentry.request_id"] == "x" * 256


async def test_a_collector_that_is_away_costs_nothing_but_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    before = threading.active_count()
    lost: list[int] = []
    sender = Tracing(endpoint, 1.0, lost.append)
    for _ in range(6000):
        end(sender, encode_call(stages=[]))
    waiting = len(sender._sender._queue._batch_processor._queue)
    started = time.perf_counter()
    await close(sender, 0.5)
    assert time.perf_counter() - started < 1.5
    assert waiting <= 4096
    assert sum(lost) == 6000, "each is counted once"
    assert [record.message for record in caplog.records] == [
        f"traces: {endpoint} does not take them; spans are dropped until it does"
    ]
    assert threading.active_count() <= before + 1, "asyncio's own thread for `close`"


async def test_a_collector_that_hangs_holds_up_neither_calls_nor_the_end(collector: Any) -> None:
    collector.may_answer.clear()
    lost: list[int] = []
    sender = Tracing(collector.endpoint, 1.0, lost.append)
    started = time.perf_counter()
    for _ in range(6000):
        end(sender, encode_call(stages=[]))
    assert time.perf_counter() - started < 5, "seconds; each would have waited 10 for its answer"
    started = time.perf_counter()
    await close(sender, 0.5)
    assert time.perf_counter() - started < 1.5
    assert sum(lost) == 6000


async def test_what_was_lost_is_said_when_the_collector_is_back(
    free_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    sender = Tracing(f"http://127.0.0.1:{free_port}", 1.0)
    end(sender, encode_call(stages=[]))
    await until(lambda: "does not take them" in caplog.text)
    collector = Collector()
    server, _ = listen(collector, free_port)

    def arrives() -> bool:
        end(sender, encode_call(stages=[]))
        return bool(collector.spans)

    await until(arrives)
    await close(sender)
    server.stop(None).wait()
    assert "takes them again" in caplog.text
    assert len(caplog.records) == 2


async def until(true: Any, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_second_close_and_a_late_call_do_no_harm(collector: Any, caplog: pytest.LogCaptureFixture) -> None:
    sender = Tracing(collector.endpoint, 1.0)
    await close(sender)
    end(sender, encode_call())
    await close(sender)
    assert caplog.records == []


async def test_nothing_of_it_is_global(collector: Any) -> None:
    await close(Tracing(collector.endpoint, 1.0))
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert not logging.getLogger().filters


@pytest.mark.parametrize(
    "endpoint", ["localhost:4317", "http://", "ftp://x:1", "http://x:0", "http://x:99999", "x", "http://a:b@x:1"]
)
def test_an_address_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"trace_endpoint: got .*, wanted .*http://localhost:4317"):
        Tracing(endpoint, 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "best"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
    ],
)
def test_a_variable_that_makes_no_sense_is_a_config_error(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="traces: OpenTelemetry"):
        Tracing("http://localhost:1", 1.0)


def test_without_the_extra_the_error_names_it() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
        "from serving.errors import ConfigError\n"
        "try: import serving.tracing\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pip install 'latentry[tracing]'" in done.stdout


# ---- through a real service ----


def decode_request(items: int) -> pb.DecodeRequest:
    z = np.zeros((items, 5), "<f4")
    return pb.DecodeRequest(latents=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=z.shape, data=z.tobytes()))


def test_two_calls_in_one_batch_of_a_service_are_traced_apart_and_linked(
    serve: Any, linear_repository: Path, collector: Any
) -> None:
    # The batch runs when both have come, and would wait a second for the second.
    service = serve(linear_repository, trace_endpoint=collector.endpoint, max_batch_size=2, max_queue_delay_ms=1000)
    callers = [f"00-{n:032x}-{n:016x}-01" for n in (1, 2)]
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        calls = [
            stub.Decode.future(decode_request(1), metadata=(("traceparent", caller), ("x-request-id", f"id-{caller}")))
            for caller in callers
        ]
        for call in calls:
            call.result(timeout=30)
    service.end_traces()
    batch, roots = collector.one("batch"), collector.named("latentry.v1.VaeService/Decode")
    assert {(int(root.trace_id.hex(), 16), int(root.parent_span_id.hex(), 16)) for root in roots} == {(1, 1), (2, 2)}
    assert (attributes(batch)["latentry.rows"], attributes(batch)["latentry.graph"]) == (2, "decoder")
    inferences = collector.named("inference")
    assert {link.span_id for link in batch.links} == {span.span_id for span in inferences}
    for root in roots:
        about = attributes(root)
        assert about["latentry.request_id"] == f"id-00-{root.trace_id.hex()}-{root.parent_span_id.hex()}-01"
        assert (about["latentry.model"], about["latentry.version"], about["latentry.items"]) == ("linear", "1", 1)
        spans = [span for span in collector.spans if span.parent_span_id == root.span_id]
        spans.sort(key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))
        assert [span.name for span in spans] == ["codec_in", "queue", "inference", "codec_out"]
        times = [t for span in spans for t in (span.start_time_unix_nano, span.end_time_unix_nano)]
        assert root.start_time_unix_nano <= times[0]
        assert times[-1] <= root.end_time_unix_nano
        for earlier, later in zip(times[1::2], times[2::2], strict=False):
            assert later >= earlier - MS, "wall clock and monotonic clock agree within a millisecond"
        (inference,) = [span for span in spans if span.name == "inference"]
        assert [link.span_id for link in inference.links] == [batch.span_id]


def test_a_service_traces_what_it_refuses_and_calls_of_two_graphs(
    serve: Any, linear_repository: Path, collector: Any
) -> None:
    service = serve(linear_repository, trace_endpoint=collector.endpoint, max_batch_size=2)
    images = pb.Images(
        tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=(2, 12, 10, 1), data=np.zeros(240, np.uint8).tobytes())
    )
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        stub.Interpolate(pb.InterpolateRequest(images=images, steps=5))
        with pytest.raises(grpc.RpcError):
            stub.Decode(pb.DecodeRequest(model=pb.ModelSelector(name="none")))
    service.end_traces()
    refused = attributes(collector.one("latentry.v1.VaeService/Decode"))
    assert (refused["rpc.grpc.status_code"], "latentry.model" in refused) == (5, False)
    graphs = [attributes(span)["latentry.graph"] for span in collector.named("inference")]
    assert graphs == ["encoder", "decoder", "decoder", "decoder"], "five images in batches of two"
    assert len(collector.named("batch")) == 4


def test_a_service_whose_collector_is_away_answers_and_ends(
    serve: Any, linear_repository: Path, free_port: int
) -> None:
    service = serve(linear_repository, trace_endpoint=f"http://127.0.0.1:{free_port}")
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        for _ in range(20):
            vae_pb2_grpc.VaeServiceStub(channel).Decode(decode_request(1), timeout=10)
    started = time.perf_counter()
    service.end_traces()
    assert time.perf_counter() - started < 5
