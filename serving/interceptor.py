"""The one place that counts and times calls, asks who the caller is, refuses calls while draining, and turns
exceptions into status.

What a call learns on its way goes into its record (`serving.call`), which goes to whoever wants to know at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from collections import Counter as Counts
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from latentry.v1 import admin_pb2, vae_pb2
from serving import call as records
from serving.access import Access, Role, credentials_of
from serving.api.wire import Reply
from serving.call import BACKGROUND, INTERACTIVE, Call
from serving.errors import (
    Internal,
    InvalidArgument,
    MessageTooLarge,
    NotRead,
    PermissionDenied,
    QueueFull,
    QuotaExceeded,
    ServiceError,
)
from serving.gate import Gate
from serving.metrics import Metrics
from serving.swift_metrics import Counter, Histogram

log = logging.getLogger(__name__)

SERVICE = vae_pb2.DESCRIPTOR.services_by_name["VaeService"].full_name
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name

PRIORITY_KEY = "latentry-priority"
REQUEST_ID_KEY = "x-request-id"

_random = random.Random()  # noqa: S311 - names of calls are no secrets, and the system's numbers take a system call
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_MAX_UNREAD_BYTES = 64 << 20  # of replies on one connection, before more calls are refused
_PATIENCE_S = 60.0  # with the reader of a stream that takes nothing
_STREAM_STAGES = 256  # of one stream, that a trace shows
_UNREAD = "replies on this connection are not being read; read them, then try again"
_LATE_S = 0.02  # the caller's clock may run out, and its cancellation arrive, a little before ours

Metadata = Sequence[tuple[str, "str | bytes"]]


class Listener(Protocol):
    """Somebody who wants to know of each call that has ended."""

    @property
    def wants_stages(self) -> bool:
        """Whether it looks at a call's `stages`, which are not kept for nobody."""

    def ended(self, call: Call, code: grpc.StatusCode, seconds: float, metadata: Metadata) -> None:
        """`call` was answered with `code` after `seconds`."""


class _Gone(Exception):
    """The caller left while it was being answered."""


