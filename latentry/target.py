"""What both clients know: where the server is, which model is meant, how often to try. Sends nothing itself."""

from __future__ import annotations

import json
import math
import threading
from typing import Any, Literal

import grpc

from latentry import choices
from latentry.plaintext import check_token
from latentry.v1 import vae_pb2 as pb

Priority = Literal["interactive", "background"]

DEFAULT_TARGET = "localhost:50051"
_ATTEMPTS = 5  # as many as gRPC allows: pauses of about 0.2, 0.4, 0.8 and 1.6 s between them
_SERVICE = "latentry.v1.VaeService"
RETRY = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            "retryPolicy": {
                "maxAttempts": _ATTEMPTS,
                "initialBackoff": "0.2s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
        # Streams go on where they broke, which gRPC cannot do: it knows only how to begin again.
        {"name": [{"service": _SERVICE, "method": rpc} for rpc in ("StreamSample", "StreamInterpolate")]},
    ]
}


# What says nothing of the model that was asked: any other refusal may be of one that has changed.
_UNHEARD = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class LatentryError(Exception):
    """A call that the server did not answer: `code` is the gRPC status, `message` says what was wrong."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code.name}: {message}")


class Target:
    """A server, and a model of it."""

    _closed = 0  # how often

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "",
        version: int | None = None,
        label: str | None = None,
        priority: Priority = "interactive",
        token: str | None = None,
        tls: grpc.ChannelCredentials | bool = False,
        timeout_s: float = 60.0,
        coalesce: bool = True,
    ) -> None:
        """Connect to `target` ("host:port") when first called; `timeout_s` bounds each call, retries included, and of
        a stream the wait for its next part.

        `model`, and `version` or `label`, choose among the server's models; by default its default model, newest
        version. `background` calls run when no interactive ones wait. `tls` is True to trust the authorities that gRPC
        trusts, or what `grpc.ssl_channel_credentials` makes of others and of a certificate of one's own. A `token`
        goes with every call, and over TLS only, unless the target is this machine. `coalesce` sends small calls of
        `encode`, `decode` and `sample` that are made at the same time in one request, several times faster than in one
        each. Raises `ValueError` for what cannot be.
        """
        if version is not None and label is not None:
            raise ValueError(f"version and label: got {version} and {label!r}, wanted one of them")
        if not target or not target.isprintable() or " " in target:
            raise ValueError(f"target: got {target!r}, wanted host:port")
        seconds = choices.number("timeout_s", timeout_s)
        if seconds is None or not 0 < seconds < math.inf:
            raise ValueError(f"timeout_s: got {timeout_s}, wanted seconds, more than 0")
        if token is not None:
            check_token(token, target, secure=bool(tls))
        self.target = target
        self.timeout_s = seconds
        self._selector = pb.ModelSelector(name=model, version=version, label=label)
        self._metadata: list[tuple[str, str]] = [("latentry-priority", priority)] if priority != "interactive" else []
        self._metadata += [("authorization", f"Bearer {token}")] if token is not None else []
        self._credentials = grpc.ssl_channel_credentials() if tls is True else tls or None
        self._info: pb.ModelInfo | None = None
        self._coalesce = coalesce
        self._lock = threading.Lock()
        self._channel_bytes = 0  # the message limit that the channel was opened with

    @staticmethod
    def _options(most: int | None = None) -> list[tuple[str, Any]]:
        """The channel's options; without `most`, gRPC's own limits: what describes a model is small."""
        options: list[tuple[str, Any]] = [("grpc.service_config", json.dumps(RETRY))]
        if most is not None:
            options += [
                ("grpc.max_receive_message_length", most),
                ("grpc.max_send_message_length", most),
                ("grpc.per_rpc_retry_buffer_size", most),
            ]
        return options

    def _check_open(self, closed: int) -> None:
        """Raises `LatentryError` if it was closed since that had happened so often: what takes several requests ends
        then, and does not connect again between two of them."""
        if self._closed != closed:
            raise LatentryError(grpc.StatusCode.CANCELLED, "the client was closed")

    def _refusal(self, code: grpc.StatusCode, message: str) -> LatentryError:
        """The error of a call that failed. What was refused may have been asked of a model that is there no more:
        `info` asks about it again."""
        if code not in _UNHEARD:
            self._info = None
        return LatentryError(code, message)

    def _same_model(self, digest: str, reply: Any) -> str:
        """The digest of the model that answered; `digest` is that of the parts before, or empty.

        Raises `LatentryError` if another model answered them. A model that is not the one that `info` described is
        asked about again before the next call.
        """
        answered: str = reply.model.digest
        if self._info is not None and answered != self._info.model.digest:
            self._info = None
        if digest and answered != digest:
            raise LatentryError(grpc.StatusCode.ABORTED, "the server changed its model between parts of this call")
        return answered
