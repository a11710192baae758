"""The one place that counts and times calls, asks who the caller is, refuses calls while draining, and turns
exceptions into status.

What a call learns on its way goes into its record (`serving.call`), which goes to whoever wants to know at the end.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from latentry.v1 import admin_pb2, vae_pb2
from serving import call as records
from serving.access import Access, Role, credentials_of
from serving.call import BACKGROUND, INTERACTIVE, Call
from serving.errors import (
    Internal,
    InvalidArgument,
    MessageTooLarge,
    PermissionDenied,
    QueueFull,
    QuotaExceeded,
    ServiceError,
)
from serving.gate import Gate
from serving.metrics import Metrics

log = logging.getLogger(__name__)

SERVICE = vae_pb2.DESCRIPTOR.services_by_name["VaeService"].full_name
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name

PRIORITY_KEY = "latentry-priority"
REQUEST_ID_KEY = "x-request-id"

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_MAX_UNREAD_BYTES = 64 << 20  # of replies on one connection, before more calls are refused
_LATE_S = 0.02  # the caller's clock may run out, and its cancellation arrive, a little before ours

Metadata = Sequence[tuple[str, "str | bytes"]]


class Listener(Protocol):
    """Somebody who wants to know of each call that has ended."""

    def ended(self, call: Call, code: grpc.StatusCode, seconds: float, metadata: Metadata) -> None:
        """`call` was answered with `code` after `seconds`."""


class _Gone(Exception):
    """The caller left while it was being answered."""


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs alone
    """Wraps the calls of one service of ours, which need `role`; those of other services pass as they are."""

    def __init__(
        self,
        service: str,
        role: Role,
        access: Access,
        gate: Gate,
        metrics: Metrics,
        max_message_bytes: Callable[[], int],
        listeners: Sequence[Listener] = (),
    ) -> None:
        self._service = service
        self._role = role
        self._access = access
        self._gate = gate
        self._metrics = metrics
        self._max_message_bytes = max_message_bytes
        self._listeners = listeners
        self._unread: Counter[str] = Counter()  # bytes of replies that wait for their readers, by connection

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler that grpc found, inside our measurements."""
        handler = await continuation(handler_call_details)
        service, _, rpc = handler_call_details.method.lstrip("/").partition("/")
        if handler is None or service != self._service:
            return handler

        async def behaviour(data: bytes, call: Call, context: Any) -> bytes:
            self._admit(call, context)
            if self._unread[call.peer] > _MAX_UNREAD_BYTES:
                raise QueueFull("replies on this connection are not being read; read them, then try again", 1.0)
            call.request_bytes = len(data)
            most = self._max_message_bytes()
            if len(data) > most:
                raise MessageTooLarge(len(data), most)
            reply = await handler.unary_unary(_parse(handler.request_deserializer, data), context)
            written: bytes = handler.response_serializer(reply)
            call.reply_bytes = len(written)
            return written

        async def measured(data: bytes, context: Any) -> None:
            await self._answer(behaviour, rpc, data, context)

        # Bytes are parsed here, so that what is no message is counted and answered like every other bad request.
        # On the wire a stream of one reply is the same as the reply; but `write` returns when the reply has gone.
        return grpc.unary_stream_rpc_method_handler(measured, None, None)

    def _admit(self, call: Call, context: Any) -> None:
        """Who calls, and how urgently; raises `Unauthenticated`, `PermissionDenied` or `InvalidArgument`."""
        metadata = context.invocation_metadata() or ()
        call.peer = context.peer()
        if self._access.enabled:
            try:
                call.identity = self._access.authorise(self._role, *credentials_of(metadata, context.auth_context()))
            except PermissionDenied as refusal:
                call.identity = refusal.identity
                raise
        for key, value in metadata:
            if key == PRIORITY_KEY:
                if value not in (INTERACTIVE, BACKGROUND):
                    raise InvalidArgument(
                        f"metadata {PRIORITY_KEY}", repr(value)[:64], f"{INTERACTIVE} or {BACKGROUND}"
                    )
                call.priority = str(value)

    async def _answer(
        self, behaviour: Callable[[bytes, Call, Any], Awaitable[bytes]], rpc: str, data: bytes, context: Any
    ) -> None:
        call = records.begin(rpc)
        self._metrics.grpc_started.labels("unary", self._service, rpc).inc()
        started = time.perf_counter()
        left = context.time_remaining()  # once: gRPC reckons it by the wall clock, which may jump
        call.deadline = None if left is None else asyncio.get_running_loop().time() + left
        metadata: Metadata = context.invocation_metadata() or ()
        call.request_id = _request_id(metadata)

        def ended(code: grpc.StatusCode) -> None:  # before the caller hears of it, so that counts never lag behind
            self._record(call, code, time.perf_counter() - started, metadata)

        refusal: ServiceError
        answered = False
        try:
            with self._gate.passing():
                context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
                reply = await behaviour(data, call, context)
                ended(grpc.StatusCode.OK)
                answered = True
                return await self._send(reply, call.peer, context)
        except ServiceError as error:
            refusal = error
            if isinstance(error, QuotaExceeded):
                self._metrics.quota_refusals.inc()
        except _Gone:
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:  # by the caller, by its deadline, or by a server that stops at once
            if not answered:
                late = left is not None and time.perf_counter() >= started + left - _LATE_S
                ended(grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED)
            raise
        except Exception:
            log.exception("%s failed", rpc)
            refusal = Internal()
        ended(refusal.code)
        try:
            await context.abort(refusal.code, str(refusal), (*refusal.trailers(), (REQUEST_ID_KEY, call.request_id)))
        except grpc.aio.AbortError:
            raise
        except Exception as gone:  # the caller has; grpc would log it as a fault of ours
            raise asyncio.CancelledError from gone

    async def _send(self, reply: bytes, peer: str, context: Any) -> None:
        """Returns when gRPC has passed the reply on; a caller that does not read keeps us here. Raises `_Gone`."""
        self._unread[peer] += len(reply)
        try:
            await context.write(reply)
        except Exception as gone:
            raise _Gone from gone
        finally:
            self._unread[peer] -= len(reply)
            if not self._unread[peer]:
                del self._unread[peer]

    def _record(self, call: Call, code: grpc.StatusCode, seconds: float, metadata: Metadata) -> None:
        m = self._metrics
        m.requests.labels(call.rpc, call.model, call.version, code.name).inc()
        m.request_seconds.labels(call.rpc).observe(seconds)
        m.grpc_handled.labels("unary", self._service, call.rpc, _camel_case(code)).inc()
        m.grpc_seconds.labels("unary", self._service, call.rpc).observe(seconds)
        for stage in call.stages:
            if stage.name in ("codec_in", "codec_out"):
                m.codec_seconds.labels(call.rpc, stage.name[len("codec_") :]).observe(stage.seconds)
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
    return secrets.token_hex(8)


def _parse(deserialise: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return deserialise(data)
    except DecodeError as error:
        raise InvalidArgument(
            "request", f"{len(data)} bytes that cannot be parsed", "a message of this call"
        ) from error


def _camel_case(code: grpc.StatusCode) -> str:
    """The code as go-grpc-prometheus, and so every dashboard for it, writes it: OK, NotFound, ..."""
    return "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "")
