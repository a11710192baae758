"""An HTTP proxy that http_proxy names and that nobody must use."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def no_use_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails if anybody has connected to the proxy by the end; a connection would wait for it to answer."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_grpc_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
