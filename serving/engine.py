"""ONNX Runtime: the bytes of a graph become a function from arrays to arrays on one device.

The only file that imports onnxruntime. Knows nothing of gRPC, requests or queues. A `Graph` is not for two threads at
once: its device's one thread runs it.

On a CPU all graphs take what they compute with from one arena, and large batches of small graphs run in slices, on
threads that all share: a further graph costs its weights. ONNX Runtime's own pool for all graphs would do that too, but
its threads spin, and Python cannot tell them not to.

Where shapes are costly (CUDA searches algorithms and plans memory for each new one), rows are padded to one of a few
batch sizes, the buckets, and input and output buffers are allocated once for each bucket and reused.

The graphs of a conditional model take the class of each row as well: their rows are what `labelled.attach` makes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is loaded, and else reports home
import onnxruntime as ort

from latentry.manifest import DENSITY_FILE, FP32, Manifest, ModelFolder, graph_file
from latentry.onnx_runtime import said
from serving import again, devices, labelled, ports, slices
from serving.bad_graph import BadGraph, NoKernel
from serving.devices import Device
from serving.pinned import pin

Array = npt.NDArray[Any]

_DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
}


# How far a row may differ between batch sizes, for which devices choose other kernels, which sum in another order:
# a share of 1 + the largest value. fp32: TF32 convolutions keep 10 bits. fp16 keeps 10 bits too, but of all that lies
# between the layers as well, and bf16 keeps 7. int8: however little a value moves, it may move over the edge between
# two of its 256 steps, and what follows with it. With noise of 2^-11 after each layer the shipped models quantised to
# int8 differed by 0.08, with noise of 2^-20 by 0.05; rows that read each other differ by several times as much.
_ROUNDING = {FP32: 5e-3, "fp16": 1e-2, "bf16": 4e-2, "int8": 0.1}
_REPEATED = 7  # rows that are run twice
_SLOW_ROW_S = 0.001  # of processor time: from here on, threads that share a row's work are worth having
_EXPORT_AGAIN = "export it again, with opset_version=18, or install a newer onnxruntime"


def why_not(device: Device) -> str | None:
    """Why ONNX Runtime cannot use this GPU, in words, or None if it can: a `devices.Probe`."""
    if device.provider not in ort.get_available_providers():
        return f"this build of ONNX Runtime has no {device.provider} (install latentry[cuda])"
    if not devices.has_driver():
        return "no NVIDIA driver on this machine"
    ort.preload_dlls()
    try:  # the smallest graph there is: one that hands its input on
        _session(_IDENTITY, device, {"x": ()}, 1)
    except Exception as error:
        return f"ONNX Runtime cannot use it: {str(error).splitlines()[0]}"
    return None


# An ONNX file of one node, y = Identity(x), x float [1]; IR version 8, opset 17.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08"
    "080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)


def _session(
    model: bytes, device: Device, profile: Mapping[str, Sequence[int]], max_batch: int
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # Nothing but what ends the process: warnings concern its developers, and errors are raised as well. It would print
    # them as they are, with names out of the graph, which can look like lines of our log.
    options.log_severity_level = 4
    options.intra_op_num_threads = device.threads
    options.inter_op_num_threads = 1
    # Threads that spin between batches take the processor from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not device.is_gpu:
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    # A graph's weights are inside it, where its digest vouches for them: what points to another file finds none.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    if device.is_gpu:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with _as_file(model) as source:
        session = ort.InferenceSession(source, options, providers=device.providers(profile, max_batch))
    if session.get_providers()[0] != device.provider:
        raise BadGraph(f"ONNX Runtime fell back to {session.get_providers()[0]}, wanted {device.provider}")
    return session


@functools.cache
def _share_arena() -> None:
    """Once: an arena of each graph's own would keep what its largest batch needed, several times its weights."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(place, ort.OrtArenaCfg({}))


@contextlib.contextmanager
def _as_file(model: bytes) -> Iterator[str | bytes]:
    """The graph as a file in memory, where there is such a thing: ONNX Runtime reads a file without holding the
    interpreter's lock (for 226 MB, 1 ms instead of 110), so that calls go on while a model is loaded.
    """
    if not model or not hasattr(os, "memfd_create") or not Path("/proc/self/fd").is_dir():
        yield model
        return
    with os.fdopen(os.memfd_create("latentry-graph"), "wb") as file:
        file.write(model)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


