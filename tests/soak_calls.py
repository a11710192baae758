"""The calls of the soak: made, checked against what the models' weights say, and counted by how they ended."""

from __future__ import annotations

import io
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import linear_model
import numpy as np
from latentry.messages import read_tensor, write_tensor
from PIL import Image
from server_process import ServerProcess

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc

SHAPES = {"a": ((12, 10, 1), 5), "b": ((8, 8, 3), 7), "c": ((5, 4, 1), 33)}
PAUSE_S = 0.004  # of a worker after each call: the load is steady, not the most there could be

Code = grpc.StatusCode
ANSWERED = {Code.OK}
EXPECTED: dict[str, set[Code]] = {
    "Encode": ANSWERED,
    "Encode files": ANSWERED,
    "Decode": ANSWERED,
    "Sample": ANSWERED,
    "Interpolate": ANSWERED,
    "GetModel": ANSWERED,
    "ListModels": ANSWERED,
    "bad": {Code.INVALID_ARGUMENT},
    "unknown": {Code.NOT_FOUND},
    "late": {Code.OK, Code.DEADLINE_EXCEEDED},
    "cancelled": {Code.OK, Code.CANCELLED},
    "overload": {Code.OK, Code.RESOURCE_EXHAUSTED},
}


# ---- truth ----


