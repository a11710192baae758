"""The command `latentry health`: asks a server whether it is ready. Needs no token."""

from __future__ import annotations

import argparse
import http.client
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentry.plaintext import insecure_options


def add_health_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `latentry health`."""
    parser.description = (
        "Ask a running server's grpc.health service. Exit status 0 means SERVING; for container health checks."
    )
    add = parser.add_argument
    add("--server", default="localhost:50051", metavar="HOST:PORT", help="(default: %(default)s)")
    add("--here", action="store_true", help="ask /readyz of this machine's server at LATENTRY_METRICS_PORT or 9464, "
        "whatever its TLS: for a container's own health check")  # fmt: skip
    add("--service", default="", metavar="NAME", help="a model's name, rather than the server as a whole")
    add("--timeout-s", type=float, default=2.0, metavar="X", help="(default: %(default)s)")
    add("--tls-ca", type=Path, metavar="FILE", help="PEM file of the authorities that the server's certificate is from")
    add("--tls-certificate", type=Path, metavar="FILE", help="PEM file of a client certificate, for a server with mTLS")
    add("--tls-key", type=Path, metavar="FILE", help="PEM file of its private key")
    add("--tls-name", metavar="NAME", help="the name in the server's certificate, where it is not that of --server")


def run_health(args: argparse.Namespace) -> int:
    """Print the status; 0 if it is SERVING, 2 if the flags make no sense, else 1."""
    if args.here:
        return _ask_here(args.timeout_s)
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


def _ask_here(timeout_s: float) -> int:
    """/readyz needs neither credentials nor a certificate that fits the name `localhost`."""
    port = os.environ.get("LATENTRY_METRICS_PORT", "9464")
    context = ssl._create_unverified_context()  # noqa: S323 - this machine's own server, which is told nothing
    said = ""
    for scheme in ("http", "https"):
        try:
            with _opener(context).open(f"{scheme}://127.0.0.1:{port}/readyz", timeout=timeout_s) as reply:
                print(reply.read(100).decode().strip())
                return 0
        except urllib.error.HTTPError as error:
            return _fail(f"{error.code} {error.reason}", 1)
        except (OSError, http.client.HTTPException) as error:
            said = said or str(error)
    return _fail(said, 1)


def _opener(context: ssl.SSLContext) -> urllib.request.OpenerDirector:
    """No proxy: what is asked is here."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))


def _channel(args: argparse.Namespace) -> grpc.Channel:
    pems = [path.read_bytes() if path else None for path in (args.tls_ca, args.tls_key, args.tls_certificate)]
    if not any(pems) and args.tls_name is None:
        return grpc.insecure_channel(args.server, insecure_options(args.server))
    options = [("grpc.ssl_target_name_override", args.tls_name)] if args.tls_name else []
    return grpc.secure_channel(args.server, grpc.ssl_channel_credentials(*pems), options)


def _fail(line: str, status: int) -> int:
    print(f"latentry health: {line}", file=sys.stderr)
    return status
