"""A client for HTTP/1.1 in Python as load, in a process of its own; prints calls a second and their mean time as JSON.

    python -m benchmarks.http_load KIND URL SECONDS IN_FLIGHT

Posts a latent, 32 float32, and wants an image, 784 bytes, over as many connections as there are calls in flight.
KIND: `aiohttp` (on uvloop), `threads` (the standard library's, a connection a thread), `pycurl` (the same with
libcurl), or `protocol` (asyncio's bare transports on uvloop: no client that people use, but a bound on what one could
be). Others that were tried did less: urllib3, requests, niquests, httpx, in this order.
"""

from __future__ import annotations

import asyncio
import http.client
import sys
from array import array
from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from benchmarks import pacing

_LATENT = array("f", [0.1 * i for i in range(32)]).tobytes()


async def through_aiohttp(url: str, seconds: float, in_flight: int) -> str:
    """aiohttp's client."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:

        async def call() -> int:
            async with session.post(url, data=_LATENT) as reply:
                return len(await reply.read())

        return await pacing.in_coroutines([call] * in_flight, seconds)


async def by_hand(url: str, seconds: float, in_flight: int) -> str:
    """The loop's transports."""
    at = urlsplit(url)
    head = f"POST {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Length: {len(_LATENT)}\r\n\r\n"
    loop, calls = asyncio.get_running_loop(), []
    for _ in range(in_flight):
        _, protocol = await loop.create_connection(_Http1, at.hostname or "", at.port or 80)
        calls.append(_asking(protocol, head.encode() + _LATENT))
    return await pacing.in_coroutines(calls, seconds)


def _asking(protocol: _Http1, request: bytes) -> Callable[[], asyncio.Future[int]]:
    return lambda: protocol.ask(request)


class _Http1(asyncio.Protocol):
    """One request at a time; knows no chunks, and takes a reply whose length is not said for a fault."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """The length of the reply's body, when it is there."""
        self._got = b""
        self._answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, rest = self._got.partition(b"\r\n\r\n")
        if found:
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(rest) >= length and not self._answer.done():
                self._answer.set_result(length)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection"))


def through_threads(url: str, seconds: float, in_flight: int) -> str:
    """http.client."""
    at = urlsplit(url)

    def caller() -> Callable[[], int]:
        connection = http.client.HTTPConnection(at.hostname or "", at.port)

        def call() -> int:
            connection.request("POST", at.path, _LATENT)
            return len(connection.getresponse().read())

        return call

    return pacing.in_threads([caller() for _ in range(in_flight)], seconds)


def through_pycurl(url: str, seconds: float, in_flight: int) -> str:
    """libcurl, which waits without the interpreter."""
    import pycurl  # type: ignore[import-untyped,unused-ignore]

    def caller() -> Callable[[], int]:
        curl = pycurl.Curl()
        wanted = {curl.URL: url, curl.POST: 1, curl.POSTFIELDS: _LATENT, curl.POSTFIELDSIZE: len(_LATENT)}
        for option, value in {**wanted, curl.HTTPHEADER: ["Content-Type: application/octet-stream"]}.items():
            curl.setopt(option, value)

        def call() -> int:
            got = BytesIO()
            curl.setopt(curl.WRITEDATA, got)
            curl.perform()
            return len(got.getvalue())

        return call

    return pacing.in_threads([caller() for _ in range(in_flight)], seconds)


IN_COROUTINES = {"aiohttp": through_aiohttp, "protocol": by_hand}
IN_THREADS = {"threads": through_threads, "pycurl": through_pycurl}


def main() -> None:
    """Press, and say how it went."""
    kind, url, seconds, in_flight = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    if kind in IN_THREADS:
        print(IN_THREADS[kind](url, seconds, in_flight))
    else:
        import uvloop

        print(uvloop.run(IN_COROUTINES[kind](url, seconds, in_flight)))


if __name__ == "__main__":
    main()