class Truth:
    """The models that were ever in the repository, and what they must answer."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, int], linear_model.LinearModel] = {}
        self._lock = threading.Lock()

    def write(self, repository: Path, name: str, version: int) -> None:
        """Put a version into the repository, whole at once."""
        with tempfile.TemporaryDirectory(dir=repository, prefix=".staging-") as staging:
            shape, z = SHAPES[name]
            model = linear_model.write(Path(staging), name, version, shape, z)
            with self._lock:
                self._models[name, version] = model
            (repository / name).mkdir(exist_ok=True)
            model.folder.rename(repository / name / str(version))

    def encode(self, ref: pb.ModelRef, images: Any) -> tuple[Any, Any]:
        return self._model(ref).encode(images)

    def decode(self, ref: pb.ModelRef, latents: Any) -> Any:
        return self._model(ref).decode(latents)

    def _model(self, ref: pb.ModelRef) -> linear_model.LinearModel:
        with self._lock:
            return self._models[ref.name, ref.version]


def _near(got: Any, wanted: Any, tolerance: float) -> None:
    if got.shape != wanted.shape or not np.abs(got - wanted).max() <= tolerance:
        raise WrongAnswerError(f"got {got.shape} {got.ravel()[:4]}, wanted {wanted.shape} {wanted.ravel()[:4]}")


class WrongAnswerError(AssertionError):
    """The server said OK to something that is not so."""


# ---- calls ----


class Caller:
    """Makes calls of every kind, checks each answer and counts how each ended."""

    def __init__(self, server: ServerProcess, truth: Truth, seed: int) -> None:
        self.ended: Counter[tuple[str, Code]] = Counter()  # by kind of call
        self.seen: Counter[tuple[str, str]] = Counter()  # by rpc and code, of calls whose end is the server's word
        self.wrong: list[str] = []
        self._server = server
        self._truth = truth
        self._random = random.Random(seed)  # noqa: S311 - no secrets here
        self._numbers = np.random.default_rng(seed)

    def run(self, stop: threading.Event) -> None:
        """Until told to stop; with a new connection now and then."""
        kinds = list(CALLS)
        weights = [CALLS[kind][0] for kind in kinds]
        while not stop.is_set():
            with self._server.channel() as channel:
                stub = vae_pb2_grpc.VaeServiceStub(channel)
                for kind in self._random.choices(kinds, weights, k=500):
                    if stop.is_set():
                        return
                    self._call(kind, stub)
                    time.sleep(PAUSE_S)

    def _call(self, kind: str, stub: Any) -> None:
        code = Code.OK
        try:
            CALLS[kind][1](self, stub)
        except WrongAnswerError as error:
            self.wrong.append(f"{kind}: {error}")
        except grpc.FutureCancelledError:
            code = Code.CANCELLED
        except grpc.RpcError as error:
            code = error.code()
            if code not in EXPECTED[kind]:
                self.wrong.append(f"{kind}: {code.name}: {error.details()}")
        self.ended[kind, code] += 1
        if kind not in ("late", "cancelled"):
            rpc = {"bad": "Decode", "unknown": "Sample"}.get(kind, kind.partition(" ")[0])
            self.seen[rpc, code.name] += 1

    def _pick(self) -> tuple[str, tuple[int, int, int], int, int]:
        name = self._random.choice("ab")
        return name, *SHAPES[name], self._random.choice([1, 1, 1, 2, 5, 64])

    def encode(self, stub: Any) -> None:
        name, shape, _, n = self._pick()
        images = self._numbers.integers(0, 256, (n, *shape), np.uint8)
        request = pb.EncodeRequest(model=pb.ModelSelector(name=name), images=pb.Images(tensor=write_tensor(images)))
        self._check_posterior(stub.Encode(request, timeout=20), images)

    def encode_files(self, stub: Any) -> None:
        name, shape, _, n = self._pick()
        images = self._numbers.integers(0, 256, (min(n, 5), *shape), np.uint8)
        files = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image[:, :, 0] if shape[2] == 1 else image).save(buffer, "PNG")
            files.append(buffer.getvalue())
        encoded = pb.Images(encoded=pb.EncodedImages(images=files))
        self._check_posterior(
            stub.Encode(pb.EncodeRequest(model=pb.ModelSelector(name=name), images=encoded), timeout=20), images
        )

    def _check_posterior(self, reply: Any, images: Any) -> None:
        mean, logvar = self._truth.encode(reply.model, images)
        _near(read_tensor(reply.mean), mean, 1e-4)
        _near(read_tensor(reply.logvar), logvar, 1e-4)

    def decode(self, stub: Any) -> None:
        name, _, z, n = self._pick()
        latents = self._numbers.normal(size=(n, z)).astype(np.float32)
        request = pb.DecodeRequest(model=pb.ModelSelector(name=name), latents=write_tensor(latents))
        self._check_images(stub.Decode(request, timeout=20), latents)

    def sample(self, stub: Any) -> None:
        name, _, z, n = self._pick()
        request = pb.SampleRequest(model=pb.ModelSelector(name=name), count=n, seed=self._random.getrandbits(64))
        reply = stub.Sample(request, timeout=20)
        if list(reply.latents.shape) != [n, z] or reply.seed != request.seed:
            raise WrongAnswerError(f"{reply.latents.shape} of seed {reply.seed} for {request}")
        self._check_images(reply, read_tensor(reply.latents))

    def interpolate(self, stub: Any) -> None:
        name, _, z, _ = self._pick()
        keys = self._numbers.normal(size=(2, z)).astype(np.float32)
        request = pb.InterpolateRequest(model=pb.ModelSelector(name=name), latents=write_tensor(keys), steps=9)
        reply = stub.Interpolate(request, timeout=20)
        _near(read_tensor(reply.latents), np.linspace(keys[0], keys[1], 9), 1e-5)
        self._check_images(reply, read_tensor(reply.latents))

    def _check_images(self, reply: Any, latents: Any) -> None:
        got = read_tensor(reply.images.tensor).astype(np.float32)
        _near(got, 255 * self._truth.decode(reply.model, latents), 0.51)

    def get_model(self, stub: Any) -> None:
        name, shape, z, _ = self._pick()
        info = stub.GetModel(pb.GetModelRequest(model=pb.ModelSelector(name=name)), timeout=20).model
        said = info.image_shape
        if (said.height, said.width, said.channels, info.latent_dim) != (*shape, z):
            raise WrongAnswerError(str(info))

    def list_models(self, stub: Any) -> None:
        models = {info.model.name for info in stub.ListModels(pb.ListModelsRequest(), timeout=20).models}
        if models != set(SHAPES):
            raise WrongAnswerError(f"ListModels: {models}")

    def bad(self, stub: Any) -> None:
        name, _, z, _ = self._pick()
        spoiled = self._random.choice([np.full((1, z), np.nan), np.zeros((1, z + 1)), np.zeros(z)])
        latents = write_tensor(spoiled.astype(np.float32))
        stub.Decode(pb.DecodeRequest(model=pb.ModelSelector(name=name), latents=latents), timeout=20)

    def unknown(self, stub: Any) -> None:
        selector = pb.ModelSelector(name="a", version=10**15)
        stub.Sample(pb.SampleRequest(model=selector, count=1), timeout=20)

    def late(self, stub: Any) -> None:
        request = pb.SampleRequest(model=pb.ModelSelector(name="c"), count=512)
        stub.Sample(request, timeout=self._random.choice([0.0005, 0.002, 0.005]))

    def cancelled(self, stub: Any) -> None:
        call = stub.Sample.future(pb.SampleRequest(model=pb.ModelSelector(name="c"), count=512), timeout=20)
        time.sleep(self._random.random() * 0.004)
        call.cancel()
        call.result()


# Each kind of call, and how often it comes among the others.
CALLS: dict[str, tuple[float, Callable[[Caller, Any], None]]] = {
    "Encode": (4, Caller.encode),
    "Encode files": (2, Caller.encode_files),
    "Decode": (4, Caller.decode),
    "Sample": (4, Caller.sample),
    "Interpolate": (2, Caller.interpolate),
    "GetModel": (1, Caller.get_model),
    "ListModels": (1, Caller.list_models),
    "bad": (1, Caller.bad),
    "unknown": (0.5, Caller.unknown),
    "late": (1, Caller.late),
    "cancelled": (1, Caller.cancelled),
}
