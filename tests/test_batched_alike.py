"""Who else is in the batch changes nothing: any mix of models, sizes and arrivals gives what each item gives alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import conditional_model
import grpc
import linear_model
import numpy as np
import pytest
from conftest import ROOT, running_service, settings_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentry.messages import read_tensor, write_tensor
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving.server import Service

Array = np.ndarray[Any, np.dtype[Any]]

POOL = 24  # items that calls take their own from
SEED = 77
RPCS = ("Encode", "Decode", "Sample", "Reconstruct", "Edit")
CLASSES = 3


@dataclass(frozen=True)
class Items:
    """Inputs of one model, and what the server made of each when it was the only one: the truth here."""

    name: str
    images: Array  # (POOL, H, W, C) uint8
    latents: Array  # (POOL, Z) float32
    means: Array  # (POOL, Z)
    logvars: Array  # (POOL, Z)
    decoded: Array  # (POOL, H, W, C) uint8
    sampled: Array  # (POOL, H, W, C) uint8, of SEED
    drawn: Array  # (POOL, Z), their latents
    classes: Array | None  # (POOL,) of a conditional model
    scored: dict[str, Array]  # Reconstruct's tensors of SEED, (POOL, ...) each
    edited: dict[str, Array]  # Edit's


@dataclass(frozen=True)
class Call:
    """One call for some of a model's items, and whether all that went before has to be answered first."""

    model: int
    rpc: str
    first: int
    count: int
    after_a_pause: bool

    @property
    def part(self) -> slice:
        return slice(self.first, self.first + self.count)


CALLS = st.builds(
    lambda model, rpc, first, count, pause: Call(model, rpc, first, min(count, POOL - first), pause == 0),
    st.integers(0, 3),
    st.sampled_from(RPCS),
    st.integers(0, POOL - 1),
    st.sampled_from([1, 1, 1, 2, 3, 8, 9, POOL]),
    st.integers(0, 5),
)


def _request(items: Items, rpc: str, part: slice) -> Any:
    every: dict[str, Any] = {"model": pb.ModelSelector(name=items.name)}
    if items.classes is not None:
        every["classes"] = pb.Classes(indices=items.classes[part])
    if rpc == "Decode":
        return pb.DecodeRequest(latents=write_tensor(items.latents[part]), **every)
    if rpc == "Sample":
        return pb.SampleRequest(count=part.stop - part.start, first_index=part.start, seed=SEED, **every)
    every["images"] = pb.Images(tensor=write_tensor(items.images[part]))
    if rpc == "Edit":
        ends = {"plus_latents": write_tensor(items.latents[:3]), "minus_latents": write_tensor(items.latents[3:5])}
        return pb.EditRequest(differences=[pb.Difference(amount=0.5, **ends)], **every)
    kind = pb.EncodeRequest if rpc == "Encode" else pb.ReconstructRequest
    return kind(seed=SEED, first_index=part.start, **every)


def _tensors(reply: Any) -> dict[str, Array]:
    """All tensors of a reply, images among them."""
    found = {field.name: value for field, value in reply.ListFields() if isinstance(value, pb.Tensor)}
    return {name: read_tensor(each) for name, each in {**found, "images": reply.images.tensor}.items()}


