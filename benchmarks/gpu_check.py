"""Does the GPU serve right, and how fast?  `make gpu-check`, on a machine with an NVIDIA GPU.

    python -m benchmarks.gpu_check [--models DIR] [--device cuda] [--cuda-graphs] [--seconds 1]

For every model, in every precision that it comes in, it asserts that the CUDA provider is the one that runs, and that
CPU and GPU agree on real inputs within TOLERANCES: the posterior relative to its spread, image means, and bytes of 255,
in the worst value and on the whole (root mean square). A precision that CPUs cannot run is held against fp32. Then it
prints items a second at each bucket: our engine (copies in and out included), raw ONNX Runtime with IOBinding on the
device (no copies), and torch in fp32 on the same weights (copies included). `--device cpu` runs the same on the CPU, to
see that the check itself works. Exit status 1 if something does not agree or cannot be run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from benchmarks import torch_weights
from latentry import manifest
from latentry.manifest import FP32, ModelFolder, embedded_models
from serving import devices, engine, labelled, processors, repository
from serving.bad_graph import BadGraph, NoKernel
from serving.devices import Device
from serving.engine import Graph
from serving.errors import StartError

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CHECKED = 77  # images and latents that are compared, in batches of several sizes

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far CPU and GPU may be apart: in one value, and in the root mean square of all."""

    worst: float
    whole: float


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Of the posterior's mean and logvar by their standard deviation, of image means, and of bytes."""

    posterior: Tolerance
    mean: Tolerance
    levels: Tolerance


# fp32: TF32 convolutions keep 10 bits of mantissa. fp16 rounds to 10 bits between layers too, bf16 to 7. int8: a value
# that moves by the least moves a whole one of 256 steps when it is on the edge between two, so that single values
# differ much, and the whole little (tests/test_rows_apart.py plays it).
TOLERANCES = {
    "fp32": Tolerances(Tolerance(2e-3, 1e-3), Tolerance(5e-3, 1e-3), Tolerance(2, 0.5)),
    "fp16": Tolerances(Tolerance(2e-2, 5e-3), Tolerance(1e-2, 2e-3), Tolerance(5, 1)),
    "bf16": Tolerances(Tolerance(0.16, 4e-2), Tolerance(8e-2, 1.6e-2), Tolerance(20, 4)),
    "int8": Tolerances(Tolerance(0.4, 0.1), Tolerance(0.2, 3e-2), Tolerance(51, 8)),
}


