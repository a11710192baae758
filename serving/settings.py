"""What the operator chose, checked once at start.

Each field says here what it does, its unit and its price: `--help`, `--print-config` and docs/configuration.md are made
from this. Flags win over environment `LATENTRY_*` over one TOML file over the defaults. Paths are not opened here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from latentry.manifest import embedded_models
from serving import settings_checks as checks
from serving import settings_sources
from serving.errors import ConfigError
from serving.version_policy import Policy as Policy
from serving.version_policy import Unfit, read_labels, read_policies

LogLevel = Literal["debug", "info", "warning", "error"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]


def _knob(group: str, default: Any, about: str, **limits: Any) -> Any:
    return Field(default, description=about, json_schema_extra={"group": group}, **limits)


class Settings(BaseModel):
    """How to serve. `Settings(key=value)` wins over the environment, which wins over the file `config`.

    Raises `ConfigError` with the first value that makes no sense.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    # --- models
    models: Path | None = _knob(
        "models",
        None,
        "model repository, a folder of NAME/VERSION/manifest.json; without it, the model that comes with Latentry",
    )
    versions: tuple[str, ...] = _knob(
        "models",
        ("latest",),
        "which versions of a model are served: latest, latest:N, all or a list such as 1,3; NAME=POLICY for one "
        "model. Each version that is served costs its memory and its warm-up",
    )
    labels: tuple[str, ...] = _knob(
        "models",
        (),
        "names for versions that requests may use instead of numbers, NAME:LABEL=VERSION; a version that has one is "
        "served whatever the policy says, and must be there at the start. SIGHUP takes changes over",
    )
    default_model: str = _knob(
        "models",
        "",
        "model that a request without a name means; empty: the first by name when the server started",
    )
    reload_s: float = _knob(
        "models",
        5.0,
        "seconds between looks at the repository for new, changed and vanished versions; 0: look only on SIGHUP or "
        "when AdminService is told to. Less notices sooner and reads the folders more often",
        ge=0,
        le=86400,
    )
    # --- listening
    host: str = _knob(
        "listening",
        "127.0.0.1",
        "address to listen on, for all ports; one that others can reach wants identities or tls_client_ca, or insecure",
    )
    port: int = _knob("listening", 50051, "gRPC port; 0: any free one", ge=0, le=65535)
    metrics_port: int = _knob("listening", 9464, "port of Prometheus's /metrics; 0: any free one", ge=0, le=65535)
    admin_port: int | None = _knob(
        "listening",
        None,
        "gRPC port of AdminService (load, unload, label, log level); none: no such service; 0: any free one",
        ge=0,
        le=65535,
    )
    reflection: bool = _knob(
        "listening", True, "answer gRPC reflection, so that grpcurl needs no .proto; tells callers which services exist"
    )
    channelz: bool = _knob(
        "listening",
        False,
        "answer gRPC channelz, for debugging connections; tells callers each other's addresses",
    )
    # --- device
    device: str = _knob(
        "device",
        "auto",
        "auto, cpu, cuda, cuda:N or cuda:N,M; auto takes a GPU if one works and logs what it chose and why, the others "
        "refuse to start without what they name",
    )
    precision: Precision = _knob(
        "device",
        "auto",
        "which precision of encoders and decoders to run; auto: fp32 on the CPU, on a GPU fp16 where a model has "
        "it, else fp32; the others refuse a model that does not come in what they name. Less is faster where the "
        "device has instructions for it, and farther from what was trained: the model's manifest says how far",
    )
    threads: int = _knob(
        "device",
        0,
        "threads that run a batch on the CPU if it is large or the graph slow; 0: as many processors as affinity and "
        "cgroup allow. More than there are makes every batch slower",
        ge=0,
        le=1024,
    )
    gpu_memory_mib: int = _knob(
        "device",
        0,
        "MiB of GPU memory that ONNX Runtime may take for one graph of one model; 0: no limit. Too little fails "
        "large batches, none lets one model take what others need",
        ge=0,
        le=1 << 24,
    )
    cuda_graphs: bool = _knob(
        "device",
        False,
        "capture a CUDA graph for each batch size: less overhead for small models, more GPU memory, a longer warm-up",
    )
    tensorrt_cache: Path | None = _knob(
        "device",
        None,
        "folder for TensorRT engines; setting it uses the TensorRT provider: faster batches after a first start that "
        "takes minutes a model, and results that differ within tolerance",
    )
    frontends: int = _knob(
        "device",
        1,
        "processes that answer calls, all on one port; with more than 1, one other process runs the models for them "
        "all. One process answers some thousands of small calls a second, so more are worth it where there are "
        "processors left for them; each costs its memory",
        ge=1,
        le=128,
    )
    # --- batching and back-pressure
    max_batch_size: int = _knob(
        "batching",
        64,
        "most items that one run of a graph gets: more means more throughput under load, more memory, and a longer "
        "wait for whoever comes next",
        ge=1,
        le=4096,
    )
    max_queue_delay_ms: float = _knob(
        "batching",
        0.0,
        "milliseconds that an idle device waits for a batch to fill; every lone call pays them, so 0 unless the device "
        "is expensive and calls come in bursts",
        ge=0,
        le=1000,
    )
    max_queue_items: int = _knob(
        "batching",
        4096,
        "most items that wait, of all models together; more are refused with RESOURCE_EXHAUSTED. More rides out longer "
        "bursts, and makes the last in the queue wait longer",
        le=1 << 24,
    )
    max_model_share: float = _knob(
        "batching",
        1.0,
        "share of max_queue_items that may wait for one version of one model: less keeps room for the others, and "
        "refuses a lone busy one sooner",
        gt=0,
        le=1,
    )
    max_request_items: int = _knob(
        "batching",
        1024,
        "most items of one call, where a model's size does not ask for fewer: more saves calls, and holds up others",
        ge=1,
        le=1 << 20,
    )
    quota_items_per_s: float = _knob(
        "batching",
        0.0,
        "items a second that each client (by identity, else by address) may ask for on average; 0: no quotas. Refuses "
        "one greedy client before it fills the queue of all, even when the device is idle",
        ge=0,
        le=1e9,
    )
    quota_burst_items: int = _knob(
        "batching",
        0,
        "items that a client may ask for at once after a pause; 0: max_request_items. A call of more passes after a "
        "longer pause, and the client waits until it is paid off",
        ge=0,
        le=1 << 24,
    )
    # --- security
    insecure: bool = _knob(
        "security",
        False,
        "listen on an address that others can reach without asking who calls; for networks that see to that themselves",
    )
    tls_certificate: Path | None = _knob(
        "security", None, "PEM file of the server's certificate chain; read again when it changes"
    )
    tls_key: Path | None = _knob("security", None, "PEM file of its private key; read again when it changes")
    tls_client_ca: Path | None = _knob(
        "security",
        None,
        "PEM file of the authorities whose client certificates are let in; makes a certificate necessary (mTLS)",
    )
    identities: Path | None = _knob(
        "security",
        None,
        "TOML file of who may call what: hashed tokens and certificate names with roles (see `latentry token`); read "
        "again when it changes. Without it, everyone who gets through may call everything",
    )
    # --- lifecycle
    drain_grace_s: float = _knob(
        "lifecycle",
        0.0,
        "seconds after SIGTERM in which health says NOT_SERVING and calls are still taken, for load balancers to "
        "notice; makes each stop that much longer",
        ge=0,
        le=600,
    )
    drain_s: float = _knob(
        "lifecycle",
        30.0,
        "seconds that running calls get after that; what still runs then is cut off. With drain_grace_s, keep it below "
        "what your orchestrator waits before SIGKILL",
        ge=0,
        le=3600,
    )
    # --- observability
    log_level: LogLevel = _knob(
        "observability",
        "info",
        "least severe level that is logged; debug may cost more than the calls. AdminService and SIGHUP change it",
    )
    log_format: Literal["auto", "json", "console"] = _knob(
        "observability", "auto", "json: one object a line; console: for people; auto: console on a terminal, else json"
    )
    request_log_level: Literal["debug", "info", "warning", "error", "off"] = _knob(
        "observability",
        "debug",
        "level of the one line that each request is logged with; at log_level or above it costs some 30 microseconds "
        "a call, and disk",
    )
    reconstruct_share: float = _knob(
        "observability",
        0.01,
        "share of encoded items that are also decoded, in the background, to measure the reconstruction error of live "
        "images: more is a surer figure, and work for the decoder; 0: none",
        ge=0,
        le=1,
    )
    trace_endpoint: str = _knob(
        "observability",
        "",
        "where traces go, an OTLP gRPC endpoint such as http://localhost:4317; empty: none. Needs latentry[tracing]",
    )
    trace_share: float = _knob(
        "observability",
        1.0,
        "share of calls that are traced, of those whose caller has not decided; a caller's sampled or unsampled trace "
        "is followed",
        ge=0,
        le=1,
    )

    def __init__(self, config: Path | None = None, **given: Any) -> None:
        fields = type(self).model_fields
        sources = settings_sources.read(given, os.environ, config, fields)
        try:
            super().__init__(**{**sources.file, **sources.environment, **sources.flags})  # the strongest last
        except ValidationError as error:
            raise ConfigError(checks.explain(error, sources, fields)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        return checks.read_value(value, cls.model_fields[info.field_name or ""])

    @field_validator("host", "default_model", "device", "trace_endpoint", "versions", "labels")
    @classmethod
    def _check(cls, value: Any, info: ValidationInfo) -> Any:
        return checks.GRAMMARS[info.field_name or ""](value)

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        checks.queue_holds_a_request(self.max_queue_items, self.max_request_items)
        checks.ports_differ({"port": self.port, "metrics_port": self.metrics_port, "admin_port": self.admin_port})
        if self.tls_key and not self.tls_certificate:
            raise Unfit(str(self.tls_key), "tls_certificate with it", "tls_key")
        if self.tls_certificate and not self.tls_key:
            raise Unfit(str(self.tls_certificate), "tls_key with it", "tls_certificate")
        if self.tls_client_ca and not self.tls_certificate:
            raise Unfit(str(self.tls_client_ca), "tls_certificate and tls_key with it", "tls_client_ca")
        if not self.insecure and not checks.is_loopback(self.host):
            tells_who_calls = self.identities is not None or self.tls_client_ca is not None
            checks.may_listen(self.host, tells_who_calls, self.tls_certificate is not None)
        if self.admin_port is not None and self.identities is None:
            if not checks.is_loopback(self.host):
                raise Unfit(str(self.admin_port), "identities with it, as others can reach it", "admin_port")
            if self.tls_client_ca is not None:
                raise Unfit(str(self.admin_port), "identities with it: a certificate alone is no admin's", "admin_port")
        return self

    @property
    def repository(self) -> Path:
        """The model repository: `models`, or the one that comes with Latentry."""
        return self.models or embedded_models()

    def policy_for(self, name: str) -> Policy:
        """Which versions of the model `name` serve."""
        return self.policies.get(name, self.policies[""])

    @cached_property
    def label_map(self) -> Mapping[str, Mapping[str, int]]:
        """Versions by label, by model name."""
        return read_labels(self.labels)

    @cached_property
    def policies(self) -> Mapping[str, Policy]:
        """Which versions serve, by model name; "" for every model that is not named."""
        return read_policies(self.versions)
