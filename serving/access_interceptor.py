"""Guards the services that are not our own: health, reflection, channelz, and whatever may be added.

Our own are guarded where their calls are counted, in the interceptor that wraps them. Here a call's metadata and
certificate are looked at before its first message is; knows nothing of what the services do.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from serving.access import Access, Role, credentials_of
from serving.errors import ServiceError
from serving.interceptor import ADMIN_SERVICE, SERVICE
from serving.oip.servicer import SERVICE as OIP_SERVICE

# By their names, so that a service that is added is shut until somebody says who may call it.
_OURS = frozenset({SERVICE, ADMIN_SERVICE, OIP_SERVICE})
_HEALTH = "grpc.health."
_REFLECTION = "grpc.reflection."

Behaviour = Callable[[Any, Any], Any]


def role_for(service: str, ours: Role = Role.INFER) -> Role | None:
    """The role that a service of others asks for, beside ours that ask for `ours`; None: everybody may call it."""
    if service.startswith(_HEALTH):
        return None
    return ours if service.startswith(_REFLECTION) else Role.ADMIN


class AccessInterceptor:
    """Lets in those whom `access` lets in; the handlers have to be asynchronous. `ours` is the role that our own
    services on this port need, and so who may know of them."""

    def __init__(self, access: Access, ours: Role = Role.INFER) -> None:
        self._access = access
        self._ours = ours

    def wrap(self, path: str, handler: Any) -> Any:
        """grpc's handler of the calls of a path, behind a check of who calls."""
        service = path.lstrip("/").partition("/")[0]
        if not self._access.enabled or service in _OURS:
            return handler
        role = role_for(service, self._ours)
        return handler if role is None else self._guarded(handler, role)

    def _guarded(self, handler: Any, role: Role) -> Any:
        behaviour, make = _kind(handler)

        async def one_reply(request: Any, context: Any) -> Any:
            await self._check(role, context)
            return await behaviour(request, context)

        async def many_replies(request: Any, context: Any) -> None:
            await self._check(role, context)
            await _write_all(behaviour(request, context), context)

        wrapped = many_replies if handler.response_streaming else one_reply
        return make(wrapped, handler.request_deserializer, handler.response_serializer)

    async def _check(self, role: Role, context: Any) -> None:
        try:
            self._access.authorise(role, *credentials_of(context.invocation_metadata(), context.auth_context()))
        except ServiceError as error:
            await context.abort(error.code, str(error), error.trailers())


async def _write_all(replies: Any, context: Any) -> None:
    """Run a handler of many replies in either of the two ways in which they are written."""
    if inspect.isawaitable(replies):  # it writes to the context itself
        await replies
        return
    stream: AsyncIterator[Any] = replies
    async with contextlib.aclosing(stream):  # type: ignore[type-var] # a handler's iterator is a generator
        async for reply in stream:
            await context.write(reply)


def _kind(handler: Any) -> tuple[Behaviour, Callable[..., Any]]:
    """The function in the handler, and what makes a handler of such a function."""
    if handler.request_streaming and handler.response_streaming:
        return handler.stream_stream, grpc.stream_stream_rpc_method_handler
    if handler.request_streaming:
        return handler.stream_unary, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        return handler.unary_stream, grpc.unary_stream_rpc_method_handler
    return handler.unary_unary, grpc.unary_unary_rpc_method_handler
