"""Both clients against a real server: arrays and Pillow images in and out, splitting, retries, errors."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import conditional_model
import grpc
import numpy as np
import onnx
import pytest
from conftest import running_service, settings_for
from linear_model import LinearModel
from PIL import Image
from proxies import no_use_of_a_proxy

import latentry
from latentry import AsyncClient, Client, LatentryError
from latentry.v1 import vae_pb2 as pb
from serving.api.codec import read_images
from serving.server import Service

Images = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture
def client(linear_service: Service) -> Any:
    with Client(f"localhost:{linear_service.port}") as client:
        yield client


@pytest.fixture(scope="module")
def images() -> Images:
    return np.random.default_rng(3).integers(0, 256, (6, 12, 10, 1), np.uint8)


def test_images_of_every_kind_are_encoded_alike(client: Client, images: Images, tmp_path: Path) -> None:
    pillow = [Image.fromarray(image[:, :, 0]) for image in images]
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for image, path in zip(pillow, paths, strict=True):
        image.save(path)
    expected = client.encode(images).mean
    assert expected.shape == (6, 5)
    same: list[Any] = [images[..., 0], pillow, paths, [str(p) for p in paths], [p.read_bytes() for p in paths]]
    for kind in [*same, images / 255]:
        np.testing.assert_allclose(client.encode(kind).mean, expected, atol=1e-6)
    np.testing.assert_allclose(client.encode(pillow[0]).mean, expected[:1], atol=1e-6)
    np.testing.assert_allclose(client.encode([paths[0].read_bytes()] * 2).mean, expected[[0, 0]], atol=1e-6)


def test_pictures_become_pillow_images_and_grids(client: Client) -> None:
    pictures = client.sample(7, seed=1)
    opened = pictures.pillow()
    assert [(image.size, image.mode) for image in opened] == [((10, 12), "L")] * 7
    assert np.asarray(opened[3]).tolist() == pictures.images[3, :, :, 0].tolist()
    assert pictures.grid(columns=3).size == (3 * 12 - 2, 3 * 14 - 2)
    assert pictures.grid().size == pictures.grid(3).size
    floats = client.decode(pictures.latents, dtype="float32")
    assert floats.images.dtype == np.float32
    assert np.abs(floats.images * 255 - pictures.images).max() <= 0.51
    doubled = latentry.grid(pictures.images, 7, gap=0, scale=2)
    assert np.asarray(doubled)[::2, ::2].tolist() == np.concatenate(list(pictures.images[..., 0]), axis=1).tolist()


def test_inputs_larger_than_the_limits_are_split_unnoticed(serve: Any, linear_repository: Path, images: Images) -> None:
    service = serve(linear_repository, max_request_items=4)
    with Client(f"localhost:{service.port}") as small:
        assert small.info().limits.max_items == 4
        whole = small.sample(11, seed=2)
        assert whole.images.shape == (11, 12, 10, 1)
        assert (
            whole.latents.tolist()
            == small.sample(3, seed=2).latents.tolist() + small.sample(8, seed=2, first_index=3).latents.tolist()
        )
        assert len(np.unique(small.sample(11).latents, axis=0)) == 11, "one seed for all parts"
        decoded = small.decode(whole.latents)
        assert decoded.images.tolist() == whole.images.tolist()
        encoded = small.encode(images, seed=8)
        one_by_one = [small.encode(images[i : i + 1]).mean for i in range(6)]
        np.testing.assert_allclose(encoded.mean, np.concatenate(one_by_one), atol=1e-6)
        assert encoded.latents is not None
        noise = (encoded.latents - encoded.mean) / np.exp(encoded.logvar / 2)
        np.testing.assert_allclose(noise, small.sample(6, seed=8).latents, atol=1e-4)


def test_the_channel_takes_messages_as_large_as_the_model_says(serve: Any, tmp_path: Path) -> None:
    """One reply of 1024 float images of 64x64x3 is 12 times gRPC's own limit of 4 MiB."""
    import linear_model

    linear_model.write(tmp_path, shape=(64, 64, 3), z=2)
    service = serve(tmp_path)
    with Client(f"localhost:{service.port}") as client:
        most = client.info().limits.max_items
        assert most == 1024
        pictures = client.sample(most, seed=1, dtype="float32")
        assert pictures.images.nbytes == 1024 * 64 * 64 * 3 * 4
        assert client.encode(pictures.images).mean.shape == (1024, 2)


