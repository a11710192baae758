"""A real Prometheus scrapes the service and says what the client counted; alerts and the metrics' table hold too."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import ROOT
from prometheus_client import generate_latest

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving.server import Service

ALERTS = ROOT / "docker" / "alerts.yml"
TABLE = ROOT / "docs" / "metrics.md"

CAMEL_CASE = {
    "OK": "OK",
    "INVALID_ARGUMENT": "InvalidArgument",
    "NOT_FOUND": "NotFound",
    "RESOURCE_EXHAUSTED": "ResourceExhausted",
}

TOO_LARGE = 269  # the call that sends more bytes than are taken

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="no `prometheus` and `promtool` here (on Debian: apt install prometheus)",
)


# ---- a real Prometheus ----


@contextmanager
def prometheus(folder: Path, port: int, scraped: int) -> Iterator[Callable[[str], dict[frozenset[Any], float]]]:
    """Prometheus with its data in `folder`, scraping port `scraped` once a second; gives a function that queries it."""
    config = folder / "prometheus.yml"
    jobs = [{"job_name": "latentry", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}]
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))  # JSON is YAML
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)

    def query(text: str) -> dict[frozenset[Any], float]:
        url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": text})
        with urllib.request.urlopen(url, timeout=5) as reply:
            result = json.load(reply)["data"]["result"]
        return {labels(**row["metric"]): float(row["value"][1]) for row in result}

    try:
        yield query
    finally:
        process.terminate()
        process.wait(20)


def labels(**named: str) -> frozenset[tuple[str, str]]:
    """A key for a series. An empty label is none, as Prometheus has it; where it was scraped says nothing here."""
    return frozenset((key, value) for key, value in named.items() if value and key not in ("instance", "job"))


def until(true: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if true():
                return
        except OSError:  # it does not listen yet
            pass
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.1)


def tensor(values: Any) -> pb.Tensor:
    kind = pb.DATA_TYPE_UINT8 if values.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    return pb.Tensor(dtype=kind, shape=values.shape, data=values.tobytes())


def one_of_each_kind(i: int) -> tuple[str, Any, int, str]:
    """The i-th call: its name, its request, the rows that it runs, and the model that it is for."""
    items = i % 5 + 1
    latents, images = np.zeros((items, 5), np.float32), np.zeros((items, 12, 10, 1), np.uint8)
    other = pb.ModelSelector(name=f"none-{i}")
    if i == TOO_LARGE:
        return "Decode", pb.DecodeRequest(latents=pb.Tensor(data=bytes(17 << 20))), 0, ""
    return [
        ("Encode", pb.EncodeRequest(images=pb.Images(tensor=tensor(images))), items, "linear"),
        ("Decode", pb.DecodeRequest(latents=tensor(latents)), items, "linear"),
        ("Sample", pb.SampleRequest(count=items, seed=i), items, "linear"),
        ("Interpolate", pb.InterpolateRequest(latents=tensor(latents[:2]), steps=4), 4, "linear"),
        ("GetModel", pb.GetModelRequest(), 0, "linear"),
        ("ListModels", pb.ListModelsRequest(), 0, ""),
        ("Sample", pb.SampleRequest(count=-1), 0, "linear"),
        ("Decode", pb.DecodeRequest(model=other, latents=tensor(latents)), 0, ""),
        ("Encode", pb.EncodeRequest(images=pb.Images(tensor=tensor(images[:, :3]))), 0, "linear"),
    ][i % 9]


@needs_prometheus
def test_prometheus_says_what_the_client_counted(
    serve: Any, linear_repository: Path, tmp_path: Path, free_port: int
) -> None:
    service = serve(linear_repository, reconstruct_share=0.0)

    def call(i: int) -> tuple[str, str, str, int]:
        """The call's name and model, how it ended, and the rows that it has run."""
        rpc, request, rows, model = one_of_each_kind(i)
        try:
            getattr(stub, rpc)(request, timeout=30)
        except grpc.RpcError as error:
            return rpc, model, error.code().name, 0
        return rpc, model, "OK", rows

    with (
        prometheus(tmp_path, free_port, service.metrics_port) as query,
        grpc.insecure_channel(f"localhost:{service.port}") as channel,
    ):
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        until(lambda: query("sum(up)") == {labels(): 1})
        with ThreadPoolExecutor(8) as threads:
            done = list(threads.map(call, range(TOO_LARGE + 1)))
        for last in ("latentry_requests_total", "grpc_server_handling_seconds_count"):
            until(lambda name=last: sum(query(f"sum({name})").values()) >= len(done))  # type: ignore[misc]
        # Nothing has been called since, so that it does not matter how many scrapes these answers come from.
        requests, handled, items = Counter[Any](), Counter[Any](), Counter[Any]()
        for rpc, model, code, rows in done:
            requests[labels(rpc=rpc, code=code, model=model, version="1" if model else "")] += 1
            handled[labels(grpc_method=rpc, grpc_code=CAMEL_CASE[code])] += 1
            items[labels(graph="encoder" if rpc == "Encode" else "decoder")] += rows
        assert query("sum by (rpc, code, model, version) (latentry_requests_total)") == requests
        assert query("sum by (grpc_method, grpc_code) (grpc_server_handled_total)") == handled
        assert query("sum by (graph) (latentry_items_total)") == items
        assert query("sum by (graph) (latentry_batch_items_sum)") == items
        started = query("sum(grpc_server_started_total)")
        assert started == query("sum(latentry_request_seconds_count)") == {labels(): len(done)}
        assert query("sum(latentry_in_flight) + sum(latentry_queue_items)") == {labels(): 0}


