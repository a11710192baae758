"""Devices without any: which one is chosen, what ONNX Runtime is told, and how graphs use GPUs that only pretend."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from linear_model import LinearModel
from test_batcher import Puppet, make, submit, values
from test_metrics import decode_request, scrape

from latentry import manifest
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving import devices, engine, pinned
from serving.bad_graph import BadGraph
from serving.devices import CPU, CUDA, TENSORRT, Device
from serving.engine import Graph
from serving.errors import EngineFailed, NoDevice
from serving.pool import Pool

Array = np.ndarray[Any, np.dtype[Any]]
PROFILE = {"latents": (5,)}
IMAGES = frozenset({"images"})


# ---- which device ----


def working(*ordinals: int) -> tuple[devices.Probe, list[str]]:
    """A probe that finds these GPUs, and the names of those that it was asked for."""
    asked: list[str] = []

    def probe(device: Device) -> str | None:
        asked.append(device.name)
        return None if device.ordinal in ordinals else f"no GPU {device.ordinal}"

    return probe, asked


@pytest.mark.parametrize(
    ("wanted", "there", "names"),
    [
        ("cpu", [], ["cpu"]),
        ("cpu", [0], ["cpu"]),
        ("auto", [], ["cpu"]),
        ("auto", [0], ["cuda:0"]),
        ("cuda", [0, 1], ["cuda:0"]),
        ("cuda:1", [0, 1], ["cuda:1"]),
        ("cuda:0,1", [0, 1], ["cuda:0", "cuda:1"]),
        ("cuda:3,1", [1, 3], ["cuda:3", "cuda:1"]),
    ],
)
def test_what_is_wanted_and_works_is_taken(wanted: str, there: list[int], names: list[str]) -> None:
    probe, asked = working(*there)
    chosen = devices.choose(wanted, probe, threads=2)
    assert [device.name for device in chosen] == names
    assert all(device.threads == 2 for device in chosen)
    if wanted == "cpu":
        assert asked == [], "whoever asks for the CPU waits for no driver"


@pytest.mark.parametrize(
    ("wanted", "there", "said"),
    [
        ("cuda", [], "--device cuda: cuda:0: no GPU 0"),
        ("cuda:1", [0], "--device cuda:1: cuda:1: no GPU 1"),
        ("cuda:0,1", [0], "--device cuda:0,1: cuda:1: no GPU 1"),
        ("cuda:1,1", [1], "got 'cuda:1,1', which names a GPU twice"),
        ("gpu", [0], "got 'gpu', wanted auto, cpu, cuda, cuda:N or cuda:N,M"),
        ("auto:1", [1], "got 'auto:1', wanted"),
        ("cuda:", [0], "got 'cuda:', wanted"),
    ],
)
def test_a_gpu_that_is_named_is_never_replaced(wanted: str, there: list[int], said: str) -> None:
    with pytest.raises(NoDevice) as caught:
        devices.choose(wanted, working(*there)[0], threads=2)
    assert said in str(caught.value)
    assert caught.value.exit_code == 6


def test_auto_says_why_it_took_what_it_took() -> None:
    (fallen,) = devices.choose("auto", working()[0], threads=2)
    assert (fallen.provider, fallen.reason) == (CPU, "auto: no GPU 0")
    (gpu,) = devices.choose("auto", working(0)[0], threads=2)
    assert (gpu.provider, gpu.reason) == (CUDA, "as asked")


def test_tensorrt_is_asked_for_when_it_has_a_cache_and_probed_as_such(tmp_path: Path) -> None:
    probed: list[str] = []

    def probe(device: Device) -> str | None:
        probed.append(device.provider)
        return None

    (device,) = devices.choose("cuda", probe, threads=1, tensorrt_cache=tmp_path)
    assert (device.provider, device.tensorrt_cache, probed) == (TENSORRT, tmp_path, [TENSORRT])


# ---- what ONNX Runtime is told ----


def test_the_cpu_has_no_options() -> None:
    assert Device(CPU).providers(PROFILE, 64) == [CPU]


def test_cuda_is_set_for_steady_shapes_and_bounded_only_when_asked() -> None:
    ((name, options),) = Device(CUDA, 1).providers(PROFILE, 64)
    assert name == CUDA
    assert options == {
        "device_id": 1,
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "arena_extend_strategy": "kSameAsRequested",
    }
    ((_, options),) = Device(CUDA, memory_mib=512, cuda_graphs=True).providers(PROFILE, 64)
    assert options["gpu_mem_limit"] == 512 * 1024 * 1024
    assert options["enable_cuda_graph"] == "1"


def test_tensorrt_knows_every_batch_size_caches_its_engines_and_leaves_cuda_the_rest(tmp_path: Path) -> None:
    device = Device(TENSORRT, 2, memory_mib=100, cuda_graphs=True, tensorrt_cache=tmp_path)
    profile = {"images": (28, 28, 1), "mask": ()}
    (first, tensorrt), (second, cuda) = device.providers(profile, 32)
    assert (first, second) == (TENSORRT, CUDA)
    assert (tensorrt["trt_engine_cache_enable"], tensorrt["trt_engine_cache_path"]) == ("1", str(tmp_path))
    assert tensorrt["trt_profile_min_shapes"] == "images:1x28x28x1,mask:1"
    assert tensorrt["trt_profile_max_shapes"] == "images:32x28x28x1,mask:32"
    assert tensorrt["trt_profile_opt_shapes"] == tensorrt["trt_profile_max_shapes"]
    assert tensorrt["trt_cuda_graph_enable"] == "1"
    assert (cuda["device_id"], tensorrt["device_id"], cuda["gpu_mem_limit"]) == (2, 2, 100 << 20)
    assert "enable_cuda_graph" not in cuda, "of the two, one captures"


# ---- a provider that pretends ----


class FakeValue:
    """An OrtValue: on the CPU it is numpy's own memory, on a GPU a copy."""

    def __init__(self, data: Array, place: tuple[str, int]) -> None:
        self.data, self.place = data, place

    @staticmethod
    def ortvalue_from_numpy(data: Array, kind: str = "cpu", ordinal: int = 0) -> FakeValue:
        return FakeValue(data if kind == "cpu" else data.copy(), (kind, ordinal))

    @staticmethod
    def ortvalue_from_shape_and_type(shape: Sequence[int], dtype: Any, kind: str, ordinal: int) -> FakeValue:
        return FakeValue(np.empty(shape, dtype), (kind, ordinal))

    def update_inplace(self, data: Array) -> None:
        assert data.shape == self.data.shape
        self.data[:] = data

    def numpy(self) -> Array:
        return self.data.copy()