def _alone(stub: Any, name: str, images: Array, latents: Array, classes: Array | None = None) -> Items:
    """Each item in a call of its own, one call at a time."""
    asked = Items(name, images, latents, *[np.empty(0)] * 5, classes, {}, {})
    encoded, decoded, sampled, scored, edited = (
        [getattr(stub, rpc)(_request(asked, rpc, slice(i, i + 1))) for i in range(POOL)] for rpc in RPCS
    )
    return Items(
        name,
        images,
        latents,
        np.concatenate([read_tensor(reply.mean) for reply in encoded]),
        np.concatenate([read_tensor(reply.logvar) for reply in encoded]),
        np.concatenate([read_tensor(reply.images.tensor) for reply in decoded]),
        np.concatenate([read_tensor(reply.images.tensor) for reply in sampled]),
        np.concatenate([read_tensor(reply.latents) for reply in sampled]),
        classes,
        *(_joined([_tensors(reply) for reply in replies]) for replies in (scored, edited)),
    )


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _check(items: Items, call: Call, reply: Any) -> None:
    assert reply.model.name == items.name
    if call.rpc == "Encode":
        np.testing.assert_array_equal(read_tensor(reply.mean), items.means[call.part])
        np.testing.assert_array_equal(read_tensor(reply.logvar), items.logvars[call.part])
        noise = items.drawn[call.part]  # the same seed, so the same noise
        expected = items.means[call.part] + np.exp(0.5 * items.logvars[call.part]) * noise
        np.testing.assert_array_equal(read_tensor(reply.latents), expected)
    elif call.rpc == "Decode":
        wanted = items.decoded[call.part].astype(np.int16)
        assert np.abs(read_tensor(reply.images.tensor).astype(np.int16) - wanted).max() <= 1
    elif call.rpc in ("Reconstruct", "Edit"):
        alone, got = items.scored if call.rpc == "Reconstruct" else items.edited, _tensors(reply)
        assert got.keys() == alone.keys()
        for name, each in got.items():
            assert each.tobytes() == alone[name][call.part].tobytes(), name
    else:
        assert read_tensor(reply.latents).tobytes() == items.drawn[call.part].tobytes()
        assert read_tensor(reply.images.tensor).tobytes() == items.sampled[call.part].tobytes()


def _run(stub: Any, models: list[Items], calls: list[Call]) -> None:
    """All calls, as many at once as their pauses allow; every reply is checked."""
    running: list[tuple[Call, Any]] = []
    for call in calls:
        if call.after_a_pause:
            for _, future in running:
                future.result()
        items = models[call.model % len(models)]
        running.append((call, getattr(stub, call.rpc).future(_request(items, call.rpc, call.part), timeout=30)))
    for call, future in running:
        _check(models[call.model % len(models)], call, future.result())


def _rows_a_batch(service: Service) -> float:
    rows = runs = 0.0
    for metric in service.metrics.registry.collect():
        for sample in metric.samples:
            rows += sample.value if sample.name == "latentry_batch_items_sum" else 0
            runs += sample.value if sample.name == "latentry_batch_items_count" else 0
    return rows / runs


@pytest.fixture(scope="module")
def three_models(tmp_path_factory: pytest.TempPathFactory) -> list[linear_model.LinearModel]:
    """Models of different shapes in one repository, whose encoders and decoders share one device; and one that is
    conditional.
    """
    root = tmp_path_factory.mktemp("three")
    shapes = [("a", (12, 10, 1), 5), ("b", (8, 8, 3), 7), ("c", (5, 4, 1), 33)]
    conditional_model.write(root, CLASSES)
    return [linear_model.write(root, name, i + 1, shape, z) for i, (name, shape, z) in enumerate(shapes)]


@pytest.fixture(scope="module", params=[1, 5, 64])
def mixed(request: Any, three_models: list[linear_model.LinearModel]) -> Iterator[tuple[Service, Any, list[Items]]]:
    """A service of the three models with at most so many rows a batch, and the truth of each."""
    root = three_models[0].folder.parent.parent
    rng = np.random.default_rng(3)
    with (
        running_service(settings_for(root, max_batch_size=request.param)) as service,
        grpc.insecure_channel(f"localhost:{service.port}") as channel,
    ):
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        truth = [
            _alone(
                stub,
                model.folder.parent.name,
                rng.integers(0, 256, (POOL, *model.shape), np.uint8),
                rng.normal(size=(POOL, len(model.u))).astype(np.float32),
            )
            for model in three_models
        ]
        images = rng.integers(0, 256, (POOL, 12, 10, 1), np.uint8)
        latents = rng.normal(size=(POOL, 5)).astype(np.float32)
        truth.append(_alone(stub, "linear", images, latents, rng.integers(0, CLASSES, POOL)))
        yield service, stub, truth