@needs_prometheus
def test_promtool_finds_nothing_to_say_of_the_page(serve: Any, linear_repository: Path) -> None:
    service = serve(linear_repository)
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        for i in range(9):
            rpc, request, *_ = one_of_each_kind(i)
            getattr(vae_pb2_grpc.VaeServiceStub(channel), rpc).future(request).exception()
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics") as reply:
        page = reply.read()
    checked = promtool("check", "metrics", stdin=page)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


# ---- alerts ----

UP_TO = "0+60x120"  # one a second, for two hours of minutes
LABELS = 'instance="a:9464"'
OK, FAILED = (f'latentry_requests_total{{code="{code}",{LABELS}}}' for code in ("OK", "INTERNAL"))
FULL = f'latentry_requests_total{{code="RESOURCE_EXHAUSTED",{LABELS}}}'
QUOTA = f"latentry_quota_refusals_total{{{LABELS}}}"
BUCKETS = {
    le: f'latentry_request_seconds_bucket{{rpc="Decode",le="{le}",{LABELS}}}' for le in ("0.064", "1.024", "+Inf")
}
EXPIRY = f"latentry_certificate_expiry_timestamp_seconds{{{LABELS}}}"
MODEL = f'model="m",version="1",{LABELS}'

# Each alert with series that set it off, and with series that nearly do.
FIRES: list[tuple[str, dict[str, str]]] = [
    ("LatentryDown", {'up{job="latentry"}': "0x120"}),
    ("LatentryNotReady", {"latentry_ready": "0x120"}),
    ("LatentryErrors", {OK: "0+98x120", FAILED: "0+2x120"}),
    ("LatentryErrors", {FAILED: "0+1x120"}),
    ("LatentryQueueFull", {OK: "0+90x120", FULL: "0+10x120"}),
    ("LatentryQueueFull", {OK: "0+90x120", FULL: "0+20x120", QUOTA: "0+10x120"}),
    ("LatentrySlow", {BUCKETS["0.064"]: "0+97x120", BUCKETS["1.024"]: "0+100x120", BUCKETS["+Inf"]: "0+100x120"}),
    ("LatentryEngineRestarted", {'latentry_engine_restarts_total{device="cuda:0"}': "0x110 1x10"}),
    ("LatentryDeviceDown", {'latentry_device_up{device="cuda:0"}': "0x120"}),
    ("LatentryVersionRefused", {'latentry_refused_versions{model="m"}': "1x120"}),
    ("LatentryRepositoryUnreadable", {"latentry_repository_scan_failures_total": "0+1x120"}),
    ("LatentryDrift", {f"latentry_latent_drift_nats{{{MODEL}}}": "5x120"}),
    ("LatentryCertificateExpires", {EXPIRY: f"{13 * 24 * 3600}x120"}),
    ("LatentryLogLost", {"latentry_log_lines_lost_total": "0+1x120"}),
]
SILENT: list[tuple[str, dict[str, str]]] = [
    ("LatentryDown", {'up{job="latentry"}': "1x119 0"}),
    ("LatentryNotReady", {"latentry_ready": "1x118 0x2"}),
    ("LatentryErrors", {OK: "0+996x120", FAILED: "0+4x120"}),
    ("LatentryErrors", {OK: "5x120", FAILED: "5x120"}),
    ("LatentryQueueFull", {OK: "0+90x120", FULL: "0+10x120", QUOTA: "0+10x120"}),
    ("LatentrySlow", {BUCKETS["0.064"]: "0+999x120", BUCKETS["1.024"]: "0+1000x120", BUCKETS["+Inf"]: "0+1000x120"}),
    ("LatentryEngineRestarted", {'latentry_engine_restarts_total{device="cuda:0"}': "0 1x119"}),
    ("LatentryDeviceDown", {'latentry_device_up{device="cuda:0"}': "1x120"}),
    ("LatentryVersionRefused", {'latentry_refused_versions{model="m"}': "0x120"}),
    ("LatentryRepositoryUnreadable", {"latentry_repository_scan_failures_total": "3x120"}),
    ("LatentryDrift", {f"latentry_latent_drift_nats{{{MODEL}}}": "0.1x120"}),
    ("LatentryCertificateExpires", {EXPIRY: f"{15 * 24 * 3600 + 7200}x120"}),
    ("LatentryCertificateExpires", {EXPIRY: "0x120"}),
    ("LatentryLogLost", {"latentry_log_lines_lost_total": "3x120"}),
]