class FakeBinding:
    """An IOBinding, and what is bound."""

    def __init__(self) -> None:
        self.inputs: dict[str, FakeValue] = {}
        self.outputs: dict[str, FakeValue] = {}

    def bind_ortvalue_input(self, name: str, value: FakeValue) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: FakeValue) -> None:
        self.outputs[name] = value


class FakeSession:
    """A session on a GPU: computes on the CPU and writes down how it is used."""

    def __init__(self, machine: FakeGpus, source: Any, options: ort.SessionOptions, providers: Any) -> None:
        self._machine = machine
        self.options = options
        self.providers = providers
        self.ordinal = providers[0][1]["device_id"] if isinstance(providers[0], tuple) else None
        if self.ordinal in machine.lost:
            raise RuntimeError(f"CUDA failure 100: no CUDA-capable device is detected; GPU={self.ordinal}")
        self._real = ort.InferenceSession(source, providers=[CPU])
        self.bindings: list[FakeBinding] = []
        self.runs: list[tuple[FakeBinding, str]] = []  # each with the id of its CUDA graph

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)  # get_inputs, get_outputs, get_modelmeta, run

    def get_providers(self) -> list[str]:
        names = [each if isinstance(each, str) else each[0] for each in self.providers]
        return [CPU] if self._machine.falls_back else [*names, CPU]

    def io_binding(self) -> FakeBinding:
        self.bindings.append(FakeBinding())
        return self.bindings[-1]

    def run_with_iobinding(self, binding: FakeBinding, options: ort.RunOptions) -> None:
        if self.ordinal in self._machine.failing:
            raise RuntimeError(f"CUDA failure 2: out of memory; GPU={self.ordinal}")
        self._machine.hold(self.ordinal)
        self.runs.append((binding, _graph_id(options)))
        names = list(binding.outputs)
        results = self._real.run(names, {name: value.data for name, value in binding.inputs.items()})
        for name, result in zip(names, results, strict=True):
            binding.outputs[name].data[:] = result


