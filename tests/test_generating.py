"""What Sample, Interpolate, Reconstruct, Edit and Neighbours answer over the wire, and what each bad request is told.

On the linear model, whose numbers can be worked out by hand, and on the shipped ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import scipy.stats
from conftest import ROOT, running_service, settings_for
from google.rpc import error_details_pb2, status_pb2
from linear_model import LinearModel
from test_servicer import array, latents, photos, tensor

from latentry import Client, manifest
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc

SHIPPED = pb.ModelSelector(name="fashion")
BINARY = pb.ModelSelector(name="mnist-binary")


@contextmanager
def calling(repository: Path) -> Iterator[Any]:
    with (
        running_service(settings_for(repository)) as service,
        grpc.insecure_channel(f"localhost:{service.port}") as channel,
    ):
        yield vae_pb2_grpc.VaeServiceStub(channel)


@pytest.fixture(scope="module")
def shipped() -> Iterator[Any]:
    """A stub to the models that come along."""
    with calling(ROOT / "models") as stub:
        yield stub


def images(pixels: Any) -> pb.Images:
    return pb.Images(tensor=tensor(np.ascontiguousarray(pixels)))


def refusal(call: Any, request: Any) -> tuple[str, str]:
    """The field that is refused, and what is said of it."""
    with pytest.raises(grpc.RpcError) as refused:
        call(request)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, refused.value.details()
    (packed,) = [v for k, v in refused.value.trailing_metadata() if k == "grpc-status-details-bin"]
    bad = error_details_pb2.BadRequest()
    assert status_pb2.Status.FromString(packed).details[0].Unpack(bad)
    (violation,) = bad.field_violations
    return violation.field, violation.description


# ---- provenance ----


def test_every_reply_says_how_it_was_made(shipped: Any, fashion_images: Any) -> None:
    given, z = images(fashion_images[:2]), tensor(latents(2, 32))
    edit = pb.EditRequest(latents=z)
    grid = pb.NeighboursRequest(latents=tensor(latents(1, 32)), grid=pb.NeighbourGrid(rows=1, columns=1))
    replies = [
        shipped.Encode(pb.EncodeRequest(images=given)),
        shipped.Decode(pb.DecodeRequest(latents=z)),
        shipped.Sample(pb.SampleRequest(count=1)),
        next(iter(shipped.StreamSample(pb.StreamSampleRequest(sample=pb.SampleRequest(count=1))))).part,
        shipped.Interpolate(pb.InterpolateRequest(latents=z, steps=2)),
        shipped.Reconstruct(pb.ReconstructRequest(images=given)),
        shipped.Edit(edit),
        shipped.Neighbours(grid),
    ]
    about = manifest.read(ROOT / "models" / "fashion" / "1")
    for reply in replies:
        assert (reply.model.name, reply.model.version, reply.model.digest) == ("fashion", 1, about.digest)
        made = reply.provenance
        assert (made.provider, made.precision) == ("CPUExecutionProvider", "fp32")
        assert 0 < made.timings.inference_s <= made.timings.total_s < 60
        assert 0 <= made.timings.queue_s <= made.timings.total_s
        assert 0 < made.timings.codec_s <= made.timings.total_s


# ---- Sample ----


def test_truncation_keeps_the_noise_within_its_bound(shipped: Any) -> None:
    free = array(shipped.Sample(pb.SampleRequest(count=500, seed=1)).latents)
    clamped = pb.SampleRequest(count=500, seed=1, truncation=0.7, truncation_mode=pb.TRUNCATION_CLAMP)
    np.testing.assert_array_equal(array(shipped.Sample(clamped).latents), np.clip(free, -0.7, 0.7).astype(np.float32))
    drawn = array(shipped.Sample(pb.SampleRequest(count=500, seed=1, truncation=0.7, temperature=2)).latents) / 2
    assert np.abs(drawn).max() <= 0.7
    assert scipy.stats.kstest(drawn.ravel(), scipy.stats.truncnorm(-0.7, 0.7).cdf).pvalue > 0.01
    assert (np.sign(drawn) == np.sign(free)).all(), "each number is still made of its own bits"


def test_images_are_addressed_under_truncation_too(shipped: Any) -> None:
    def sample(first: int, count: int) -> Any:
        return array(shipped.Sample(pb.SampleRequest(count=count, seed=5, first_index=first, truncation=1)).latents)

    assert sample(0, 40)[13:27].tobytes() == sample(13, 14).tobytes()


def test_the_prior_can_be_chosen(shipped: Any) -> None:
    def sample(prior: int) -> Any:
        return array(shipped.Sample(pb.SampleRequest(model=BINARY, count=9, seed=2, prior=prior)).latents)

    own, standard = sample(pb.PRIOR_FITTED), sample(pb.PRIOR_STANDARD)
    assert sample(pb.PRIOR_UNSPECIFIED).tobytes() == own.tobytes(), "it was trained with it"
    plain = array(shipped.Sample(pb.SampleRequest(model=BINARY, count=9, seed=2, prior=pb.PRIOR_STANDARD)).latents)
    assert plain.tobytes() == standard.tobytes() != own.tobytes()
    assert refusal(shipped.Sample, pb.SampleRequest(count=1, prior=pb.PRIOR_FITTED)) == (
        "prior",
        "got PRIOR_FITTED (2), wanted PRIOR_STANDARD (1): fashion has no other",
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"truncation": 0.0}, "truncation"),
        ({"truncation": -1.0}, "truncation"),
        ({"truncation": float("nan")}, "truncation"),
        ({"truncation": float("inf")}, "truncation"),
        ({"truncation": 11.0}, "truncation"),
        ({"truncation_mode": 9}, "truncation_mode"),
        ({"temperature": float("nan")}, "temperature"),
        ({"prior": 9}, "prior"),
        ({"first_index": -1}, "first_index"),
        ({"classes": pb.Classes(names=["Bag"])}, "classes"),
        ({"classes": pb.Classes(indices=[0])}, "classes"),
        ({"output": pb.ImageOutput(format=pb.IMAGE_FORMAT_GIF)}, "output.format"),
        ({"output": pb.ImageOutput(format=pb.IMAGE_FORMAT_ANIMATED_WEBP)}, "output.format"),
    ],
)
def test_a_sample_that_makes_no_sense_is_refused_by_its_field(shipped: Any, fields: Any, field: str) -> None:
    assert refusal(shipped.Sample, pb.SampleRequest(count=1, **fields))[0] == field


# ---- Interpolate ----


def walk(stub: Any, keys: Any, steps: int, **fields: Any) -> Any:
    return array(stub.Interpolate(pb.InterpolateRequest(latents=tensor(keys), steps=steps, **fields)).latents)


def test_a_loop_comes_back_to_where_it_began(stub: Any) -> None:
    keys = latents()
    around = walk(stub, keys, 5, loop=True)
    assert len(around) == 3 * 4
    np.testing.assert_array_equal(around[::4], keys)
    np.testing.assert_allclose(around[8:], np.linspace(keys[2], keys[0], 5)[:4], atol=1e-6)


def test_a_loop_whose_ends_are_equal_rests_there(stub: Any) -> None:
    keys = latents()[[0, 1, 0]]
    around = walk(stub, keys, 4, loop=True, path=pb.INTERPOLATION_PATH_SPHERICAL)
    assert len(around) == 9
    np.testing.assert_array_equal(around[6:], np.repeat(keys[:1], 3, 0))


def test_easing_and_end_points(stub: Any) -> None:
    a, b = latents(2, 5)
    t = np.linspace(0, 1, 6)[:, None]
    for easing, eased in [
        (pb.EASING_IN, t**2),
        (pb.EASING_OUT, 1 - (1 - t) ** 2),
        (pb.EASING_IN_OUT, 3 * t**2 - 2 * t**3),
    ]:
        np.testing.assert_allclose(walk(stub, latents(2, 5), 6, easing=easing), a + eased * (b - a), atol=1e-6)
    inner = walk(stub, latents(2, 5), 6, exclude_end_points=True)
    np.testing.assert_allclose(inner, (a + t * (b - a))[1:-1], atol=1e-6)


def test_a_spline_goes_through_every_key_frame_without_corners(stub: Any) -> None:
    keys, steps = latents(5, 5), 200
    path = walk(stub, keys, steps, path=pb.INTERPOLATION_PATH_CATMULL_ROM).astype(np.float64)
    np.testing.assert_array_equal(path[:: steps - 1], keys)
    straight = walk(stub, keys, steps).astype(np.float64)

    def sharpest(way: Any) -> float:
        steps_ = np.diff(way, axis=0)
        steps_ /= np.linalg.norm(steps_, axis=1, keepdims=True)
        return float(np.degrees(np.arccos(np.clip((steps_[1:] * steps_[:-1]).sum(1), -1, 1))).max())

    assert sharpest(path) < 10 < sharpest(straight)


@pytest.mark.parametrize(
    ("keys", "fields", "field"),
    [
        (latents(2, 5), {"steps": 1}, "steps"),
        (latents(2, 5), {"steps": 0}, "steps"),
        (latents(2, 5), {"steps": -3}, "steps"),
        (latents(2, 5), {"steps": 2, "exclude_end_points": True}, "steps"),
        (latents(2, 5), {"steps": 1 << 30}, "steps"),
        (latents(2, 5), {"steps": 4, "easing": 9}, "easing"),
        (latents(2, 5), {"steps": 4, "path": 9}, "path"),
        (latents(2, 5), {"steps": 4, "loop": True, "exclude_end_points": True}, "exclude_end_points"),
        (np.stack([latents()[0], -latents()[0]]), {"steps": 4, "path": pb.INTERPOLATION_PATH_SPHERICAL}, "path"),
        (latents(1, 5), {"steps": 4}, "latents"),
        (latents(2, 5), {"steps": 4, "classes": pb.Classes(indices=[1])}, "classes"),
    ],
)
def test_a_walk_that_makes_no_sense_is_refused_by_its_field(stub: Any, keys: Any, fields: Any, field: str) -> None:
    assert refusal(stub.Interpolate, pb.InterpolateRequest(latents=tensor(keys), **fields))[0] == field


def test_the_refusal_of_steps_names_what_would_do(stub: Any) -> None:
    most = stub.GetModel(pb.GetModelRequest()).model.limits.max_items
    for fields, legs, beside in [({}, 2, 1), ({"loop": True}, 3, 0), ({"exclude_end_points": True}, 2, -1)]:
        request = pb.InterpolateRequest(latents=tensor(latents(3, 5)), steps=1 << 20, **fields)
        highest = (most - beside) // legs + 1
        assert f"wanted 2 to {highest}, as 3 key frames" in refusal(stub.Interpolate, request)[1]
        walked = walk(stub, latents(3, 5), highest, **fields)
        assert most - legs < len(walked) <= most


# ---- Reconstruct ----


def test_reconstruct_gives_what_encode_and_decode_give(stub: Any, linear: LinearModel) -> None:
    mean, logvar = linear.encode(photos())
    reply = stub.Reconstruct(pb.ReconstructRequest(images=images(photos())))
    np.testing.assert_allclose(array(reply.latents), mean, atol=1e-5)
    back = linear.decode(mean)
    assert np.abs(array(reply.images.tensor) - 255 * back).max() <= 0.51
    x = photos().astype(np.float64) / 255
    np.testing.assert_allclose(array(reply.squared_error), ((x - back) ** 2).mean((1, 2, 3)), rtol=1e-4)
    kl = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(1)
    np.testing.assert_allclose(array(reply.kl), kl, rtol=1e-4)
    likelihood = (x * np.log(back) + (1 - x) * np.log1p(-back)).sum((1, 2, 3))
    np.testing.assert_allclose(array(reply.elbo), likelihood - kl, rtol=1e-4)
    assert not reply.HasField("seed")


def test_a_seed_reconstructs_from_the_draw_that_encode_makes(stub: Any) -> None:
    drawn = stub.Encode(pb.EncodeRequest(images=images(photos()), seed=4, first_index=10))
    reply = stub.Reconstruct(pb.ReconstructRequest(images=images(photos()), seed=4, first_index=10))
    assert reply.latents.data == drawn.latents.data
    assert reply.seed == 4


def test_images_can_be_left_out_of_a_reconstruction(stub: Any) -> None:
    reply = stub.Reconstruct(pb.ReconstructRequest(images=images(photos()), omit_images=True))
    assert not reply.HasField("images")
    assert len(array(reply.squared_error)) == 3


def test_what_is_no_garment_scores_worse_than_garments_do(shipped: Any, fashion_images: Any) -> None:
    """Anomaly scores on the shipped model: real clothes against the same pixels in disorder."""
    clothes = fashion_images[:200]
    disordered = np.random.default_rng(0).permuted(clothes.reshape(200, -1), axis=1).reshape(clothes.shape)
    for name in ("squared_error", "elbo"):
        good, bad = (
            array(getattr(shipped.Reconstruct(pb.ReconstructRequest(images=images(each), seed=0)), name))
            for each in (clothes, disordered)
        )
        right = (good[:, None] > bad) if name == "elbo" else (good[:, None] < bad)
        assert right.mean() > 0.95, name


def test_a_learnt_prior_has_its_own_kl(shipped: Any, fashion_images: Any) -> None:
    request = pb.ReconstructRequest(model=BINARY, images=images(fashion_images[:3]), seed=1)
    reply = shipped.Reconstruct(request)
    posterior = shipped.Encode(pb.EncodeRequest(model=BINARY, images=images(fashion_images[:3])))
    mean, logvar = array(posterior.mean), array(posterior.logvar)
    closed = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(1)
    assert np.isfinite(array(reply.kl)).all()
    assert (np.abs(array(reply.kl) - closed) > 1).all()


def test_without_the_density_of_its_prior_a_model_has_no_kl(tmp_path: Path, fashion_images: Any) -> None:
    folder = tmp_path / "mnist-binary" / "1"
    shutil.copytree(ROOT / "models" / "mnist-binary" / "1", folder)
    about = manifest.read(folder).manifest
    (folder / "density.onnx").unlink()
    files = {name: digest for name, digest in about.files.items() if name != "density.onnx"}
    (folder / "manifest.json").write_text(replace(about, files=files).to_json())
    with running_service(settings_for(tmp_path)) as service, Client(f"localhost:{service.port}") as client:
        seen = client.reconstruct(fashion_images[:2])
    assert (seen.kl, seen.elbo) == (None, None)
    assert seen.squared_error.shape == (2,)


# ---- Edit ----


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A stub to a linear model with two attributes, one of which was measured."""
    import linear_model

    model = linear_model.write(tmp_path_factory.mktemp("named"), "named")
    about = replace(
        manifest.read(model.folder).manifest,
        attributes={"glasses": (1.0, 0.0, 0.0, 0.0, 0.0), "smile": (0.0, 2.0, 0.0, 0.0, 0.0)},
        evaluation={"attribute_glasses_amount": 2.0, "attribute_glasses_amount_limit": 3.0},
    )
    (model.folder / "manifest.json").write_text(about.to_json())
    with calling(model.folder.parent.parent) as stub:
        yield stub