@settings(deadline=None, max_examples=60, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(calls=st.lists(CALLS, min_size=1, max_size=30))
def test_any_mix_of_models_sizes_and_arrivals_gives_what_each_item_gives_alone(
    mixed: tuple[Service, Any, list[Items]], calls: list[Call]
) -> None:
    _, stub, truth = mixed
    _run(stub, truth, calls)


def test_a_model_alone_gives_what_its_weights_say(
    mixed: tuple[Service, Any, list[Items]], three_models: list[linear_model.LinearModel]
) -> None:
    """The truth of the tests here is true."""
    _, _, (*truth, classed) = mixed
    for model, items in zip(three_models, truth, strict=True):
        mean, logvar = model.encode(items.images)
        np.testing.assert_allclose(items.means, mean, atol=1e-5)
        np.testing.assert_allclose(items.logvars, logvar, atol=1e-5)
        assert np.abs(items.decoded - 255 * model.decode(items.latents)).max() <= 0.51
        assert np.abs(items.sampled - 255 * model.decode(items.drawn)).max() <= 0.51
        scored, edited = items.scored, items.edited
        drawn = mean + np.exp(0.5 * logvar) * items.drawn
        np.testing.assert_allclose(scored["latents"], drawn, atol=1e-5)
        x, decoded = items.images / 255, model.decode(scored["latents"]).astype(np.float64)
        np.testing.assert_allclose(scored["squared_error"], np.square(x - decoded).mean((1, 2, 3)), rtol=1e-5)
        kl = 0.5 * (np.square(mean) + np.exp(logvar) - 1 - logvar).sum(1)
        np.testing.assert_allclose(scored["kl"], kl, rtol=1e-4)
        bounded = np.clip(decoded, 2.0**-24, 1 - 2.0**-24)
        likelihood = (x * np.log(bounded) + (1 - x) * np.log1p(-bounded)).sum((1, 2, 3))
        np.testing.assert_allclose(scored["elbo"], likelihood - kl, atol=1)  # float32 near 1 is coarse
        move = 0.5 * (items.latents[:3].mean(0) - items.latents[3:5].mean(0))
        np.testing.assert_allclose(edited["latents"], mean + move, atol=1e-5)
    assert classed.classes is not None
    beneath = conditional_model.ConditionalModel(three_models[0], CLASSES)  # of the same shape and seed: its weights
    np.testing.assert_allclose(classed.means, beneath.encode(classed.images, classed.classes)[0], atol=1e-5)
    assert np.abs(classed.decoded - 255 * beneath.decode(classed.latents, classed.classes)).max() <= 0.51


def test_the_shipped_model_gives_the_same_in_any_batch(fashion_images: Array) -> None:
    """Convolutions have kernels of their own for single items; and the calls here do share batches."""
    rng = np.random.default_rng(5)
    with (
        running_service(settings_for(ROOT / "models")) as service,
        grpc.insecure_channel(f"localhost:{service.port}") as channel,
    ):
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        latent_dim = stub.GetModel(pb.GetModelRequest()).model.latent_dim
        latents = rng.normal(size=(POOL, latent_dim)).astype(np.float32)
        truth = _alone(stub, "fashion", fashion_images[:POOL], latents)
        before = _rows_a_batch(service)
        for _ in range(6):
            starts = rng.permutation(POOL)
            sizes = rng.integers(1, 5, POOL)
            rpcs = rng.choice(RPCS, POOL)
            calls = [
                Call(0, str(rpc), int(at), int(min(n, POOL - at)), False)
                for rpc, at, n in zip(rpcs, starts, sizes, strict=True)
            ]
            _run(stub, [truth], calls)
        assert before == 1.0
        assert _rows_a_batch(service) > 1.5