def _graph_id(options: ort.RunOptions) -> str:
    with suppress(RuntimeError):  # there is none
        return str(options.get_run_config_entry("gpu_graph_id"))
    return ""


class FakeGpus:
    """A machine with NVIDIA GPUs, as `serving.engine` sees it through onnxruntime."""

    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []
        self.failing: set[int] = set()  # GPUs whose runs fail
        self.lost: set[int] = set()  # GPUs on which no session can be made
        self.falls_back = False
        self.pinned: list[Array] = []
        self.hold: Callable[[int], None] = lambda ordinal: None

    def on(self, ordinal: int) -> list[FakeSession]:
        """The sessions on a GPU."""
        return [session for session in self.sessions if session.ordinal == ordinal]

    def runs(self, ordinal: int) -> int:
        """How many batches a GPU has run."""
        return sum(len(session.runs) for session in self.on(ordinal))

    def session(self, source: Any, options: ort.SessionOptions, providers: Any) -> FakeSession:
        made = FakeSession(self, source, options, providers)
        self.sessions.append(made)
        return made

    def pin(self, array: Array) -> bool:
        self.pinned.append(array)
        return True


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    """GPUs for `serving.engine` and for whoever asks whether there is a driver."""
    machine = FakeGpus()
    fake = SimpleNamespace(
        InferenceSession=machine.session,
        SessionOptions=ort.SessionOptions,
        RunOptions=ort.RunOptions,
        OrtValue=FakeValue,
        get_available_providers=lambda: [TENSORRT, CUDA, CPU],
        preload_dlls=lambda: None,
    )
    monkeypatch.setattr(engine, "ort", fake)
    monkeypatch.setattr(engine, "pin", machine.pin)
    monkeypatch.setattr(devices, "has_driver", lambda: True)
    return machine


def decoder(linear: LinearModel, buckets: Sequence[int] = (1, 4), **about: Any) -> Graph:
    device = Device(CUDA, **about)
    return engine.load_graphs(manifest.read(linear.folder), device, buckets)["decoder"]


def latents(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)


def right(linear: LinearModel, z: Array, images: Array) -> bool:
    return bool(np.abs(images - 255 * linear.decode(z)).max() <= 0.51)


def test_a_gpu_that_works_is_found_and_one_that_does_not_is_explained(gpus: FakeGpus) -> None:
    assert engine.why_not(Device(CUDA)) is None
    gpus.lost = {0}
    said = engine.why_not(Device(CUDA))
    assert said is not None
    assert said.startswith("ONNX Runtime cannot use it: CUDA failure 100")
    gpus.lost, gpus.falls_back = set(), True
    said = engine.why_not(Device(CUDA))
    assert said == f"ONNX Runtime cannot use it: ONNX Runtime fell back to {CPU}, wanted {CUDA}"