def amounts(**by_name: float) -> list[pb.AttributeAmount]:
    return [pb.AttributeAmount(name=name, amount=amount) for name, amount in by_name.items()]


def test_attributes_move_latents_by_their_amounts(named: Any) -> None:
    info = named.GetModel(pb.GetModelRequest()).model
    assert [(a.name, a.amount, a.limit) for a in info.attributes] == [("glasses", 2.0, 1.5), ("smile", 1.0, 1.0)]
    reply = named.Edit(pb.EditRequest(latents=tensor(latents()), attributes=amounts(glasses=0.5, smile=-1)))
    np.testing.assert_allclose(array(reply.latents), latents() + np.array([1.0, -2.0, 0, 0, 0]), atol=1e-6)
    decoded = named.Decode(pb.DecodeRequest(latents=reply.latents))
    assert decoded.images.tensor.data == reply.images.tensor.data


def test_amounts_are_cut_to_what_is_sensible_and_the_reply_says_so(named: Any) -> None:
    reply = named.Edit(pb.EditRequest(latents=tensor(latents()), attributes=amounts(glasses=99, smile=-1.5)))
    assert [(a.name, a.amount) for a in reply.attributes] == [("glasses", 1.5), ("smile", -1.0)]
    np.testing.assert_allclose(array(reply.latents), latents() + np.array([3.0, -2.0, 0, 0, 0]), atol=1e-6)


