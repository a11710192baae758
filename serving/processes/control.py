"""What the supervisor and a child say to each other: JSON objects, and descriptors with them, in order.

A message is `kind` and a body; a question is one that has an answer. Neither side ever waits for the other to read:
what it does not take is kept up to a bound, beyond which the connection counts as broken. Knows nothing of what is
said.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from serving.tasks import Tasks

log = logging.getLogger(__name__)

Body = dict[str, Any]

_HEAD = struct.Struct("<IB")  # bytes of the message, descriptors with it
_ASK, _ANSWER = "?", "="
_MOST_UNSENT = 64 << 20
_LOST = -1  # stands for a descriptor that the system could not give us
_READ = 1 << 16


class Gone(ConnectionError):
    """The other end went without an answer."""


class Control:
    """One end. `hear(kind, body, descriptors)` is called for each message, `closed()` once when the other end has gone;
    the descriptors belong to who hears of them: one at most, and none if this process had no room for it. `answers` are
    the functions for questions, by kind. For one event loop.
    """

    def __init__(
        self,
        sock: socket.socket,
        hear: Callable[[str, Body, list[int]], object],
        closed: Callable[[], object],
        answers: Mapping[str, Callable[[Body], Body | Awaitable[Body]]] | None = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._hear = hear
        self._closed = closed
        self._answers = answers or {}
        self._asked: dict[int, asyncio.Future[Body]] = {}
        self._questions = 0
        self._answering = Tasks()
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._unsent_bytes = 0
        self._read = bytearray()
        self._fds: list[int] = []
        self.open = True
        self._loop.add_reader(sock, self._readable)

    def send(self, kind: str, body: Body | None = None, descriptors: Sequence[int] = ()) -> None:
        """Say it; nothing happens if the other end has gone. The descriptors are copied, the caller's stay its own."""
        if not self.open:
            return
        data = json.dumps([kind, body or {}]).encode()
        message = memoryview(_HEAD.pack(len(data), len(descriptors)) + data)
        copies = [os.dup(each) for each in descriptors]
        self._unsent.append((message, copies))
        self._unsent_bytes += len(message)
        if self._unsent_bytes > _MOST_UNSENT:
            self._break()
        elif len(self._unsent) == 1:
            self._flush()

    async def ask(self, kind: str, body: Body | None = None) -> Body:
        """The other end's answer; raises `Gone` if that has gone, or goes before it answers."""
        if not self.open:
            raise Gone(kind)
        self._questions += 1
        number = self._questions
        self._asked[number] = self._loop.create_future()
        self.send(_ASK, {"number": number, "kind": kind, "body": body or {}})
        try:
            return await self._asked[number]
        finally:
            self._asked.pop(number, None)

    def close(self) -> None:
        """End the connection; `closed` is not called."""
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        close_all([*self._fds, *(fd for _, copies in self._unsent for fd in copies)])
        self._unsent.clear()
        self._fds.clear()
        for question in self._asked.values():
            if not question.done():
                question.set_exception(Gone("no answer any more"))

    def _break(self) -> None:
        if self.open:
            self.close()
            self._closed()

    def _flush(self) -> None:
        while self._unsent:
            message, copies = self._unsent[0]
            try:
                sent = _send(self._sock, message, copies)
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError:
                self._loop.call_soon(self._break)  # not from within `send`
                return
            for fd in copies:
                os.close(fd)
            self._unsent_bytes -= sent
            self._unsent[0] = (message[sent:], ())
            if sent == len(message):
                self._unsent.popleft()
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, _READ, 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds, flags = b"", [], 0
        self._fds += [_LOST] if flags & socket.MSG_CTRUNC else fds
        if not data:
            self._break()
            return
        self._read += data
        while self.open and len(self._read) >= _HEAD.size:
            size, count = _HEAD.unpack_from(self._read)
            end = _HEAD.size + size
            if len(self._read) < end:
                break
            kind, body = json.loads(self._read[_HEAD.size : end])
            del self._read[:end]
            given, self._fds = self._fds[:count], self._fds[count:]
            if kind == _ASK:
                self._answering.start(self._answer(body))
            elif kind == _ANSWER:
                question = self._asked.get(body["number"])
                if question is not None and not question.done():
                    if body["body"] is None:
                        question.set_exception(Gone("it could not answer"))
                    else:
                        question.set_result(body["body"])
            else:
                self._hear(kind, body, [fd for fd in given if fd != _LOST])

    async def _answer(self, question: Body) -> None:
        body = None
        try:
            answer = self._answers[question["kind"]](question["body"])
            body = (await answer if isinstance(answer, Awaitable) else answer) or {}
        except Exception:
            log.exception("%s: no answer", question["kind"])
        self.send(_ANSWER, {"number": question["number"], "body": body})


def _send(sock: socket.socket, message: memoryview, fds: Sequence[int]) -> int:
    """The descriptors go with the first byte."""
    if not fds:
        return sock.send(message)
    packed = array.array("i", fds)
    return sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends, neither inherited by a child unless it is given to it."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def close_all(descriptors: Sequence[int]) -> None:
    """Close what nobody took."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
