"""The HTTP pages: what they say, to whom, and what slow, many and odd clients cannot do to them."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from certificates import Authority, replace
from certificates import failed_handshakes as failed_handshakes
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families
from test_access import ADMIN, APP, PROMETHEUS, USUAL

from serving import page_connections
from serving.access import Access
from serving.errors import PortTaken
from serving.pages import Pages
from serving.tls import Certificates

OPEN = Access(None, client_ca=False)


def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("latentry_answer", "What it is.", registry=made).set(42)
    return made


@asynccontextmanager
async def pages(
    access: Access = OPEN, ready: Callable[[], bool] = lambda: True, made: CollectorRegistry | None = None, **more: Any
) -> AsyncIterator[int]:
    """The port of running pages."""
    running = Pages(made or registry(), access, ready, **more)
    try:
        yield await running.start("127.0.0.1", 0)
    finally:
        await running.close()


async def get(port: int, path: str, headers: dict[str, str] | None = None, **more: Any) -> tuple[int, str, Any]:
    """Status, body and headers; over a connection of its own."""
    scheme = "https" if "ssl" in more else "http"
    method = more.pop("method", "GET")
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session,
        session.request(method, f"{scheme}://localhost:{port}{path}", headers=headers, **more) as reply,
    ):
        return reply.status, await reply.text(), reply.headers


async def raw(port: int, data: bytes) -> bytes:
    """What comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_live_while_the_loop_turns_and_ready_when_told_so() -> None:
    ready = False
    async with pages(ready=lambda: ready) as port:
        assert (await get(port, "/livez"))[:2] == (200, "ok\n")
        assert (await get(port, "/readyz"))[:2] == (503, "not ready\n")
        ready = True
        assert (await get(port, "/readyz"))[:2] == (200, "ready\n")
        assert (await get(port, "/readyz", method="HEAD"))[:2] == (200, "")
        status, body, _ = await get(port, "/")
        assert status == 200
        for link in re.findall(r'href="([^"]+)"', body):
            assert (await get(port, link))[0] == 200


async def test_metrics_come_as_text_or_as_open_metrics_and_zipped_when_asked() -> None:
    async with pages() as port:
        status, text, headers = await get(port, "/metrics")
        assert status == 200
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert [family.samples[0].value for family in text_string_to_metric_families(text)] == [42]
        accept = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"}
        _, text, headers = await get(port, "/metrics", accept)
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert [family.samples[0].value for family in parse_open_metrics(text)] == [42]
        zipped = await raw(
            port, b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
        )
        head, _, body = zipped.partition(b"\r\n\r\n")
        assert b"Content-Encoding: gzip" in head
        assert b"latentry_answer 42" in gzip.decompress(body)


@pytest.mark.parametrize(
    ("accept", "zipped"),
    [
        ("gzip", True),
        ("br, GZip ; q=0.001", True),
        ("gzip;q=1.0, identity;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip ; q=0.000, br", False),
        ("identity, gzip;Q=0.", False),
        ("gzip;q=x", False),
        ("gzipped", False),
        ("", False),
    ],
)
async def test_a_page_is_zipped_for_those_alone_who_want_it(accept: str, zipped: bool) -> None:
    async with pages() as port:
        head = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accept}\r\nConnection: close\r\n\r\n"
        reply = await raw(port, head.encode())
        assert (b"Content-Encoding: gzip" in reply) == zipped
        assert (b"latentry_answer 42" in reply) != zipped


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=abc", "text/plain;version=x", ",;=,", "é"])
async def test_any_accept_header_is_answered(accept: str) -> None:
    async with pages() as port:
        assert (await get(port, "/metrics", {"Accept": accept}))[0] == 200


async def test_other_paths_and_methods_are_refused_in_one_line() -> None:
    async with pages() as port:
        for path in ("/nothing", "/metrics/", "/../etc/passwd", "/%2e%2e/etc/passwd", "//metrics"):
            status, body, _ = await get(port, path)
            assert (status, body) == (404, "wanted one of / /metrics /livez /readyz\n")
        for method in ("POST", "DELETE", "OPTIONS"):
            status, body, headers = await get(port, "/metrics", method=method)
            assert (status, body) == (405, f"got {method}, wanted GET\n")
            assert headers["Allow"] == "GET, HEAD"


