"""Sends OTLP spans to a collector by the OpenTelemetry SDK's queue, thread and connection; nothing is made global.

A collector that is away, slow or hanging costs spans, which are counted, and nothing else. Importing this without the
extra `tracing` raises `ConfigError`. Knows nothing of calls.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from latentry import __version__
from serving.errors import ConfigError

try:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
    from opentelemetry.trace import SpanContext, TraceFlags
except ImportError as error:
    raise ConfigError(f"trace_endpoint: {error}; traces need: pip install 'latentry[tracing]'") from error

log = logging.getLogger(__name__)

_LAST_WORDS_S = 0.5  # for the SDK's thread to end once the connection is cut
_MOST_WAITING = 4096  # spans, of a few hundred bytes each
_MOST_AT_ONCE = 512  # spans of one message
_MOST_CHARACTERS = 256  # of an attribute: a request id comes from the caller
_SAMPLED = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
_NOWHERE = Resource({})


class TraceSender:
    """Sends spans to `endpoint`, and tells `lost` how many were dropped, from any thread.

    Raises `ConfigError` when the endpoint, or an environment variable of the SDK's, makes no sense.
    """

    def __init__(self, endpoint: str, lost: Callable[[int], object]) -> None:
        _check(endpoint)
        # The SDK speaks of each batch that fails, and of headers that any caller may send. `_Exporter` says it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._lost = lost
        self._put = 0
        try:
            self._exporter = _Exporter(endpoint, lost)
            self._queue = BatchSpanProcessor(self._exporter, _MOST_WAITING, max_export_batch_size=_MOST_AT_ONCE)
        except Exception as error:  # kinds of the SDK's own, for environment variables that it cannot read
            raise ConfigError(f"traces: OpenTelemetry: {error}") from error

    def put(self, span: Span) -> None:
        """Send `span` some time, if there is room. For one thread."""
        if self._put - self._exporter.taken >= _MOST_WAITING:  # where the SDK would drop the oldest, in silence
            self._lost(1)
            return
        self._put += 1
        self._queue.on_end(_Written(span))

    def close(self, timeout_s: float) -> None:
        """Send what waits and end the thread, or give up after `timeout_s` seconds (and half a second more)."""
        closing = threading.Thread(target=self._queue.shutdown, name="latentry-traces", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            self._exporter.shutdown()
            closing.join(_LAST_WORDS_S)


def attributes(about: Mapping[str, str | int]) -> list[KeyValue]:
    """Attributes by name, long texts cut."""
    return [
        KeyValue(
            key=name,
            value=AnyValue(int_value=value)
            if isinstance(value, int)
            else AnyValue(string_value=value[:_MOST_CHARACTERS]),
        )
        for name, value in about.items()
    ]


class _Written(ReadableSpan):
    """A span that is written already, as the SDK's queue wants it."""

    def __init__(self, message: Span) -> None:
        super().__init__(message.name, _SAMPLED, resource=_NOWHERE)
        self.message = message


class _Exporter(OTLPSpanExporter):
    """OTLP over gRPC; says when spans begin to be lost and when they arrive again, not more."""

    def __init__(self, endpoint: str, lost: Callable[[int], object]) -> None:
        super().__init__(endpoint)
        self._address = endpoint
        self._tell_lost = lost
        self._lost = 0
        self._about = _resource()
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send; returns when the collector has answered, or after the SDK's timeout."""
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = super().export(spans)
        finally:
            self._count(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        spans = [span.message for span in data if isinstance(span, _Written)]
        scope = InstrumentationScope(name="latentry", version=__version__)
        group = ResourceSpans(resource=self._about, scope_spans=[ScopeSpans(scope=scope, spans=spans)])
        return ExportTraceServiceRequest(resource_spans=[group])

    def _count(self, spans: int, delivered: bool) -> None:
        if delivered and self._lost:
            log.warning("traces: %s takes them again; %d spans were lost", self._address, self._lost)
            self._lost = 0
        elif not delivered:
            self._tell_lost(spans)
            if not self._lost:
                log.warning("traces: %s does not take them; spans are dropped until it does", self._address)
            self._lost += spans


def _resource() -> ResourceMessage:
    about = Resource({"service.name": "latentry", "service.version": __version__})
    merged = Resource.create().merge(about).merge(OTELResourceDetector().detect())  # the environment wins
    return ResourceMessage(attributes=attributes({name: str(value) for name, value in merged.attributes.items()}))


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
