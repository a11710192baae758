"""TLS as clients meet it: certificates good, bad, of others, and changing while we serve."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority, replace
from certificates import failed_handshakes as failed_handshakes
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from serving.errors import ConfigError
from serving.tls import Certificates

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Clock:
    """A clock that the test turns."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "stranger")


@asynccontextmanager
async def serving(certificates: Certificates) -> AsyncIterator[int]:
    """The port of a server with nothing but health."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    port = server.add_secure_port("localhost:0", certificates.server_credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def check(channel: grpc.aio.Channel) -> Any:
    """1 if the server is reached, else the status."""
    try:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    except grpc.RpcError as error:
        return error.code()
    return reply.status


async def reached(port: int, credentials: grpc.ChannelCredentials, host: str = "localhost") -> Any:
    """The same over a new connection."""
    options = [] if host == "localhost" else [("grpc.default_authority", host)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options) as channel:
        return await check(channel)


async def seen(port: int, ca: Authority) -> str:
    """The serial number of the certificate that a new connection gets."""
    context = ca.client_context()
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    certificate = writer.get_extra_info("peercert")
    writer.close()
    return str(certificate["serialNumber"])


async def test_a_client_that_trusts_the_authority_is_served_and_no_other(ca: Authority, stranger: Authority) -> None:
    async with serving(Certificates(*ca.server())) as port:
        assert await reached(port, ca.channel_credentials()) == 1
        assert await reached(port, stranger.channel_credentials()) is UNAVAILABLE
        assert await reached(port, ca.channel_credentials(), "other.example") is UNAVAILABLE
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            assert await check(channel) is UNAVAILABLE


async def test_with_a_client_ca_only_its_clients_are_let_in(ca: Authority, stranger: Authority) -> None:
    ours, theirs = ca.issue("client.example"), stranger.issue("client.example")
    late = ca.issue("client.example", days=1, since=-2)
    async with serving(Certificates(*ca.server(), ca.file)) as port:
        assert await reached(port, ca.channel_credentials(ours)) == 1
        assert await reached(port, ca.channel_credentials()) is UNAVAILABLE
        assert await reached(port, ca.channel_credentials(theirs)) is UNAVAILABLE
        assert await reached(port, ca.channel_credentials(late)) is UNAVAILABLE


async def test_a_new_certificate_is_seen_by_new_connections_while_old_ones_stay(ca: Authority) -> None:
    clock = Clock()
    certificates = Certificates(*ca.server(), clock=clock)
    async with (
        serving(certificates) as port,
        grpc.aio.secure_channel(f"localhost:{port}", ca.channel_credentials()) as channel,
    ):
        assert await check(channel) == 1
        first = await seen(port, ca)
        ca.server(days=60)
        assert await seen(port, ca) == first, "the files are not looked at for every connection"
        clock.now += 1.5
        second = await seen(port, ca)
        assert second != first
        assert await check(channel) == 1
        assert await seen(port, ca) == second
    assert certificates.expires > datetime.now(timezone.utc) + timedelta(days=50)


async def test_a_client_ca_that_is_replaced_lets_in_the_new_one_s_clients_only(
    ca: Authority, stranger: Authority, tmp_path: Path
) -> None:
    clock = Clock()
    roots = tmp_path / "roots.pem"
    replace(roots, ca.pem)
    ours, theirs = ca.issue("a.example"), stranger.issue("b.example")
    async with serving(Certificates(*ca.server(), roots, clock=clock)) as port:
        assert await reached(port, ca.channel_credentials(ours)) == 1
        replace(roots, stranger.pem)
        clock.now += 2
        assert await reached(port, ca.channel_credentials(ours)) is UNAVAILABLE
        assert await reached(port, ca.channel_credentials(theirs)) == 1


@pytest.mark.parametrize("how", ["half", "other key", "expired", "gone", "garbage"])
async def test_a_bad_new_pair_leaves_the_old_one_and_is_logged_once(
    ca: Authority, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    clock = Clock()
    certificate, key = ca.server()
    certificates = Certificates(certificate, key, clock=clock)
    async with serving(certificates) as port:
        first = await seen(port, ca)
        new, new_key = ca.issue("localhost", **({"days": 1, "since": -3} if how == "expired" else {}))
        replace(certificate, new[: len(new) // 2] if how == "half" else b"garbage" if how == "garbage" else new)
        if how == "expired":
            replace(key, new_key)
        if how == "gone":
            certificate.unlink()
        for _ in range(3):
            clock.now += 2
            assert await seen(port, ca) == first
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert "stays" in caplog.text
        ca.server()
        clock.now += 2
        assert await seen(port, ca) != first


def spoil(ca: Authority, stranger: Authority, how: str) -> tuple[Path, Path, Path | None]:
    """Files of which one is bad."""
    certificate, key = ca.server()
    roots: Path | None = None
    if how == "mismatch":
        replace(key, ca.issue("localhost")[1])
    elif how == "expired":
        ca.server(days=1, since=-2)
    elif how == "early":
        ca.server(since=2)
    elif how == "no certificate":
        replace(certificate, b"nothing\n")
    elif how == "damaged":
        replace(certificate, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif how == "swapped":
        certificate, key = key, certificate
    elif how == "missing":
        key.unlink()
    elif how == "folder":
        key = ca.folder
    elif how == "encrypted":
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        passphrase = serialization.BestAvailableEncryption(b"secret")
        kind = serialization.PrivateFormat.PKCS8
        replace(key, loaded.private_bytes(serialization.Encoding.PEM, kind, passphrase))
    elif how == "no authority":
        roots = certificate
    elif how == "damaged authority":
        roots = ca.folder / "roots.pem"
        replace(roots, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return certificate, key, roots


@pytest.mark.parametrize(
    ("how", "file", "reason"),
    [
        ("mismatch", "server.key", "a key that does not belong to"),
        ("expired", "server.pem", "certificate has expired"),
        ("early", "server.pem", "certificate is not yet valid"),
        ("no certificate", "server.pem", "got no certificate in PEM"),
        ("damaged", "server.pem", "cannot be used"),
        ("swapped", "server.key", "got no certificate in PEM"),
        ("missing", "server.key", "No such file or directory"),
        ("folder", "ca", "Is a directory"),
        ("encrypted", "server.key", "got an encrypted key, wanted one without a passphrase"),
        ("no authority", "server.pem", "got certificates of no authority"),
        ("damaged authority", "roots.pem", "cannot be used"),
    ],
)
def test_bad_files_stop_the_start_with_one_line(
    ca: Authority, stranger: Authority, how: str, file: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Certificates(*spoil(ca, stranger, how))
    message = str(caught.value)
    assert file in message.partition(": ")[0]
    assert reason in message
    assert "\n" not in message


def test_the_end_of_the_certificate_is_told(ca: Authority) -> None:
    left = Certificates(*ca.server(days=10, since=0)).expires - datetime.now(timezone.utc)
    assert timedelta(days=9, hours=23) < left <= timedelta(days=10)


def test_a_key_that_everybody_may_read_is_warned_of(ca: Authority, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = ca.server()
    Certificates(certificate, key)
    assert not caplog.records
    key.chmod(0o644)
    Certificates(certificate, key)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # see the fixture
@pytest.mark.usefixtures("failed_handshakes")
async def test_http_follows_the_same_files_and_asks_for_a_certificate_without_insisting(
    ca: Authority, stranger: Authority
) -> None:
    clock = Clock()
    certificates = Certificates(*ca.server(), ca.file, clock=clock)
    names: list[Any] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names.append(writer.get_extra_info("peercert"))
        writer.write(b"hello\n")
        await reader.read()
        writer.close()

    async def greeting(context: ssl.SSLContext) -> tuple[bytes, str]:
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
        try:
            return await reader.readline(), writer.get_extra_info("peercert")["serialNumber"]
        finally:
            writer.close()

    client = ca.write("client", ca.issue("client.example"))
    wrong = stranger.write("client", stranger.issue("client.example"))
    server = await asyncio.start_server(greet, "localhost", 0, ssl=certificates.ssl_context())
    port = server.sockets[0].getsockname()[1]
    try:
        line, first = await greeting(ca.client_context())
        assert line == b"hello\n"
        assert not names[-1]
        await greeting(ca.client_context(client))
        assert ("DNS", "client.example") in names[-1]["subjectAltName"]
        before = len(names)
        with contextlib.suppress(ssl.SSLError, ConnectionError):  # in TLS 1.3 the client hears of it on its first read
            assert (await greeting(ca.client_context(wrong)))[0] == b""
        assert len(names) == before
        ca.server()
        assert (await greeting(ca.client_context()))[1] == first
        clock.now += 2
        assert (await greeting(ca.client_context()))[1] != first
    finally:
        server.close()


async def test_tls_1_1_is_refused(ca: Authority) -> None:
    context = Certificates(*ca.server()).current().context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
