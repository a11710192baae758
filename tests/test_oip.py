"""The Open Inference Protocol gives the numbers that the models have, in every call and form."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import oip_fixtures
import pytest
from conftest import running_service, settings_for
from oip_fixtures import Models, arrays, request
from PIL import Image

from latentry import Client
from serving.inference import grpc_service_pb2 as oip
from serving.inference import model_config_pb2 as config
from serving.server import Service

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return oip_fixtures.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def service(models: Models) -> Iterator[Service]:
    repository = models.plain.folder.parent.parent
    with running_service(settings_for(repository, versions=("all",), labels=("plain:stable=1",))) as service:
        yield service


@pytest.fixture(scope="module")
def stub(service: Service) -> Iterator[Any]:
    with oip_fixtures.calls(service.port) as stub:
        yield stub


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(f"localhost:{service.port}", model="plain", version=1) as client:
        yield client


@pytest.fixture
def pixels(models: Models) -> Array:
    return np.random.default_rng(3).integers(0, 256, (4, *models.plain.shape), np.uint8)


@pytest.fixture
def z() -> Array:
    return np.random.default_rng(4).standard_normal((3, 5)).astype(np.float32)


def infer(stub: Any, model: str, tensors: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The outputs of version 1."""
    return arrays(stub.ModelInfer(request(model, tensors, model_version="1", **more)))