class _Method:
    """One rpc of one service, grpc's handler of it, and where it is counted: looked up once, not at each call."""

    def __init__(self, service: str, rpc: str, handler: Any, metrics: Metrics) -> None:
        self.service = service
        self.rpc = rpc
        self.takes_stream = bool(handler.request_streaming)
        self.gives_stream = bool(handler.response_streaming)
        self.behaviour = handler.unary_unary or handler.unary_stream or handler.stream_stream
        self._serialise: Callable[[Any], bytes] = handler.response_serializer
        self._parse = handler.request_deserializer
        self._metrics = metrics
        self._labels = self._kind, service, rpc
        self.started = metrics.grpc_started.labels(*self._labels)
        self._request_seconds: Histogram | None = None
        self._grpc_seconds = metrics.grpc_seconds.labels(*self._labels)
        self._handled: dict[grpc.StatusCode, Counter] = {}
        self._requests: dict[tuple[str, str, grpc.StatusCode], Counter] = {}
        self._codec_seconds: dict[str, Histogram] = {}

    def parse(self, data: bytes) -> Any:
        """The message of these bytes; raises `InvalidArgument`."""
        try:
            return self._parse(data)
        except DecodeError as error:
            got = f"{len(data)} bytes that cannot be parsed"
            raise InvalidArgument("request", got, "a message of this call") from error

    def write(self, reply: Any) -> bytes:
        """The bytes of a reply, which is a message or a `Reply`."""
        return reply.to_bytes() if isinstance(reply, Reply) else self._serialise(reply)

    def count(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """A call was answered."""
        requests = self._requests.get((call.model, call.version, code))
        if requests is None:
            requests = self._metrics.requests.labels(call.rpc, call.model, call.version, code.name)
            self._requests[call.model, call.version, code] = requests
        requests.inc()
        handled = self._handled.get(code)
        if handled is None:
            handled = self._handled[code] = self._metrics.grpc_handled.labels(*self._labels, _camel_case(code))
        handled.inc()
        if self._request_seconds is None:
            self._request_seconds = self._metrics.request_seconds.labels(call.rpc)
        self._request_seconds.observe(seconds)
        self._grpc_seconds.observe(seconds)
        for stage, direction in (("codec_in", "in"), ("codec_out", "out")):
            took = call.seconds.get(stage)
            if took is not None:
                codec = self._codec_seconds.get(direction)
                if codec is None:
                    codec = self._codec_seconds[direction] = self._metrics.codec_seconds.labels(call.rpc, direction)
                codec.observe(took)

    @property
    def _kind(self) -> str:
        """As go-grpc-prometheus names it."""
        if self.takes_stream:
            return "bidi_stream" if self.gives_stream else "client_stream"
        return "server_stream" if self.gives_stream else "unary"


class CallInterceptor:
    """Wraps the calls of some services of ours, which need `role`; those of other services pass as they are."""

    def __init__(
        self,
        services: Collection[str],
        role: Role,
        access: Access,
        gate: Gate,
        metrics: Metrics,
        max_message_bytes: Callable[[], int],
        listeners: Sequence[Listener] = (),
    ) -> None:
        self._services = services
        self._role = role
        self._access = access
        self._gate = gate
        self._metrics = metrics
        self._max_message_bytes = max_message_bytes
        self._listeners = listeners
        self._unread: Counts[str] = Counts()  # bytes of replies that wait for their readers, by connection
        self._taken = asyncio.Event()  # set for a moment whenever one of them does no longer

    def wrap(self, path: str, handler: Any) -> Any:
        """grpc's handler of the calls of a path, inside our measurements."""
        service, _, rpc = path.lstrip("/").partition("/")
        if service not in self._services:
            return handler
        method = _Method(service, rpc, handler, self._metrics)

        # Bytes are parsed here, so that what is no message is counted and answered like every other bad request.
        async def one_reply(data: bytes, context: Any) -> bytes | None:
            return await self._answer(method, data, context)

        async def many_replies(data: Any, context: Any) -> None:
            await self._answer(method, data, context)

        if not method.gives_stream:
            return grpc.unary_unary_rpc_method_handler(one_reply, None, None)
        wrap = grpc.stream_stream_rpc_method_handler if method.takes_stream else grpc.unary_stream_rpc_method_handler
        return wrap(many_replies, None, None)

    async def _stream(self, method: _Method, data: Any, call: Call, context: Any) -> None:
        """Send replies as they are made, no faster than they are read."""
        if method.takes_stream:
            replies = method.behaviour(self._requests(method, aiter(data), call, context), context)
        else:
            replies = method.behaviour(method.parse(self._check_size(data, call)), context)
        async with contextlib.aclosing(replies):
            async for reply in replies:
                written = method.write(reply)
                call.reply_bytes += len(written)
                await self._send(written, call.peer, context, _PATIENCE_S)

    async def _requests(
        self, method: _Method, stream: AsyncIterator[bytes], call: Call, context: Any
    ) -> AsyncIterator[Any]:
        """The requests of a stream, until the caller has no more or may no more; raises `Draining` when the gate is
        shut."""
        while (data := await self._gate.unless_shut(anext(stream, None))) is not None:
            self._authorise(call, context)
            await self._room(call.peer)
            yield method.parse(self._check_size(data, call))

    def _check_size(self, data: bytes, call: Call) -> bytes:
        call.request_bytes += len(data)
        most = self._max_message_bytes()
        if len(data) > most:
            raise MessageTooLarge(len(data), most)
        return data

    def _admit(self, call: Call, context: Any, metadata: Metadata) -> None:
        """Who calls, and how urgently; raises `Unauthenticated`, `PermissionDenied`, `InvalidArgument` or
        `QueueFull`."""
        call.peer = context.peer()
        self._authorise(call, context)
        for key, value in metadata:
            if key == PRIORITY_KEY:
                if value not in (INTERACTIVE, BACKGROUND):
                    raise InvalidArgument(
                        f"metadata {PRIORITY_KEY}", repr(value)[:64], f"{INTERACTIVE} or {BACKGROUND}"
                    )
                call.priority = str(value)
        if self._unread and self._unread[call.peer] > _MAX_UNREAD_BYTES:
            raise QueueFull(_UNREAD, 1.0)

    def _authorise(self, call: Call, context: Any) -> None:
        if not self._access.enabled:
            return
        metadata = context.invocation_metadata() or ()
        try:
            call.identity = self._access.authorise(self._role, *credentials_of(metadata, context.auth_context()))
        except PermissionDenied as refusal:
            call.identity = refusal.identity
            raise

    async def _answer(self, method: _Method, data: Any, context: Any) -> bytes | None:
        """The reply, of which it is told before the caller hears of it, so that counts never lag behind; None when
        replies were sent as a stream."""
        call = records.begin(method.rpc)
        method.started.inc()
        left = context.time_remaining()  # once: gRPC reckons it by the wall clock, which may jump
        call.deadline = None if left is None else time.monotonic() + left
        metadata: Metadata = context.invocation_metadata() or ()
        call.request_id = _request_id(metadata)
        refusal: ServiceError
        reply = None
        try:
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            self._gate.enter()
            try:
                self._admit(call, context, metadata)
                self._set_stages(method, call)
                if method.gives_stream:
                    await self._stream(method, data, call, context)
                else:
                    request = method.parse(self._check_size(data, call))
                    reply = method.write(await method.behaviour(request, context))
                    self._outgoing(reply, call)
            finally:
                self._gate.leave()
        except ServiceError as error:
            refusal = error
            if isinstance(error, QuotaExceeded):
                self._metrics.quota_refusals.inc()
        except _Gone:
            self._ended(method, call, grpc.StatusCode.CANCELLED, metadata)
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:  # by the caller, by its deadline, or by a server that stops at once
            late = left is not None and time.perf_counter() >= call.begun + left - _LATE_S
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            self._ended(method, call, code, metadata)
            raise
        except Exception:
            log.exception("%s failed", method.rpc)
            refusal = Internal()
        else:
            self._ended(method, call, grpc.StatusCode.OK, metadata)
            return reply
        self._ended(method, call, refusal.code, metadata)
        try:
            await context.abort(refusal.code, str(refusal), (*refusal.trailers(), (REQUEST_ID_KEY, call.request_id)))
        except grpc.aio.AbortError:
            raise
        except Exception as gone:  # the caller has; grpc would log it as a fault of ours
            raise asyncio.CancelledError from gone
        return None

    def _set_stages(self, method: _Method, call: Call) -> None:
        """How many stages are kept of it, and what the making of a stream's parts waits for."""
        if method.gives_stream:
            call.most_stages = _STREAM_STAGES
            call.room = lambda: self._room(call.peer)
        elif method.service == SERVICE and not any(listener.wants_stages for listener in self._listeners):
            call.most_stages = 0

    def _outgoing(self, reply: bytes, call: Call) -> None:
        """The reply of a unary call leaves: it is waited for, and counts as unread, until gRPC has passed it on."""
        call.reply_bytes = len(reply)
        self._gate.reply_leaves()
        self._unread[call.peer] += len(reply)
        # The task that this is in ends then. The context would tell as well, but then refer to itself, and keep all
        # that the call took until garbage is collected.
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        task.add_done_callback(partial(self._gone, call.peer, len(reply)))

    def _gone(self, peer: str, size_bytes: int, task: asyncio.Task[Any]) -> None:
        """gRPC has passed the reply of a unary call on, or given it up."""
        self._gate.reply_left()
        self._forget(peer, size_bytes)

    async def _room(self, peer: str) -> None:
        """Until no more than the bound waits for its readers on this connection: a stream goes on when others have been
        read. Raises `QueueFull` if they are not."""
        give_up = time.monotonic() + _PATIENCE_S
        while self._unread[peer] > _MAX_UNREAD_BYTES:
            try:
                await asyncio.wait_for(self._taken.wait(), give_up - time.monotonic())
            except asyncio.TimeoutError as error:
                raise QueueFull(_UNREAD, 1.0) from error

    async def _send(self, reply: bytes, peer: str, context: Any, patience_s: float) -> None:
        """Returns when gRPC has passed a stream's reply on; a caller that does not read keeps us here. Raises `_Gone`,
        or after `patience_s` `NotRead`: gRPC holds the reply then until the call is over, and so long it counts as
        unread.
        """
        self._unread[peer] += len(reply)
        held = False
        try:
            await asyncio.wait_for(context.write(reply), patience_s)
        except asyncio.TimeoutError as error:
            held = not context.done()
            if held:
                context.add_done_callback(lambda _: self._forget(peer, len(reply)))
            raise NotRead(patience_s) from error
        except Exception as gone:
            raise _Gone from gone
        finally:
            if not held:
                self._forget(peer, len(reply))

    def _forget(self, peer: str, size_bytes: int) -> None:
        self._unread[peer] -= size_bytes
        if self._unread[peer] <= 0:
            del self._unread[peer]
        self._taken.set()
        self._taken.clear()

    def _ended(self, method: _Method, call: Call, code: grpc.StatusCode, metadata: Metadata) -> None:
        seconds = time.perf_counter() - call.begun
        method.count(call, code, seconds)
        for listener in self._listeners:
            _tell(listener, call, code, seconds, metadata)


def _tell(listener: Listener, call: Call, code: grpc.StatusCode, seconds: float, metadata: Metadata) -> None:
    try:
        listener.ended(call, code, seconds, metadata)
    except Exception:  # the call itself is well
        log.exception("a call was not logged or traced")


def _request_id(metadata: Metadata) -> str:
    """The caller's own, if it is one that can stand in a header and in a log, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return f"{_random.getrandbits(64):016x}"


def _camel_case(code: grpc.StatusCode) -> str:
    """The code as go-grpc-prometheus, and so every dashboard for it, writes it: OK, NotFound, ..."""
    return "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "")