class Broken:
    """A collector that fails, and says in its exception what nobody should read."""

    def collect(self) -> Any:
        raise RuntimeError("the secret of /root")


async def test_no_reply_tells_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    made = CollectorRegistry()
    made.register(Broken())  # type: ignore[arg-type]
    async with pages(made=made) as port:
        status, body, headers = await get(port, "/metrics", {"Accept": "text/html"})
        assert (status, body) == (500, "internal error\n")
        assert "the secret of /root" in caplog.text, "the log has the particulars"
        assert headers["Server"] == "latentry"
        for odd in (b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\r\n" * 50):
            reply = await raw(port, odd + b"\r\n\r\n")
            assert re.match(rb"HTTP/1\.[01] 400 ", reply)
            assert b"Server: latentry\r\n" in reply
            assert reply.endswith(b"\r\n\r\nbad request\n")
        caplog.clear()
        huge = b"GET / HTTP/1.1\r\nX: " + b"A" * 100_000 + b"\r\n\r\n"
        assert re.match(rb"HTTP/1\.[01] 400 ", await raw(port, huge))
        assert not caplog.records, "whatever anybody sends is no event"


async def test_metrics_ask_for_the_role_and_probes_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "identities.toml"
    replace(file, USUAL.encode())

    async with pages(Access(file, client_ca=False)) as port:

        async def status(token: str | None, path: str = "/metrics") -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            code, body, reply = await get(port, path, headers)
            assert not token or token not in body
            assert code != 401 or reply["WWW-Authenticate"] == "Bearer"
            return code

        assert await status(PROMETHEUS) == 200
        assert await status(APP) == await status(ADMIN) == 403
        assert await status("wrong") == await status(None) == 401
        assert await status(None, "/livez") == await status(None, "/readyz") == await status(None, "/") == 200
        line = f"Authorization: Bearer {PROMETHEUS}\r\n"
        twice = await raw(port, f"GET /metrics HTTP/1.1\r\nHost: x\r\n{line}{line}Connection: close\r\n\r\n".encode())
        assert twice.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 "))
        assert PROMETHEUS.encode() not in twice


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # see the fixture
@pytest.mark.usefixtures("failed_handshakes")
async def test_over_tls_a_certificate_is_enough_and_probes_need_none(tmp_path: Path) -> None:
    ca, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "stranger")
    context = Certificates(*ca.server(), ca.file).ssl_context()
    ours = ca.client_context(ca.write("client", ca.issue("prometheus.example")))
    theirs = ca.client_context(stranger.write("client", stranger.issue("prometheus.example")))
    async with pages(Access(None, client_ca=True), ssl_context=context) as port:
        assert (await get(port, "/metrics", ssl=ours))[0] == 200
        assert (await get(port, "/metrics", ssl=ca.client_context()))[0] == 401
        assert (await get(port, "/livez", ssl=ca.client_context()))[0] == 200
        with pytest.raises((aiohttp.ClientError, ConnectionError, ssl.SSLError)):
            await get(port, "/livez", ssl=theirs)
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await get(port, "/livez")


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"cannot serve metrics on 127\.0\.0\.1:{port}: .*in use"):
            await Pages(registry(), OPEN, lambda: True).start("127.0.0.1", port)
    with pytest.raises(PortTaken, match=r"no\.such\.host\.invalid:0"):
        await Pages(registry(), OPEN, lambda: True).start("no.such.host.invalid", 0)


async def open_sockets(port: int, count: int, data: bytes = b"") -> list[socket.socket]:
    """Connections on which nothing more happens."""
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(count):
        connection = socket.socket()
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        await loop.sock_sendall(connection, data)
        made.append(connection)
    return made


