"""One latent in, one image out: servers side by side with 1, 16 and 64 calls in flight, started anew in each round."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator

from benchmarks import clients, load, raw_onnx, servers
from benchmarks.children import Child, free_port, running
from benchmarks.figures import Figure, ratio
from benchmarks.plan import Plan
from benchmarks.servers import Server

IN_FLIGHT = (1, 16, 64)
_ALLOWED_S = 0.00015  # that a lone call may take beyond an echo and the bare inference
_BEST_PEER = {"pytriton": 1.3, "litserve": 2.5, "mlserver": 2.5, "ray": 2.5, servers.MOSEC: None}
_CLIENTS_AHEAD = 1.5  # of mosec's best client

Rounds = dict[str, list[float]]


def measure(plan: Plan) -> Iterator[Figure]:
    """All servers in turn, round by round."""
    there = [*servers.ours(plan), *servers.peers(plan)]
    seen: Rounds = defaultdict(list)
    for number in range(plan.rounds):
        raw = raw_onnx.seconds_of(plan.decoder(), (1, 64), 1, plan.seconds / 4, "images")
        for batch, seconds in raw.items():
            seen[f"raw {batch}"].append(seconds)
        for server in list(there):
            try:
                for what, value in _one_round(server, plan).items():
                    seen[f"{server.name} {what}"].append(value)
            except (RuntimeError, load.LoadFailed) as fault:
                if server.name in (servers.ECHO, servers.OURS):
                    raise
                there.remove(server)
                print(f"{server.name} is left out, round {number + 1}: {fault}", file=sys.stderr)
    yield from _figures(seen, [server.name for server in there])


def _one_round(server: Server, plan: Plan) -> dict[str, float]:
    port = free_port()
    with running(server.start(port)) as child:
        seen = {"ready": _first_answer(server, child, port, plan)}
        load.press(server.target(port), 16, plan.seconds / 2, plan.place)  # warm
        seen["MiB"] = child.rss_mib()
        for in_flight in IN_FLIGHT:
            pressed = load.press(server.target(port), in_flight, plan.seconds, plan.place)
            seen[f"rate {in_flight}"] = pressed.rate
            seen[f"seconds {in_flight}"] = pressed.mean_s
        for kind in clients.KINDS.get(server.name, ()):
            pressed_by = clients.press(kind, server.target(port), 64, plan.seconds, plan.peers)
            seen |= {} if pressed_by is None else {kind: pressed_by.rate}
    return seen


def _first_answer(server: Server, child: Child, port: int, plan: Plan) -> float:
    def answers() -> bool:
        try:
            load.calls(server.target(port), 1, 1, plan.place)
        except load.LoadFailed:
            return False
        return True

    return child.wait(answers, 0.02)


def _figures(seen: Rounds, names: list[str]) -> Iterator[Figure]:
    for name in names:
        yield Figure(f"{name}: first answer", "s", tuple(seen[f"{name} ready"]))
        yield Figure(f"{name}: resident", "MiB", tuple(seen[f"{name} MiB"]))
        yield Figure(f"{name}: mean latency, 1 in flight", "ms", tuple(1e3 * s for s in seen[f"{name} seconds 1"]))
        for in_flight in IN_FLIGHT:
            yield Figure(f"{name}: {in_flight} in flight", "calls/s", tuple(seen[f"{name} rate {in_flight}"]))
    yield Figure("raw ONNX Runtime, one thread: batch 1", "us", tuple(1e6 * s for s in seen["raw 1"]))
    yield Figure("raw ONNX Runtime, one thread: batch 64", "images/s", tuple(64 / s for s in seen["raw 64"]))
    yield from _targets(seen, names)


def _targets(seen: Rounds, names: list[str]) -> Iterator[Figure]:
    ours = servers.OURS
    bound = [
        echo + raw + _ALLOWED_S for echo, raw in zip(seen[f"{servers.ECHO} seconds 1"], seen["raw 1"], strict=True)
    ]
    yield ratio("1 in flight: latency / (echo + raw + 0.15 ms)", seen[f"{ours} seconds 1"], bound, at_most=1.0)
    yield ratio("64 in flight: ours / echo", seen[f"{ours} rate 64"], seen[f"{servers.ECHO} rate 64"])
    for name in names:
        if name in _BEST_PEER:
            theirs = seen[f"{name} rate 64"]
            yield ratio(f"64 in flight: ours / {name}", seen[f"{ours} rate 64"], theirs, at_least=_BEST_PEER[name])
            if servers.TWO in names:
                yield ratio(f"64 in flight: ours with 2 front ends / {name}", seen[f"{servers.TWO} rate 64"], theirs)
    if servers.TWO in names:
        rates = seen[f"{servers.TWO} rate 64"], seen[f"{ours} rate 64"]
        yield ratio("64 in flight: 2 front ends / one process", *rates, at_least=1.0)
    yield from _clients(seen, servers.MOSEC in names)


def _clients(seen: Rounds, has_mosec: bool) -> Iterator[Figure]:
    for kind in clients.KINDS[servers.OURS]:
        rates = seen[f"{servers.OURS} {kind}"]
        yield Figure(f"latentry through {clients.NAMES[kind]}, 64 at once", "calls/s", tuple(rates))
        yield ratio(f"{clients.NAMES[kind]} / h2load on latentry, 64", rates, seen[f"{servers.OURS} rate 64"])
    if not has_mosec:
        return
    theirs = {kind: seen[f"{servers.MOSEC} {kind}"] for kind in clients.KINDS[servers.MOSEC]}
    for kind, rates in theirs.items():
        if rates:
            yield Figure(f"mosec through {clients.NAMES[kind]}, 64 at once", "calls/s", tuple(rates))
    for kind, bound in (("async", _CLIENTS_AHEAD), ("threads", None)):
        name = f"64 at once: {clients.NAMES[kind]} / mosec's best client in Python"
        yield ratio(name, seen[f"{servers.OURS} {kind}"], clients.best(theirs), at_least=bound)
