"""HTTP/2 by hand, for peers that no HTTP library would play: frames, headers without compression, raw sockets."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame; the one setting of interest here is the window of new streams."""
    numbers = {"initial_window_size": 4, "max_frame_size": 5}
    return frame(SETTINGS, b"".join(struct.pack(">HI", numbers[name], value) for name, value in values.items()))


def headers(method: str, stream: int, extra: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The HEADERS of a gRPC call, in one frame."""
    return frame(HEADERS, header_block(method, extra), flags=END_HEADERS, stream=stream)


def header_block(method: str, extra: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The header fields of a gRPC call, each a literal that is not indexed (RFC 7541, 6.2.2)."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *extra,
    ]
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def message(body: bytes, stream: int) -> bytes:
    """One whole gRPC message, and the end of what the client has to say."""
    return frame(DATA, b"\0" + struct.pack(">I", len(body)) + body, flags=END_STREAM, stream=stream)


def call(method: str, body: bytes, stream: int = 1) -> bytes:
    """All that a client sends for one unary call on an open connection."""
    return headers(method, stream) + message(body, stream)


@contextmanager
def connection(port: int, opening: bytes = PREFACE + settings()) -> Iterator[socket.socket]:
    """A TCP connection on which `opening` was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        peer.sendall(opening)
        yield peer


def read_until_closed(peer: socket.socket, timeout_s: float = 10.0) -> bytes:
    """What the peer's other end says until it closes; raises `TimeoutError` if it never does."""
    give_up, received = time.monotonic() + timeout_s, b""
    while True:
        peer.settimeout(max(0.001, give_up - time.monotonic()))
        try:
            data = peer.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            return received
        if not data:
            return received
        received += data


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The whole frames in `data`: kind, flags, stream, payload."""
    at = 0
    while at + 9 <= len(data):
        size = int.from_bytes(data[at : at + 3], "big")
        if at + 9 + size > len(data):
            return
        stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
        yield data[at + 3], data[at + 4], stream, data[at + 9 : at + 9 + size]
        at += 9 + size


def _string(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    length, rest = bytearray([127]), len(data) - 127
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes(length) + bytes([rest]) + data
