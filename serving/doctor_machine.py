"""What `latentry doctor` says of the machine: versions, driver, libraries, processors, memory. Knows no settings."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from serving import devices, engine, processors
from serving.findings import Finding, ok, problem, warning

_PACKAGES = ("latentry", "grpcio", "protobuf", "numpy", "pillow", "prometheus-client", "pydantic", "structlog")
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")
_MIB = 1 << 20
_LITTLE_MEMORY = 512 * _MIB
_FEW_FILES = 1024  # each connection takes one
_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_CGROUP = Path("/sys/fs/cgroup")


def examine(cgroup: Path = _CGROUP) -> Iterator[Finding]:
    """Look at everything that does not depend on settings."""
    yield from _python()
    yield from _onnxruntime()
    driver = devices.has_driver()
    yield _driver(driver)
    yield _libraries(driver)
    yield _processors(cgroup)
    yield _memory(cgroup)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    verdict = warning if files <= _FEW_FILES else ok
    yield verdict("open files", f"at most {files}; each connection takes one (ulimit -n)")


def pip_line(extra: str) -> str:
    """The command that installs `extra` where Latentry is installed as it is."""
    checkout = Path(__file__).resolve().parent.parent / "constraints.txt"
    return (
        f"pip install -c constraints.txt -e '.[{extra}]'" if checkout.exists() else f"pip install 'latentry[{extra}]'"
    )


def version_of(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Iterator[Finding]:
    yield ok("Python", f"{platform.python_version()} on {platform.platform()}")
    found = {name: version_of(name) for name in _PACKAGES}
    yield ok("packages", ", ".join(f"{name} {version}" for name, version in found.items() if version))
    missing = [name for name, version in found.items() if version is None]
    if missing:
        yield warning("packages", f"installed without their metadata: {', '.join(missing)}; {pip_line('serving')}")


def _onnxruntime() -> Iterator[Finding]:
    version, cuda, providers = engine.provider_report()
    installed = [name for name in _RUNTIMES if version_of(name)]
    built_for = f"built for CUDA {cuda}" if cuda else "built without CUDA"
    yield ok("ONNX Runtime", f"{version} ({', '.join(installed)}), {built_for}; providers {', '.join(providers)}")
    if len(installed) > 1:
        text = f"{' and '.join(installed)} overwrite each other's files; uninstall both, then {pip_line('serving')}"
        yield problem("ONNX Runtime", text)


def _driver(there: bool) -> Finding:
    if not there:
        return ok("NVIDIA driver", "none on this machine (no /dev/nvidia*), so graphs run on the CPU")
    version = _read(_DRIVER_VERSION).partition("\n")[0] or "version unknown"
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ok("NVIDIA driver", f"{version}; no nvidia-smi to ask for its GPUs")
    query = [smi, "--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603 - no input
    except (OSError, subprocess.SubprocessError) as error:
        return warning("NVIDIA driver", f"{version}; nvidia-smi fails: {error}")
    gpus = "; GPU ".join(done.stdout.strip().splitlines())
    return ok("NVIDIA driver", f"{version}; GPU {gpus}" if gpus else f"{version}; no GPU")


def _libraries(driver: bool) -> Finding:
    """The libraries of CUDA and cuDNN that ONNX Runtime's CUDA provider loads."""
    _, cuda, _ = engine.provider_report()
    if not cuda:
        return ok("CUDA libraries", f"not needed by this build of ONNX Runtime; for a GPU, {pip_line('cuda')}")
    major = int(cuda.partition(".")[0])
    wanted = [f"lib{name}.so.{major}" for name in ("cudart", "cublas", "cublasLt")]
    wanted += [f"libcufft.so.{major - 1}", "libcurand.so.10", "libcudnn.so.9"]
    places = {name: _place_of(name) for name in wanted}
    found = [f"{name} ({place})" for name, place in places.items() if place]
    missing = [name for name, place in places.items() if not place]
    if not missing:
        return ok("CUDA libraries", f"found {', '.join(found)}")
    text = f"missing {', '.join(missing)}" + (f"; found {', '.join(found)}" if found else "")
    if driver:
        return warning("CUDA libraries", f"{text}; {pip_line('cuda')}")
    return ok("CUDA libraries", f"{text}; needed for a GPU only, which wants {pip_line('cuda')}")


def _place_of(library: str) -> str | None:
    """Where the library is: a wheel of NVIDIA's, or the loader's path."""
    wheels = importlib.util.find_spec("nvidia")
    for root in wheels.submodule_search_locations or () if wheels else ():
        for file in Path(root).glob(f"*/lib/{library}"):
            return str(file.parent)
    try:
        ctypes.CDLL(library)
    except OSError:
        return None
    return "loader's path"


def _processors(cgroup: Path) -> Finding:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = processors.available(cgroup)
    why = f"affinity allows {allowed} of {os.cpu_count()} processors"
    why += f", the control group {threads}" if threads < allowed else ", the control group no fewer"
    return ok("threads", f"{threads} for each graph by default: {why}")


def available_memory(cgroup: Path = _CGROUP) -> tuple[int, int | None]:
    """Bytes that this process could still take, and the control group's limit, if there is one."""
    fields = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    free = int(fields.get("MemAvailable", "0 kB").split()[0]) << 10
    limit = _number(cgroup / "memory.max") or _number(cgroup / "memory" / "memory.limit_in_bytes")
    used = _number(cgroup / "memory.current") or _number(cgroup / "memory" / "memory.usage_in_bytes") or 0
    if limit is None or limit >= 1 << 60:  # version 1 says "no limit" with a number of pages
        return free, None
    return min(free, max(0, limit - used)), limit


def _memory(cgroup: Path) -> Finding:
    free, limit = available_memory(cgroup)
    limited = (
        f", the control group's limit is {limit // _MIB} MiB" if limit is not None else ", no limit by control group"
    )
    verdict = warning if free < _LITTLE_MEMORY else ok
    return verdict("memory", f"{free // _MIB} MiB available{limited}")


def _number(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