def test_images_of_many_bytes_are_split_to_fit_the_message(client: Client) -> None:
    big = np.random.default_rng(0).integers(0, 256, (3, 2000, 3000, 1), np.uint8)  # 6 MB each, of 16 MiB a message
    files = [Image.fromarray(image[:, :, 0]) for image in big]
    by_array = client.encode(big, resize="crop").mean
    np.testing.assert_allclose(client.encode(files, resize="crop").mean, by_array, atol=1e-5)
    with pytest.raises(ValueError, match=r"images\[0\]: got 18000000 bytes, wanted at most"):
        client.encode(big.reshape(1, 6000, 3000, 1), resize="crop")


def test_pillow_images_of_16_bits_are_read_as_their_files_are(client: Client, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (12, 10)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = client.encode((deep >> 8).astype(np.uint8)[None]).mean
    with Image.open(tmp_path / "deep.png") as opened:
        np.testing.assert_allclose(client.encode(opened).mean, expected, atol=1e-6)
    np.testing.assert_allclose(client.encode(tmp_path / "deep.png").mean, expected, atol=1e-6)


def test_another_model_after_a_restart_is_noticed(tmp_path: Path, free_port: int) -> None:
    import linear_model

    linear_model.write(tmp_path / "a", z=5)
    linear_model.write(tmp_path / "b", z=7, version=2)
    with Client(f"localhost:{free_port}") as client:
        with running_service(settings_for(tmp_path / "a", port=free_port)):
            assert client.sample(1).latents.shape == (1, 5)
        with running_service(settings_for(tmp_path / "b", port=free_port)):
            assert client.sample(1).latents.shape == (1, 7)
            assert client.info().latent_dim == 7


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_refusal_is_reason_to_ask_about_the_model_again(kind: type, tmp_path: Path, free_port: int) -> None:
    import linear_model

    linear_model.write(tmp_path / "a", z=5)
    linear_model.write(tmp_path / "b", z=7, version=2)
    client = kind(f"localhost:{free_port}")
    loop = asyncio.new_event_loop()

    def call(name: str, *args: Any) -> Any:
        made = getattr(client, name)(*args)
        return loop.run_until_complete(made) if inspect.isawaitable(made) else made

    with running_service(settings_for(tmp_path / "a", port=free_port)):
        assert call("info").latent_dim == 5
    with running_service(settings_for(tmp_path / "b", port=free_port)):
        with pytest.raises(LatentryError, match="latents"):
            call("decode", np.zeros((1, 5)))
        assert call("decode", np.zeros((1, call("info").latent_dim))).model.version == 2
        call("close")
    loop.close()


def test_an_error_points_to_what_the_caller_gave(serve: Any, linear_repository: Path, tmp_path: Path) -> None:
    for at in range(8):
        Image.fromarray(np.full((12, 10), at, np.uint8)).save(tmp_path / f"{at}.png")
    files: list[Path | bytes] = [tmp_path / f"{at}.png" for at in range(8)]
    (tmp_path / "6.png").write_bytes(b"broken")
    with Client(f"localhost:{serve(linear_repository, max_request_items=4).port}") as small:
        with pytest.raises(LatentryError) as caught:
            small.encode(files)
        assert caught.value.message.startswith(f"images[6] ({tmp_path / '6.png'}): got 6 bytes that cannot be read")
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        wide = io.BytesIO()
        Image.new("L", (28, 20)).save(wide, "PNG")
        odd = [*files[:5], wide.getvalue(), files[5], wide.getvalue()]
        with pytest.raises(LatentryError, match=r"images\[5\]: got 20x28 \(also \[7\] 20x28\), wanted 12x10"):
            small.reconstruct(odd)
        with pytest.raises(LatentryError, match=r"minus\[1\] \(.*6\.png\): got 6 bytes"):
            small.edit(files[:1], plus=files[:2], minus=files[5:7])
        with pytest.raises(LatentryError, match=r"images\[2\] \(.*6\.png\): got 6 bytes"):
            list(small.stream_interpolate(files[4:7]))
        with pytest.raises(LatentryError, match=r"got nan at \[5, 1\]"):
            small.decode(np.where(np.arange(40).reshape(8, 5) == 26, np.nan, 0))


def photographs(folder: Path) -> list[Path]:
    """Three of noise, which no format makes small: an upright JPEG, one that lies, and a PNG with an alpha channel."""
    pixels = np.random.default_rng(0).integers(0, 256, (2600, 3400, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(folder / "a.jpg", quality=96)
    Image.fromarray(pixels[..., 2::-1]).save(folder / "b.jpg", quality=96, exif=exif)
    Image.fromarray(pixels[:1500, :1000]).save(folder / "c.png", compress_level=1)
    return [folder / "a.jpg", folder / "b.jpg", folder / "c.png"]


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_large_photographs_are_fitted_to_the_same_pixels_as_by_a_server(
    client: Client, linear: LinearModel, tmp_path: Path, resize: Any
) -> None:
    files = photographs(tmp_path)
    assert sum(file.stat().st_size for file in files[:2]) > client.info().limits.max_message_bytes
    fits = {"crop": pb.RESIZE_CROP, "stretch": pb.RESIZE_STRETCH}
    read = [
        read_images(pb.Images(encoded=pb.EncodedImages(images=[file.read_bytes()])), (12, 10, 1), 1, fits[resize])
        for file in files
    ]
    expected, _ = linear.encode(np.concatenate(read))
    np.testing.assert_allclose(client.encode(files, resize=resize).mean, expected, atol=1e-5)
    keys = client.interpolate(files, resize=resize, steps=2).latents
    np.testing.assert_allclose(keys, expected, atol=1e-5)
    a, b, c = expected
    edited = client.edit(files[0], plus=files[1], minus=[files[2], files[2]], resize=resize).latents
    np.testing.assert_allclose(edited, [a + b - c], atol=1e-5)


def test_what_is_too_large_for_a_call_says_so(client: Client, tmp_path: Path) -> None:
    files = photographs(tmp_path)[:2]
    for call, name in {
        lambda: client.interpolate(files): "key_frames",
        lambda: client.edit(files[1], plus=files, minus=files): "plus and minus",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}: got \d+ bytes, wanted at most \d+ in one call: a `resize`"):
            call()  # type: ignore[no-untyped-call]


def test_images_that_were_fitted_for_another_model_are_not_resized_twice(tmp_path: Path, free_port: int) -> None:
    import linear_model

    linear_model.write(tmp_path / "a")
    linear_model.write(tmp_path / "b", version=2, shape=(24, 20, 1))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8))
    with Client(f"localhost:{free_port}") as client:
        with running_service(settings_for(tmp_path / "a", port=free_port)):
            client.info()
        with running_service(settings_for(tmp_path / "b", port=free_port)):
            with pytest.raises(LatentryError, match="changed its model"):
                client.encode(photo, resize="crop")
            assert client.encode(photo, resize="crop").model.version == 2


def test_every_result_says_how_it_was_made(client: Client, images: Images) -> None:
    info, latents = client.info(), client.encode(images).mean
    results = [
        client.encode(images),
        client.decode(latents),
        client.sample(2),
        client.interpolate(latents),
        client.reconstruct(images),
        client.edit(latents),
        client.neighbours(latents[0], walk=3),
    ]
    for result in results:
        assert (result.model.name, result.model.version, result.model.digest) == ("linear", 1, info.model.digest)
        about = result.provenance
        assert (about.provider, about.precision) == (info.provider, "fp32")
        assert 0 < about.timings.inference_s <= about.timings.total_s < 60
    assert results[2].seed is not None
    assert results[6].seed is not None


def test_reconstructions_come_with_scores(client: Client, linear: LinearModel, images: Images) -> None:
    seen = client.reconstruct(images, dtype="float32")
    mean, logvar = linear.encode(images)
    np.testing.assert_allclose(seen.latents, mean, atol=1e-5)
    x, p = images / 255.0, linear.decode(mean).astype(np.float64)
    np.testing.assert_allclose(seen.images, p, atol=1e-5)
    np.testing.assert_allclose(seen.squared_error, ((x - p) ** 2).mean((1, 2, 3)), rtol=1e-4)
    kl = (np.exp(logvar) + mean**2 - 1 - logvar).sum(1) / 2
    np.testing.assert_allclose(seen.kl, kl, rtol=1e-4)
    log_likelihood = (x * np.log(p) + (1 - x) * np.log1p(-p)).sum((1, 2, 3))
    assert seen.elbo is not None
    np.testing.assert_allclose(seen.elbo, log_likelihood - kl, rtol=1e-4)
    scores = client.reconstruct(images, scores_only=True)
    assert scores.images.shape == (0, 12, 10, 1)
    np.testing.assert_allclose(scores.elbo, seen.elbo, rtol=1e-6)
    drawn = client.reconstruct(images, seed=4, first_index=2)
    np.testing.assert_allclose(drawn.latents, client.encode(images, seed=4, first_index=2).latents, atol=1e-5)


def test_edits_add_differences_of_examples(client: Client, images: Images) -> None:
    a, b, c = (client.encode(part).mean for part in (images[:1], images[1:3], images[3:]))
    expected = a + 0.5 * (c.mean(0) - b.mean(0))
    by_images = client.edit(images[:1], minus=images[1:3], plus=images[3:], amount=0.5)
    np.testing.assert_allclose(by_images.latents, expected, atol=1e-5)
    np.testing.assert_allclose(client.edit(a, minus=b, plus=list(c), amount=0.5).latents, expected, atol=1e-5)
    assert by_images.attributes == {}


def test_attributes_are_added_up_to_their_limits(serve: Any, tmp_path: Path) -> None:
    import linear_model

    model = linear_model.write(tmp_path)
    about = linear_model.manifest("linear", 1, model.shape, 5)
    figures = {"attribute_shaft_amount": 2.0, "attribute_shaft_amount_limit": 3.0}
    direction = (0.0, 1.0, 0.0, 0.0, 0.0)
    about = replace(about, attributes={"shaft": direction}, evaluation=figures)
    linear_model.save(model.folder, {f.name: onnx.load(f) for f in model.folder.glob("*.onnx")}, about)
    with Client(f"localhost:{serve(tmp_path, max_request_items=2).port}") as client:
        (attribute,) = client.info().attributes
        assert (attribute.name, attribute.amount, attribute.limit) == ("shaft", 2.0, 1.5)
        z = np.arange(25, dtype=np.float32).reshape(5, 5)
        for amount, applied in {1.0: 1.0, -0.5: -0.5, 4.0: 1.5}.items():
            edited = client.edit(z, attributes={"shaft": amount})
            assert edited.attributes == {"shaft": applied}
            np.testing.assert_allclose(edited.latents, z + 2 * applied * np.array(direction), atol=1e-5)
        with pytest.raises(LatentryError, match=r"attributes\[0\].name: got 'hat', wanted one of shaft"):
            client.edit(z, attributes={"hat": 1})


def test_neighbours_lie_on_a_grid_or_along_a_walk(client: Client, images: Images) -> None:
    base = client.encode(images[:1]).mean
    plane = np.eye(5, dtype=np.float32)[:2]
    around = client.neighbours(base, grid=(3, 5), spacing=0.25, directions=plane)
    steps = np.stack(np.meshgrid(np.arange(-1, 2), np.arange(-2, 3), indexing="ij"), axis=-1).reshape(15, 2)
    np.testing.assert_allclose(around.latents, base + 0.25 * steps @ plane, atol=1e-5)
    np.testing.assert_allclose(client.neighbours(images[:1], walk=1).latents, base, atol=1e-5)
    walk = client.neighbours(base[0], walk=9, step=0.125, seed=3)
    lengths = np.linalg.norm(np.diff(walk.latents, axis=0), axis=1)
    np.testing.assert_allclose(lengths, 0.125, rtol=1e-4)
    assert walk.seed == 3


def test_a_conditional_model_is_told_the_class_of_each_item(serve: Any, tmp_path: Path, images: Images) -> None:
    model = conditional_model.write(tmp_path, 4)
    with Client(f"localhost:{serve(tmp_path, max_request_items=4).port}") as client:
        each = np.array([0, 1, 2, 3, 1, 0])
        mean, _ = model.encode(images, each)
        np.testing.assert_allclose(client.encode(images, classes=[0, 1, 2, 3, 1, 0]).mean, mean, atol=1e-5)
        decoded = client.decode(mean, classes=list(each), dtype="float32").images
        np.testing.assert_allclose(decoded, model.decode(mean, each), atol=1e-5)
        threes = client.sample(6, seed=1, classes=3, dtype="float32")
        np.testing.assert_allclose(threes.images, model.decode(threes.latents, np.full(6, 3)), atol=1e-5)
        mixed = client.sample(6, seed=1, classes=list(each), dtype="float32")
        np.testing.assert_allclose(mixed.images, model.decode(threes.latents, each), atol=1e-5)
        parts = client.stream_sample(6, seed=1, classes=list(each), dtype="float32", chunk_items=4)
        streamed = np.concatenate([part.images for part in parts])
        np.testing.assert_allclose(streamed, mixed.images, atol=1e-6)
        walk = client.interpolate(images[:2], classes=2, steps=4, dtype="float32")
        np.testing.assert_allclose(walk.images, model.decode(walk.latents, np.full(4, 2)), atol=1e-5)
        np.testing.assert_allclose(client.reconstruct(images, classes=list(each)).latents, mean, atol=1e-5)
        np.testing.assert_allclose(client.edit(images, classes=list(each)).latents, mean, atol=1e-5)
        generated = client.sample(6, seed=1, classes=(k for k in each), dtype="float32")
        np.testing.assert_allclose(generated.images, mixed.images, atol=1e-6)
        with pytest.raises(LatentryError, match=r"classes\[5\]: got 7, wanted 0 to 3"):
            client.encode(images, classes=[0, 1, 2, 3, 0, 7])
        with pytest.raises(ValueError, match="classes: got 2, wanted one for all or 6"):
            client.encode(images, classes=[0, 1])
        with pytest.raises(ValueError, match=r"classes: got \[0, 'a'\], wanted all names or all numbers"):
            client.encode(images[:2], classes=[0, "a"])  # type: ignore[list-item]
        with pytest.raises(LatentryError, match="classes"):
            client.sample(1)


def test_classes_go_by_their_names(serve: Any, tmp_path: Path) -> None:
    model = conditional_model.write(tmp_path, 2)
    path = model.linear.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": ["boot", "bag"]}))
    with Client(f"localhost:{serve(tmp_path).port}") as client:
        by_name = client.sample(2, seed=1, classes=["bag", "boot"]).images
        assert by_name.tolist() == client.sample(2, seed=1, classes=[1, 0]).images.tolist()
        with pytest.raises(LatentryError, match="classes"):
            client.sample(1, classes="hat")


def test_reconstructions_and_edits_are_split_unnoticed(serve: Any, linear_repository: Path, images: Images) -> None:
    service = serve(linear_repository, max_request_items=4)
    with Client(f"localhost:{service.port}") as small:
        seen = small.reconstruct(images, seed=3)
        alone = [small.reconstruct(images[k : k + 1], seed=3, first_index=k) for k in range(6)]
        for name in ("latents", "squared_error", "kl", "elbo"):
            np.testing.assert_allclose(getattr(seen, name), [getattr(a, name)[0] for a in alone], rtol=1e-4, atol=1e-5)
        options: dict[str, Any] = {"minus": images[1:2], "plus": images[2:4]}
        each = [small.edit(images[k : k + 1], **options).latents[0] for k in range(6)]
        np.testing.assert_allclose(small.edit(images, **options).latents, each, atol=1e-5)


def test_truncation_and_prior_are_passed_on(client: Client) -> None:
    plain = client.sample(50, seed=1).latents
    assert np.abs(plain).max() > 1.5
    clamped = client.sample(50, seed=1, truncation=1.0, truncation_mode="clamp").latents
    np.testing.assert_allclose(clamped, plain.clip(-1, 1), atol=1e-6)
    resampled = client.sample(50, seed=1, truncation=1.0, prior="standard").latents
    assert np.abs(resampled).max() < 1
    assert (resampled != clamped).all()
    with pytest.raises(LatentryError, match="prior"):
        client.sample(1, prior="fitted")


def test_interpolation_takes_latents_or_images(client: Client, images: Images) -> None:
    keys = client.encode(images[:3]).mean
    walk = client.interpolate(keys, steps=5)
    assert walk.images.shape == (9, 12, 10, 1)
    np.testing.assert_allclose(client.interpolate(images[:3], steps=5).latents, walk.latents, atol=1e-5)
    assert client.interpolate(list(keys), steps=5, path="spherical").latents.shape == (9, 5)
    assert client.interpolate(keys, steps=5, loop=True).latents.shape == (12, 5)
    np.testing.assert_allclose(client.interpolate(keys, steps=5, ends=False).latents, walk.latents[1:-1], atol=1e-5)
    eased = client.interpolate(keys[:2], steps=5, easing="in").latents
    t = np.linspace(0, 1, 5, dtype=np.float32)[:, None] ** 2
    np.testing.assert_allclose(eased, keys[0] + t * (keys[1] - keys[0]), atol=1e-5)


def test_the_async_client_makes_the_same_calls(linear_service: Service, client: Client, images: Images) -> None:
    async def calls() -> None:
        async with AsyncClient(f"localhost:{linear_service.port}") as other:
            assert (await other.info()) == client.info()
            assert [m.model.name for m in await other.models()] == ["linear"]
            many = await asyncio.gather(*(other.sample(1, seed=5, first_index=k) for k in range(20)))
            assert np.concatenate([p.images for p in many]).tolist() == client.sample(20, seed=5).images.tolist()
            assert (await other.encode(images)).mean.tolist() == client.encode(images).mean.tolist()
            assert (await other.decode(many[0].latents)).images.tolist() == many[0].images.tolist()
            assert (await other.interpolate(images[:2], steps=3)).images.shape == (3, 12, 10, 1)
            scores = (await other.reconstruct(images)).squared_error
            assert scores.tolist() == client.reconstruct(images).squared_error.tolist()
            edited = await other.edit(images, plus=images[:1], minus=images[1:2])
            assert edited.latents.tolist() == client.edit(images, plus=images[:1], minus=images[1:2]).latents.tolist()
            around = await other.neighbours(images[:1], grid=(2, 3), seed=1)
            assert around.latents.tolist() == client.neighbours(images[:1], grid=(2, 3), seed=1).latents.tolist()
            with pytest.raises(LatentryError, match="INVALID_ARGUMENT: count: got -1"):
                await other.sample(-1)

    asyncio.run(calls())


def test_a_client_that_is_closed_between_two_requests_of_a_call_ends_it(
    linear_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(f"localhost:{linear_service.port}")
    most = client.info().limits.max_items
    same = client._same_model

    def closing(digest: str, reply: Any) -> str:
        client.close()
        return same(digest, reply)

    with monkeypatch.context() as patch:
        patch.setattr(client, "_same_model", closing)
        with pytest.raises(LatentryError, match="CANCELLED: the client was closed"):
            client.sample(most + 1)
    assert len(client.sample(most + 1).images) == most + 1, "the next one connects again"
    client.close()


def test_closing_an_async_client_cancels_no_task(linear_service: Service) -> None:
    async def reading(client: AsyncClient) -> None:
        async for _ in client.stream_sample(500_000, seed=1):
            pass

    async def calls() -> None:
        client = AsyncClient(f"localhost:{linear_service.port}")
        await client.info()
        waiting = [asyncio.create_task(reading(client)), asyncio.create_task(client.sample(500_000))]
        await asyncio.sleep(0.2)
        await client.close()
        for task in waiting:
            with pytest.raises(LatentryError, match="CANCELLED"):
                await task
        cancelled = asyncio.create_task(client.sample(500_000))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await client.close()

    asyncio.run(calls())


def test_an_async_client_connects_again_under_another_event_loop(linear_service: Service) -> None:
    client = AsyncClient(f"localhost:{linear_service.port}")
    for _ in range(2):
        assert asyncio.run(client.sample(2)).images.shape == (2, 12, 10, 1)
    asyncio.run(client.close())


def test_errors_carry_the_status_and_what_was_wrong(client: Client, linear_service: Service) -> None:
    with pytest.raises(LatentryError, match=r"latents\.shape: got \[2, 6\], wanted \[N, 5\]") as caught:
        client.decode(np.zeros((2, 6)))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(LatentryError, match="count: got 0"):
        client.sample(0)
    with pytest.raises(LatentryError, match="wanted one of linear version 1"):
        Client(f"localhost:{linear_service.port}", model="other").info()
    with pytest.raises(ValueError, match=r"latents: got shape \[3\], wanted \[N, Z\]"):
        client.decode(np.zeros(3))
    with pytest.raises(ValueError, match="path: got 'round'"):
        client.interpolate(np.zeros((2, 5), np.float32), path="round")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wanted"):
        client.encode(np.zeros((3, 3)))
    for call, message in {
        lambda: client.sample(1.5): "count: got 1.5, wanted a whole number below 2^31",
        lambda: client.sample(2**31): "count: got 2147483648, wanted a whole number below 2^31",
        lambda: client.sample(1, seed=float("nan")): "seed: got nan, wanted a whole number, 0 to 2^64 - 1",
        lambda: client.sample(1, seed=2**64): "seed: got 18446744073709551616, wanted a whole number, 0 to 2^64 - 1",
        lambda: client.sample(1, temperature="hot"): "temperature: got 'hot', wanted a number",
        lambda: client.sample(1, truncation_mode="cut"): "truncation_mode: got 'cut', wanted one of 'resample'",
        lambda: client.sample(1, prior="mine"): "prior: got 'mine', wanted one of None, 'standard', 'fitted'",
        lambda: client.interpolate(np.eye(5), easing="out-in"): "easing: got 'out-in', wanted one of 'none', 'in'",
        lambda: client.edit(np.eye(5), plus=np.eye(5)): "plus and minus: got plus alone, wanted both or neither",
        lambda: client.edit(np.eye(5), attributes={"a": "much"}): "attributes['a']: got 'much', wanted a number",
        lambda: client.neighbours(np.eye(5)[0]): "grid and walk: got neither, wanted one of them",
        lambda: client.neighbours(np.eye(5)[0], grid=(1, 1), walk=1): "grid and walk: got both, wanted one of them",
        lambda: client.neighbours(np.eye(5)[0], grid=(1, 2, 3)): "grid: got (1, 2, 3), wanted (rows, columns)",
        lambda: client.neighbours(np.eye(5)[0], grid=3): "grid: got 3, wanted (rows, columns)",
        lambda: client.neighbours(np.eye(5)[0], walk=3, directions=np.eye(5)[:2]): "directions: got it with a walk",
        lambda: client.neighbours(None, walk=3): "base: got a NoneType, wanted images as an array",
        lambda: client.encode([1, 2]): "images[0]: got a int, wanted a Pillow image, a path or bytes",
        lambda: client.encode(np.zeros((1, 12, 10), np.uint16)): "images: got an array of uint16, wanted uint8, or",
        lambda: client.interpolate(np.eye(5) * 1j): "key_frames: got numbers of type complex128, wanted real ones",
        lambda: client.interpolate([[1, 2], [3]]): "key_frames: got rows of several lengths, wanted [N, Z]",
        lambda: client.sample(2, classes={0, 1}): "classes: got a set, wanted a name or a number, or a list",
        lambda: client.encode(np.zeros((1, 12, 10), np.uint8), temperature=0.5): "temperature: got 0.5 without a seed",
        lambda: client.reconstruct(np.zeros((1, 12, 10), np.uint8), first_index=3): "first_index: got 3 without a seed",
        lambda: client.sample(2, classes=1.0): "classes: got 1.0, wanted a name or a number, or a list",
        lambda: Client(timeout_s=0): "timeout_s: got 0, wanted seconds, more than 0",
        lambda: Client(timeout_s="x"): "timeout_s: got 'x', wanted a number",  # type: ignore[arg-type]
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            call()  # type: ignore[no-untyped-call]
    with pytest.raises(FileNotFoundError):
        client.encode(Path("nowhere.png"))


def test_a_server_that_is_not_there_yet_is_waited_for(linear_repository: Path, free_port: int) -> None:
    found: list[Any] = []
    with Client(f"localhost:{free_port}") as client:
        thread = threading.Thread(target=lambda: found.append(client.sample(2, seed=1)))
        thread.start()
        time.sleep(0.3)  # the first attempt has failed by now
        with running_service(settings_for(linear_repository, port=free_port)):
            thread.join()
    assert found[0].images.shape == (2, 12, 10, 1)


def test_a_server_that_never_comes_is_unavailable(free_port: int) -> None:
    with Client(f"localhost:{free_port}", timeout_s=1.0) as client, pytest.raises(LatentryError) as caught:
        client.sample(1)
    assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_a_restart_between_calls_goes_unnoticed(linear_repository: Path, free_port: int) -> None:
    with Client(f"localhost:{free_port}") as client:
        with running_service(settings_for(linear_repository, port=free_port)):
            before = client.sample(2, seed=1)
        with running_service(settings_for(linear_repository, port=free_port)):
            after = client.sample(2, seed=1)
    assert before.images.tolist() == after.images.tolist()


async def test_what_goes_to_this_machine_goes_to_no_proxy(
    linear_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with no_use_of_a_proxy(monkeypatch):
        target = f"localhost:{linear_service.port}"
        with Client(target, token="t" * 43, timeout_s=5) as client:
            assert client.sample(1).images.shape == (1, 12, 10, 1)
            assert client.models()
        async with AsyncClient(target, token="t" * 43, timeout_s=5) as other:
            assert (await other.sample(1)).images.shape == (1, 12, 10, 1)


def test_many_threads_share_one_client(client: Client) -> None:
    results: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda k=k: results.update({k: client.sample(3, seed=k)})) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, pictures in results.items():
        assert pictures.seed == k
        assert pictures.images.tolist() == client.sample(3, seed=k).images.tolist()
    assert len(results) == 16


def test_both_clients_have_the_same_calls_with_the_same_arguments() -> None:
    def calls(client: type) -> dict[str, Any]:
        public = inspect.getmembers(client, inspect.isfunction)
        return {name: inspect.signature(call).parameters for name, call in public if not name.startswith("_")}

    ours = calls(Client)
    assert calls(AsyncClient) == ours
    assert {"sample", "stream_sample", "stream_interpolate", "reconstruct", "edit", "neighbours"} <= set(ours)
