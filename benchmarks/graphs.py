"""What the forms and precisions of a model's graphs cost, side by side in one run.

    python -m benchmarks.graphs [--config CONFIG.toml] [--image-shape 28,28,1] [--batches 1,8,64] [--threads 1,2]
                                [--rounds 15] [--no-compile] [--device cpu]

A network of the config (without one, the preset `fashion`; its weights are random, which costs the same as any) as
torch eager and torch.compile, as ONNX as the exporter writes it, and as we export it: folded, with doublings as
sub-pixel or as transposed convolutions, and in fp16, bf16 and int8. ONNX Runtime runs as the server runs it. Rounds go
through all forms in turn, so that what else the machine does falls on all of them; the time is the median round. The
ratios are to the fp32 graph as the exporter writes it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from serving import engine
from serving.devices import CPU, CUDA, Device
from training import config_file, folding, graphs, model
from training.graphs import DecoderGraph, EncoderGraph
from training.networks.scales import Size
from training.precision import bfloat16, int8

AS_EXPORTED = "onnx fp32, as exported"
_CALIBRATION, _SECONDS = 64, 0.02

Run = Callable[[], object]
Graph = EncoderGraph | DecoderGraph


@dataclass(frozen=True, slots=True)
class Form:
    """One way to run a part of the model: what makes a run of a batch with so many threads, and its file."""

    name: str
    runner: Callable[[Any, int], Run]
    kilobytes: float | None = None


class Transposed(nn.Module):
    """What `folding.SubPixel` computes, as one transposed convolution with a kernel of 4."""

    def __init__(self, weight: Tensor, bias: Tensor | None, taps: Tensor, size: Size) -> None:
        super().__init__()
        self.size = size
        inner, outer = weight.shape[1], weight.shape[0]
        kernel = torch.stack([taps[1, 1], taps[0, 1], taps[1, 0], taps[0, 0]]).to(weight.dtype)
        self.conv = nn.ConvTranspose2d(inner, outer, 4, 2, padding=1)
        self.conv.weight = nn.Parameter(torch.einsum("ak,ockl,bl->coab", kernel, weight, kernel))
        self.conv.bias = nn.Parameter(weight.new_zeros(outer) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, : self.size[0], : self.size[1]]


def main() -> int:
    """Print a table for the encoder and one for the decoder."""
    args = _arguments()
    height, width, channels = args.image_shape
    torch.manual_seed(0)
    config = config_file.read(args.config) if args.config else config_file.read_preset("fashion")
    vae = model.build(config.model, config.objective, args.image_shape).eval().requires_grad_(False)
    versions = f"torch {torch.__version__}, ONNX Runtime {ort.__version__}, {args.device}"
    print(f"{config.model.kind}, {height}x{width}x{channels}, {config.model.latent_dim} latents; {versions}")
    encoder, decoder = graphs.wrapped(vae)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(*args.batches, _CALIBRATION), *args.image_shape), np.uint8)
    latents = rng.standard_normal((len(images), config.model.latent_dim), np.float32)
    for name, graph, inputs in (("encoder", encoder, images), ("decoder", decoder, latents)):
        forms = list(_forms(graph, inputs, args))
        for threads in args.threads:
            for batch in args.batches:
                print(f"\n{name}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
                _print(_measured(forms, inputs[:batch], threads, args.rounds), forms, batch)
    return 0


def _forms(graph: Graph, inputs: Any, args: argparse.Namespace) -> Iterator[Form]:
    name = "images" if isinstance(graph, EncoderGraph) else "latents"
    device = "cuda" if args.device == "cuda" else "cpu"
    yield Form("torch eager", _in_torch(graph.to(device), device))
    if not args.no_compile:
        yield Form("torch.compile", _in_torch(torch.compile(graph.to(device), dynamic=False), device))
    graph.cpu()
    fp32 = _export(graph, inputs)
    files = {AS_EXPORTED: _unfolded(graph, inputs), "onnx fp32": fp32}
    if isinstance(graph, DecoderGraph):
        files["onnx fp32, transposed"] = _transposed(graph, inputs)
    files["onnx fp16"] = _export(graph, inputs, torch.float16)
    files["onnx bf16"] = bfloat16.with_bfloat16_weights(fp32, {})
    files["onnx int8"] = int8.quantised(fp32, [{name: inputs[:_CALIBRATION]}], {})
    for form, data in files.items():
        yield Form(form, _in_onnx_runtime(data, args.device), len(data) / 1000)


def _export(graph: Graph, inputs: Any, dtype: torch.dtype = torch.float32) -> bytes:
    if isinstance(graph, EncoderGraph):
        return graphs.export_encoder(graph, inputs.shape[1:], {}, dtype)
    return graphs.export_decoder(graph, inputs.shape[1], {}, dtype)


def _unfolded(graph: Graph, inputs: Any) -> bytes:
    """As torch's exporter writes it, which joins convolutions with their norms by itself."""
    as_it_is = mock.patch.object(folding, "folded", lambda network: network)
    with as_it_is, mock.patch.object(graphs.graph_passes, "tidy"):
        return _export(graph, inputs)


def _transposed(graph: Graph, inputs: Any) -> bytes:
    with mock.patch.object(folding, "SubPixel", Transposed):
        return _export(graph, inputs)


def _in_torch(graph: Any, device: str) -> Callable[[Any, int], Run]:
    def runner(inputs: Any, threads: int) -> Run:
        torch.set_num_threads(threads)
        x = torch.from_numpy(inputs).to(device)

        @torch.inference_mode()
        def run() -> object:
            result = graph(x)
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    return runner


def _in_onnx_runtime(data: bytes, device: str) -> Callable[[Any, int], Run]:
    def runner(inputs: Any, threads: int) -> Run:
        place = Device(CUDA if device == "cuda" else CPU, threads=threads)
        graph = engine.Graph(data, place, {}, [len(inputs)] if device == "cuda" else ())
        outputs = frozenset(graph.outputs)
        return lambda: graph.run(inputs, outputs)

    return runner


def _measured(forms: Sequence[Form], inputs: Any, threads: int, rounds: int) -> Mapping[str, float]:
    """The median seconds of a run of each form."""
    runs = {form.name: form.runner(inputs, threads) for form in forms}
    times: dict[str, list[float]] = {name: [] for name in runs}
    repeats = {}
    for name, run in runs.items():
        run()
        run()
        repeats[name] = max(1, round(_SECONDS / max(_seconds(run, 1), 1e-6)))
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_seconds(run, repeats[name]))
    return {name: statistics.median(each) for name, each in times.items()}


def _seconds(run: Run, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def _print(seconds: Mapping[str, float], forms: Sequence[Form], batch: int) -> None:
    print(f"  {'':<26}{'ms':>9}{'images/s':>10}{'ratio':>7}{'kB':>8}")
    for form in forms:
        taken = seconds[form.name]
        size = "" if form.kilobytes is None else f"{form.kilobytes:8.0f}"
        ratio = seconds[AS_EXPORTED] / taken
        print(f"  {form.name:<26}{taken * 1e3:9.3f}{batch / taken:10.0f}{ratio:7.2f}{size}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.graphs", description=__doc__.splitlines()[0])
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--config", type=Path, help="a config of `latentry init` (default: the preset `fashion`)")
    parser.add_argument("--image-shape", type=lambda text: tuple(numbers(text)), default=(28, 28, 1), metavar="H,W,C")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 64])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which wants a C++ compiler")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
