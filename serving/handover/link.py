"""One end of a hand-over socket: what one turn of the loop gathers goes out in one send, what one readiness brings is
handled in one go. Knows where records begin and end, and nothing of what they say.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping

from serving.handover.records import HEAD, MOST_BYTES, Head, Malformed

log = logging.getLogger(__name__)

Data = bytes | bytearray
Handler = Callable[[Head, Data, int], None]

_AT_ONCE = 1 << 17  # bytes that are read at once


class Link:
    """`handlers` are called by kind, with a record's head, and where its body begins in which bytes; whatever they
    raise ends the link. `ended` is called once, when the link has ended for whatever reason but `close`.
    """

    def __init__(
        self, sock: socket.socket, handlers: Mapping[int, Handler], ended: Callable[[], None], most_unsent: int
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._handlers = handlers
        self._ended = ended
        self._most_unsent = most_unsent
        self._loop = asyncio.get_running_loop()
        self._left = b""  # the beginning of a record
        self._large: bytearray | None = None  # a record that does not come in one piece, and how much of it is there
        self._there = 0
        self._parts: list[bytes] = []
        self._asked = False  # for a flush
        self._unsent: deque[memoryview] = deque()
        self.unsent = 0  # bytes that the other end did not take yet
        self._descriptors: list[int] = []  # that came along and that nobody has taken
        self._with_descriptors = False
        self.closed = False

    def start(self, *, descriptors: bool = False) -> None:
        """Begin to read; with `descriptors`, one that comes along is kept until it is taken."""
        self._with_descriptors = descriptors
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def take_descriptor(self) -> int:
        """The one that came along, the caller's from now on; no more of them are taken. Raises `Malformed`."""
        self._with_descriptors = False
        if len(self._descriptors) != 1:
            raise Malformed(f"descriptors: got {len(self._descriptors)}, wanted one")
        return self._descriptors.pop()

    def put(self, data: bytes) -> None:
        """Send this at the end of the turn; nothing happens once the link has ended."""
        self._parts.append(data)
        if not self._asked:
            self._asked = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """End it."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._parts.clear()
        self._unsent.clear()
        self.unsent = 0

    def _end(self, why: str = "") -> None:
        if self.closed:
            return
        if why:
            log.error("a hand-over socket is closed: %s", why)
        self.close()
        self._ended()

    # ---- in ----

    def _readable(self) -> None:
        try:
            if self._large is not None:
                self._read_more_of(self._large)
                return
            data = self._receive()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        self._split(self._left + data if self._left else data)

    def _receive(self) -> bytes:
        if not self._with_descriptors:
            return self._sock.recv(_AT_ONCE)
        data, descriptors, _, _ = socket.recv_fds(self._sock, _AT_ONCE, 1)
        self._descriptors += descriptors
        return data

    def _split(self, data: bytes) -> None:
        at, end, handlers, unpack, size = 0, len(data), self._handlers, HEAD.unpack_from, HEAD.size
        try:
            while end - at >= size:
                head = unpack(data, at)
                length = head[0]
                if at + length > end or length < size:
                    self._check(head)
                    break
                handlers[head[1]](head, data, at + size)
                at += length
                if self.closed:
                    return
        except Exception as error:
            self._fail(error)
            return
        self._left = b"" if at == end else data[at:]
        if end - at >= size and length > _AT_ONCE:
            self._large, self._there = bytearray(length), end - at
            self._large[: end - at] = self._left
            self._left = b""

    def _read_more_of(self, large: bytearray) -> None:
        got = self._sock.recv_into(memoryview(large)[self._there :])
        self._there += got
        if not got:
            self._end()
        elif self._there == len(large):
            self._large = None
            self._handle_large(large)

    def _handle_large(self, large: bytearray) -> None:
        head = HEAD.unpack_from(large)
        try:
            self._handlers[head[1]](head, large, HEAD.size)
        except Exception as error:
            self._fail(error)

    def _check(self, head: Head) -> None:
        """Raises `Malformed` if no record begins so."""
        length, kind, *_ = head
        if not HEAD.size <= length <= MOST_BYTES or length % 8 or kind not in self._handlers:
            raise Malformed(f"record: got kind {kind} of {length} bytes")

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, Malformed):
            log.exception("a record on a hand-over socket could not be handled")
        self._end(str(error) or type(error).__name__)

    # ---- out ----

    def _flush(self) -> None:
        self._asked = False
        if self.closed or not self._parts:
            self._parts.clear()
            return
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.unsent += len(data)
        self._unsent.append(memoryview(data))
        if self.unsent == len(data) and not self._send_all():
            self._loop.add_writer(self._sock.fileno(), self._writable)
        if self.unsent > self._most_unsent:
            self._end(f"{self.unsent} bytes are not read, of at most {self._most_unsent}")

    def _writable(self) -> None:
        if self._send_all() and not self.closed:
            self._loop.remove_writer(self._sock.fileno())

    def _send_all(self) -> bool:
        """Whether there is nothing left to wait for."""
        while self._unsent:
            data = self._unsent[0]
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:  # it has gone; what it said last is read no more
                self._end()
                return True
            self.unsent -= sent
            if sent < len(data):
                self._unsent[0] = data[sent:]
                return False
            self._unsent.popleft()
        return True
