"""Does the GPU serve right, and how fast?  `make gpu-check`, on a machine with an NVIDIA GPU.

    python -m benchmarks.gpu_check [--models DIR] [--device cuda] [--cuda-graphs] [--seconds 1]

For every model it asserts that the CUDA provider is the one that runs, and that CPU and GPU agree on real inputs: the
posterior mean and logvar within 2e-3 relative to their spread (TF32 convolutions keep 10 bits of mantissa), image means
within 5e-3, bytes within 2 of 255. Then it prints items a second at each bucket: our engine (copies in and out
included), raw ONNX Runtime with IOBinding on the device (no copies), and torch on the same weights (copies included).
`--device cpu` runs the same on the CPU, to see that the check itself works. Exit status 1 if something does not agree.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from benchmarks import torch_weights
from latentry import manifest
from latentry.manifest import ModelFolder, embedded_models
from serving import devices, engine, processors, repository
from serving.devices import Device
from serving.engine import Graph
from serving.errors import StartError

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
POSTERIOR_TOLERANCE, MEAN_TOLERANCE, LEVEL_TOLERANCE = 2e-3, 5e-3, 2
_CHECKED = 77  # images and latents that are compared, in batches of several sizes

Work = Callable[[], object]


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
    agree = [_check(manifest.read(folder), device, args.seconds) for folder in folders]
    return 0 if all(agree) else 1


def _check(folder: ModelFolder, device: Device, seconds: float) -> bool:
    about = folder.manifest
    print(f"\n{about.name} {about.version}: {about.image_shape}, {about.latent_dim} latents")
    theirs = engine.load_graphs(folder, Device(devices.CPU, threads=device.threads), ())
    ours = engine.load_graphs(folder, device, BUCKETS)
    images, latents = _inputs(folder)
    checks = {
        "encoder": (images, {"mean": POSTERIOR_TOLERANCE, "logvar": POSTERIOR_TOLERANCE}),
        "decoder": (latents, {"mean": MEAN_TOLERANCE, "images": LEVEL_TOLERANCE}),
    }
    if about.prior is not None and "prior" in ours:
        noise = np.random.default_rng(1).standard_normal((max(BUCKETS), about.prior.noise_dim), np.float32)
        checks["prior"] = (noise, {"latents": POSTERIOR_TOLERANCE})
    agree = [_agrees(kind, theirs[kind], ours[kind], rows, wanted) for kind, (rows, wanted) in checks.items()]
    in_torch = _torch(folder, device, images, theirs["encoder"])
    for kind, graph, data, rows, module in (
        ("encode", ours["encoder"], folder.graph("encoder"), images, in_torch and in_torch[0]),
        ("decode", ours["decoder"], folder.graph("decoder"), latents, in_torch and in_torch[1]),
    ):
        _time(kind, graph, data, rows, module, device, seconds)
    return all(agree)


def _inputs(folder: ModelFolder) -> tuple[Any, Any]:
    """Images that the model might see (its own samples) and latents of the prior, the same on every machine."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((max(BUCKETS), folder.manifest.latent_dim)).astype(np.float32)
    decoder = engine.load_graphs(folder, Device(devices.CPU, threads=processors.available()), ())["decoder"]
    return decoder.run(latents, frozenset({"images"}))["images"], latents


def _agrees(kind: str, theirs: Graph, ours: Graph, rows: Any, tolerances: dict[str, float]) -> bool:
    names = frozenset(tolerances)
    wanted = theirs.run(rows[:_CHECKED], names)
    parts = [ours.run(rows[a:b], names) for a, b in ((0, 1), (1, 8), (8, 41), (41, _CHECKED))]
    good = True
    for name, tolerance in tolerances.items():
        got = np.concatenate([part[name] for part in parts]).astype(np.float64)
        worst = float(np.abs(got - wanted[name]).max())
        if kind != "decoder":
            worst /= float(wanted[name].std())
        good &= worst <= tolerance
        print(f"  {kind} {name}: differs by at most {worst:.3g}, wanted {tolerance:g}: {'ok' if good else 'TOO MUCH'}")
    return good


def _torch(folder: ModelFolder, device: Device, images: Any, encoder: Graph) -> Any:
    """The same network in torch, if it really is the same."""
    try:
        modules = torch_weights.graphs_of(folder)
    except ValueError as error:
        print(f"  no comparison with torch: {error}")
        return None
    with torch.inference_mode():
        mean = modules[0](torch.from_numpy(images[:8]))[0].numpy()
    np.testing.assert_allclose(mean, encoder.run(images[:8], frozenset({"mean"}))["mean"], atol=1e-3, rtol=1e-3)
    return [module.to("cuda" if device.is_gpu else "cpu", memory_format=torch.channels_last) for module in modules]


def _time(kind: str, graph: Graph, data: bytes, rows: Any, module: Any, device: Device, seconds: float) -> None:
    outputs = frozenset({"mean", "logvar"} if kind == "encode" else {"images"})
    print(f"  {kind:8}{'bucket':>8}{'engine':>14}{'raw ORT':>14}{'torch':>14}   items a second")
    for bucket in BUCKETS:
        batch = rows[:bucket]
        works: list[Work | None] = [
            lambda batch=batch: graph.run(batch, outputs),
            _raw(data, batch, graph, outputs, device),
            None if module is None else _in_torch(module, batch, device, kind),
        ]
        figures = [float("nan") if work is None else bucket / _seconds(work, seconds) for work in works]
        print(f"  {'':8}{bucket:>8}" + "".join(f"{figure:>14,.0f}" for figure in figures), flush=True)


def _raw(data: bytes, batch: Any, graph: Graph, outputs: frozenset[str], device: Device) -> Work:
    """ONNX Runtime as one would use it by hand: bound once, on the device, nothing copied."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = device.threads
    session = ort.InferenceSession(data, options, providers=device.providers({}, 1))
    place = ("cuda", device.ordinal) if device.is_gpu else ("cpu", 0)
    binding = session.io_binding()
    ((name, _),) = graph.inputs.items()
    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(batch, *place))
    for name in outputs:
        dtype, shape = graph.outputs[name]
        value = ort.OrtValue.ortvalue_from_shape_and_type((len(batch), *shape[1:]), dtype, *place)
        binding.bind_ortvalue_output(name, value)
    return lambda: session.run_with_iobinding(binding)


def _in_torch(module: Any, batch: Any, device: Device, kind: str) -> Work:
    def work() -> object:
        with torch.inference_mode():
            results = module(torch.from_numpy(batch).to("cuda" if device.is_gpu else "cpu"))
            wanted = results if kind == "encode" else results[:1]
            return [result.cpu().numpy() for result in wanted]

    return work


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