def png(image: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


def opened(file: bytes, kind: str) -> Array:
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == kind
        return np.asarray(image.convert("L"))[..., None]


def near(got: Array, wanted: Array) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


class TestEncoder:
    def test_it_gives_the_posterior_of_arrays_and_of_files(self, stub: Any, models: Models, pixels: Array) -> None:
        mean, logvar = models.plain.encode(pixels)
        for images in (pixels, pixels.astype(np.float32) / np.float32(255), [png(each) for each in pixels]):
            got = infer(stub, "plain_encoder", {"images": images})
            assert list(got) == ["mean", "logvar"]
            near(got["mean"], mean)
            near(got["logvar"], logvar)

    def test_only_the_outputs_that_are_asked_for_come_and_in_their_order(self, stub: Any, pixels: Array) -> None:
        assert list(infer(stub, "plain_encoder", {"images": pixels}, outputs=("logvar",))) == ["logvar"]
        assert list(infer(stub, "plain_encoder", {"images": pixels}, outputs=("logvar", "mean"))) == ["logvar", "mean"]

    def test_a_seed_gives_a_draw_too(self, stub: Any, client: Client, pixels: Array) -> None:
        asked = {"seed": 5, "first_index": 2, "temperature": 0.5}
        got = infer(stub, "plain_encoder", {"images": pixels}, parameters=asked)
        assert (got["latents"] == client.encode(pixels, seed=5, first_index=2, temperature=0.5).latents).all()

    def test_images_are_resized_if_asked(self, stub: Any, models: Models) -> None:
        flat = np.full((40, 30, 1), 77, np.uint8)
        got = infer(stub, "plain_encoder", {"images": [png(flat)]}, parameters={"resize": "crop"})
        near(got["mean"], models.plain.encode(np.full((1, *models.plain.shape), 77, np.uint8))[0])


class TestDecoder:
    def test_it_gives_pixels_and_the_mean(self, stub: Any, models: Models, client: Client, z: Array) -> None:
        got = infer(stub, "plain_decoder", {"latents": z})
        near(got["mean"], models.plain.decode(z))
        assert list(got) == ["images", "mean"]
        assert (got["images"] == np.rint(got["mean"] * np.float32(255))).all()
        assert (got["images"] == infer(stub, "plain_decoder", {"latents": z}, outputs=("images",))["images"]).all()
        assert (got["images"] == client.decode(z).images).all()
        assert list(infer(stub, "plain_decoder", {"latents": z}, outputs=("mean",))) == ["mean"]

    @pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
    def test_it_gives_files(self, stub: Any, client: Client, z: Array, kind: str) -> None:
        got = infer(stub, "plain_decoder", {"latents": z}, parameters={"format": kind, "quality": 100})
        assert list(got) == ["images"]
        pictures = np.stack([opened(file, kind.upper()) for file in got["images"]])
        off = np.abs(pictures.astype(int) - client.decode(z).images)
        assert off.max() <= (3 if kind == "jpeg" else 0)

    def test_the_form_may_be_said_of_the_output(self, stub: Any, z: Array) -> None:
        asked = request("plain_decoder", {"latents": z}, outputs=("images",), parameters={"format": "jpeg"})
        asked.outputs[0].parameters["format"].string_param = "png"
        (first, *_) = arrays(stub.ModelInfer(asked))["images"]
        assert first.startswith(b"\x89PNG")

    def test_floats_may_be_images(self, stub: Any, models: Models, z: Array) -> None:
        got = infer(stub, "plain_decoder", {"latents": z}, parameters={"format": "float32"})
        near(got["images"], models.plain.decode(z))
        assert (got["images"] == got["mean"]).all()


class TestSample:
    def test_parameters_and_inputs_say_the_same(self, stub: Any, client: Client) -> None:
        wanted = client.sample(6, seed=9)
        by_name = infer(stub, "plain_sample", parameters={"count": 6, "seed": 9})
        by_tensor = infer(stub, "plain_sample", {"count": np.array([6]), "seed": np.array([9])})
        as_text = infer(stub, "plain_sample", parameters={"count": "6", "seed": "9"})
        for got in (by_name, by_tensor, as_text):
            assert (got["images"] == wanted.images).all()
            assert (got["latents"] == wanted.latents).all()

    def test_all_that_sample_knows_can_be_said(self, stub: Any, client: Client) -> None:
        asked = {"first_index": 3, "temperature": 0.5, "truncation": 1, "truncation_mode": "clamp", "prior": "standard"}
        got = infer(stub, "plain_sample", parameters={"count": 4, "seed": 2**64 - 1, **asked})
        assert (got["latents"] == client.sample(4, seed=2**64 - 1, **asked).latents).all()

    def test_without_anything_it_is_one_image_of_a_seed_that_int64_can_tell(self, stub: Any, client: Client) -> None:
        for _ in range(8):
            response = stub.ModelInfer(request("plain_sample", model_version="1"))
            seed = response.parameters["seed"].int64_param
            assert response.parameters["seed"].WhichOneof("parameter_choice") == "int64_param"
            assert (arrays(response)["latents"] == client.sample(1, seed=seed).latents).all()

    def test_a_seed_beyond_int64_comes_back_as_it_was(self, stub: Any) -> None:
        response = stub.ModelInfer(request("plain_sample", parameters={"seed": 2**64 - 3}))
        assert response.parameters["seed"].uint64_param == 2**64 - 3


class TestInterpolate:
    def test_it_walks_between_latents_or_images(self, stub: Any, client: Client, z: Array, pixels: Array) -> None:
        ways = {"path": "catmull-rom", "easing": "in-out", "loop": True}
        got = infer(stub, "plain_interpolate", {"latents": z}, parameters={"steps": 4, **ways})
        wanted = client.interpolate(z, steps=4, **ways)
        assert (got["latents"] == wanted.latents).all()
        assert (got["images"] == wanted.images).all()
        asked = {"steps": 5, "exclude_end_points": True, "path": "spherical"}
        got = infer(stub, "plain_interpolate", {"images": pixels[:2]}, parameters=asked)
        assert (got["latents"] == client.interpolate(pixels[:2], steps=5, ends=False, path="spherical").latents).all()

    def test_a_walk_may_be_an_animation(self, stub: Any, z: Array) -> None:
        asked = {"steps": 4, "format": "gif", "frame_ms": 50}
        (file,) = infer(stub, "plain_interpolate", {"latents": z}, parameters=asked)["images"]
        with Image.open(io.BytesIO(file)) as animation:
            assert (animation.format, animation.n_frames, animation.info["duration"]) == ("GIF", 7, 50)


class TestReconstruct:
    def test_it_gives_images_and_scores(self, stub: Any, client: Client, models: Models, pixels: Array) -> None:
        got = infer(stub, "plain_reconstruct", {"images": pixels})
        wanted = client.reconstruct(pixels)
        assert list(got) == ["images", "latents", "squared_error", "kl", "elbo"]
        for name in ("squared_error", "kl", "elbo"):
            assert got[name].shape == (4, 1)
            assert (got[name][:, 0] == getattr(wanted, name)).all()
        assert (got["images"] == wanted.images).all()
        mean, logvar = models.plain.encode(pixels)
        near(got["latents"], mean)
        near(got["kl"][:, 0], 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum(axis=1))

    def test_images_that_are_not_asked_for_are_not_written(self, stub: Any, client: Client, pixels: Array) -> None:
        got = infer(stub, "plain_reconstruct", {"images": pixels}, outputs=("elbo",), parameters={"seed": 3})
        assert list(got) == ["elbo"]
        assert (got["elbo"][:, 0] == client.reconstruct(pixels, seed=3).elbo).all()


class TestEdit:
    def test_it_moves_along_attributes(self, stub: Any, models: Models, z: Array) -> None:
        asked = request("moved_edit", {"latents": z}, parameters={"attribute.wide": 0.5})
        response = stub.ModelInfer(asked)
        got = arrays(response)
        near(got["latents"], z + 0.5 * np.array(oip_fixtures.DIRECTION, np.float32))
        near(got["images"] / 255, np.rint(255 * models.moved.decode(got["latents"])) / 255)
        assert response.parameters["attribute.wide"].double_param == 0.5

    def test_images_are_encoded_first_and_amounts_cut(self, stub: Any, models: Models, pixels: Array) -> None:
        response = stub.ModelInfer(request("moved_edit", {"images": pixels}, parameters={"attribute.wide": "-7"}))
        applied = response.parameters["attribute.wide"].double_param
        assert applied == -1.0  # the limit of a direction that was not measured
        direction = np.array(oip_fixtures.DIRECTION, np.float32)
        near(arrays(response)["latents"], models.moved.encode(pixels)[0] - direction)


class TestClasses:
    @pytest.mark.parametrize(
        "classes",
        [np.array([0, 2, 1, 2]), np.array([[0], [2], [1], [2]], np.int32), [b"boot", b"coat", b"bag", b"coat"]],
    )
    def test_one_an_item(self, stub: Any, models: Models, pixels: Array, classes: Any) -> None:
        got = infer(stub, "linear_encoder", {"images": pixels, "classes": classes})
        near(got["mean"], models.classed.encode(pixels, np.array([0, 2, 1, 2]))[0])

    @pytest.mark.parametrize("chosen", [2, "2", "coat"])
    def test_one_for_all(self, stub: Any, models: Models, pixels: Array, z: Array, chosen: Any) -> None:
        twos = np.full(3, 2)
        got = infer(stub, "linear_decoder", {"latents": z}, outputs=("mean",), parameters={"class": chosen})
        near(got["mean"], models.classed.decode(z, twos))
        got = infer(stub, "linear_sample", parameters={"class": chosen, "count": 3, "format": "float32"})
        near(got["images"], models.classed.decode(got["latents"], twos))
        got = infer(stub, "linear_interpolate", {"latents": z[:2]}, parameters={"class": chosen, "steps": 3})
        near(got["images"] / 255, np.rint(255 * models.classed.decode(got["latents"], twos)) / 255)
        got = infer(stub, "linear_reconstruct", {"images": pixels}, parameters={"class": chosen})
        near(got["latents"], models.classed.encode(pixels, np.full(4, 2))[0])


class TestContents:
    """Typed contents, which other clients than Triton's send, say the same as raw ones."""

    def test_of_every_type(self, stub: Any, pixels: Array, z: Array) -> None:
        raw = infer(stub, "linear_encoder", {"images": pixels, "classes": np.array([0, 2, 1, 2])})
        asked = oip.ModelInferRequest(model_name="linear_encoder")
        asked.inputs.add(name="images", datatype="UINT8", shape=pixels.shape).contents.uint_contents.extend(
            pixels.ravel().tolist()
        )
        asked.inputs.add(name="classes", datatype="INT64", shape=[4]).contents.int64_contents.extend([0, 2, 1, 2])
        assert (arrays(stub.ModelInfer(asked))["mean"] == raw["mean"]).all()
        asked.inputs[0].CopyFrom(oip.ModelInferRequest.InferInputTensor(name="images", datatype="BYTES", shape=[4]))
        asked.inputs[0].contents.bytes_contents.extend(png(each) for each in pixels)
        asked.inputs[1].datatype = "INT32"
        asked.inputs[1].contents.ClearField("int64_contents")
        asked.inputs[1].contents.int_contents.extend([0, 2, 1, 2])
        assert (arrays(stub.ModelInfer(asked))["mean"] == raw["mean"]).all()
        asked = oip.ModelInferRequest(model_name="plain_decoder", model_version="1")
        asked.inputs.add(name="latents", datatype="FP32", shape=z.shape).contents.fp32_contents.extend(
            z.ravel().tolist()
        )
        assert (arrays(stub.ModelInfer(asked))["mean"] == infer(stub, "plain_decoder", {"latents": z})["mean"]).all()

    def test_large_ones_arrive_whole(self, stub: Any, models: Models) -> None:
        many = np.random.default_rng(0).integers(0, 256, (700, *models.plain.shape), np.uint8)  # 84,000 numbers
        asked = oip.ModelInferRequest(model_name="plain_encoder", model_version="1")
        asked.inputs.add(name="images", datatype="UINT8", shape=many.shape).contents.uint_contents.extend(
            many.ravel().tolist()
        )
        near(arrays(stub.ModelInfer(asked))["mean"], models.plain.encode(many)[0])


class TestReplies:
    def test_they_say_who_answered_and_how(self, stub: Any, service: Service, pixels: Array) -> None:
        response = stub.ModelInfer(request("plain_encoder", {"images": pixels}, id="mine"))
        assert (response.id, response.model_name, response.model_version) == ("mine", "plain_encoder", "2")
        told = response.parameters
        assert told["digest"].string_param == service.catalog.get("plain", 2).digest
        assert (told["provider"].string_param, told["precision"].string_param) == ("CPUExecutionProvider", "fp32")
        parts = [told[f"{part}_ns"].int64_param for part in ("queue", "inference", "codec")]
        assert all(0 < ns < told["total_ns"].int64_param for ns in parts)

    def test_a_version_is_meant_by_number_or_by_label(self, stub: Any, models: Models, pixels: Array) -> None:
        for version, model in (
            ("", models.second),
            ("2", models.second),
            ("1", models.plain),
            ("stable", models.plain),
        ):
            got = arrays(stub.ModelInfer(request("plain_encoder", {"images": pixels}, model_version=version)))
            near(got["mean"], model.encode(pixels)[0])


class TestDescriptions:
    def test_health(self, stub: Any) -> None:
        assert stub.ServerLive(oip.ServerLiveRequest()).live
        assert stub.ServerReady(oip.ServerReadyRequest()).ready
        for name, version, ready in (
            ("plain_encoder", "", True),
            ("plain_sample", "2", True),
            ("plain_sample", "3", False),
            ("plain_edit", "", False),
            ("plain", "", False),
            ("moved_edit", "4", True),
        ):
            assert stub.ModelReady(oip.ModelReadyRequest(name=name, version=version)).ready is ready, (name, version)

    def test_metadata_and_configuration_agree(self, stub: Any, service: Service) -> None:
        """By Triton's rules: shapes of a model with a batch size begin with -1, those of others are its dims."""
        for listed in stub.RepositoryIndex(oip.RepositoryIndexRequest()).models:
            told = stub.ModelMetadata(oip.ModelMetadataRequest(name=listed.name, version=listed.version))
            made = stub.ModelConfig(oip.ModelConfigRequest(name=listed.name, version=listed.version)).config
            assert (told.name, made.name, told.platform) == (listed.name, listed.name, made.platform)
            batch = [-1] if made.max_batch_size else []
            assert made.HasField("dynamic_batching") == bool(batch)
            assert not made.model_transaction_policy.decoupled
            for ports, tensors in ((made.input, told.inputs), (made.output, told.outputs)):
                said = [(p.name, f"TYPE_{t.datatype}", [*batch, *p.dims]) for p, t in zip(ports, tensors, strict=True)]
                assert said == [
                    (t.name, config.DataType.Name(p.data_type), list(t.shape))
                    for p, t in zip(ports, tensors, strict=True)
                ]

    def test_what_the_models_take_and_give(self, stub: Any) -> None:
        def told(name: str) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
            found = stub.ModelMetadata(oip.ModelMetadataRequest(name=name))
            return {t.name: list(t.shape) for t in found.inputs}, {t.name: list(t.shape) for t in found.outputs}

        images, z = [-1, 12, 10, 1], [-1, 5]
        assert told("plain_encoder") == ({"images": images}, {"mean": z, "logvar": z})
        assert told("plain_decoder") == ({"latents": z}, {"images": images, "mean": images})
        assert told("plain_sample") == ({"count": [1], "seed": [1]}, {"images": images, "latents": z})
        assert told("plain_interpolate") == ({"latents": z, "images": images}, {"images": images, "latents": z})
        scores = {name: [-1, 1] for name in ("squared_error", "kl", "elbo")}
        assert told("plain_reconstruct") == ({"images": images}, {"images": images, "latents": z, **scores})
        assert told("moved_edit") == ({"latents": z, "images": images}, {"images": images, "latents": z})
        assert told("linear_encoder")[0] == {"images": images, "classes": [-1, 1]}
        assert told("linear_sample")[0] == {"count": [1], "seed": [1], "classes": [-1]}
        versions = stub.ModelMetadata(oip.ModelMetadataRequest(name="plain_encoder", version="1")).versions
        assert list(versions) == ["1", "2"]

    def test_the_index_lists_every_version(self, stub: Any) -> None:
        found = [(m.name, m.version, m.state) for m in stub.RepositoryIndex(oip.RepositoryIndexRequest()).models]
        always = ("decoder", "encoder", "interpolate", "reconstruct", "sample")
        wanted = [(f"plain_{kind}", version) for kind in always for version in ("1", "2")]
        wanted += [(f"linear_{kind}", "1") for kind in always]
        wanted += [(f"moved_{kind}", "4") for kind in (*always, "edit")]
        assert found == [(name, version, "READY") for name, version in sorted(wanted)]

    def test_extensions(self, stub: Any) -> None:
        told = stub.ServerMetadata(oip.ServerMetadataRequest())
        assert told.name == "latentry"
        assert {"statistics", "model_configuration", "model_repository"} <= {*told.extensions}


class TestStatistics:
    def test_counts_are_exact(self, stub: Any, pixels: Array) -> None:
        before = _stats(stub, "plain_reconstruct")
        for n in (1, 4, 4):
            infer(stub, "plain_reconstruct", {"images": pixels[:n]})
        with pytest.raises(grpc.RpcError):
            infer(stub, "plain_reconstruct", {"images": pixels[:, :3]})
        after = _stats(stub, "plain_reconstruct")
        assert after.inference_count - before.inference_count == 9
        assert after.execution_count - before.execution_count == 6  # an encoder's and a decoder's each
        spent, earlier = after.inference_stats, before.inference_stats
        assert (spent.success.count - earlier.success.count, spent.fail.count - earlier.fail.count) == (3, 1)
        for part in ("queue", "compute_input", "compute_infer", "compute_output"):
            one, other = getattr(spent, part), getattr(earlier, part)
            assert one.count - other.count == 3
            assert 0 < one.ns - other.ns < spent.success.ns - earlier.success.ns
        sizes = {each.batch_size: each.compute_infer.count for each in after.batch_stats}
        sizes_before = {each.batch_size: each.compute_infer.count for each in before.batch_stats}
        assert sizes[1] - sizes_before.get(1, 0) == 2
        assert sizes[4] - sizes_before.get(4, 0) == 4
        assert after.last_inference > before.last_inference

    def test_calls_that_share_a_batch_count_it_once(self, stub: Any, pixels: Array) -> None:
        before = _stats(stub, "plain_encoder")
        calls = [
            stub.ModelInfer.future(request("plain_encoder", {"images": pixels}, model_version="1")) for _ in range(64)
        ]
        for each in calls:
            each.result()
        after = _stats(stub, "plain_encoder")
        runs = after.execution_count - before.execution_count
        assert after.inference_count - before.inference_count == 256
        assert 1 <= runs < 64
        rows = {each.batch_size: each.compute_infer.count for each in after.batch_stats}
        rows_before = {each.batch_size: each.compute_infer.count for each in before.batch_stats}
        assert sum(n * (count - rows_before.get(n, 0)) for n, count in rows.items()) == 256
        assert sum(rows.values()) - sum(rows_before.values()) == runs

    def test_all_models_are_told_if_none_is_named(self, stub: Any) -> None:
        listed = [(m.name, m.version) for m in stub.RepositoryIndex(oip.RepositoryIndexRequest()).models]
        told = [(m.name, m.version) for m in stub.ModelStatistics(oip.ModelStatisticsRequest()).model_stats]
        assert sorted(told) == listed
        assert [
            m.version for m in stub.ModelStatistics(oip.ModelStatisticsRequest(name="plain_sample")).model_stats
        ] == [
            "1",
            "2",
        ]


def _stats(stub: Any, name: str) -> Any:
    (found,) = stub.ModelStatistics(oip.ModelStatisticsRequest(name=name, version="1")).model_stats
    return found