class Graph:
    """A graph on a device. `buckets` are the batch sizes to pad to; none means that any size runs as it is. `profile`
    has the shape of one item for each input, which TensorRT wants to know beforehand. `precision` says how exact it is.
    `classes` are those that a conditional model's rows are of, else 0. `read` gives the bytes again when it is
    restarted, or raises `ValueError`; without it they are kept.
    """

    def __init__(
        self,
        model: bytes,
        device: Device,
        profile: Mapping[str, Sequence[int]],
        buckets: Sequence[int] = (),
        precision: str = FP32,
        classes: int = 0,
        read: Callable[[], bytes] | None = None,
    ) -> None:
        self.precision = precision
        self._classes = classes
        self._read: Callable[[], bytes] = functools.partial(bytes, model) if read is None else read
        self._device = device
        self._threads = 1  # that share the work of one row
        self._profile = profile
        self._buckets = sorted(buckets)
        self._closed = False
        self._open(model)

    def _open(self, model: bytes) -> None:
        self._bound: dict[int, _BoundBatch] = {}
        device = replace(self._device, threads=self._threads)
        try:
            session = _session(model, device, self._profile, max(self._buckets, default=1))
        except BadGraph:
            raise
        except Exception as error:  # ONNX Runtime raises a dozen kinds, none of them documented
            if type(error).__name__ == "NotImplemented":
                remedy = f"--precision {FP32} runs everywhere"
                raise NoKernel(f"ONNX Runtime cannot run it on {self._device.name}: {said(error)}; {remedy}") from error
            remedy = "" if self._device.is_gpu else f"; {_EXPORT_AGAIN}"  # a GPU has other reasons: its memory, say
            raise BadGraph(f"ONNX Runtime cannot load it: {said(error)}{remedy}") from error
        self._session: ort.InferenceSession | None = session
        self.metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
        self.inputs = {i.name: (_DTYPES.get(i.type), tuple(i.shape)) for i in session.get_inputs()}
        self.outputs = {o.name: (_DTYPES.get(o.type), tuple(o.shape)) for o in session.get_outputs()}
        self._input = next((name for name in self.inputs if name != ports.LABELS), "")

    def bucket(self, rows: int) -> int:
        """The batch size that `rows` rows run as."""
        return next((size for size in self._buckets if size >= rows), rows)

    def run(self, rows: Array, outputs: frozenset[str]) -> dict[str, Array]:
        """Run `rows` [n, ...] and return the named outputs, each [n, ...]."""
        if self._session is None:
            raise RuntimeError("this graph has no session: it is closed, or could not be restarted")
        if not self._buckets:
            work = functools.partial(self._plain, self._session, sorted(outputs))
            if len(rows) < 2 * slices.LEAST or self._threads > 1:
                return work(rows)
            return slices.run(work, rows, self._device.threads)
        size = self.bucket(len(rows))
        if size not in self._bound:
            self._bound[size] = _BoundBatch(self, self._session, self._device, size)
        return self._bound[size].run(self.feeds(rows), outputs)

    def _plain(self, session: ort.InferenceSession, names: Sequence[str], rows: Array) -> dict[str, Array]:
        return dict(zip(names, session.run(names, self.feeds(rows)), strict=True))

    def feeds(self, rows: Array) -> dict[str, Array]:
        """What each input is given for these rows."""
        items, classes = labelled.split(rows)
        return {self._input: items} if classes is None else {self._input: items, ports.LABELS: classes}

    def settle(self) -> None:
        """On a CPU, give a graph that takes long for one row threads that share its work; raises `BadGraph`."""
        if self._device.is_gpu or self._device.threads == 1 or self._threads > 1:
            return
        if min(self._row_s() for _ in range(4)) >= _SLOW_ROW_S:
            self._threads = self._device.threads
            self._free()
            self._open(self._read_again())

    def _row_s(self) -> float:
        """Seconds of this thread's processor time: what else the machine does has no say."""
        started = time.thread_time()
        self._try(self._zeros(1))
        return time.thread_time() - started

    def warm_up_sizes(self, max_batch: int) -> Sequence[int]:
        """The batch sizes to run once before callers wait for it: each bucket, or one and the largest."""
        return self._buckets or sorted({1, max_batch})

    def warm(self, size: int) -> None:
        """Run a batch of `size` once, of as many classes as there are rows.

        Raises `BadGraph` if that fails, or gives outputs that are not finite or not of the shapes that were declared.
        """
        results = self._try(self._zeros(size))
        for name, (_, declared) in self.outputs.items():
            got, wanted = results[name], (size, *declared[1:])
            if got.shape != wanted:
                raise BadGraph(f"output {name}: got shape {list(got.shape)}, wanted {list(wanted)}")
            if not np.isfinite(got).all():
                raise BadGraph(f"output {name}: not finite for an input of zeros")

    def check_rows(self) -> None:
        """Raises `BadGraph` if a row's outputs depend on the other rows of its batch.

        Such a graph (batch normalisation exported in training mode, say) would answer one call with a part of another's
        data. A few rows are run together, one by one, and the first with others; GPUs round otherwise for other batch
        sizes. A CPU does the same for equal sizes, so that on it the last comparison is a close one in any precision.
        """
        n = min(3, max(self._buckets, default=3))
        rows = self._some(2 * n)
        together = self._try(rows[:n])
        alone = [self._try(rows[k : k + 1]) for k in range(n)]
        elsewhere = self._try(np.concatenate([rows[:1], rows[n + 1 :]]))
        same_size = self.precision if self._device.is_gpu else FP32
        for name in self.outputs:
            _check_alike(name, together[name], np.concatenate([each[name] for each in alone]), self.precision)
            _check_alike(name, together[name][:1], elsewhere[name][:1], same_size)

    def check_repeats(self) -> None:
        """Raises `BadGraph` unless the same rows twice give the same bits: a graph draws nothing at random and
        remembers nothing. A CPU adds up in the same order each time; GPUs need not.
        """
        rows = self._some(_REPEATED)
        once, again = self._try(rows), self._try(rows)
        for name, values in once.items():
            if values.tobytes() != again[name].tobytes():
                worst = np.abs(values.astype(np.float64) - again[name]).max()
                raise BadGraph(f"output {name}: two runs on the same rows differ by {worst:.3g}; wanted the same bits")

    def _try(self, rows: Array) -> dict[str, Array]:
        """All outputs; raises `BadGraph` if it does not run."""
        try:
            return self.run(rows, frozenset(self.outputs))
        except Exception as error:  # ONNX Runtime raises a dozen kinds, none of them documented
            raise BadGraph(f"a batch of {len(rows)} fails: {said(error)}") from error

    def _zeros(self, rows: int) -> Array:
        dtype, shape = self.inputs[self._input]
        return labelled.spread(np.zeros((rows, *shape[1:]), dtype), self._classes)

    def _some(self, rows: int) -> Array:
        """Rows of noise, always the same."""
        rng = np.random.default_rng(0)
        dtype, shape = self.inputs[self._input]
        item = (rows, *shape[1:])
        noise = rng.integers(0, 256, item, np.uint8) if dtype is np.uint8 else rng.standard_normal(item, np.float32)
        return labelled.spread(noise, self._classes)

    def restart(self) -> None:
        """Free the session and its buffers, load the graph again and run it once; raises `BadGraph`."""
        self._free()
        if self._closed:
            raise BadGraph("it is closed")
        self._open(self._read_again())
        self.warm(self.bucket(1))

    def _read_again(self) -> bytes:
        try:
            return self._read()
        except ValueError as error:
            raise BadGraph(str(error)) from error

    def close(self) -> None:
        """Free what it holds on the device, for good."""
        self._closed = True
        self._read = bytes  # lets go of the file
        self._free()

    def _free(self) -> None:
        self._bound = {}
        self._session = None