def promtool(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, check=False, timeout=60)  # noqa: S607


@needs_prometheus
def test_prometheus_takes_the_rules_and_the_configuration_that_names_them() -> None:
    for checked in (
        promtool("check", "rules", str(ALERTS)),
        promtool("check", "config", str(ROOT / "docker/prometheus.yml")),
    ):
        assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "alerts.yml" in (ROOT / "docker" / "prometheus.yml").read_text()
    assert "./alerts.yml:/etc/prometheus/alerts.yml:ro" in (ROOT / "docker" / "compose.yaml").read_text()


@needs_prometheus
def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    def case(alert: str, series: dict[str, str], fires: bool) -> dict[str, Any]:
        firing = f'count by () (ALERTS{{alertname="{alert}",alertstate="firing"}})'
        samples = [{"labels": "{}", "value": 1}] if fires else []
        return {
            "name": f"{alert} {'fires' if fires else 'is silent'} on {series}",
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [{"expr": firing, "eval_time": "2h", "exp_samples": samples}],
        }

    cases = [case(*each, True) for each in FIRES] + [case(*each, False) for each in SILENT]
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": cases}))
    tested = promtool("test", "rules", str(file))
    assert tested.returncode == 0, tested.stdout.decode() + tested.stderr.decode()


def test_each_alert_is_tested_both_ways() -> None:
    named = set(re.findall(r"alert: (\w+)", ALERTS.read_text()))
    assert named == {alert for alert, _ in FIRES} == {alert for alert, _ in SILENT}


def test_alerts_ask_for_metrics_that_there_are(linear_service: Service) -> None:
    asked = set(re.findall(r"\blatentry_[a-z_]+", ALERTS.read_text()))
    there = {name + suffix for name in on_the_page(linear_service) for suffix in ("", "_bucket")}
    assert asked <= there


# ---- the table ----


def on_the_page(service: Service) -> dict[str, tuple[str, frozenset[str]]]:
    """Every metric of ours as (type, labels) by name, whether it has a series yet or not."""
    registry = service.metrics.registry
    labels_of: dict[str, frozenset[str]] = {}
    for collector, names in registry._collector_to_names.items():
        for name in names:
            labels_of[name] = frozenset(getattr(collector, "_labelnames", ()))
    found = re.findall(r"^# TYPE (\S+) (\S+)$", generate_latest(registry).decode(), re.MULTILINE)
    return {
        name: (kind, labels_of.get(name, frozenset()))
        for name, kind in found
        if name.startswith(("latentry_", "grpc_"))
    }


def in_the_table() -> dict[str, tuple[str, frozenset[str]]]:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|[^|]*\|([^|]*)\|", TABLE.read_text(), re.MULTILINE)
    assert len({name for name, *_ in rows}) == len(rows), "a metric stands there twice"
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", names))) for name, kind, names in rows}


def test_the_table_names_every_metric_with_its_type_and_labels_and_no_other(linear_service: Service) -> None:
    assert in_the_table() == on_the_page(linear_service)
