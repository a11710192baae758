"""What a call costs the engine process when front ends bring all that it can take: microseconds of its processor,
beside the inference.

    python -m benchmarks.engine_load [--calls 100000] [--in-flight 1024]

Two front ends on two processors bring it small batches, and each wake-up is paid by few calls; sixteen front ends on
sixteen would not. So here the front ends are bare: this process hands over rows as front ends do, with no gRPC before
it, to an engine process of the parts that `latentry serve --frontends` has, whose graph answers at once. What is left
out is the inference, which runs beside the interpreter.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from latentry.manifest import DECODER_FILE, ENCODER_FILE, Likelihood, Manifest
from serving import event_loop
from serving.batcher import Batcher
from serving.batches import Room, Run
from serving.call import Call
from serving.catalog import Catalog
from serving.handover import Back, Remote
from serving.model import DECODER, ENCODER, Limits, Model
from serving.pool import Pool

_LATENT_DIM, _SHAPE, _BATCH = 32, (28, 28, 1), 64
_LINKS = 4  # front ends; what they hand over in one turn of the loop goes together, as it would with sixteen
_OUTPUTS = frozenset({"images"})


def measure(calls: int = 100_000, in_flight: int = 1024, rounds: int = 3) -> list[float]:
    """Microseconds of processor a call in the engine process, of each round."""
    context = multiprocessing.get_context("spawn")
    pairs = [socket.socketpair() for _ in range(_LINKS)]
    engine = context.Process(target=_engine, args=([theirs for _, theirs in pairs],), daemon=True)
    engine.start()
    for _, theirs in pairs:
        theirs.close()
    try:
        return event_loop.run(_press([ours for ours, _ in pairs], calls, in_flight, rounds))
    finally:
        engine.join(10)
        engine.kill()


async def _press(socks: Sequence[socket.socket], calls: int, in_flight: int, rounds: int) -> list[float]:
    links = []
    for sock in socks:
        catalog = Catalog()
        links.append((catalog, Remote(sock, catalog)))
    for _, remote in links:
        await remote.start()
    queues = [catalog.get().batchers[DECODER] for catalog, _ in links]
    asked = links[0][1]

    async def caller(number: int, times: int) -> None:
        row = np.zeros((1, _LATENT_DIM), np.float32)
        for _ in range(times):
            await queues[number % _LINKS].submit(row, _OUTPUTS, None, tell=partial(Call("Decode").ran, DECODER))

    async def press(times: int) -> float:
        before = (await asked.ask("processor", {}))["seconds"]
        await asyncio.gather(*(caller(number, times) for number in range(in_flight)))
        return float((await asked.ask("processor", {}))["seconds"]) - before

    each = max(1, calls // in_flight)
    await press(max(1, each // 10))  # warm
    found = [1e6 * await press(each) / (each * in_flight) for _ in range(rounds)]
    for _, remote in links:
        remote.close()
    return found


def _engine(socks: Sequence[socket.socket]) -> None:
    event_loop.run(_serve(socks))


async def _serve(socks: Sequence[socket.socket]) -> None:
    pool = Pool(1)
    catalog = Catalog()
    catalog.put(_model(pool))
    catalog.default = "bench"
    event_loop.settle()
    back = Back(catalog, 1, on_ask={"processor": _processor})
    await asyncio.gather(*map(back.serve, socks))
    pool.close()


def _processor(body: dict[str, Any]) -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": used.ru_utime + used.ru_stime}


def _model(pool: Pool) -> Model:
    files = dict.fromkeys((ENCODER_FILE, DECODER_FILE), "0" * 64)
    about = Manifest("bench", 1, _SHAPE, _LATENT_DIM, Likelihood("bernoulli"), files)
    room = Room(1 << 16)
    batchers = {
        kind: Batcher([_Nothing()], pool, _Nobody(), rooms=[room], max_batch=_BATCH) for kind in (ENCODER, DECODER)
    }
    return Model(about, "0" * 64, Limits(1024, 1 << 24), "none", "fp32", batchers, lambda: None)


class _Nothing:
    """A graph that answers at once."""

    def __init__(self) -> None:
        self._images = np.zeros((_BATCH, *_SHAPE), np.uint8)

    def run(self, rows: Any, outputs: frozenset[str]) -> dict[str, Any]:
        return {name: self._images[: len(rows)] for name in outputs}

    def bucket(self, rows: int) -> int:
        return rows

    def restart(self) -> None:
        """It does not fail."""


class _Nobody:
    """Hears what the batcher tells."""

    def ran(self, run: Run, queue_s: Sequence[float]) -> None:
        """A batch ran."""

    def failed(self, device: int) -> None:
        """It does not."""

    def up(self, device: int, up: bool) -> None:
        """It is."""


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--calls", type=int, default=100_000, help="of each round (default: %(default)s)")
    add("--in-flight", type=int, default=1024, help="calls at any time (default: %(default)s)")
    args = parser.parse_args(arguments)
    for us in measure(args.calls, args.in_flight):
        print(f"engine process: {us:.1f} us a call")
    return 0


if __name__ == "__main__":
    sys.exit(main())
