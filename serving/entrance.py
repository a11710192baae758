"""What all ports of a process share: who may come in, over which TLS, what is counted, who hears of calls."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any

from serving.access import Access
from serving.interceptor import Listener
from serving.logs import RequestLog
from serving.metrics import Metrics
from serving.settings import Settings
from serving.tls import Certificates

_LAST_TRACES_S = 2.0


@dataclass(frozen=True, slots=True)
class Entrance:
    """`certificates` are None without TLS; `tracing` is None without traces."""

    settings: Settings
    metrics: Metrics
    access: Access
    certificates: Certificates | None
    listeners: tuple[Listener, ...]
    tracing: Any

    def end_traces(self) -> None:
        """Send what is left of the traces."""
        if self.tracing is not None:
            self.tracing.close(_LAST_TRACES_S)


def entrance(settings: Settings, metrics: Metrics) -> Entrance:
    """As the settings say; raises `ConfigError` if a file that they name makes no sense."""
    access = access_of(settings)
    certificates = certificates_of(settings)
    tracing = _tracing(settings, metrics)
    listeners = (RequestLog(settings.request_log_level), *([] if tracing is None else [tracing]))
    return Entrance(settings, metrics, access, certificates, listeners, tracing)


def access_of(settings: Settings) -> Access:
    """Who may do what."""
    return Access(settings.identities, settings.tls_client_ca is not None)


def certificates_of(settings: Settings) -> Certificates | None:
    """The server's own, if it has any."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def pages_context(certificates: Certificates | None, metrics: Metrics) -> ssl.SSLContext | None:
    """TLS for the pages, of which `metrics` then say when it expires; None without TLS."""
    if certificates is None:
        return None
    metrics.certificate_expiry.set_function(lambda: certificates.expires.timestamp())
    return certificates.ssl_context()


def _tracing(settings: Settings, metrics: Metrics) -> Any:
    if not settings.trace_endpoint:
        return None
    from serving.tracing import Tracing  # here, because it needs an extra that others do without

    return Tracing(settings.trace_endpoint, settings.trace_share, metrics.trace_spans_lost.inc)
