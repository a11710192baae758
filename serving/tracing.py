"""OpenTelemetry traces of calls, made at each call's end from its record and sent over OTLP by a thread of the SDK.

    trace of the caller ─ latentry.v1.VaeService/Encode ─┬─ codec_in
                                                         ├─ queue
                                                         ├─ inference <── linked ──> batch (a trace of its own)
                                                         └─ codec_out

The one file that imports opentelemetry (extra `tracing`); nothing of it is made global. Importing it without that
extra raises `ConfigError`. Attributes are names, counts and times: never pixels or latents.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context as TaskContext
from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc

from latentry import __version__
from latentry.v1 import admin_pb2, vae_pb2
from serving.batcher import Run
from serving.call import Call, Stage
from serving.errors import ConfigError

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ConfigError(f"trace_endpoint: {error}; traces need: pip install 'latentry[tracing]'") from error

log = logging.getLogger(__name__)

_BATCH_OPEN_S = 1.0  # calls of a batch that end within this time of the first are linked from its span
_LAST_WORDS_S = 0.5  # for the SDK's thread to end once the connection is cut
_MOST_WAITING = 4096  # spans, of one or two kilobytes each
_MOST_AT_ONCE = 512  # spans of one message; more hold the interpreter longer while they are written
_MOST_CHARACTERS = 256  # of an attribute: a request id comes from the caller

# The service of each call by the call's name, which no two services share.
_SERVICES = {
    method.name: service.full_name
    for file in (vae_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
_PROPAGATOR = TraceContextTextMapPropagator()

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
    any thread. A call never waits for it; making its spans takes about 0.15 ms of the event loop's time, and deciding
    that a call is not traced 6 us. The SDK's own environment variables apply (OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT
    and _CERTIFICATE, OTEL_BSP_SCHEDULE_DELAY, OTEL_RESOURCE_ATTRIBUTES).

    Raises `ConfigError` when the endpoint, or one of those variables, makes no sense.
    """

    def __init__(self, endpoint: str, share: float, lost: Callable[[int], object] = lambda spans: None) -> None:
        _check(endpoint)
        # The SDK speaks of each batch that fails, and of headers that any caller may send. `_Exporter` says it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        try:
            self._exporter = _Exporter(endpoint, lost)
            self._processor = _Queue(self._exporter, lost)
        except Exception as error:  # kinds of the SDK's own, for environment variables that it cannot read
            raise ConfigError(f"traces: OpenTelemetry: {error}") from error
        self._calls = self._tracer(ParentBased(TraceIdRatioBased(share)))
        self._batches = self._tracer(ALWAYS_ON)  # a batch has a span if one of its calls has
        self._open: set[_Batch] = set()

    def ended(
        self, call: Call, code: grpc.StatusCode, seconds: float, metadata: Iterable[tuple[str, str | bytes]]
    ) -> None:
        """A call has ended: make its spans. For the event loop's thread."""
        end = call.started_ns + int(seconds * 1e9)
        name = f"{_SERVICES[call.rpc]}/{call.rpc}"
        span = self._calls.start_span(name, _context(metadata), SpanKind.SERVER, start_time=call.started_ns)
        if not span.is_recording():
            return
        span.set_attributes(_attributes(call, code))
        if code in _FAULTS:
            span.set_status(Status(StatusCode.ERROR))
        parent = set_span_in_context(span, Context())
        for stage in call.stages:
            self._add_stage(stage, parent, call.started_ns, end)
        span.end(end)

    def close(self, timeout_s: float) -> None:
        """Send what waits and end the thread, or give up after `timeout_s` seconds (and half a second more)."""
        for batch in list(self._open):
            self._end(batch)
        closing = threading.Thread(target=self._processor.shutdown, name="latentry-traces", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            self._exporter.shutdown()
            closing.join(_LAST_WORDS_S)

    def _tracer(self, sampler: Sampler) -> Tracer:
        about = Resource({"service.name": "latentry", "service.version": __version__})
        provider = TracerProvider(
            sampler,
            Resource.create().merge(about).merge(OTELResourceDetector().detect()),  # what the environment says wins
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_span_attribute_length=_MOST_CHARACTERS),
        )
        provider.add_span_processor(self._processor)
        return provider.get_tracer("latentry", __version__)

    def _add_stage(self, stage: Stage, parent: Context, first: int, last: int) -> None:
        # Clocks differ by microseconds, and the wall clock may be set during a call: a stage lies within its call.
        start = min(max(stage.started_ns, first), last)
        end = min(max(stage.started_ns + int(stage.seconds * 1e9), start), last)
        attributes = {"latentry.graph": stage.graph} if stage.graph else None
        span = self._calls.start_span(stage.name, parent, attributes=attributes, start_time=start)
        if stage.batch is not None:
            batch = self._batch(stage.batch, stage.graph)
            span.add_link(batch.span.get_span_context())
            batch.span.add_link(span.get_span_context())
        span.end(end)

    def _batch(self, run: Run, graph: str) -> _Batch:
        """The batch's span, which stays open a while for the links to the calls that end later."""
        if isinstance(run.trace, _Batch):
            return run.trace
        counts = {"latentry.rows": run.rows, "latentry.padding": run.padding}
        span = self._batches.start_span("batch", Context(), attributes=counts, start_time=run.started_ns)
        span.set_attribute("latentry.graph", graph)
        run.trace = batch = _Batch(span, run.started_ns + int(run.seconds * 1e9))
        self._open.add(batch)
        asyncio.get_running_loop().call_later(_BATCH_OPEN_S, self._end, batch, context=TaskContext())
        return batch

    def _end(self, batch: _Batch) -> None:
        if batch in self._open:
            self._open.remove(batch)
            batch.span.end(batch.end)


