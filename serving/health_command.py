"""The command `latentry health`: asks a server whether it is ready. Needs no token."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def add_health_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `latentry health`."""
    parser.description = (
        "Ask a running server's grpc.health service. Exit status 0 means SERVING; for container health checks."
    )
    add = parser.add_argument
    add("--server", default="localhost:50051", metavar="HOST:PORT", help="(default: %(default)s)")
    add("--service", default="", metavar="NAME", help="a model's name, rather than the server as a whole")
    add("--timeout-s", type=float, default=2.0, metavar="X", help="(default: %(default)s)")
    add("--tls-ca", type=Path, metavar="FILE", help="PEM file of the authorities that the server's certificate is from")
    add("--tls-certificate", type=Path, metavar="FILE", help="PEM file of a client certificate, for a server with mTLS")
    add("--tls-key", type=Path, metavar="FILE", help="PEM file of its private key")
    add("--tls-name", metavar="NAME", help="the name in the server's certificate, where it is not that of --server")


def run_health(args: argparse.Namespace) -> int:
    """Print the status; 0 if it is SERVING, 2 if the flags make no sense, else 1."""
    if (args.tls_certificate is None) != (args.tls_key is None):
        return _fail("--tls-certificate and --tls-key: got one, wanted both or neither", 2)
    try:
        channel = _channel(args)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}", 2)
    request = health_pb2.HealthCheckRequest(service=args.service)
    with channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=args.timeout_s)
        except grpc.RpcError as error:
            return _fail(f"{error.code().name}: {error.details()}", 1)
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


def _channel(args: argparse.Namespace) -> grpc.Channel:
    pems = [path.read_bytes() if path else None for path in (args.tls_ca, args.tls_key, args.tls_certificate)]
    if not any(pems) and args.tls_name is None:
        return grpc.insecure_channel(args.server)
    options = [("grpc.ssl_target_name_override", args.tls_name)] if args.tls_name else []
    return grpc.secure_channel(args.server, grpc.ssl_channel_credentials(*pems), options)


def _fail(line: str, status: int) -> int:
    print(f"latentry health: {line}", file=sys.stderr)
    return status
