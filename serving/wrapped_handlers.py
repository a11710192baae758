"""Every handler of a gRPC server inside whatever is to know of its calls.

What grpc calls interceptors does the same, but asks them anew at each call, in coroutines of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc

Wrap = Callable[[str, Any], Any]  # of a call's path, /package.Service/Rpc, and grpc's handler: the one to take instead


def wrap(server: grpc.aio.Server, wraps: Sequence[Wrap]) -> None:
    """Handlers that are added to `server` from now on are inside the `wraps`, the first of which is the outermost."""
    add = server.add_generic_rpc_handlers

    def add_wrapped(handlers: Iterable[Any]) -> None:
        add([_Wrapped(each, wraps) for each in handlers])

    server.add_generic_rpc_handlers = add_wrapped  # type: ignore[method-assign, assignment]


class _Wrapped(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs alone
    def __init__(self, inner: Any, wraps: Sequence[Wrap]) -> None:
        self._inner = inner
        self._wraps = wraps
        self._handlers: dict[str, Any] = {}  # that were found, and so no more than there are

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, if it is one of these."""
        path: str = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is None:
            handler = self._inner.service(handler_call_details)
            if handler is not None:
                for each in reversed(self._wraps):
                    handler = each(path, handler)
                self._handlers[path] = handler
        return handler
