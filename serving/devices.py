"""Where graphs run: from `--device` to ONNX Runtime's providers and their options.

Strict: a device that was asked for by name is used or refused, never replaced by another. Knows nothing of graphs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import NoDevice

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_WANTED = re.compile(r"auto|cpu|cuda(:[0-9]{1,3}(,[0-9]{1,3})*)?")
_DRIVER_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")


@dataclass(frozen=True, slots=True)
class Device:
    """One device: ONNX Runtime's `provider`, which of its kind, and how it is to be used; `reason` says why this one.

    `threads` are a CPU's; `memory_mib` (0: no limit), `cuda_graphs` and `tensorrt_cache` are a GPU's.
    """

    provider: str
    ordinal: int = 0
    threads: int = 1
    reason: str = "as asked"
    memory_mib: int = 0
    cuda_graphs: bool = False
    tensorrt_cache: Path | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether this is an NVIDIA GPU."""
        return self.provider != CPU

    @property
    def name(self) -> str:
        """`cpu`, or `cuda:N`."""
        return f"cuda:{self.ordinal}" if self.is_gpu else "cpu"

    def providers(self, profile: Mapping[str, Sequence[int]], max_batch: int) -> list[str | tuple[str, dict[str, Any]]]:
        """ONNX Runtime's providers for a graph whose inputs have items of the shapes in `profile`, by name.

        Shapes are steady, because rows are padded to buckets that are all warmed: so cuDNN may search exhaustively,
        and the arena need not keep more than was asked for.
        """
        if not self.is_gpu:
            return [CPU]
        cuda = {"device_id": self.ordinal, "cudnn_conv_algo_search": "EXHAUSTIVE"}
        cuda |= {"arena_extend_strategy": "kSameAsRequested"}
        if self.memory_mib:
            cuda["gpu_mem_limit"] = self.memory_mib << 20
        if self.tensorrt_cache is None:
            return [(CUDA, cuda | ({"enable_cuda_graph": "1"} if self.cuda_graphs else {}))]
        tensorrt = {"device_id": self.ordinal, "trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"}
        tensorrt |= {"trt_engine_cache_path": str(self.tensorrt_cache)}
        tensorrt |= {"trt_cuda_graph_enable": "1"} if self.cuda_graphs else {}
        for bound, rows in (("min", 1), ("opt", max_batch), ("max", max_batch)):
            shapes = [f"{name}:{'x'.join(map(str, (rows, *item)))}" for name, item in profile.items()]
            tensorrt[f"trt_profile_{bound}_shapes"] = ",".join(shapes)
        return [(TENSORRT, tensorrt), (CUDA, cuda)]


Probe = Callable[[Device], str | None]  # why ONNX Runtime cannot use a device, or None


def choose(
    wanted: str,
    probe: Probe,
    *,
    threads: int,
    memory_mib: int = 0,
    cuda_graphs: bool = False,
    tensorrt_cache: Path | None = None,
) -> list[Device]:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `cuda:N,M` into devices, each of which `probe` finds usable.

    `cuda` is strict: raises `NoDevice` when one cannot be used. `auto` takes a GPU if one works and otherwise the CPU,
    and the reason says which and why.
    """
    if not _WANTED.fullmatch(wanted):
        raise NoDevice(f"--device: got {wanted!r}, wanted auto, cpu, cuda, cuda:N or cuda:N,M")
    kind, _, numbers = wanted.partition(":")
    if kind == "cpu":
        return [Device(CPU, threads=threads)]
    ordinals = [int(n) for n in numbers.split(",")] if numbers else [0]
    if len(set(ordinals)) < len(ordinals):
        raise NoDevice(f"--device: got {wanted!r}, which names a GPU twice")
    provider = CUDA if tensorrt_cache is None else TENSORRT
    devices = [Device(provider, n, threads, "as asked", memory_mib, cuda_graphs, tensorrt_cache) for n in ordinals]
    for device in devices:
        problem = probe(device)
        if problem is not None and kind == "auto":
            return [Device(CPU, threads=threads, reason=f"auto: {problem}")]
        if problem is not None:
            raise NoDevice(f"--device {wanted}: {device.name}: {problem}")
    return devices


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return any(Path(node).exists() for node in _DRIVER_NODES)
