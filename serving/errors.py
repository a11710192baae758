"""What can go wrong, and what each caller is told.

    bytes ─ interceptor ─────── servicer ─────── codec ─────────── batcher ────── engine
            Unauthenticated     ModelNotFound    InvalidArgument   QueueFull      EngineFailed
            PermissionDenied    QuotaExceeded    QueueFull         DeadlinePassed
            Draining, Internal  Conflict (admin)
            MessageTooLarge
            NotRead

Raise anywhere, translate once: the interceptor turns a `ServiceError` into its gRPC status and google.rpc details, and
whatever else is raised into INTERNAL, which says nothing of the inside. `StartError` is the operator's: one line, exit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "latentry"
_NAMED = 10  # models that NOT_FOUND names; a status has to fit into HTTP/2 headers


class StartError(Exception):
    """The service cannot start as it was told to; the message is the one line that the operator reads.

    Each cause has an exit status of its own, so that a supervisor can tell what a restart may mend.
    """

    exit_code = 1


class ConfigError(StartError):
    """A setting, or a file that a setting names, makes no sense."""

    exit_code = 2


class PortTaken(StartError):
    """An address cannot be listened on."""

    exit_code = 3


class NoModel(StartError):
    """The model repository is not there, or holds no model that is to be served."""

    exit_code = 4


class BadModel(StartError):
    """A model that is to be served cannot be."""

    exit_code = 5


class NoDevice(StartError):
    """The device that was asked for cannot be used."""

    exit_code = 6


class ServiceError(Exception):
    """A call that is not answered; `code` is its gRPC status and `details` what google.rpc says of it."""

    code = grpc.StatusCode.UNKNOWN

    def details(self) -> Sequence[Message]:
        """The google.rpc messages that go with the status."""
        return ()

    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        """The trailing metadata that carries the details (`grpc-status-details-bin`)."""
        packed = []
        for detail in self.details():
            packed.append(any_pb2.Any())
            packed[-1].Pack(detail)
        status = status_pb2.Status(code=self.code.value[0], message=str(self), details=packed)
        return (("grpc-status-details-bin", status.SerializeToString()),)


class InvalidArgument(ServiceError):
    """The caller's fault: `field` of the request is not what it should be."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, got: object, wanted: str) -> None:
        self.field = field
        self.reason = f"got {got}, wanted {wanted}"
        super().__init__(f"{field}: {self.reason}")

    def details(self) -> Sequence[Message]:
        violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.reason)
        return [error_details_pb2.BadRequest(field_violations=[violation])]


class ModelNotFound(ServiceError):
    """No such model is loaded here."""

    code = grpc.StatusCode.NOT_FOUND

    def __init__(self, name: str, revision: str, known: Sequence[str]) -> None:
        self.metadata = {"model": name[:64], "revision": revision[:64]}
        wanted = f"{name[:64]!r}" + (f" {revision[:64]}" if revision else "")
        more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
        super().__init__(f"model: got {wanted}, wanted one of {', '.join(known[:_NAMED])}{more}")

    def details(self) -> Sequence[Message]:
        return [error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND", domain=DOMAIN, metadata=self.metadata)]


class _Retryable(ServiceError):
    """Worth trying again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)

    def details(self) -> Sequence[Message]:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(math.ceil(self.retry_after_s * 1000))
        return [error_details_pb2.RetryInfo(retry_delay=delay)]


class QueueFull(_Retryable):
    """More work is waiting than the queue may hold."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class MessageTooLarge(ServiceError):
    """A request of more bytes than the model's limits allow."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, got: int, most: int) -> None:
        super().__init__(f"request: got {got} bytes, wanted at most {most}; send fewer items a call")


class NotRead(_Retryable):
    """A stream whose reader has stopped. What gRPC holds for it already comes before this, if it ever reads on."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, patience_s: float) -> None:
        super().__init__(f"the stream was not read for {patience_s:g} s; ask again for what has not come", 1.0)


class QuotaExceeded(_Retryable):
    """This caller has had what it may have for now."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class EngineFailed(_Retryable):
    """The engine failed under this call's batch, or is being restarted; nothing was answered."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__("the engine failed and is being restarted; try again", retry_after_s)


class Unloaded(_Retryable):
    """The version that this call ran on was unloaded, or replaced, and did not wait any longer for it."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__("this version of the model was unloaded while the call ran; ask again", retry_after_s=0.0)


class Draining(_Retryable):
    """The server is shutting down and takes no new calls."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__("the server is shutting down", retry_after_s=1.0)


class Unauthenticated(ServiceError):
    """The caller did not say who it is, or said so in a way that is not believed."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ServiceError):
    """We know who the caller is, and it may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED

    def __init__(self, message: str, identity: str = "") -> None:
        self.identity = identity
        super().__init__(message)


class Conflict(ServiceError):
    """What was asked of the models cannot be done as they are."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class DeadlinePassed(ServiceError):
    """The call's deadline passed while its work was still waiting; the work was not done."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED

    def __init__(self) -> None:
        super().__init__("the deadline passed before the work began")


class Internal(ServiceError):
    """Our fault; the log has the particulars, the caller does not."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self) -> None:
        super().__init__("internal error")
