"""Every Prometheus metric, with its unit and buckets.

Seconds and items are the units. Labels are few and bounded: a model is named only once it was found among those that
are loaded, so that a caller cannot make series by inventing names. Counts are exact: after n calls, n.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

# 0.25 ms to 16 s, each twice the last: a call with a warm CPU graph takes about 1 ms, a full queue seconds.
_SECONDS = tuple(0.00025 * 2**i for i in range(17))
# 1 to 4096 rows a batch.
_ROWS = tuple(float(2**i) for i in range(13))


class Metrics:
    """The service's metrics in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a creation time for each series doubles the page and tells nobody anything
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)
        PlatformCollector(registry=r)
        self.requests = Counter(
            "latentry_requests", "Calls answered, by gRPC status.", ["rpc", "model", "version", "code"], registry=r
        )
        self.request_seconds = Histogram(
            "latentry_request_seconds", "From a call's arrival to its answer.", ["rpc"], buckets=_SECONDS, registry=r
        )
        self.codec_seconds = Histogram(
            "latentry_codec_seconds",
            "Reading a request's tensors and images (in), writing the reply's (out).",
            ["rpc", "direction"],
            buckets=_SECONDS,
            registry=r,
        )
        graph = ["model", "version", "graph"]
        self.queue_seconds = Histogram(
            "latentry_queue_seconds", "From submission to the start of its batch.", graph, buckets=_SECONDS, registry=r
        )
        self.inference_seconds = Histogram(
            "latentry_inference_seconds", "One run of a graph on one batch.", graph, buckets=_SECONDS, registry=r
        )
        self.batch_items = Histogram(
            "latentry_batch_items", "Rows a batch, padding not counted.", graph, buckets=_ROWS, registry=r
        )
        self.items = Counter("latentry_items", "Rows run.", graph, registry=r)
        self.padding_items = Counter("latentry_padding_items", "Rows of padding run beside them.", graph, registry=r)
        self.queue_items = Gauge("latentry_queue_items", "Rows that wait.", graph, registry=r)
        self.in_flight = Gauge("latentry_in_flight", "Calls that have come and are not answered yet.", registry=r)
        self.ready = Gauge("latentry_ready", "1 while calls are taken, else 0.", registry=r)
        self.model_info = Gauge(
            "latentry_model_info",
            "1 for each loaded model.",
            ["model", "version", "digest", "provider", "precision"],
            registry=r,
        )
        model = ["model", "version"]
        self.load_seconds = Gauge(
            "latentry_model_load_seconds", "Reading, verifying and loading the folder.", model, registry=r
        )
        self.warmup_seconds = Gauge(
            "latentry_model_warmup_seconds", "First runs of both graphs at each batch size.", model, registry=r
        )
        # The names that dashboards for gRPC already know (go-grpc-prometheus).
        call = ["grpc_type", "grpc_service", "grpc_method"]
        self.grpc_started = Counter("grpc_server_started", "Calls that came.", call, registry=r)
        self.grpc_handled = Counter("grpc_server_handled", "Calls answered.", [*call, "grpc_code"], registry=r)
        self.grpc_seconds = Histogram(
            "grpc_server_handling_seconds", "From arrival to answer.", call, buckets=_SECONDS, registry=r
        )

    def graph(self, model: str, version: int, graph: str) -> GraphMetrics:
        """The metrics of one graph of one model."""
        labels = (model, str(version), graph)
        return GraphMetrics(
            self.queue_seconds.labels(*labels),
            self.inference_seconds.labels(*labels),
            self.batch_items.labels(*labels),
            self.items.labels(*labels),
            self.padding_items.labels(*labels),
            self.queue_items.labels(*labels),
        )


@dataclass(frozen=True, slots=True)
class GraphMetrics:
    """What the batcher of one graph tells of itself."""

    queue_seconds: Histogram
    inference_seconds: Histogram
    batch_items: Histogram
    items: Counter
    padding_items: Counter
    queue_items: Gauge

    def waiting(self, rows: int) -> None:
        """So many rows are in the queue now."""
        self.queue_items.set(rows)

    def ran(self, rows: int, padding: int, queue_s: Iterable[float], run_s: float) -> None:
        """A batch of `rows` and `padding` ran for `run_s` seconds; its calls had waited `queue_s` seconds each."""
        for seconds in queue_s:
            self.queue_seconds.observe(seconds)
        self.inference_seconds.observe(run_s)
        self.batch_items.observe(rows)
        self.items.inc(rows)
        self.padding_items.inc(padding)
