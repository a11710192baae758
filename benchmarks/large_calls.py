"""Calls that carry much: 64 latents in one, and 4 MiB of float images in and out."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator

from benchmarks import bodies, raw_onnx
from benchmarks.bench_models import KINDS
from benchmarks.figures import Figure, ratio
from benchmarks.load import Target, press
from benchmarks.plan import Plan

_BATCH = 64
_BROAD = KINDS["broad"]
_IMAGES = 4  # of the broad model, a MiB of floats each
_BYTES = _IMAGES * 4 * _BROAD.shape[0] * _BROAD.shape[1]


def measure(plan: Plan) -> Iterator[Figure]:
    """Both."""
    yield from _batches(plan)
    yield from _floats(plan)


def _batches(plan: Plan) -> Iterator[Figure]:
    """64 latents a call against the graph alone on as many threads."""
    message, size = bodies.decode(_BATCH), 784 * _BATCH
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        raw, rates = [], defaultdict(list)
        with plan.latentry(plan.repository("conv"), "--threads", str(threads)) as (_, port, _ready):
            target = Target(port, bodies.SERVICE + "Decode", message, size)
            for _ in range(plan.rounds):
                before = _raw(plan, threads)
                for in_flight in (1, 2):
                    rates[in_flight].append(_BATCH * press(target, in_flight, plan.seconds, plan.place).rate)
                raw.append((before + _raw(plan, threads)) / 2)
        on = f"{threads} thread{'s' if threads > 1 else ''}"
        yield Figure(f"raw ONNX Runtime, {on}: batch {_BATCH}", "images/s", tuple(raw))
        for in_flight, each in rates.items():
            name = f"{_BATCH} latents a call, {in_flight} in flight, {on}: ours / raw"
            yield ratio(name, each, raw, at_least=0.92)


def _raw(plan: Plan, threads: int) -> float:
    """Images a second of the graph alone."""
    return _BATCH / raw_onnx.seconds_of(plan.decoder(), (_BATCH,), threads, plan.seconds / 4, "images")[_BATCH]


def _floats(plan: Plan) -> Iterator[Figure]:
    """4 MiB in (Encode) and out (Decode), of a model whose graphs only copy, against an echo of the same bytes."""
    much_in, much_out = bodies.encode(_IMAGES, _BROAD.shape), bodies.decode(_IMAGES, _BROAD.latent_dim, floats=True)
    seconds: dict[str, list[float]] = defaultdict(list)
    with plan.latentry(plan.repository("broad")) as (_, our_port, _ready), plan.echo() as port:
        targets = {
            "echo in": Target(port, bodies.ECHO + "Little", much_in, 64),
            "echo out": Target(port, bodies.ECHO + "Much", much_out, _BYTES),
            "ours in": Target(our_port, bodies.SERVICE + "Encode", much_in, 2 * 4 * _IMAGES * _BROAD.latent_dim),
            "ours out": Target(our_port, bodies.SERVICE + "Decode", much_out, _BYTES),
        }
        for _ in range(plan.rounds):
            for name, target in targets.items():
                seconds[name].append(press(target, 1, plan.seconds / 2, plan.place).mean_s)
    for name, each in seconds.items():
        yield Figure(f"4 MiB of floats, {name}", "ms", tuple(1e3 * one for one in each))
    for way in ("in", "out"):
        yield ratio(f"4 MiB of floats {way}: echo's time / ours", seconds[f"echo {way}"], seconds[f"ours {way}"])
    echo, ours = (
        [a + b for a, b in zip(seconds[f"{who} in"], seconds[f"{who} out"], strict=True)] for who in ("echo", "ours")
    )
    yield ratio("4 MiB of floats in and out: echo's time / ours", echo, ours, at_least=0.6)
