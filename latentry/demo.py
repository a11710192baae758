"""The command `latentry demo`: the whole way once, with the commands that a user would type, and pictures of it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from latentry.client import Client
from latentry.pictures import Array, grid
from latentry.target import LatentryError

T = TypeVar("T")

_MARK = ".latentry-demo"  # in folders that the demo made, and so may remove
_START_TIMEOUT_S = 60.0


class DemoError(Exception):
    """A step failed; what it printed says why."""


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry demo`."""
    parser.description = (
        "Train a small VAE for about a minute, export it, serve it, call it, and draw what came out.\n\n"
        "  latentry demo --data data/fashion-mnist\n"
        "  latentry demo --data my_photos/ --image-size 64 --out out/photos"
    )
    parser.add_argument("--data", required=True, type=Path, help="images, as `latentry train --data` takes them")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write (default: %(default)s)")
    parser.add_argument("--preset", default="demo", help="of `latentry train` (default: %(default)s)")
    parser.add_argument("--image-size", help="of `latentry train`, for images of mixed sizes")


def run_demo(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status."""
    rows = _Rows()
    try:
        _prepare(args)
        _train_and_export(args, rows)
        started = time.perf_counter()
        with _serving(args.out) as (port, metrics_port), Client(f"localhost:{port}") as client:
            rows.add("serve", f"gRPC on port {port}, metrics on port {metrics_port}", time.perf_counter() - started)
            _call(client, args.out, rows)
            rows.add("/metrics", _scrape(metrics_port))
    except (DemoError, LatentryError, OSError, subprocess.TimeoutExpired) as error:
        print(f"latentry demo: {error}", file=sys.stderr)
        return 1
    rows.print()
    _say_what_next(args)
    return 0


class _Rows:
    """The table of what ran and how fast."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str]] = []

    def add(self, step: str, what: str, seconds: float | None = None) -> None:
        self._rows.append((step, what, "" if seconds is None else _duration(seconds)))

    def time(self, step: str, what: str, run: Callable[[], T]) -> T:
        """Run it, and add a row with the time that it took."""
        started = time.perf_counter()
        result = run()
        self.add(step, what, time.perf_counter() - started)
        return result

    def print(self) -> None:
        widths = [max(len(row[i]) for row in self._rows) for i in range(2)]
        print()
        for step, what, took in self._rows:
            print(f"  {step:<{widths[0]}}  {what:<{widths[1]}}  {took:>8}".rstrip())


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _prepare(args: argparse.Namespace) -> None:
    """Make the folder to write, in place of an earlier demo's, once nothing speaks against it."""
    out, data = args.out, args.data
    for package in ("torch", "onnxruntime", "grpc_health"):
        if importlib.util.find_spec(package) is None:
            raise DemoError(f"{package} is not installed: pip install 'latentry[training,serving]'")
    if not data.exists():
        raise DemoError(f"--data: {data} does not exist")
    if data.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to(data.resolve()):
        raise DemoError(f"--out: got {out}, wanted a folder apart from the images of {data}")
    if out.exists() and not out.is_dir():
        raise DemoError(f"--out: got {out}, which is a file; wanted a folder")
    if (out / _MARK).exists():
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise DemoError(f"--out: got {out}, which holds something else; wanted a new or an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).touch()


def _train_and_export(args: argparse.Namespace, rows: _Rows) -> None:
    run = str(args.out / "run")
    size = ["--image-size", args.image_size] if args.image_size else []
    commands = [
        ["train", "--preset", args.preset, "--data", str(args.data), "--out", run, *size],
        ["evaluate", run, "--save-images", str(args.out / "held_out.npz")],
        ["export", run, "--to", str(args.out / "models" / "demo" / "1")],
    ]
    for command in commands:
        rows.time(command[0], " ".join(command[1:]), partial(_latentry, command))
    shutil.copy(args.out / "run" / "figures" / "training.png", args.out / "training.png")


def _latentry(argv: list[str]) -> None:
    print(f"\n$ latentry {' '.join(argv)}", flush=True)
    if subprocess.run([sys.executable, "-m", "latentry", *argv], check=False).returncode:
        raise DemoError(f"latentry {argv[0]} failed")


@contextlib.contextmanager
def _serving(out: Path) -> Iterator[tuple[int, int]]:
    """`latentry serve` on free ports, until the block ends; yields the gRPC port and the metrics port."""
    flags = ["--models", str(out / "models"), "--port", "0", "--metrics-port", "0"]
    print(f"\n$ latentry serve {' '.join(flags)}", flush=True)
    log = out / "serve.log"
    with log.open("wb") as file:
        server = subprocess.Popen([sys.executable, "-m", "latentry", "serve", *flags], stderr=file)
    try:
        yield _ports(server, log)
        server.send_signal(signal.SIGTERM)
        if server.wait(_START_TIMEOUT_S) != 0:
            raise DemoError(f"the server did not stop cleanly; see {log}")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def _ports(server: subprocess.Popen[bytes], log: Path) -> tuple[int, int]:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        found = re.search(r"gRPC on \S+:(\d+), metrics on port (\d+)", log.read_text())
        if found:
            return int(found[1]), int(found[2])
        if server.poll() is not None:
            break
        time.sleep(0.05)
    raise DemoError(f"the server did not start; see {log}")


def _call(client: Client, out: Path, rows: _Rows) -> None:
    """Every RPC once, timed when warm, and the pictures that come of it."""
    with np.load(out / "held_out.npz") as arrays:
        images = arrays["images"][:32]
    info = client.info()
    client.decode(client.encode(images).mean)  # opens the connection
    rows.time("ListModels", f"{info.model.name} {info.model.version}, digest {info.model.digest[:12]}", client.models)
    posterior = rows.time("Encode", f"{len(images)} held-out images", partial(client.encode, images))
    decoded = rows.time("Decode", f"{len(images)} latents", partial(client.decode, posterior.mean))
    samples = rows.time("Sample", "64 images, seed 0", partial(client.sample, 64, seed=0))
    keys = posterior.mean[:4] if len(images) > 1 else samples.latents[:4]
    walk = rows.time("Interpolate", f"{len(keys)} key frames, 8 steps", partial(client.interpolate, keys, steps=8))

    scale = max(1, 64 // images.shape[1])
    pairs = np.concatenate([part for at in range(0, len(images), 8) for part in _pair(images, decoded.images, at)])
    grid(pairs, 8, scale=scale).save(out / "reconstructions.png")
    grid(samples.images, 8, scale=scale).save(out / "samples.png")
    grid(walk.images, len(walk.images), scale=scale).save(out / "interpolation.png")

    latent = posterior.mean[:1]
    calls, started = 300, time.perf_counter()
    for _ in range(calls):
        client.decode(latent)
    seconds = time.perf_counter() - started
    rows.add("Decode", f"{calls} calls one after another: {calls / seconds:.0f} a second", seconds / calls)


def _pair(images: Array, decoded: Array, at: int) -> tuple[Array, Array]:
    """A row of originals and the row of their reconstructions."""
    return images[at : at + 8], decoded[at : at + 8]


def _scrape(port: int) -> str:
    """One line of what /metrics says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    answered = sum(float(n) for n in re.findall(r'^latentry_requests_total\{.*code="OK".*\} (\S+)$', text, re.M))
    items = sum(float(n) for n in re.findall(r"^latentry_items_total\{.*\} (\S+)$", text, re.M))
    return f"{answered:.0f} calls answered, {items:.0f} rows through the graphs"


def _say_what_next(args: argparse.Namespace) -> None:
    print(f"""
pictures in {args.out}/
  reconstructions.png  held-out images, each row above what the model makes of it
  samples.png          64 new images
  interpolation.png    a walk through four images
  training.png         the ELBO while training

what to type next (`make` put the command into .venv/bin)
  latentry serve --models {args.out}/models        in one terminal, and in another:
  latentry sample --count 100 --out more.png
  latentry train --data YOUR_IMAGES --out runs/mine""")
