"""The servers that decode one latent a call, side by side: ours, an echo that computes nothing, and the peers.

A peer's environment is HOME/venvs/NAME, whoever made it; a peer without one is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import bodies, children
from benchmarks.load import Target
from benchmarks.plan import Plan

_PEERS = children.ROOT / "benchmarks" / "peers"


@dataclass(frozen=True, slots=True)
class Server:
    """How to start a server on a port, and what to send it. `module` runs with {port} and {metrics_port} filled in."""

    name: str
    command: tuple[str, ...]
    path: str
    message: bytes
    http1: str = ""
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path = children.ROOT

    def start(self, port: int) -> children.Child:
        """The process; not ready yet."""
        command = [part.format(port=port, port1=port + 1, port2=port + 2) for part in self.command]
        env = {key: value.format(port=port, port1=port + 1, port2=port + 2) for key, value in self.env.items()}
        return children.Child(command, env, self.cwd)

    def target(self, port: int) -> Target:
        """What to press it with."""
        return Target(port, self.path, self.message, 784, self.http1)


ECHO, OURS, OIP, TWO = "grpcio echo", "latentry", "latentry, OIP", "latentry, 2 front ends"
MOSEC = "mosec"


def ours(plan: Plan) -> Iterator[Server]:
    """The echo, and ours in the forms that there are."""
    z = bodies.latents(1)
    yield Server(ECHO, tuple(children.python("benchmarks.echo_server", "{port}")), bodies.ECHO + "Image", z)
    flags = ["--models", plan.repository("conv"), "--port", "{port}", "--metrics-port", "{port1}", "--device", "cpu"]
    serve = tuple(children.python("latentry", "serve", *flags))
    decode, message = bodies.SERVICE + "Decode", bodies.decode(1)
    yield Server(OURS, serve, decode, message)
    yield Server(TWO, (*serve, "--frontends", "2"), decode, message)
    yield Server(OIP, serve, bodies.OIP, bodies.oip_decode())


def peers(plan: Plan) -> Iterator[Server]:
    """Those that are installed under `plan.peers`."""
    if plan.peers is None:
        return
    z = bodies.latents(1)
    numbers = "[" + ",".join(f"{value:.6f}" for value in memoryview(z).cast("f")) + "]"
    run: dict[str, tuple[tuple[str, ...], str, bytes, str]] = {
        MOSEC: (("{python}", "mosec_server.py", "--port", "{port}", "--timeout", "30000"), "/inference", z, _BYTES),
        "litserve": (("{python}", "litserve_server.py", "{port}"), "/predict", b'{"z":%s}' % numbers.encode(), _JSON),
        "pytriton": (("{python}", "pytriton_server.py", "{port}"), bodies.OIP, bodies.oip_decode(), ""),
        "mlserver": (("{bin}/mlserver", "start", "."), bodies.OIP, bodies.oip_decode(), ""),
        "ray": (("{python}", "ray_server.py", "{port}"), "/bench.Decoder/Decode", b"\x0a\x80\x01" + z, ""),
    }
    shared = {"DECODER": str(plan.decoder()), "PROTO_DIR": str(plan.place)}
    env = {"mlserver": {f"MLSERVER_{name}_PORT": f"{{{at}}}" for name, at in _MLSERVER_PORTS.items()}}
    for name, (command, path, message, http1) in run.items():
        place = plan.peers / "venvs" / name / "bin"
        if (place / "python").exists():
            places = {"{python}": str(place / "python"), "{bin}/mlserver": str(place / "mlserver")}
            filled = tuple(places.get(part, part) for part in command)
            cwd = _PEERS / "mlserver_model" if name == "mlserver" else _PEERS
            yield Server(name, filled, path, message, http1, {**shared, **env.get(name, {})}, cwd)
        else:
            print(f"no {place}: {name} is left out", file=sys.stderr)


_BYTES, _JSON = "application/octet-stream", "application/json"
_MLSERVER_PORTS = {"GRPC": "port", "HTTP": "port1", "METRICS": "port2"}
