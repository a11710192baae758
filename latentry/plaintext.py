"""What may be sent to a server without TLS, and on which way. Knows nothing of calls."""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,512}=*")  # RFC 6750
_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\]):|unix:")


def check_token(token: str, target: str, *, secure: bool) -> None:
    """Raise `ValueError`, which does not repeat the token, if it is none or must not go to `target`."""
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"token: got {len(token)} characters that are none, wanted what `latentry token` printed")
    if not secure and not _LOOPBACK.match(target):
        raise ValueError(f"token: got one without tls for {target}, where others could read it on its way")


def insecure_options(target: str) -> list[tuple[str, Any]]:
    """Options of a channel without TLS to `target`: what is meant for this machine goes to no proxy.

    gRPC would send it, tokens too, to the one that http_proxy names, even for localhost.
    """
    return [("grpc.enable_http_proxy", 0)] if _LOOPBACK.match(target) else []