async def closed(connection: socket.socket) -> bool:
    """Whether the other side closes within seconds."""
    try:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 1), 10) == b""
    except ConnectionError:
        return True


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so, for ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("data", [b"", b"GET /metrics HTTP/1.1\r\nX-Slow: "], ids=["idle", "slow headers"])
async def test_a_thousand_idle_connections_harm_nobody_and_leave(data: bytes) -> None:
    async with pages(idle_s=0.5) as port:
        idle = await open_sockets(port, 1000, data)
        try:
            assert (await get(port, "/livez"))[0] == 200
            assert (await get(port, "/metrics"))[0] == 200
            assert all(await asyncio.gather(*map(closed, idle)))
        finally:
            for connection in idle:
                connection.close()
        assert (await get(port, "/livez"))[0] == 200


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # see the fixture
@pytest.mark.usefixtures("failed_handshakes")
async def test_clients_that_never_shake_hands_leave(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ca = Authority(tmp_path / "ca")
    async with pages(ssl_context=Certificates(*ca.server()).ssl_context(), reply_s=1) as port:
        silent = await open_sockets(port, 300)
        try:
            assert (await get(port, "/livez", ssl=ca.client_context()))[0] == 200
            assert all(await asyncio.gather(*map(closed, silent)))
        finally:
            for connection in silent:
                connection.close()
    assert not caplog.records


async def test_when_there_are_too_many_the_longest_idle_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_connections, "_MOST_CONNECTIONS", 3)
    async with pages(idle_s=60) as port:
        first, second, third = await open_sockets(port, 3, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        loop = asyncio.get_running_loop()
        try:
            for connection in (first, second, third):
                assert (await loop.sock_recv(connection, 4096)).startswith(b"HTTP/1.1 200 ")
            await loop.sock_sendall(first, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await loop.sock_recv(first, 4096)).startswith(b"HTTP/1.1 200 ")
            assert (await get(port, "/livez"))[0] == 200
            assert await closed(second)
            for connection in (first, third):
                await loop.sock_sendall(connection, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await loop.sock_recv(connection, 4096)).startswith(b"HTTP/1.1 200 ")
        finally:
            for connection in (first, second, third):
                connection.close()


async def test_a_client_that_never_reads_its_reply_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    made = CollectorRegistry()
    large = Gauge("latentry_large", "Larger than what the sockets hold.", ["label"], registry=made)
    for i in range(20_000):
        large.labels(f"{i:0200}").set(i)
    running = Pages(made, OPEN, lambda: True, reply_s=0.5)
    port = await running.start("127.0.0.1", 0)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        await until(lambda: running.open_connections == 1)
        assert (await get(port, "/livez"))[0] == 200
        await until(lambda: running.open_connections == 0)
    await running.close()
    assert not caplog.records


class Gated:
    """A collector that waits until the test lets it go."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def collect(self) -> Any:
        self.gate.wait(10)
        return []


async def test_the_loop_turns_while_a_page_is_rendered_and_few_may_wait_for_one() -> None:
    made, slow = CollectorRegistry(), Gated()
    slow.gate.set()
    made.register(slow)  # type: ignore[arg-type]
    slow.gate.clear()
    async with pages(made=made) as port:
        scrapes = [asyncio.ensure_future(get(port, "/metrics")) for _ in range(12)]
        done, waiting = await asyncio.wait(scrapes, timeout=1)
        assert {task.result()[0] for task in done} == {503}
        assert len(done) == 4
        assert (await get(port, "/livez"))[0] == 200
        slow.gate.set()
        assert [(await task)[0] for task in waiting] == [200] * 8


async def test_close_ends_every_connection() -> None:
    running = Pages(registry(), OPEN, lambda: True)
    port = await running.start("127.0.0.1", 0)
    (connection,) = await open_sockets(port, 1)
    assert (await get(port, "/livez"))[0] == 200
    await running.close()
    assert await closed(connection)
    connection.close()
    with pytest.raises(aiohttp.ClientError):
        await get(port, "/livez")