@dataclass(slots=True, eq=False)
class _Batch:
    """The open span of a batch, and when it ended."""

    span: Span
    end: int


class _Exporter(SpanExporter):
    """OTLP over gRPC; says when spans begin to be lost and when they arrive again, not more."""

    def __init__(self, endpoint: str, lost: Callable[[int], object]) -> None:
        self._endpoint = endpoint
        self._otlp = OTLPSpanExporter(endpoint)
        self._tell_lost = lost
        self._lost = 0
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._otlp.export(spans)
        finally:
            self._count(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Close the connection; what is being sent fails."""
        self._otlp.shutdown()

    def _count(self, spans: int, delivered: bool) -> None:
        if delivered and self._lost:
            log.warning("traces: %s takes them again; %d spans were lost", self._endpoint, self._lost)
            self._lost = 0
        elif not delivered:
            self._tell_lost(spans)
            if not self._lost:
                log.warning("traces: %s does not take them; spans are dropped until it does", self._endpoint)
            self._lost += spans


class _Queue(BatchSpanProcessor):
    """The SDK's queue. It would drop the oldest in silence: here the newest is refused instead, and counted."""

    def __init__(self, exporter: _Exporter, lost: Callable[[int], object]) -> None:
        super().__init__(exporter, max_queue_size=_MOST_WAITING, max_export_batch_size=_MOST_AT_ONCE)
        self._exporter = exporter
        self._tell_lost = lost
        self._put = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Put `span` into the queue if there is room."""
        if self._put - self._exporter.taken >= _MOST_WAITING:
            self._tell_lost(1)
            return
        self._put += 1
        super().on_end(span)


def _check(endpoint: str) -> None:
    wanted = "a collector's address such as http://localhost:4317"
    try:
        parts = urlsplit(endpoint)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        ok = ok and "@" not in parts.netloc  # the address goes into the log
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError(f"trace_endpoint: got {endpoint!r}, wanted {wanted}")


def _context(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """The caller's trace context; an empty one where there is none, or none that can be read."""
    headers: dict[str, list[str]] = {}
    for key, value in metadata:
        if key in ("traceparent", "tracestate") and isinstance(value, str):
            headers.setdefault(key, []).append(value)
    if len(headers.get("traceparent", ())) != 1:
        return Context()
    return _PROPAGATOR.extract(headers, Context())


def _attributes(call: Call, code: grpc.StatusCode) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": _SERVICES[call.rpc],
        "rpc.method": call.rpc,
        "rpc.grpc.status_code": code.value[0],
        "latentry.items": call.items,
        "latentry.priority": call.priority,
    }
    named = {"model": call.model, "version": call.version, "request_id": call.request_id}
    return attributes | {f"latentry.{name}": value for name, value in named.items() if value}
