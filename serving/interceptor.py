"""The one place that counts and times calls, refuses them while draining, and turns exceptions into status.

What a call learns on its way (which model it is for) goes into its record, which the context of its task carries.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from latentry.v1 import vae_pb2
from serving.errors import Draining, Internal, InvalidArgument, MessageTooLarge, ServiceError
from serving.metrics import Metrics

log = logging.getLogger(__name__)

_LATE_S = 0.02  # the caller's clock may run out, and its cancellation arrive, a little before ours

SERVICE = vae_pb2.DESCRIPTOR.services_by_name["VaeService"].full_name


@dataclass(slots=True)
class _Call:
    rpc: str
    metrics: Metrics
    model: str = ""
    version: str = ""


_call: ContextVar[_Call] = ContextVar("call")


def name_model(name: str, version: int) -> None:
    """This call is for this model, which is loaded here."""
    call = _call.get(None)
    if call is not None:
        call.model, call.version = name, str(version)


@contextlib.contextmanager
def time_codec(direction: str) -> Iterator[None]:
    """Time the reading (`in`) or writing (`out`) of a call's tensors and images."""
    started = time.perf_counter()
    try:
        yield
    finally:
        call = _call.get(None)
        if call is not None:
            call.metrics.codec_seconds.labels(call.rpc, direction).observe(time.perf_counter() - started)


class Gate:
    """Lets calls in until it is shut, and knows when the last one has gone."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._in_flight = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self.shut = False

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """One call's stay; raises `Draining` when the gate is shut."""
        if self.shut:
            raise Draining
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    async def wait_empty(self, timeout_s: float) -> bool:
        """Whether every call has gone within `timeout_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        return self._in_flight == 0

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._metrics.in_flight.set(self._in_flight)
        (self._empty.clear if self._in_flight else self._empty.set)()


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs alone
    """Wraps the calls of our own service; health and reflection pass as they are."""

    def __init__(self, metrics: Metrics, gate: Gate, max_message_bytes: int) -> None:
        self._metrics = metrics
        self._gate = gate
        self._max_message_bytes = max_message_bytes

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler that grpc found, inside our measurements."""
        handler = await continuation(handler_call_details)
        service, _, rpc = handler_call_details.method.lstrip("/").partition("/")
        if handler is None or service != SERVICE:
            return handler

        async def behaviour(data: bytes, context: Any) -> Any:
            if len(data) > self._max_message_bytes:
                raise MessageTooLarge(len(data), self._max_message_bytes)
            return await handler.unary_unary(_parse(handler.request_deserializer, data), context)

        async def measured(data: bytes, context: Any) -> Any:
            return await self._answer(behaviour, rpc, data, context)

        # Bytes are parsed here, so that what is no message is counted and answered like every other bad request.
        return grpc.unary_unary_rpc_method_handler(measured, None, handler.response_serializer)

    async def _answer(
        self, behaviour: Callable[[bytes, Any], Awaitable[Any]], rpc: str, data: bytes, context: Any
    ) -> Any:
        call = _Call(rpc, self._metrics)
        _call.set(call)
        self._metrics.grpc_started.labels("unary", SERVICE, rpc).inc()
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        try:
            with self._gate.passing():
                return await behaviour(data, context)
        except ServiceError as error:
            code = error.code
            await _abort(context, error)
        except asyncio.CancelledError:  # by the caller, by its deadline, or by a server that stops at once
            left = context.time_remaining()
            late = left is not None and left <= _LATE_S
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            log.exception("%s failed", rpc)
            await _abort(context, Internal())
        finally:
            self._record(call, code, time.perf_counter() - started)

    def _record(self, call: _Call, code: grpc.StatusCode, seconds: float) -> None:
        m = self._metrics
        m.requests.labels(call.rpc, call.model, call.version, code.name).inc()
        m.request_seconds.labels(call.rpc).observe(seconds)
        m.grpc_handled.labels("unary", SERVICE, call.rpc, _camel_case(code)).inc()
        m.grpc_seconds.labels("unary", SERVICE, call.rpc).observe(seconds)


def _parse(deserialise: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return deserialise(data)
    except DecodeError as error:
        raise InvalidArgument(
            "request", f"{len(data)} bytes that cannot be parsed", "a message of this call"
        ) from error


async def _abort(context: Any, error: ServiceError) -> NoReturn:
    await context.abort(error.code, str(error), error.trailers())
    raise AssertionError("abort raises")


def _camel_case(code: grpc.StatusCode) -> str:
    """The code as go-grpc-prometheus, and so every dashboard for it, writes it: OK, NotFound, ..."""
    return "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "")