def test_a_minus_b_plus_c(stub: Any, linear: LinearModel) -> None:
    """Of images, their means; of examples, the mean of theirs."""
    base, plus, minus = photos(2, 12, 10, 1), photos(6, 12, 10, 1)[2:4], latents(3, 5)
    difference = pb.Difference(plus_images=images(plus), minus_latents=tensor(minus), amount=0.5)
    reply = stub.Edit(pb.EditRequest(images=images(base), differences=[difference]))
    wanted = linear.encode(base)[0] + 0.5 * (linear.encode(plus)[0].mean(0) - minus.mean(0))
    np.testing.assert_allclose(array(reply.latents), wanted, atol=1e-5)


def test_an_edit_by_nothing_is_a_reconstruction(stub: Any) -> None:
    edited = stub.Edit(pb.EditRequest(images=images(photos())))
    assert edited.images == stub.Reconstruct(pb.ReconstructRequest(images=images(photos()))).images


ONE = tensor(latents(1, 5))
NOTHING = pb.Difference(plus_latents=ONE, minus_latents=ONE)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({}, "base", "latents or images to edit"),
        ({"latents": ONE, "attributes": amounts(hat=1)}, "attributes[0].name", "'hat', wanted one of glasses, smile"),
        ({"latents": ONE, "attributes": amounts(glasses=float("nan"))}, "attributes[0].amount", "finite"),
        ({"latents": ONE, "attributes": amounts(glasses=1) * 2}, "attributes[1].name", "each name once"),
        ({"latents": ONE, "differences": [pb.Difference(plus_latents=ONE)]}, "differences[0].minus", "one or more"),
        ({"latents": ONE, "differences": [pb.Difference(minus_latents=ONE)]}, "differences[0].plus", "one or more"),
        (
            {"latents": ONE, "differences": [pb.Difference(plus_latents=ONE, minus_latents=tensor(latents(1, 4)))]},
            "differences[0].minus_latents.shape",
            "[1, 4]",
        ),
        (
            {"latents": ONE, "differences": [pb.Difference(plus_latents=ONE, minus_latents=ONE, amount=11)]},
            "differences[0].amount",
            "-10 to 10",
        ),
        (
            {"latents": ONE, "differences": [pb.Difference(plus_images=images(photos(1, 9, 9, 1)), minus_latents=ONE)]},
            "differences[0].plus_images.tensor.shape",
            "[1, 9, 9, 1]",
        ),
        (
            {"latents": ONE, "differences": [NOTHING] * 17},
            "differences",
            "16",
        ),
        ({"latents": ONE, "classes": pb.Classes(indices=[0])}, "classes", "not conditional"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused_by_its_field(named: Any, fields: Any, field: str, says: str) -> None:
    got, description = refusal(named.Edit, pb.EditRequest(**fields))
    assert got == field
    assert says in description


def test_a_model_without_attributes_says_so(stub: Any) -> None:
    request = pb.EditRequest(latents=ONE, attributes=amounts(glasses=1))
    assert refusal(stub.Edit, request)[1] == "got 'glasses', wanted none: linear has no attributes"


def test_edits_that_leave_what_decode_takes_are_refused(stub: Any) -> None:
    far = np.full((1, 5), 9e5, np.float32)
    difference = pb.Difference(plus_latents=tensor(far), minus_latents=tensor(-far), amount=10)
    assert refusal(stub.Edit, pb.EditRequest(latents=ONE, differences=[difference]))[0] == "latents"


def test_the_shipped_model_makes_sneakers_of_boots(shipped: Any, fashion_images: Any, fashion_labels: Any) -> None:
    """Nearer to the mean sneaker than to the mean boot after the edit, and the other way round before it."""
    boots = fashion_images[fashion_labels == 9][:50]
    means = [fashion_images[fashion_labels == label].mean(0) for label in (9, 7)]

    def sneakers(shaft: float) -> float:
        request = pb.EditRequest(images=images(boots), attributes=amounts(shaft=shaft))
        edited = array(shipped.Edit(request).images.tensor).astype(float)
        to_boot, to_sneaker = (((edited - mean) ** 2).sum((1, 2, 3)) for mean in means)
        return float((to_sneaker < to_boot).mean())

    assert sneakers(0) < 0.2
    assert sneakers(-1) > 0.8


# ---- Neighbours ----


def around(**fields: Any) -> pb.NeighboursRequest:
    return pb.NeighboursRequest(**{"latents": ONE, "seed": 3, **fields})


def test_a_grid_lies_on_a_plane_around_the_base(stub: Any) -> None:
    reply = stub.Neighbours(around(grid=pb.NeighbourGrid(rows=3, columns=5, spacing=0.25)))
    grid = array(reply.latents).reshape(3, 5, 5)
    np.testing.assert_array_equal(grid[1, 2], latents(1, 5)[0])
    across, down = np.diff(grid, axis=1), np.diff(grid, axis=0)
    np.testing.assert_allclose(np.linalg.norm(across, axis=2), 0.25, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(down, axis=2), 0.25, atol=1e-6)
    assert abs(float(across[0, 0] @ down[0, 0])) < 1e-6
    assert reply.seed == 3
    decoded = stub.Decode(pb.DecodeRequest(latents=reply.latents))
    assert decoded.images.tensor.data == reply.images.tensor.data


def test_a_grid_takes_directions(stub: Any) -> None:
    directions = np.array([[2, 0, 0, 0, 0], [1, 1, 0, 0, 0]], np.float32)
    grid = pb.NeighbourGrid(rows=1, columns=3, spacing=1, directions=tensor(directions))
    reply = array(stub.Neighbours(around(grid=grid)).latents)
    np.testing.assert_allclose(np.diff(reply, axis=0), [[0, 1, 0, 0, 0]] * 2, atol=1e-6)


def test_a_longer_walk_begins_with_the_shorter_one(stub: Any) -> None:
    long, short = (array(stub.Neighbours(around(walk=pb.NeighbourWalk(count=n))).latents) for n in (50, 7))
    assert long[:7].tobytes() == short.tobytes()
    np.testing.assert_array_equal(long[0], latents(1, 5)[0])
    np.testing.assert_allclose(np.linalg.norm(np.diff(long.astype(np.float64), axis=0), axis=1), 0.5, atol=1e-5)


def test_what_lies_around_an_image_lies_around_its_mean(stub: Any, linear: LinearModel) -> None:
    one = photos(1, 12, 10, 1)
    request = pb.NeighboursRequest(images=images(one), walk=pb.NeighbourWalk(count=2), seed=1)
    np.testing.assert_allclose(array(stub.Neighbours(request).latents)[0], linear.encode(one)[0][0], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "layout"),
        ({"latents": None, "walk": pb.NeighbourWalk(count=2)}, "base"),
        ({"latents": tensor(latents(2, 5)), "walk": pb.NeighbourWalk(count=2)}, "latents"),
        ({"walk": pb.NeighbourWalk()}, "walk.count"),
        ({"walk": pb.NeighbourWalk(count=1 << 20)}, "walk.count"),
        ({"walk": pb.NeighbourWalk(count=2, step=0)}, "walk.step"),
        ({"walk": pb.NeighbourWalk(count=2, step=float("nan"))}, "walk.step"),
        ({"grid": pb.NeighbourGrid(rows=0, columns=2)}, "grid.rows"),
        ({"grid": pb.NeighbourGrid(rows=2, columns=-2)}, "grid.columns"),
        ({"grid": pb.NeighbourGrid(rows=1000, columns=1000)}, "grid.columns"),
        ({"grid": pb.NeighbourGrid(rows=2, columns=2, spacing=-1)}, "grid.spacing"),
        ({"grid": pb.NeighbourGrid(rows=2, columns=2, directions=ONE)}, "grid.directions.shape"),
        ({"grid": pb.NeighbourGrid(rows=2, columns=2, directions=tensor(np.zeros((2, 5), "f4")))}, "grid.directions"),
        (
            {"grid": pb.NeighbourGrid(rows=2, columns=2), "output": pb.ImageOutput(format=pb.IMAGE_FORMAT_GIF)},
            "output.format",
        ),
    ],
)
def test_neighbours_that_make_no_sense_are_refused_by_their_field(stub: Any, fields: Any, field: str) -> None:
    assert refusal(stub.Neighbours, around(**fields))[0] == field


def test_neighbours_stay_within_what_decode_takes(stub: Any) -> None:
    far = tensor(np.full((1, 5), 1e6, np.float32))
    field, description = refusal(stub.Neighbours, around(latents=far, walk=pb.NeighbourWalk(count=9, step=10)))
    assert field == "latents"
    assert "stay within -1e+06 to 1e+06" in description


def test_a_repository_path_never_shows(named: Any, tmp_path: Path) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        named.Edit(pb.EditRequest(latents=ONE, attributes=amounts(**{str(tmp_path): 1})))
    assert "models" not in refused.value.details()
