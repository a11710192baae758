"""Certificates from files that may change while we serve: for gRPC, and for the HTTP pages beside it.

Every new connection gets the newest pair that is good. One that is not (half written, of another key, expired) leaves
the one from before in place and says why in the log. Connections that are open stay. Knows nothing of who may do what.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import grpc

from serving.errors import ConfigError
from serving.file_changes import FileChanges, marks

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 20
# Two more messages each than a handshake has.
_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Files:
    """Where the PEM files are: the server's chain and key, and the CA that clients' certificates have to be from."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def paths(self) -> tuple[Path, ...]:
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))


@dataclass(frozen=True, slots=True)
class Pair:
    """What was read: ready for gRPC and for `ssl`, and good until `expires`."""

    configuration: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext
    expires: datetime


class Certificates:
    """The certificate that new connections see. Raises `ConfigError` when the first one is no good.

    It may be asked from any thread: gRPC asks from its own.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = Files(certificate, key, client_ca)
        self._lock = threading.Lock()
        self._changes = FileChanges(self._files.paths(), clock)
        self._pair = read(self._files)
        _warn_if_public(key)

    def current(self) -> Pair:
        """The newest good pair; files are looked at when a second has passed since the last look."""
        with self._lock:
            if self._changes.noticed():
                try:
                    self._pair = read(self._files)
                except ConfigError as error:
                    log.error("%s; the certificate from before stays", error)  # noqa: TRY400 # one line is enough
                else:
                    log.info("%s: read again, good until %s", self._files.certificate, self._pair.expires)
            return self._pair

    @property
    def expires(self) -> datetime:
        """When the certificate ends."""
        return self.current().expires

    def server_credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`. With a client CA, clients without a certificate of its are not let in."""
        given = self._pair

        def newest() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            before, given = given, self.current()
            return None if given is before else given.configuration  # None: go on as before

        return grpc.dynamic_ssl_server_credentials(
            given.configuration,
            newest,  # type: ignore[arg-type] # the stubs leave out None, the documentation does not
            require_client_authentication=self._files.client_ca is not None,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """For HTTP. A client's certificate is asked for and verified but may be missing: probes have none."""
        context = _Newest(ssl.PROTOCOL_TLS_SERVER)
        context.certificates = self
        return context


class _Newest(ssl.SSLContext):
    """Makes each connection with the newest certificate."""

    certificates: Certificates

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.certificates.current().context.wrap_bio(*args, **kwargs)


def read(files: Files) -> Pair:
    """Read and check everything that a client would. Raises `ConfigError` with the file and what is wrong with it."""
    before = marks(files.paths())
    chain = _pem(files.certificate, b"CERTIFICATE")
    key = _pem(files.key, b"PRIVATE KEY")
    if b"ENCRYPTED" in key:
        raise ConfigError(f"{files.key}: got an encrypted key, wanted one without a passphrase")
    roots = _pem(files.client_ca, b"CERTIFICATE") if files.client_ca else None
    context = _server_context(files.certificate, files.key)
    expires = _try_out(context, files.certificate)
    if files.client_ca:
        _ask_for_certificate(context, files.client_ca)
    if marks(files.paths()) != before:
        raise ConfigError(f"{files.certificate}: got other files while reading, wanted them to stay as they are")
    return Pair(grpc.ssl_server_certificate_configuration([(key, chain)], roots), context, expires)


def _pem(path: Path, kind: bytes) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if b"-----BEGIN " not in data or kind + b"-----" not in data:
        raise ConfigError(f"{path}: got no {kind.decode().lower()} in PEM, wanted one")
    return data


def _server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # never ask the terminal
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{key}: got a key that does not belong to {certificate}, wanted its own") from error
        raise ConfigError(f"{certificate}, {key}: cannot be used: {error.reason or 'damaged PEM'}") from error
    except OSError as error:
        raise ConfigError(f"{certificate}, {key}: {error.strerror}") from error
    return context


def _try_out(server: ssl.SSLContext, certificate: Path) -> datetime:
    """Shake hands with a client that trusts this certificate, in memory; says when it ends.

    That finds what would otherwise be found by the first client: expired, not valid yet, not meant for servers.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # which names clients use is theirs to know
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        client.load_verify_locations(cafile=certificate)
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)]
        for _ in range(_ROUNDS):
            for end in ends:
                _step(end)
        seen = ends[0].getpeercert()
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(f"{certificate}: {error.verify_message}, wanted one that clients accept now") from error
    except (OSError, ValueError) as error:  # the first is also SSLError
        raise ConfigError(f"{certificate}: cannot be used: {error}") from error
    if not seen:
        raise ConfigError(f"{certificate}: cannot be used: the handshake does not end")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(seen["notAfter"])), timezone.utc)


def _step(end: ssl.SSLObject) -> None:
    with contextlib.suppress(ssl.SSLWantReadError):  # then it is the other one's turn
        end.do_handshake()


def _ask_for_certificate(context: ssl.SSLContext, client_ca: Path) -> None:
    context.verify_mode = ssl.CERT_OPTIONAL
    try:
        context.load_verify_locations(cafile=client_ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{client_ca}: cannot be used: {getattr(error, 'reason', None) or 'damaged PEM'}") from error
    authorities = context.get_ca_certs()
    if not authorities:
        raise ConfigError(f"{client_ca}: got certificates of no authority, wanted the one that signs clients'")
    if all(ssl.cert_time_to_seconds(str(each["notAfter"])) < time.time() for each in authorities):
        raise ConfigError(f"{client_ca}: certificate has expired, wanted one that is valid now")


def _warn_if_public(key: Path) -> None:
    with contextlib.suppress(OSError):  # gone again: the next look says so
        if key.stat().st_mode & 0o004:
            log.warning("%s: everybody on this machine may read it, wanted chmod o-r", key)
