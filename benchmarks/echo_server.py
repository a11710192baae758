"""gRPC's own ceiling: grpcio's asyncio server answering so many bytes to whatever comes, and computing nothing.

    python -m benchmarks.echo_server PORT [--loop asyncio]

/bench.Echo/Image answers the 784 bytes of a small image, /bench.Echo/Little 64 bytes, /bench.Echo/Much 4 MiB;
requests may be as large. Bytes in and bytes out: there is no message to parse.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc

BYTES = {"Image": 784, "Little": 64, "Much": 4 << 20}


async def serve(port: int) -> None:
    """Until the process ends."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    handlers = {name: grpc.unary_unary_rpc_method_handler(_answering(bytes(size))) for name, size in BYTES.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def _answering(reply: bytes) -> Any:
    async def answer(request: bytes, context: Any) -> bytes:
        return bytes(memoryview(reply)) if len(reply) > 1 << 20 else reply  # what is large is copied, as images are

    return answer


def run(loop: str, work: Any) -> None:
    """Run a coroutine on uvloop, or on asyncio's own loop."""
    if loop == "uvloop":
        import uvloop

        uvloop.run(work)
    else:
        asyncio.run(work)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    args = parser.parse_args()
    run(args.loop, serve(args.port))


if __name__ == "__main__":
    main()