def _check_alike(output: str, got: Array, wanted: Array, precision: str) -> None:
    """Raises `BadGraph` if the rows differ by more than the precision's rounding."""
    unit, largest = (255.0, 255.0) if got.dtype == np.uint8 else (1.0, float(np.abs(wanted).max()))
    worst = float(np.abs(got - wanted.astype(np.float64)).max())
    if not worst <= _ROUNDING[precision] * (unit + largest):
        raise BadGraph(f"output {output}: a row changes by {worst:.3g} with the other rows of its batch")


class _BoundBatch:
    """A bucket's buffers, bound to the graph once: what goes in and out is page-locked where there is a GPU.

    A CUDA graph replays on fixed addresses of the device, so with them the outputs are there too.
    """

    def __init__(self, graph: Graph, session: ort.InferenceSession, device: Device, size: int) -> None:
        place = ("cuda", device.ordinal) if device.is_gpu else ("cpu", 0)
        self._session = session
        self._options = ort.RunOptions()
        if device.cuda_graphs:
            self._options.add_run_config_entry("gpu_graph_id", str(size))  # one captured graph a bucket
        self._binding = session.io_binding()
        self._inputs: dict[str, tuple[Array, ort.OrtValue]] = {}
        for name, (dtype, shape) in graph.inputs.items():
            staging = _buffer((size, *shape[1:]), dtype, device)
            self._inputs[name] = staging, ort.OrtValue.ortvalue_from_numpy(staging, *place)
            self._binding.bind_ortvalue_input(name, self._inputs[name][1])
        self._host: dict[str, Array] = {}
        self._outputs: dict[str, ort.OrtValue] = {}
        for name, (dtype, shape) in graph.outputs.items():
            if device.cuda_graphs:
                value = ort.OrtValue.ortvalue_from_shape_and_type((size, *shape[1:]), dtype, *place)
            else:
                self._host[name] = _buffer((size, *shape[1:]), dtype, device)
                value = ort.OrtValue.ortvalue_from_numpy(self._host[name])
            self._outputs[name] = value
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, Array], outputs: frozenset[str]) -> dict[str, Array]:
        n = 0
        for name, (staging, value) in self._inputs.items():
            n = len(feeds[name])
            staging[:n] = feeds[name]  # what is left of an earlier batch pads the rest
            value.update_inplace(staging)
        self._session.run_with_iobinding(self._binding, self._options)
        # A copy: the buffers are written again by the next batch, while these rows are still on their way out.
        return {name: np.array(self._result(name)[:n]) for name in outputs}

    def _result(self, name: str) -> Array:
        return self._host[name] if name in self._host else self._outputs[name].numpy()


