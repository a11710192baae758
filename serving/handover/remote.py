"""The front end's side of a hand-over socket: the connection to one engine process."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from itertools import count

from serving.catalog import Catalog
from serving.errors import EngineFailed
from serving.handover.arena import Arena
from serving.handover.calls import Calls
from serving.handover.link import Data, Link
from serving.handover.questions import Body
from serving.handover.records import (
    ANSWERED,
    ASK,
    CATALOG,
    FOLLOWED,
    HELLO,
    RELEASE,
    REPLY,
    VERSION,
    Head,
    heard,
    record,
    said,
)
from serving.handover.state import Replica

log = logging.getLogger(__name__)

ARENA_BYTES = 64 << 20
_ANY = 1 << 62  # unsent bytes: calls are refused long before


class EngineGone(ConnectionError):
    """The engine process closed its end before it had said what it serves."""


class Remote:
    """One engine process as a front end sees it. `sock` is a connected AF_UNIX stream socket, and is the remote's own
    from now on. `catalog` is made to be what the engine process serves, by its public methods; hand the same catalog to
    the next `Remote` after this one is `closed`. Its models' batchers are `RemoteBatcher`s.

    Once the engine has gone every waiting `submit` raises `EngineFailed`, and the catalog's models stay but are not
    `up`. `changed` is called after that, and whenever the catalog or what is `up` may have changed, when all of it is
    so; `closed` is done then.
    """

    closed: asyncio.Future[None]  # there from `start` on; done once the engine has gone; never an exception

    def __init__(
        self,
        sock: socket.socket,
        catalog: Catalog,
        *,
        changed: Callable[[], None] = lambda: None,
        arena_bytes: int = ARENA_BYTES,
    ) -> None:
        self._sock = sock
        self._changed = changed
        self._arena = _arena(arena_bytes)
        self._calls = Calls(self._arena)
        self._replica = Replica(catalog, self._calls, self._release)
        self._asked: dict[int, asyncio.Future[Body]] = {}
        self._numbers = count(1)
        self._link: Link | None = None

    async def start(self) -> None:
        """Say hello; returns when the catalog is filled. Raises `EngineGone` if the engine goes before that."""
        loop = asyncio.get_running_loop()
        self.closed = loop.create_future()
        self._filled: asyncio.Future[None] = loop.create_future()
        handlers = {
            **self._calls.handlers,
            CATALOG: self._follow,
            REPLY: self._answered,
        }
        self._link = Link(self._sock, handlers, self._end, _ANY)
        try:
            self._say_hello()
        except OSError as error:
            self.close()
            raise EngineGone(f"the engine process has gone: {error.strerror}") from error
        self._calls.start(self._link)
        self._link.start()
        await asyncio.wait((self._filled, self.closed), return_when=asyncio.FIRST_COMPLETED)
        if not self._filled.done():
            raise EngineGone("the engine process has gone before it said what it serves")

    async def ask(self, kind: str, body: Body) -> Body:
        """What the engine process answers. Raises `EngineFailed` once it has gone, `RuntimeError` if it cannot."""
        if self._link is None or not self._calls.alive:
            raise EngineFailed
        number = next(self._numbers)
        answer: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._link.put(said(ASK, [kind, body], number=number))
        return await answer

    def close(self) -> None:
        """End the connection, as if the engine had gone."""
        if self._link is None:
            self._sock.close()
            self._close_arena()
        elif not self.closed.done():
            self._link.close()
            self._end()

    def _say_hello(self) -> None:
        """With the arena, in one message: the socket is empty, so that it goes out whole."""
        hello = said(HELLO, {"version": VERSION, "arena": self._arena.size if self._arena else 0})
        descriptors = [self._arena.descriptor] if self._arena else []
        sent = socket.send_fds(self._sock, [hello], descriptors)
        if sent < len(hello):
            raise BlockingIOError("the socket is not empty")

    def _release(self, number: int) -> None:
        if self._link is not None and self._calls.alive:
            self._link.put(record(RELEASE, number=number))

    def _end(self) -> None:
        self._calls.end()
        self._replica.end()
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(EngineFailed())
        self._close_arena()
        self.closed.set_result(None)
        self._changed()

    def _close_arena(self) -> None:
        arena, self._arena = self._arena, None
        if arena is not None:
            arena.close()

    # ---- what the engine process says ----

    def _follow(self, head: Head, data: Data, at: int) -> None:
        self._replica.follow(heard(head, data, at))
        if not self._filled.done():
            self._filled.set_result(None)
        self._changed()
        if self._link is not None:
            self._link.put(record(FOLLOWED, number=head[4]))

    def _answered(self, head: Head, data: Data, at: int) -> None:
        answer = self._asked.pop(head[4])
        body: Body = heard(head, data, at)
        if answer.done():
            return
        if head[2] == ANSWERED:
            answer.set_result(body)
        else:
            answer.set_exception(RuntimeError(f"in the engine process: {body}"))


def _arena(size: int) -> Arena | None:
    if not size:
        return None
    try:
        return Arena(size)
    except OSError as error:
        log.warning("no memory that is shared with the engine process, which is slower: %s", error)
        return None
