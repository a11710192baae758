"""Every Prometheus metric, with its unit and buckets.

Seconds and items are the units. Labels are few and bounded: a model is named only once it was found among those that
are loaded, so that a caller cannot make series by inventing names. Counts are exact: after n calls, n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from serving.batches import Run
from serving.drift import Figures
from serving.swift_metrics import Counter, Histogram

# 0.25 ms to 16 s, each twice the last: a call with a warm CPU graph takes about 1 ms, a full queue seconds.
_SECONDS = tuple(0.00025 * 2**i for i in range(17))
# 1 to 4096 rows a batch.
_ROWS = tuple(float(2**i) for i in range(13))
# 50 dB to 0 dB of PSNR in steps of 2.5 dB, as squared error of pixels in [0, 1].
_SQUARED_ERRORS = tuple(float(f"{10 ** (-k / 4):.3g}") for k in range(20, -1, -1))


class Metrics:
    """The service's metrics in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a creation time for each series doubles the page and tells nobody anything
        # Who keeps the values of a metric beside this process is told of the labels that are gone.
        self.forgotten: Callable[[str, Mapping[str, str]], None] = lambda metric, labels: None
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
            "latentry_model_warmup_seconds", "First runs of all graphs at each batch size.", model, registry=r
        )
        self.reloads = Counter(
            "latentry_reloads", "Versions loaded, refused or unloaded.", ["model", "outcome"], registry=r
        )
        self.refused_versions = Gauge(
            "latentry_refused_versions", "Versions in the repository that cannot be served.", ["model"], registry=r
        )
        self.labels = Gauge(
            "latentry_labels", "1 for each label of a version.", ["model", "label", "version"], registry=r
        )
        self.scan_failures = Counter(
            "latentry_repository_scan_failures", "Scans that could not read the repository.", registry=r
        )
        self.device_up = Gauge(
            "latentry_device_up", "1 for each device that runs batches.", ["device", "provider"], registry=r
        )
        self.engine_restarts = Counter(
            "latentry_engine_restarts", "Engines restarted because a batch failed.", ["device"], registry=r
        )
        self.frontends = Gauge(
            "latentry_frontends", "Processes that answer calls; 1 where one does everything.", registry=r
        )
        self.process_restarts = Counter(
            "latentry_process_restarts", "Processes that ended untold and were started again.", ["process"], registry=r
        )
        self.quota_refusals = Counter("latentry_quota_refusals", "Calls refused by a caller's quota.", registry=r)
        self.trace_spans_lost = prometheus_client.Counter(  # told by another thread
            "latentry_trace_spans_lost", "Spans of traces that the collector did not take.", registry=r
        )
        self.certificate_expiry = Gauge(
            "latentry_certificate_expiry_timestamp_seconds",
            "When the server's certificate expires, seconds since 1970; 0 without TLS.",
            registry=r,
        )
        self.latent_drift_nats = Gauge(
            "latentry_latent_drift_nats",
            "KL divergence of the encoded means of live traffic from those of the training set, summed over latents.",
            model,
            registry=r,
        )
        self.latent_mean_shift = Gauge(
            "latentry_latent_mean_shift",
            "How far those means have moved, in training standard deviations, root mean square over latents.",
            model,
            registry=r,
        )
        self.latent_variance_ratio = Gauge(
            "latentry_latent_variance_ratio",
            "Their variance by that of the training set, geometric mean over latents.",
            model,
            registry=r,
        )
        self.reconstruction_error = prometheus_client.Histogram(  # told by another thread
            "latentry_reconstruction_error",
            "Mean squared error of pixels in [0, 1] of the encoded images that were decoded again.",
            model,
            buckets=_SQUARED_ERRORS,
            registry=r,
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

    def count_lost_lines(self, lost: Callable[[], int]) -> None:
        """Log lines are counted where they are lost, which knows nothing of metrics: ask there at each scrape."""
        self.registry.register(_LostLines(lost))

    def forget(self, model: str, version: int) -> None:
        """A version is unloaded: its series go, so that they do not pile up; its calls stay counted, by code."""
        for metric in (
            self.model_info, self.load_seconds, self.warmup_seconds,
            self.queue_seconds, self.inference_seconds, self.batch_items,
            self.items, self.padding_items, self.queue_items,
            self.latent_drift_nats, self.latent_mean_shift, self.latent_variance_ratio, self.reconstruction_error,
        ):  # fmt: skip
            labels = {"model": model, "version": str(version)}
            metric.remove_by_labels(labels)
            for family in metric.describe():
                self.forgotten(family.name, labels)

    def drifted(self, model: str, version: int, figures: Figures) -> None:
        """How far a model's live traffic is from its training set; before the first call there are no such series."""
        self.latent_drift_nats.labels(model, str(version)).set(figures.nats)
        self.latent_mean_shift.labels(model, str(version)).set(figures.mean_shift)
        self.latent_variance_ratio.labels(model, str(version)).set(figures.variance_ratio)

    def reconstructed(self, model: str, version: int, squared_error: float) -> None:
        """One encoded image was decoded again, with this mean squared error."""
        self.reconstruction_error.labels(model, str(version)).observe(squared_error)


class _LostLines(Collector):
    def __init__(self, lost: Callable[[], int]) -> None:
        self._lost = lost

    def collect(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily("latentry_log_lines_lost", "Log lines that could not be written.", self._lost())


@dataclass(frozen=True, slots=True)
class GraphMetrics:
    """What the batcher of one graph tells of itself."""

    queue_seconds: Histogram
    inference_seconds: Histogram
    batch_items: Histogram
    items: Counter
    padding_items: Counter
    queue_items: Gauge

    def ran(self, run: Run, queue_s: Iterable[float]) -> None:
        """A batch ran; its calls had waited `queue_s` seconds each."""
        for seconds in queue_s:
            self.queue_seconds.observe(seconds)
        self.inference_seconds.observe(run.seconds)
        self.batch_items.observe(run.rows)
        self.items.inc(run.rows)
        self.padding_items.inc(run.padding)
