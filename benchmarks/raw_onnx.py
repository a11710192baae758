"""What ONNX Runtime alone does with a graph: the ceiling of every server, in a process of its own.

    python -m benchmarks.raw_onnx DECODER.onnx --threads 1 --batches 1,8,64 --seconds 0.5 --outputs images

Prints the seconds of one run as JSON, by batch size.
"""

# ruff: noqa: S603 - it starts itself
from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import children


def seconds_of(graph: Path, batches: Sequence[int], threads: int, seconds: float, output: str) -> dict[int, float]:
    """The mean seconds of a run with each batch size, measured in a new process."""
    sizes = ",".join(map(str, batches))
    flags = ("--threads", threads, "--batches", sizes, "--seconds", seconds, "--outputs", output)
    command = children.python("benchmarks.raw_onnx", graph, *flags)
    done = subprocess.run(command, capture_output=True, text=True, cwd=children.ROOT, check=True)
    return {int(batch): taken for batch, taken in json.loads(done.stdout).items()}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("graph", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--outputs", type=lambda text: text.split(","), default=["images"])
    args = parser.parse_args()
    print(json.dumps({batch: _measure(args, batch) for batch in args.batches}))


def _measure(args: argparse.Namespace, batch: int) -> float:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = ort.InferenceSession(args.graph, options, providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    z = np.random.default_rng(0).standard_normal((batch, port.shape[1]), np.float32)
    for _ in range(20):
        session.run(args.outputs, {port.name: z})
    started, runs = time.perf_counter(), 0
    while time.perf_counter() - started < args.seconds:
        session.run(args.outputs, {port.name: z})
        runs += 1
    return (time.perf_counter() - started) / runs


if __name__ == "__main__":
    main()
