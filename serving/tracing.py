"""OpenTelemetry traces of calls, made at each call's end from its record and sent over OTLP by a thread of the SDK.

    trace of the caller ─ latentry.v1.VaeService/Encode ─┬─ codec_in
                                                         ├─ queue
                                                         ├─ inference <── linked ──> batch (a trace of its own)
                                                         └─ codec_out

Sampling and propagation are the SDK's. Spans are written as OTLP messages at once: all their times are known, and the
SDK's own way, span objects that its thread encodes later, takes five times as long and holds the interpreter while it
does. Attributes are names, counts and times: never pixels or latents. Importing this without the extra `tracing` raises
`ConfigError`. Knows nothing of how spans are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context as TaskContext
from dataclasses import dataclass

import grpc
from google.protobuf import descriptor_pool

from serving.batches import Run
from serving.call import Call, Stage
from serving.interceptor import ADMIN_SERVICE, SERVICE
from serving.trace_sender import TraceSender, attributes  # before opentelemetry: it says what to install

from opentelemetry.context import Context  # isort: skip
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status  # isort: skip
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # isort: skip
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased  # isort: skip
from opentelemetry.trace import TraceFlags, get_current_span  # isort: skip
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # isort: skip

_BATCH_OPEN_S = 1.0  # calls of a batch that end within this time of the first are linked from its span

# The service of each call by the call's name, which no two services share.
_SERVICES = {
    method.name: service
    for service in (SERVICE, ADMIN_SERVICE)
    for method in descriptor_pool.Default().FindServiceByName(service).methods
}
_PROPAGATOR = TraceContextTextMapPropagator()
_IDS = RandomIdGenerator()

# Codes that are the server's fault, by OpenTelemetry's conventions for RPC server spans.
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Tracing:
    """Sends spans to the collector at `endpoint`, such as http://localhost:4317 (https: with TLS).

    A call whose caller sampled it is traced, one whose caller decided against it is not, and of the others a `share`.
    Spans wait in a bounded queue and are dropped when the collector does not take them; `lost` is told how many, from
    any thread. A call never waits. The SDK's own environment variables apply (OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT and
    _CERTIFICATE, OTEL_BSP_SCHEDULE_DELAY, OTEL_RESOURCE_ATTRIBUTES).

    Raises `ConfigError` when the endpoint, or one of those variables, makes no sense.
    """

    def __init__(self, endpoint: str, share: float, lost: Callable[[int], object] = lambda spans: None) -> None:
        self._sampler = ParentBased(TraceIdRatioBased(share))
        self._sender = TraceSender(endpoint, lost)
        self._open: set[_Batch] = set()

    wants_stages = True

    def ended(
        self, call: Call, code: grpc.StatusCode, seconds: float, metadata: Iterable[tuple[str, str | bytes]]
    ) -> None:
        """A call has ended: make its spans. For the event loop's thread."""
        context = _context(metadata)
        parent = get_current_span(context).get_span_context()
        trace = parent.trace_id if parent.is_valid else _IDS.generate_trace_id()
        name = f"{_SERVICES[call.rpc]}/{call.rpc}"
        if self._sampler.should_sample(context, trace, name).decision is not Decision.RECORD_AND_SAMPLE:
            return
        span = _span(name, trace.to_bytes(16, "big"), call.started_ns, call.started_ns + int(seconds * 1e9))
        span.kind = Span.SPAN_KIND_SERVER
        span.attributes.extend(attributes(_about(call, code)))
        if parent.is_valid:
            span.parent_span_id = parent.span_id.to_bytes(8, "big")
            span.trace_state = parent.trace_state.to_header()
            span.flags |= SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
        if code in _FAULTS:
            span.status.code = Status.STATUS_CODE_ERROR
        for stage in call.stages:
            self._add_stage(stage, span)
        self._sender.put(span)

    def close(self, timeout_s: float) -> None:
        """Send what waits and end the thread, or give up after `timeout_s` seconds (and half a second more)."""
        for batch in list(self._open):
            self._end(batch)
        self._sender.close(timeout_s)

    def _add_stage(self, stage: Stage, parent: Span) -> None:
        # Clocks differ by microseconds, and the wall clock may be set during a call: a stage lies within its call.
        first, last = parent.start_time_unix_nano, parent.end_time_unix_nano
        start = min(max(stage.started_ns, first), last)
        end = min(max(stage.started_ns + int(stage.seconds * 1e9), start), last)
        span = _span(stage.name, parent.trace_id, start, end)
        span.parent_span_id = parent.span_id
        span.trace_state = parent.trace_state
        if stage.graph:
            span.attributes.extend(attributes({"latentry.graph": stage.graph}))
        if stage.batch is not None:
            batch = self._batch(stage.batch, stage.graph)
            _link(span, batch.span)
            if batch in self._open:
                _link(batch.span, span)
        self._sender.put(span)

    def _batch(self, run: Run, graph: str) -> _Batch:
        """The batch's span, which stays open a while for the links to the calls that end later."""
        if isinstance(run.trace, _Batch):
            return run.trace
        trace = _IDS.generate_trace_id().to_bytes(16, "big")
        span = _span("batch", trace, run.started_ns, run.started_ns + int(run.seconds * 1e9))
        about: dict[str, str | int] = {
            "latentry.graph": graph,
            "latentry.rows": run.rows,
            "latentry.padding": run.padding,
        }
        span.attributes.extend(attributes(about))
        run.trace = batch = _Batch(span)
        self._open.add(batch)
        asyncio.get_running_loop().call_later(_BATCH_OPEN_S, self._end, batch, context=TaskContext())
        return batch

    def _end(self, batch: _Batch) -> None:
        if batch in self._open:
            self._open.remove(batch)
            self._sender.put(batch.span)


@dataclass(slots=True, eq=False)
class _Batch:
    """The span of a batch."""

    span: Span


def _context(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """The caller's trace context; an empty one where there is none, or none that can be read."""
    headers: dict[str, list[str]] = {}
    for key, value in metadata:
        if key in ("traceparent", "tracestate") and isinstance(value, str):
            headers.setdefault(key, []).append(value)
    if len(headers.get("traceparent", ())) != 1:
        return Context()
    return _PROPAGATOR.extract(headers, Context())


def _about(call: Call, code: grpc.StatusCode) -> Mapping[str, str | int]:
    about: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": _SERVICES[call.rpc],
        "rpc.method": call.rpc,
        "rpc.grpc.status_code": code.value[0],
        "latentry.items": call.items,
        "latentry.priority": call.priority,
    }
    named = {"model": call.model, "version": call.version, "request_id": call.request_id}
    return about | {f"latentry.{name}": value for name, value in named.items() if value}


def _span(name: str, trace: bytes, start: int, end: int) -> Span:
    return Span(
        name=name,
        trace_id=trace,
        span_id=_IDS.generate_span_id().to_bytes(8, "big"),
        flags=TraceFlags.SAMPLED | SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=start,
        end_time_unix_nano=end,
    )


def _link(span: Span, to: Span) -> None:
    span.links.add(trace_id=to.trace_id, span_id=to.span_id, flags=to.flags)