def _buffer(shape: tuple[int, ...], dtype: type[np.generic] | None, device: Device) -> Array:
    array = np.zeros(shape, dtype)
    if device.is_gpu:
        pin(array)
    return array


def load_graphs(folder: ModelFolder, device: Device, buckets: Sequence[int], precision: str = FP32) -> dict[str, Graph]:
    """All that a version is served with: the encoder and the decoder of a verified folder in one of its precisions, and
    in fp32 its own prior, if it has one, and the density of a prior that it was trained with.

    Raises `BadGraph`, naming the file, if one cannot be loaded or disagrees with the manifest.
    """
    return {kind: load_graph(folder, kind, device, buckets, precision) for kind in served(folder.manifest)}


def served(about: Manifest) -> list[str]:
    """The kinds of graphs that a version is served with."""
    kinds = ["encoder", "decoder"]
    if about.prior is not None:
        kinds.append("prior")
        # A model whose prior was fitted afterwards was trained with N(0, I), and its log p(z) is that one's.
        if about.prior.learnt and DENSITY_FILE in about.files:
            kinds.append("density")
    return kinds


def load_graph(
    folder: ModelFolder, kind: str, device: Device, buckets: Sequence[int] = (), precision: str = FP32
) -> Graph:
    """One graph of a verified folder.

    Raises `BadGraph`, naming the file, if it cannot be loaded or disagrees with the manifest.
    """
    file = graph_file(kind, precision)
    here = FP32 if file == graph_file(kind) else precision
    inputs, _ = ports.wanted(folder.manifest, kind)
    try:
        profile = {name: item for name, (_, item) in inputs.items()}
        classes = folder.manifest.classes if ports.LABELS in inputs else 0
        data = folder.graphs[file]
        read = again.reader(folder.path / file, data, folder.manifest.files[file])
        graph = Graph(data, device, profile, buckets, here, classes, read)
        ports.check(folder.manifest, kind, here, graph.inputs, graph.outputs, graph.metadata)
        graph.settle()
    except BadGraph as error:
        raise type(error)(f"{folder.path / file}: {error}") from error
    return graph


def provider_report() -> tuple[str, str, list[str]]:
    """ONNX Runtime's version, the CUDA version that this build is for ("" if none), and its providers."""
    return ort.__version__, getattr(ort, "cuda_version", None) or "", list(ort.get_available_providers())
