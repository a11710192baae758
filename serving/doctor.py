"""The command `latentry doctor`: what works on this machine, in plain words, for given settings.

Looks only: it loads no model, and listens on a port for an instant to see whether it is free.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from latentry import manifest
from latentry.manifest import ManifestError
from serving import devices, doctor_machine, engine, identities, precisions, processors, repository, tls
from serving.bad_graph import BadGraph
from serving.doctor_machine import pip_line, version_of
from serving.errors import ConfigError, NoDevice, NoModel
from serving.findings import Finding, ok, problem, warning
from serving.settings import Settings

_SOON = timedelta(days=30)


def examine(config: Path | None, flags: Mapping[str, Any]) -> list[Finding]:
    """Look at the machine, and at everything that the settings name."""
    findings = list(doctor_machine.examine())
    try:
        settings = Settings(config, **flags)
    except ConfigError as error:
        return [*findings, problem("settings", f"{error}; what depends on them was not looked at")]
    findings.append(ok("settings", "make sense (latentry serve --print-config shows them)"))
    for look in (_device, _ports, _models, _security, _tracing):
        findings += look(settings)
    return findings


def _device(settings: Settings) -> Iterator[Finding]:
    threads = settings.threads or processors.available()
    if settings.threads > processors.available():
        got = f"{settings.threads} threads on {processors.available()} processors"
        yield warning("threads", f"got {got}, wanted no more threads than processors: they wait for each other")
    try:
        chosen = devices.choose(
            settings.device, engine.why_not, threads=threads, tensorrt_cache=settings.tensorrt_cache
        )
    except NoDevice as error:
        mend = "" if "no NVIDIA driver" in str(error) else f"; {pip_line('cuda')}"
        yield problem("device", f"{error}{mend}")
    else:
        names = ", ".join(f"{device.name} ({device.provider})" for device in chosen)
        yield ok("device", f"--device {settings.device} runs graphs on {names}: {chosen[0].reason}")
    cache = settings.tensorrt_cache
    if cache is not None and not (cache.is_dir() and os.access(cache, os.W_OK)):
        yield problem("tensorrt_cache", f"{cache}: wanted a folder that can be written to")


def _ports(settings: Settings) -> Iterator[Finding]:
    for key in ("port", "metrics_port", "admin_port"):
        port = getattr(settings, key)
        if port is None:
            continue
        try:
            kind, _, _, _, address = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(kind) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(1)
        except OSError as error:
            yield problem(key, f"cannot listen on {settings.host}:{port}: {error.strerror}")
        else:
            yield ok(key, f"{settings.host}:{port} is free" if port else "any free one")


def _models(settings: Settings) -> Iterator[Finding]:
    root = settings.repository
    try:
        found = repository.scan(root)
    except NoModel as error:
        yield problem("models", str(error))
        return
    yield from (problem("models", f"{root / name}: {why}") for name, why in found.misnamed.items())
    if not found.versions:
        yield problem("models", f"{root}: no model, wanted <name>/<version>/manifest.json")
    total, provider = 0, _provider(settings)
    for name, folders in found.versions.items():
        labels = settings.label_map.get(name, {})
        serving = settings.policy_for(name).choose(folders) | (set(labels.values()) & folders.keys())
        if not serving:
            yield warning("models", f"{name}: none of its {len(folders)} versions serves, by its policy")
        for version in sorted(serving):
            finding, size = _model(folders[version], settings.precision, provider)
            total += size
            yield finding
        for label, version in labels.items():
            if version not in folders:
                yield problem("labels", f"{name}:{label}={version}: there is no {root / name / str(version)}")
    for name in settings.label_map.keys() - found.versions.keys():
        yield problem("labels", f"{name}: there is no {root / name}")
    if settings.default_model and settings.default_model not in found.versions:
        yield problem("default_model", f"got {settings.default_model}, wanted one of {', '.join(found.versions)}")
    free, _ = doctor_machine.available_memory()
    if total > free:
        yield warning("memory", f"{free >> 20} MiB available, and the graphs alone have {total >> 20} MiB")


def _provider(settings: Settings) -> str:
    """Where models are to run; of a device that cannot be used more is said elsewhere."""
    cache = settings.tensorrt_cache
    try:
        chosen = devices.choose(settings.device, engine.why_not, threads=1, tensorrt_cache=cache)
    except NoDevice:
        return devices.CUDA if cache is None else devices.TENSORRT
    return chosen[0].provider


def _model(folder: Path, wanted: str, provider: str) -> tuple[Finding, int]:
    """Whether the folder verifies and comes in what is wanted, and the bytes of the graphs that would be served."""
    try:
        whole = manifest.read(folder)
        precision = precisions.choose(wanted, provider, whole.manifest)
    except (ManifestError, BadGraph) as error:
        return problem("models", str(error)), 0
    size = len(whole.graph("encoder", precision)) + len(whole.graph("decoder", precision))
    about = whole.manifest
    shape = "x".join(map(str, about.image_shape))
    text = f"{shape}, {about.latent_dim} latents, {size / (1 << 20):.1f} MiB in {precision}"
    return ok("models", f"{about.name} version {about.version} verifies: {text}"), size


def _security(settings: Settings) -> Iterator[Finding]:
    if settings.tls_certificate and settings.tls_key:
        try:
            files = tls.Files(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
            left = tls.read(files).expires - datetime.now(timezone.utc)
        except ConfigError as error:
            yield problem("certificate", str(error))
        else:
            verdict = warning if left < _SOON else ok
            yield verdict("certificate", f"{settings.tls_certificate}: good for {left.days} more days")
    if settings.identities:
        try:
            known = identities.read(settings.identities)
        except ConfigError as error:
            yield problem("identities", str(error))
        else:
            yield ok("identities", f"{settings.identities}: {len(known)} identities")
    if settings.insecure:
        yield warning("security", "--insecure: whoever reaches the ports may call, and can read what passes")
    elif not settings.identities and not settings.tls_client_ca:
        yield ok("security", f"no credentials are asked for, and only this machine reaches {settings.host}")


def _tracing(settings: Settings) -> Iterator[Finding]:
    if settings.trace_endpoint and version_of("opentelemetry-exporter-otlp-proto-grpc") is None:
        yield problem("traces", f"trace_endpoint needs what is not installed; {pip_line('tracing')}")