def test_a_machine_without_driver_or_provider_is_explained(gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_driver", lambda: False)
    assert engine.why_not(Device(CUDA)) == "no NVIDIA driver on this machine"
    monkeypatch.setattr(engine.ort, "get_available_providers", lambda: [CPU])
    assert "has no CUDAExecutionProvider (install latentry[cuda])" in (engine.why_not(Device(CUDA)) or "")
    assert gpus.sessions == []


def test_a_session_that_fell_back_to_the_cpu_is_refused(gpus: FakeGpus, linear: LinearModel) -> None:
    gpus.falls_back = True
    with pytest.raises(BadGraph, match=f"fell back to {CPU}, wanted {CUDA}"):
        decoder(linear)


def test_a_session_is_told_not_to_leave_anything_to_the_cpu(gpus: FakeGpus, linear: LinearModel) -> None:
    decoder(linear, memory_mib=7)
    for session in gpus.sessions:
        assert session.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        assert session.options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert session.providers[0][1]["gpu_mem_limit"] == 7 << 20


def test_each_bucket_has_buffers_that_are_bound_once_and_page_locked(gpus: FakeGpus, linear: LinearModel) -> None:
    graph = decoder(linear, (1, 4, 8), ordinal=1)
    for n in (3, 1, 4, 8, 2, 7, 1):
        z = latents(n, n)
        assert right(linear, z, graph.run(z, IMAGES)["images"])
    (session,) = [each for each in gpus.on(1) if each.runs]
    assert len(session.bindings) == 3, "one for each bucket, however many batches"
    sizes = [len(binding.inputs["latents"].data) for binding, _ in session.runs]
    assert sizes == [4, 1, 4, 8, 4, 8, 1]
    assert {binding.inputs["latents"].place for binding in session.bindings} == {("cuda", 1)}
    assert {value.place for binding in session.bindings for value in binding.outputs.values()} == {("cpu", 0)}
    assert len(gpus.pinned) == 3 * 3, "what goes in, images and means, of three buckets"
    assert [graph.bucket(n) for n in (1, 2, 4, 5, 8)] == [1, 4, 4, 8, 8]
    assert {graph_id for _, graph_id in session.runs} == {""}


def test_a_cuda_graph_is_captured_for_each_bucket_with_outputs_on_the_gpu(gpus: FakeGpus, linear: LinearModel) -> None:
    graph = decoder(linear, (1, 4), ordinal=1, cuda_graphs=True)
    for n in (1, 3, 1, 4):
        z = latents(n)
        assert right(linear, z, graph.run(z, IMAGES)["images"])
    (session,) = [each for each in gpus.on(1) if each.runs]
    assert [graph_id for _, graph_id in session.runs] == ["1", "4", "1", "4"]
    assert {value.place for binding in session.bindings for value in binding.outputs.values()} == {("cuda", 1)}


def test_a_result_outlives_the_next_batch_in_the_same_buffers(gpus: FakeGpus, linear: LinearModel) -> None:
    graph = decoder(linear)
    first = graph.run(latents(4), IMAGES)["images"]
    before = first.copy()
    graph.run(latents(4, 1), IMAGES)
    assert (first == before).all()
    assert gpus.sessions


def test_a_restart_makes_a_new_session_with_new_buffers(gpus: FakeGpus, linear: LinearModel) -> None:
    graph = decoder(linear)
    graph.run(latents(4), IMAGES)
    made = len(gpus.sessions)
    graph.restart()
    z = latents(3)
    assert right(linear, z, graph.run(z, IMAGES)["images"])
    assert len(gpus.sessions) == made + 1
    gpus.lost = {0}
    with pytest.raises(BadGraph, match="no CUDA-capable device"):
        graph.restart()
    with pytest.raises(RuntimeError, match="could not be restarted"):
        graph.run(z, IMAGES)


# ---- a call on two devices ----


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_call_split_over_two_devices_is_answered_whole_and_in_order(order: tuple[int, int]) -> None:
    puppets, pool = (Puppet(), Puppet()), Pool(2)
    task = submit(make(puppets[0], pool, puppets[1]), *range(8))
    for puppet in puppets:
        await puppet.began()
    for device in order:
        assert not task.done()
        puppets[device].let()
        while sum(rows for rows, _ in puppets[0].seen) < (4 if device == order[0] else 8):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert await values(task) == [2.0 * v for v in range(8)]
    pool.close()


async def test_a_call_whose_parts_fail_on_one_device_fails_whole_and_harms_no_other() -> None:
    puppets, pool = (Puppet(), Puppet()), Pool(2)
    batcher = make(puppets[0], pool, puppets[1])
    split = submit(batcher, *range(8))
    for puppet in puppets:
        await puppet.began()
    puppets[0].error = RuntimeError("out of memory")
    puppets[0].let()
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(split, 10)
    puppets[0].error = None
    for puppet in puppets:
        puppet.let(10)
    calls = [submit(batcher, v, v + 1) for v in range(10, 20)]
    assert [await values(call) for call in calls] == [[2.0 * v, 2.0 * v + 2] for v in range(10, 20)]
    assert batcher.rows_waiting == 0
    pool.close()


# ---- a service on them ----


def decoded(stub: Any, linear: LinearModel, seed: int, n: int = 2) -> grpc.StatusCode:
    """How a call ends; its images are the right ones if it ends well."""
    z = latents(n, seed)
    request = decode_request(n)
    request.latents.data = z.astype("<f4").tobytes()
    try:
        reply = stub.Decode(request, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    images = np.frombuffer(reply.images.tensor.data, np.uint8).reshape(n, 12, 10, 1)
    assert right(linear, z, images), "another call's images"
    return grpc.StatusCode.OK


def until(true: Callable[[], bool]) -> None:
    """Poll; the test's own time limit ends what never comes true."""
    pause = threading.Event()
    while not true():
        pause.wait(0.01)


def test_every_bucket_of_every_gpu_is_warm_before_the_first_call(
    gpus: FakeGpus, serve: Any, linear_repository: Path
) -> None:
    service = serve(linear_repository, device="cuda:0,1", max_batch_size=6)
    for ordinal in (0, 1):
        used = [session for session in gpus.on(ordinal) if session.runs]
        assert len(used) == 2, "encoder and decoder"
        for session in used:
            sizes = [len(next(iter(binding.inputs.values())).data) for binding, _ in session.runs]
            assert sizes[:4] == [1, 2, 4, 6], "before its rows are compared"
    assert scrape(service)("latentry_device_up", device="cuda:1", provider=CUDA) == 1
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        info = vae_pb2_grpc.VaeServiceStub(channel).GetModel(pb.GetModelRequest()).model
    assert info.provider == CUDA


def test_two_gpus_share_the_work(gpus: FakeGpus, serve: Any, linear: LinearModel, linear_repository: Path) -> None:
    service = serve(linear_repository, device="cuda:0,1", max_batch_size=4)
    both = threading.Barrier(2)
    meetings: list[int] = []

    def meet(ordinal: int) -> None:
        """The first batch on each waits for the other's: they run at the same time."""
        if len(meetings) < 2:
            meetings.append(ordinal)
            both.wait(20)

    gpus.hold = meet
    with grpc.insecure_channel(f"localhost:{service.port}") as channel, ThreadPoolExecutor(8) as threads:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        codes = list(threads.map(lambda seed: decoded(stub, linear, seed, 3), range(40)))
    assert set(codes) == {grpc.StatusCode.OK}
    assert sorted(meetings) == [0, 1]
    page = scrape(service)
    about = {"model": "linear", "version": "1", "graph": "decoder"}
    assert page("latentry_items_total", **about) == 120
    assert page("latentry_padding_items_total", **about) > 0, "three rows run as four"


def test_a_gpu_that_fails_once_is_restarted_and_only_its_batch_is_told(
    gpus: FakeGpus, serve: Any, linear: LinearModel, linear_repository: Path
) -> None:
    service = serve(linear_repository, device="cuda:0,1")

    def fail_once(ordinal: int) -> None:
        gpus.hold = lambda ordinal: None
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    with grpc.insecure_channel(f"localhost:{service.port}", [("grpc.enable_retries", 0)]) as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        gpus.hold = fail_once
        assert decoded(stub, linear, 0) is grpc.StatusCode.UNAVAILABLE
        assert [decoded(stub, linear, seed) for seed in range(1, 20)] == [grpc.StatusCode.OK] * 19
    page = scrape(service)
    assert sum(page("latentry_engine_restarts_total", device=f"cuda:{n}") for n in (0, 1)) == 1


def test_a_gpu_that_is_lost_is_left_out_and_comes_back(
    gpus: FakeGpus, serve: Any, linear: LinearModel, linear_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.pool._RESTART_PAUSES_S", (0.05,))
    service = serve(linear_repository, device="cuda:0,1", max_batch_size=4)

    def up() -> float:
        return scrape(service)("latentry_device_up", device="cuda:1", provider=CUDA)

    with grpc.insecure_channel(f"localhost:{service.port}", [("grpc.enable_retries", 0)]) as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        gpus.failing, gpus.lost = {1}, {1}
        codes: list[grpc.StatusCode] = []
        with ThreadPoolExecutor(8) as threads:
            while up():
                codes += threads.map(lambda seed: decoded(stub, linear, seed, 4), range(16))
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert [decoded(stub, linear, seed) for seed in range(10)] == [grpc.StatusCode.OK] * 10
        assert vae_pb2_grpc.VaeServiceStub(channel).GetModel(pb.GetModelRequest()).model.state == pb.MODEL_STATE_READY
        gpus.failing, gpus.lost = set(), set()
        until(lambda: up() == 1)
        before = gpus.runs(1)
        with ThreadPoolExecutor(8) as threads:
            while gpus.runs(1) == before:
                assert set(threads.map(lambda seed: decoded(stub, linear, seed, 4), range(16))) == {grpc.StatusCode.OK}


def test_a_service_does_not_start_on_a_gpu_that_falls_back(gpus: FakeGpus, serve: Any, linear_repository: Path) -> None:
    gpus.falls_back = True
    with pytest.raises(NoDevice, match=f"fell back to {CPU}"):
        serve(linear_repository, device="cuda")


# ---- page-locked memory ----


class FakeCudart:
    """CUDA's runtime library: what is registered now."""

    def __init__(self, status: int = 0) -> None:
        self.registered: dict[int, int] = {}
        self.last_error = 0
        self._status = status

    def cudaHostRegister(self, address: Any, size: Any, flags: Any) -> int:  # noqa: N802 - as CUDA calls it
        assert flags.value == 0
        if self._status == 0:
            self.registered[address.value] = size.value
        else:
            self.last_error = self._status
        return self._status

    def cudaGetLastError(self) -> int:  # noqa: N802 - as CUDA calls it
        error, self.last_error = self.last_error, 0
        return error

    def cudaHostUnregister(self, address: Any) -> int:  # noqa: N802 - as CUDA calls it
        del self.registered[address.value]
        return 0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """Let there be this CUDA library, or none; the names that were tried."""

    def install(cuda: Any) -> list[str]:
        tried: list[str] = []

        def load(name: str) -> Any:
            tried.append(name)
            if cuda is None or name != "libcudart.so.12":
                raise OSError(f"{name}: cannot open shared object file")
            return cuda

        monkeypatch.setattr(pinned, "ctypes", SimpleNamespace(**{**vars(pinned.ctypes), "CDLL": load}))
        return tried

    return install


def test_pages_are_locked_as_long_as_the_array_lives(library: Callable[[Any], list[str]]) -> None:
    cuda = FakeCudart()
    library(cuda)
    array = np.zeros((4, 5), np.float32)
    assert pinned.pin(array)
    assert cuda.registered == {array.ctypes.data: 80}
    view = array[1:]
    del array
    gc.collect()
    assert len(cuda.registered) == 1, "a view keeps it"
    del view
    gc.collect()
    assert cuda.registered == {}


def test_memory_that_cuda_will_not_lock_is_used_as_it_is(
    library: Callable[[Any], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    cuda = FakeCudart(status=2)
    library(cuda)
    with caplog.at_level(logging.WARNING, "serving.pinned"):
        assert not pinned.pin(np.zeros(4, np.float32))
    assert "CUDA would not lock 16 bytes" in caplog.text
    assert cuda.last_error == 0, "else the next one who looks takes it for the error of a kernel"


def test_without_the_library_or_without_bytes_nothing_is_locked(library: Callable[[Any], list[str]]) -> None:
    assert not pinned.pin(np.zeros(0, np.float32))
    tried = library(None)
    assert not pinned.pin(np.zeros(4, np.float32))
    assert tried == list(pinned._LIBRARIES)