def main() -> int:
    """Check and time every model; 0 if all agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=embedded_models(), help="model repository")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--cuda-graphs", action="store_true", help="capture a CUDA graph for each bucket")
    parser.add_argument("--seconds", type=float, default=1.0, help="to time each figure for (default: %(default)s)")
    args = parser.parse_args()
    threads = processors.available()
    try:
        (device,) = devices.choose(args.device, engine.why_not, threads=threads, cuda_graphs=args.cuda_graphs)
        folders = [versions[max(versions)] for _, versions in sorted(repository.scan(args.models).versions.items())]
    except StartError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 1
    print(f"{device.name}: {device.provider}, ONNX Runtime {ort.__version__}, torch {torch.__version__}")
    agree = []
    for folder in map(manifest.read, folders):
        agree += [_check(folder, precision, device, args.seconds) for precision in folder.manifest.precisions]
    return 0 if all(agree) else 1


def _check(folder: ModelFolder, precision: str, device: Device, seconds: float) -> bool:
    about = folder.manifest
    print(f"\n{about.name} {about.version} in {precision}: {about.image_shape}, {about.latent_dim} latents")
    try:
        ours = engine.load_graphs(folder, device, BUCKETS, precision)
    except BadGraph as error:
        print(f"  cannot be run: {error}")
        return False
    theirs = _on_the_cpu(folder, precision, device.threads)
    images, latents = _inputs(folder)
    wanted = TOLERANCES[precision]
    checks = {
        "encoder": (images, {"mean": wanted.posterior, "logvar": wanted.posterior}),
        "decoder": (latents, {"mean": wanted.mean, "images": wanted.levels}),
    }
    if about.prior is not None:
        noise = np.random.default_rng(1).standard_normal((max(BUCKETS), about.prior.noise_dim), np.float32)
        checks["prior"] = (noise, {"latents": TOLERANCES[FP32].posterior})
    if "density" in ours:
        checks["density"] = (labelled.split(latents)[0], {"log_prob": TOLERANCES[FP32].posterior})
    agree = [_agrees(kind, theirs[kind], ours[kind], rows, most) for kind, (rows, most) in checks.items()]
    in_torch = _torch(folder, device, images, theirs["encoder"]) if precision == FP32 else None
    for kind, graph, data, rows, module in (
        ("encode", ours["encoder"], folder.graph("encoder", precision), images, in_torch and in_torch[0]),
        ("decode", ours["decoder"], folder.graph("decoder", precision), latents, in_torch and in_torch[1]),
    ):
        _time(f"{kind} {precision}", graph, data, rows, module, device, seconds)
    return all(agree)


def _on_the_cpu(folder: ModelFolder, precision: str, threads: int) -> dict[str, Graph]:
    """What the device is held against."""
    cpu = Device(devices.CPU, threads=threads)
    try:
        return engine.load_graphs(folder, cpu, (), precision)
    except NoKernel:
        print(f"  the CPU cannot run {precision}: held against {FP32}")
        return engine.load_graphs(folder, cpu, ())


def _inputs(folder: ModelFolder) -> tuple[Any, Any]:
    """Images that the model might see (its own samples) and latents of the prior, the same on every machine; those of a
    conditional model are of all its classes, mixed."""
    rng = np.random.default_rng(0)
    known = folder.manifest.classes
    latents = rng.standard_normal((max(BUCKETS), folder.manifest.latent_dim)).astype(np.float32)
    mixed = rng.permutation(len(latents))
    latents = labelled.spread(latents, known)[mixed]
    decoder = engine.load_graphs(folder, Device(devices.CPU, threads=processors.available()), ())["decoder"]
    images = decoder.run(latents, frozenset({"images"}))["images"]
    _, classes = labelled.split(latents)
    return images if classes is None else labelled.attach(images, classes), latents


def _agrees(kind: str, theirs: Graph, ours: Graph, rows: Any, tolerances: Mapping[str, Tolerance]) -> bool:
    names = frozenset(tolerances)
    wanted = theirs.run(rows[:_CHECKED], names)
    parts = [ours.run(rows[a:b], names) for a, b in ((0, 1), (1, 8), (8, 41), (41, _CHECKED))]
    good = True
    for name, tolerance in tolerances.items():
        got = np.concatenate([part[name] for part in parts]).astype(np.float64)
        apart = np.abs(got - wanted[name]) / (1 if kind == "decoder" else float(wanted[name].std()))
        worst, whole = float(apart.max()), float(np.sqrt(np.square(apart).mean()))
        fits = worst <= tolerance.worst and whole <= tolerance.whole
        said = (
            f"by {worst:.3g} at worst and {whole:.3g} on the whole, wanted {tolerance.worst:g} and {tolerance.whole:g}"
        )
        print(f"  {kind} {name}: differs {said}: {'ok' if fits else 'TOO MUCH'}")
        good &= fits
    return good


def _torch(folder: ModelFolder, device: Device, images: Any, encoder: Graph) -> Any:
    """The same network in torch, if it really is the same."""
    try:
        modules = torch_weights.graphs_of(folder)
    except ValueError as error:
        print(f"  no comparison with torch: {error}")
        return None
    with torch.inference_mode():
        mean = modules[0](*_tensors(images[:8]))[0].numpy()
    np.testing.assert_allclose(mean, encoder.run(images[:8], frozenset({"mean"}))["mean"], atol=1e-3, rtol=1e-3)
    return [module.to("cuda" if device.is_gpu else "cpu", memory_format=torch.channels_last) for module in modules]


def _time(kind: str, graph: Graph, data: bytes, rows: Any, module: Any, device: Device, seconds: float) -> None:
    outputs = frozenset({"mean", "logvar"} if kind.startswith("encode") else {"images"})
    print(f"  {kind:12}{'bucket':>8}{'engine':>14}{'raw ORT':>14}{'torch':>14}   items a second")
    for bucket in BUCKETS:
        batch = rows[:bucket]
        works: list[Work | None] = [
            lambda batch=batch: graph.run(batch, outputs),
            _raw(data, batch, graph, outputs, device),
            None if module is None else _in_torch(module, batch, device, kind),
        ]
        figures = [float("nan") if work is None else bucket / _seconds(work, seconds) for work in works]
        print(f"  {'':12}{bucket:>8}" + "".join(f"{figure:>14,.0f}" for figure in figures), flush=True)


def _raw(data: bytes, batch: Any, graph: Graph, outputs: frozenset[str], device: Device) -> Work:
    """ONNX Runtime as one would use it by hand: bound once, on the device, nothing copied."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = device.threads
    session = ort.InferenceSession(data, options, providers=device.providers({}, 1))
    place = ("cuda", device.ordinal) if device.is_gpu else ("cpu", 0)
    binding = session.io_binding()
    for name, rows in graph.feeds(batch).items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(rows), *place))
    for name in outputs:
        dtype, shape = graph.outputs[name]
        value = ort.OrtValue.ortvalue_from_shape_and_type((len(batch), *shape[1:]), dtype, *place)
        binding.bind_ortvalue_output(name, value)
    return lambda: session.run_with_iobinding(binding)


def _in_torch(module: Any, batch: Any, device: Device, kind: str) -> Work:
    def work() -> object:
        with torch.inference_mode():
            results = module(*(each.to("cuda" if device.is_gpu else "cpu") for each in _tensors(batch)))
            wanted = results if kind.startswith("encode") else results[:1]
            return [result.cpu().numpy() for result in wanted]

    return work


def _tensors(rows: Any) -> list[torch.Tensor]:
    """The rows, and their classes if they have any."""
    return [torch.from_numpy(np.ascontiguousarray(each)) for each in labelled.split(rows) if each is not None]


def _seconds(work: Work, seconds: float) -> float:
    """One call's time, the median of as many as fit."""
    for _ in range(5):
        work()
    times = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 5:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


if __name__ == "__main__":
    sys.exit(main())
