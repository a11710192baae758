"""The command `latentry serve`: flags to settings, settings to a running service."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from latentry.manifest import embedded_models
from serving.errors import StartError
from serving.settings import Settings

DESCRIPTION = """\
Serve the models of a repository, <DIR>/<name>/<version>/, over gRPC. Without arguments: the model that comes with
Latentry. Of each name the newest version is served. SIGTERM and Ctrl-C let running calls finish; a second one does not.

  latentry serve
  latentry serve --models models --host 0.0.0.0 --device cuda
"""


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `latentry serve`."""
    parser.description = DESCRIPTION
    default = Settings(models=Path())
    add = parser.add_argument
    add(
        "--models",
        type=Path,
        metavar="DIR",
        help="model repository; the first model by name is the default (default: the one that comes with Latentry)",
    )
    add("--host", default=default.host, help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=default.port, help="gRPC port, 0 for any free one (default: %(default)s)")
    add(
        "--metrics-port",
        type=int,
        default=default.metrics_port,
        help="port of Prometheus's /metrics, 0 for any free one (default: %(default)s)",
    )
    add(
        "--device",
        default=default.device,
        help="auto, cpu, cuda or cuda:N; cuda refuses to start without a working GPU (default: %(default)s)",
    )
    add(
        "--max-batch-size",
        type=int,
        default=default.max_batch_size,
        help="most rows one run of a graph gets (default: %(default)s)",
    )
    add(
        "--max-queue-items",
        type=int,
        default=default.max_queue_items,
        help="most rows that wait for a graph; more are refused (default: %(default)s)",
    )
    add(
        "--drain-s",
        type=float,
        default=default.drain_s,
        help="seconds that running calls get after SIGTERM (default: %(default)s)",
    )


def add_health_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `latentry health`."""
    parser.description = (
        "Ask a running server's grpc.health service. Exit status 0 means SERVING; for container health checks."
    )
    parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT", help="(default: %(default)s)")
    parser.add_argument("--timeout-s", type=float, default=2.0, help="(default: %(default)s)")


def run_health(args: argparse.Namespace) -> int:
    """Print the status; 0 if it is SERVING, else 1."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(args.server) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=args.timeout_s)
        except grpc.RpcError as error:
            print(f"latentry health: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


def run_serve(args: argparse.Namespace) -> int:
    """Serve until told to stop. Returns the exit status: 0, or 1 if the service could not start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    from serving.server import serve  # here, so that `--help` does not wait for onnxruntime

    try:
        settings = Settings(
            models=args.models or embedded_models(),
            host=args.host,
            port=args.port,
            metrics_port=args.metrics_port,
            device=args.device,
            max_batch_size=args.max_batch_size,
            max_queue_items=args.max_queue_items,
            drain_s=args.drain_s,
        )
        asyncio.run(serve(settings))
    except StartError as error:
        print(f"latentry serve: {error}", file=sys.stderr)
        return 1
    return 0
