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
from PIL import Image
from server_process import ServerProcess

from latentry.messages import read_tensor, write_tensor
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving.inference import grpc_service_pb2 as oip
from serving.inference import grpc_service_pb2_grpc

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
    "Reconstruct": ANSWERED,
    "Neighbours": ANSWERED,
    "StreamSample": ANSWERED,
    "StreamInterpolate slow": ANSWERED,
    "stream cancelled": {Code.OK, Code.CANCELLED},
    "stream abandoned": {Code.OK, Code.CANCELLED},
    "stream resumed": ANSWERED,
    "ModelInfer": ANSWERED,
    "ModelStreamInfer": ANSWERED,
    "GetModel": ANSWERED,
    "ListModels": ANSWERED,
    "bad": {Code.INVALID_ARGUMENT},
    "unknown": {Code.NOT_FOUND},
    "late": {Code.OK, Code.DEADLINE_EXCEEDED},
    "cancelled": {Code.OK, Code.CANCELLED},
    "overload": {Code.OK, Code.RESOURCE_EXHAUSTED},
}
# Calls of model c, whose ends the client may not see.
UNSEEN = {"late", "cancelled", "stream cancelled", "stream abandoned", "stream resumed"}


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
        if kind not in UNSEEN:
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

    def reconstruct(self, stub: Any) -> None:
        name, shape, _, n = self._pick()
        images = self._numbers.integers(0, 256, (n, *shape), np.uint8)
        raw = pb.Images(tensor=write_tensor(images))
        reply = stub.Reconstruct(pb.ReconstructRequest(model=pb.ModelSelector(name=name), images=raw), timeout=20)
        latents, _ = self._truth.encode(reply.model, images)
        _near(read_tensor(reply.latents), latents, 1e-4)
        self._check_images(reply, read_tensor(reply.latents))
        errors = np.square(images / 255 - self._truth.decode(reply.model, latents)).mean((1, 2, 3))
        _near(read_tensor(reply.squared_error), errors, 1e-4)

    def neighbours(self, stub: Any) -> None:
        name, _, z, _ = self._pick()
        base = self._numbers.normal(size=(1, z)).astype(np.float32)
        walk, raw = pb.NeighbourWalk(count=9), write_tensor(base)
        reply = stub.Neighbours(
            pb.NeighboursRequest(model=pb.ModelSelector(name=name), latents=raw, walk=walk), timeout=20
        )
        _near(read_tensor(reply.latents)[:1], base, 0)
        self._check_images(reply, read_tensor(reply.latents))

    # ---- streams ----

    def stream(self, stub: Any) -> None:
        name, _, _, n = self._pick()
        self._check_stream(stub, name, n, 0, n)

    def stream_slow(self, stub: Any) -> None:
        name, _, z, _ = self._pick()
        keys = self._numbers.normal(size=(2, z)).astype(np.float32)
        whole = pb.InterpolateRequest(model=pb.ModelSelector(name=name), latents=write_tensor(keys), steps=40)
        latents = []
        for reply in stub.StreamInterpolate(pb.StreamInterpolateRequest(interpolate=whole, chunk_items=10), timeout=20):
            time.sleep(0.01)
            latents.append(read_tensor(reply.part.latents))
            self._check_images(reply.part, latents[-1])
        _near(np.concatenate(latents), np.linspace(keys[0], keys[1], 40), 1e-5)

    def stream_cancelled(self, stub: Any) -> None:
        parts = stub.StreamSample(self._endless(), timeout=20)
        for _ in range(self._random.randrange(4)):
            next(parts)
        parts.cancel()
        parts.result()

    def stream_abandoned(self, stub: Any) -> None:
        """By a client that goes away."""
        with self._server.channel() as channel:
            parts = vae_pb2_grpc.VaeServiceStub(channel).StreamSample(self._endless(), timeout=20)
            next(parts)
        parts.result()

    def stream_resumed(self, stub: Any) -> None:
        """Left after the first parts, and gone on with where it ended."""
        seed, part = self._random.getrandbits(64), self._random.randrange(1, 4)
        images = self._check_stream(stub, "c", 100, seed, 7, leave_after=part)
        images += self._check_stream(stub, "c", 100 - len(images), seed, 7, first=len(images))
        whole = stub.Sample(pb.SampleRequest(model=pb.ModelSelector(name="c"), count=100, seed=seed), timeout=20)
        _near(np.stack(images), read_tensor(whole.images.tensor), 0)

    def _endless(self) -> pb.StreamSampleRequest:
        return pb.StreamSampleRequest(sample=pb.SampleRequest(model=pb.ModelSelector(name="c"), count=1 << 20))

    def _check_stream(
        self, stub: Any, name: str, count: int, seed: int, chunk: int, first: int = 0, leave_after: int = 0
    ) -> list[Any]:
        """The images of a stream of so many, or of its first parts."""
        sample = pb.SampleRequest(model=pb.ModelSelector(name=name), count=count, seed=seed, first_index=first)
        replies = stub.StreamSample(pb.StreamSampleRequest(sample=sample, chunk_items=chunk), timeout=20)
        images: list[Any] = []
        for k, reply in enumerate(replies):
            if reply.first_index != first + len(images):
                raise WrongAnswerError(f"a part at {reply.first_index}, wanted {first + len(images)}")
            self._check_images(reply.part, read_tensor(reply.part.latents))
            images += list(read_tensor(reply.part.images.tensor))
            if k + 1 == leave_after:
                replies.cancel()
                return images
        if len(images) != count:
            raise WrongAnswerError(f"{len(images)} images of {count}")
        return images

    # ---- the Open Inference Protocol ----

    def _infer_request(self, n: int, **fields: Any) -> tuple[oip.ModelInferRequest, Any]:
        latents = self._numbers.normal(size=(n, SHAPES["b"][1])).astype(np.float32)
        request = oip.ModelInferRequest(
            model_name="b_decoder",
            inputs=[{"name": "latents", "datatype": "FP32", "shape": latents.shape}],
            outputs=[{"name": "mean"}],
            raw_input_contents=[latents.tobytes()],
            **fields,
        )
        return request, latents

    def _check_inferred(self, response: oip.ModelInferResponse, latents: Any) -> None:
        mean = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(len(latents), *SHAPES["b"][0])
        _near(mean, self._truth.decode(pb.ModelRef(name="b", version=1), latents), 1e-5)

    def infer(self, stub: Any) -> None:
        request, latents = self._infer_request(self._random.choice([1, 2, 64]))
        with self._server.channel() as channel:
            infer = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            self._check_inferred(infer(request, timeout=20), latents)

    def infer_stream(self, stub: Any) -> None:
        """Every third request is one that is refused."""
        made = [self._infer_request(2, id=str(i), **({"model_version": "99"} if i % 3 == 2 else {})) for i in range(9)]
        with self._server.channel() as channel:
            infer = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
            replies = list(infer((request for request, _ in made), timeout=20))
        if [reply.infer_response.id for reply in replies] != [str(i) for i in range(9)]:
            raise WrongAnswerError(f"answers to {[reply.infer_response.id for reply in replies]}")
        for i, (reply, (_, latents)) in enumerate(zip(replies, made, strict=True)):
            if bool(reply.error_message) != (i % 3 == 2):
                raise WrongAnswerError(f"request {i}: {reply.error_message!r}")
            if not reply.error_message:
                self._check_inferred(reply.infer_response, latents)

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
    "Reconstruct": (2, Caller.reconstruct),
    "Neighbours": (1, Caller.neighbours),
    "StreamSample": (1, Caller.stream),
    "StreamInterpolate slow": (0.5, Caller.stream_slow),
    "stream cancelled": (1, Caller.stream_cancelled),
    "stream abandoned": (0.5, Caller.stream_abandoned),
    "stream resumed": (0.5, Caller.stream_resumed),
    "ModelInfer": (1, Caller.infer),
    "ModelStreamInfer": (0.5, Caller.infer_stream),
}
