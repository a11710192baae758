"""The calls over the wire: what they answer, and what each bad request is told."""

from __future__ import annotations

import io
import struct
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from linear_model import LinearModel
from PIL import Image

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving.server import Service

Array = np.ndarray[Any, np.dtype[Any]]


def tensor(array: Array) -> pb.Tensor:
    dtype = pb.DATA_TYPE_UINT8 if array.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    return pb.Tensor(dtype=dtype, shape=array.shape, data=array.tobytes())


def array(message: pb.Tensor) -> Array:
    dtype = np.uint8 if message.dtype == pb.DATA_TYPE_UINT8 else np.float32
    return np.frombuffer(message.data, dtype).reshape(tuple(message.shape))


def latents(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape or (3, 5)).astype(np.float32)


def photos(*shape: int) -> Array:
    return np.random.default_rng(1).integers(0, 256, shape or (3, 12, 10, 1), np.uint8)


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(width: int = 10, height: int = 12) -> Image.Image:
    return Image.fromarray(photos(1, height, width, 1)[0, :, :, 0])


# ---- answers ----


def test_encode_gives_the_posterior(stub: Any, linear: LinearModel) -> None:
    reply = stub.Encode(pb.EncodeRequest(images=pb.Images(tensor=tensor(photos()))))
    mean, logvar = linear.encode(photos())
    np.testing.assert_allclose(array(reply.mean), mean, atol=1e-5)
    np.testing.assert_allclose(array(reply.logvar), logvar, atol=1e-5)
    assert not reply.HasField("latents")
    assert not reply.HasField("seed")
    assert (reply.model.name, reply.model.version, len(reply.model.digest)) == ("linear", 1, 64)


def test_encode_draws_from_the_posterior_when_a_seed_is_given(stub: Any) -> None:
    def draw(images: Array, first: int, temperature: float | None = None) -> Any:
        request = pb.EncodeRequest(images=pb.Images(tensor=tensor(images)), seed=9, first_index=first)
        if temperature is not None:
            request.temperature = temperature
        return stub.Encode(request)

    whole = draw(photos(), 0)
    assert whole.seed == 9
    noise = array(stub.Sample(pb.SampleRequest(count=3, seed=9)).latents)
    expected = array(whole.mean) + np.exp(array(whole.logvar) / 2) * noise
    np.testing.assert_allclose(array(whole.latents), expected, atol=1e-6)
    np.testing.assert_allclose(array(draw(photos()[1:], 1).latents), array(whole.latents)[1:], atol=1e-6)
    assert array(draw(photos(), 0, 0.0).latents).tolist() == array(whole.mean).tolist()


def test_floats_in_0_to_1_are_the_same_images_as_bytes(stub: Any) -> None:
    floats = photos().astype(np.float32) / 255
    a = stub.Encode(pb.EncodeRequest(images=pb.Images(tensor=tensor(photos()))))
    b = stub.Encode(pb.EncodeRequest(images=pb.Images(tensor=tensor(floats))))
    assert a.mean.data == b.mean.data


def test_decode_gives_images_in_every_form(stub: Any, linear: LinearModel) -> None:
    def decode(form: int, quality: int = 0) -> pb.Images:
        output = pb.ImageOutput(format=form, quality=quality)
        return stub.Decode(pb.DecodeRequest(latents=tensor(latents()), output=output)).images

    means = linear.decode(latents())
    pixels = array(decode(pb.IMAGE_FORMAT_UNSPECIFIED).tensor)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - 255 * means).max() <= 0.51
    assert array(decode(pb.IMAGE_FORMAT_RAW_UINT8).tensor).tolist() == pixels.tolist()
    np.testing.assert_allclose(array(decode(pb.IMAGE_FORMAT_RAW_FLOAT32).tensor), means, atol=1e-6)
    for form, kind, exact in [
        (pb.IMAGE_FORMAT_PNG, "PNG", True),
        (pb.IMAGE_FORMAT_WEBP, "WEBP", True),
        (pb.IMAGE_FORMAT_JPEG, "JPEG", False),
    ]:
        files = decode(form, 100).encoded.images
        opened = [Image.open(io.BytesIO(data)) for data in files]
        assert [image.format for image in opened] == [kind] * 3
        back = np.stack([np.asarray(image.convert("L")) for image in opened])[..., None].astype(int)
        assert np.abs(back - pixels).max() <= (0 if exact else 8)
    assert len(decode(pb.IMAGE_FORMAT_JPEG, 10).encoded.images[0]) < len(files[0])


def test_any_part_of_a_seed_is_the_same_images(stub: Any) -> None:
    whole = stub.Sample(pb.SampleRequest(count=10, seed=5))
    part = stub.Sample(pb.SampleRequest(count=5, seed=5, first_index=5))
    assert part.latents.data == whole.latents.data[len(part.latents.data) :]
    assert part.images.tensor.data == whole.images.tensor.data[len(part.images.tensor.data) :]


def test_sample_without_a_seed_says_which_one_it_took(stub: Any) -> None:
    a, b = (stub.Sample(pb.SampleRequest(count=2)) for _ in range(2))
    assert a.seed != b.seed
    assert stub.Sample(pb.SampleRequest(count=2, seed=a.seed)).latents.data == a.latents.data


def test_temperature_scales_the_latents(stub: Any) -> None:
    plain = array(stub.Sample(pb.SampleRequest(count=4, seed=1)).latents)
    half = array(stub.Sample(pb.SampleRequest(count=4, seed=1, temperature=0.5)).latents)
    none = array(stub.Sample(pb.SampleRequest(count=4, seed=1, temperature=0.0)).latents)
    np.testing.assert_allclose(half, plain / 2)
    assert (none == 0).all()


def test_interpolate_walks_through_latents_and_images_alike(stub: Any) -> None:
    encoded = stub.Encode(pb.EncodeRequest(images=pb.Images(tensor=tensor(photos()))))
    by_latents = stub.Interpolate(pb.InterpolateRequest(latents=encoded.mean, steps=4))
    by_images = stub.Interpolate(pb.InterpolateRequest(images=pb.Images(tensor=tensor(photos())), steps=4))
    path = array(by_latents.latents)
    assert path.shape == (7, 5)
    np.testing.assert_allclose(path[[0, 3, 6]], array(encoded.mean), atol=1e-6)
    np.testing.assert_allclose(array(by_images.latents), path, atol=1e-5)
    decoded = stub.Decode(pb.DecodeRequest(latents=by_latents.latents))
    assert decoded.images.tensor.data == by_latents.images.tensor.data
    round_way = stub.Interpolate(
        pb.InterpolateRequest(latents=encoded.mean, steps=4, path=pb.INTERPOLATION_PATH_SPHERICAL)
    )
    assert not np.allclose(array(round_way.latents), path, atol=1e-3)


def test_files_of_every_kind_are_read(stub: Any) -> None:
    image = grey()
    colour = Image.merge("RGB", [image] * 3)
    clear = image.copy()
    clear.putalpha(255)
    turned = Image.Exif()
    turned[0x0112] = 6  # "turn right to see it upright"
    deep = Image.fromarray(np.asarray(image).astype(np.uint16) << 8)
    files = [
        png(image),
        png(colour),
        png(clear),
        png(deep),
        png(image, "WEBP", lossless=True),
        png(image.transpose(Image.Transpose.ROTATE_90), exif=turned),
    ]
    reply = stub.Encode(pb.EncodeRequest(images=pb.Images(encoded=pb.EncodedImages(images=files))))
    raw = stub.Encode(pb.EncodeRequest(images=pb.Images(tensor=tensor(np.asarray(image)[None, :, :, None]))))
    np.testing.assert_allclose(array(reply.mean), np.repeat(array(raw.mean), len(files), 0), atol=0.02)


def test_images_are_resized_only_when_the_request_says_so(stub: Any) -> None:
    twice = Image.fromarray(np.full((24, 20), 77, np.uint8))
    plain = np.full((1, 12, 10, 1), 77, np.uint8)
    expected = array(stub.Encode(pb.EncodeRequest(images=pb.Images(tensor=tensor(plain)))).mean)
    big = np.full((1, 30, 20, 1), 77, np.uint8)
    for images in (pb.Images(encoded=pb.EncodedImages(images=[png(twice)])), pb.Images(tensor=tensor(big))):
        for resize in (pb.RESIZE_CROP, pb.RESIZE_STRETCH):
            reply = stub.Encode(pb.EncodeRequest(images=images, resize=resize))
            np.testing.assert_allclose(array(reply.mean), expected, atol=1e-5)
        with pytest.raises(grpc.RpcError):
            stub.Encode(pb.EncodeRequest(images=images))


def test_the_models_describe_themselves(stub: Any) -> None:
    (listed,) = stub.ListModels(pb.ListModelsRequest()).models
    info = stub.GetModel(pb.GetModelRequest(model=pb.ModelSelector(name="linear", version=1))).model
    assert info == listed
    assert (info.image_shape.height, info.image_shape.width, info.image_shape.channels) == (12, 10, 1)
    assert (info.latent_dim, info.likelihood.name, info.provider) == (5, "bernoulli", "CPUExecutionProvider")
    assert info.limits.max_items == 1024
    assert dict(info.evaluation) == {"elbo": -1.5}


# ---- refusals ----


def refused(call: Any, request: Any) -> tuple[grpc.StatusCode, str, list[Any]]:
    """The status, the message and the google.rpc details of a refusal."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=20)
    trailers = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    kinds = (error_details_pb2.BadRequest, error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo)
    details = []
    for packed in status.details:
        (kind,) = [k for k in kinds if packed.Is(k.DESCRIPTOR)]
        details.append(kind())
        packed.Unpack(details[-1])
    return caught.value.code(), caught.value.details(), details


def bad_latents(array: Array, **fields: Any) -> pb.DecodeRequest:
    message = tensor(array)
    for name, value in fields.items():
        if name == "shape":
            del message.shape[:]
            message.shape.extend(value)
        else:
            setattr(message, name, value)
    return pb.DecodeRequest(latents=message)


def images_request(**kind: Any) -> pb.EncodeRequest:
    return pb.EncodeRequest(images=pb.Images(**kind))


def encoded(*files: bytes) -> pb.EncodeRequest:
    return images_request(encoded=pb.EncodedImages(images=files))


NAN, INF = np.full((2, 5), np.nan, np.float32), np.full((2, 5), np.inf, np.float32)
CORRUPT = png(grey())[:100]
FLIPPED = bytearray(png(grey()))
FLIPPED[50] ^= 255
BOMB = bytearray(png(Image.new("L", (1, 1))))
BOMB[16:24] = struct.pack(">II", 60_000, 60_000)

REFUSALS = [
    # rpc, request, field, and what the message must say
    ("Decode", bad_latents(latents(2, 6)), "latents.shape", "got [2, 6], wanted [N, 5]"),
    ("Decode", bad_latents(latents(5)), "latents.shape", "got [5], wanted [N, 5]"),
    ("Decode", bad_latents(latents(), shape=[4, 5]), "latents.data", "got 60 bytes, wanted 80 bytes"),
    ("Decode", bad_latents(latents(), shape=[2**62, 2**62]), "latents.data", "got 60 bytes, wanted"),
    ("Decode", bad_latents(latents(), shape=[-3, -5]), "latents.shape", "got [-3, -5]"),
    ("Decode", bad_latents(latents(), shape=[1] * 5000), "latents.shape", "got [1, 1"),
    ("Decode", bad_latents(latents(), data=b"abc"), "latents.data", "got 3 bytes, wanted 60 bytes"),
    ("Decode", bad_latents(latents(), dtype=0), "latents.dtype", "got 0"),
    ("Decode", bad_latents(latents(), dtype=77), "latents.dtype", "got 77"),
    ("Decode", bad_latents(np.zeros((3, 5), np.uint8)), "latents.dtype", "wanted DATA_TYPE_FLOAT32"),
    ("Decode", bad_latents(latents(0, 5)), "latents.shape", "got [0, 5]"),
    ("Decode", bad_latents(latents(1025, 5)), "latents.shape", "N from 1 to 1024"),
    ("Decode", bad_latents(NAN), "latents.data", "got nan at [0, 0], wanted finite"),
    ("Decode", bad_latents(INF), "latents.data", "got inf at [0, 0], wanted finite"),
    ("Decode", bad_latents(np.full((2, 5), -1e38, np.float32)), "latents.data", "wanted finite numbers from -1e+06"),
    ("Decode", pb.DecodeRequest(), "latents.dtype", "got 0"),
    (
        "Decode",
        pb.DecodeRequest(latents=tensor(latents()), output=pb.ImageOutput(format=99)),
        "output.format",
        "got 99",
    ),
    (
        "Decode",
        pb.DecodeRequest(latents=tensor(latents()), output=pb.ImageOutput(quality=101)),
        "output.quality",
        "got 101",
    ),
    ("Encode", pb.EncodeRequest(), "images", "got none"),
    ("Encode", images_request(tensor=tensor(photos(2, 12, 11, 1))), "images.tensor.shape", "got [2, 12, 11, 1]"),
    ("Encode", images_request(tensor=tensor(photos(2, 12, 10, 3))), "images.tensor.shape", "got [2, 12, 10, 3]"),
    ("Encode", images_request(tensor=tensor(photos(12, 10))), "images.tensor.shape", "got [12, 10]"),
    ("Encode", images_request(tensor=tensor(photos(1025, 12, 10, 1))), "images.tensor.shape", "N from 1 to 1024"),
    ("Encode", images_request(tensor=tensor(np.full((1, 12, 10, 1), np.nan, np.float32))), "images.tensor.data", "NaN"),
    (
        "Encode",
        images_request(tensor=tensor(np.full((1, 12, 10, 1), np.inf, np.float32))),
        "images.tensor.data",
        "got inf to inf",
    ),
    (
        "Encode",
        images_request(tensor=tensor(np.full((1, 12, 10, 1), 255, np.float32))),
        "images.tensor.data",
        "got 255 to 255, wanted FLOAT32 pixels from 0 to 1",
    ),
    ("Encode", encoded(), "images.encoded.images", "got 0 images"),
    ("Encode", encoded(*[png(grey())] * 1025), "images.encoded.images", "got 1025 images"),
    ("Encode", encoded(png(grey()), CORRUPT), "images.encoded.images[1]", "cannot be read"),
    ("Encode", encoded(bytes(FLIPPED)), "images.encoded.images[0]", "cannot be read"),
    ("Encode", encoded(b""), "images.encoded.images[0]", "0 bytes that cannot be read"),
    ("Encode", encoded(png(grey(), "BMP")), "images.encoded.images[0]", "wanted a whole PNG, JPEG or WebP file"),
    ("Encode", encoded(bytes(BOMB)), "images.encoded.images[0]", ""),
    (
        "Encode",
        encoded(png(grey(20, 20))),
        "images.encoded.images[0]",
        "got 20x20, wanted 12x10 (height x width), or a `resize`",
    ),
    ("Encode", pb.EncodeRequest(images=pb.Images(tensor=tensor(photos())), resize=9), "resize", "got 9"),
    (
        "Encode",
        pb.EncodeRequest(images=pb.Images(tensor=tensor(photos())), seed=1, temperature=-1),
        "temperature",
        "got -1",
    ),
    (
        "Encode",
        pb.EncodeRequest(images=pb.Images(tensor=tensor(photos())), seed=1, first_index=-1),
        "first_index",
        "got -1",
    ),
    ("Sample", pb.SampleRequest(), "count", "got 0, wanted 1 to 1024"),
    ("Sample", pb.SampleRequest(count=-5), "count", "got -5"),
    ("Sample", pb.SampleRequest(count=1025), "count", "got 1025"),
    ("Sample", pb.SampleRequest(count=2**31 - 1), "count", "got 2147483647"),
    ("Sample", pb.SampleRequest(count=1, first_index=-1), "first_index", "got -1"),
    ("Sample", pb.SampleRequest(count=2, first_index=2**63 - 1), "first_index", "got 9223372036854775807"),
    ("Sample", pb.SampleRequest(count=1, temperature=float("nan")), "temperature", "got nan"),
    ("Sample", pb.SampleRequest(count=1, temperature=11), "temperature", "got 11.0, wanted 0 to 10"),
    ("Interpolate", pb.InterpolateRequest(steps=3), "key_frames", "got none"),
    ("Interpolate", pb.InterpolateRequest(latents=tensor(latents(1, 5)), steps=3), "latents", "got one key frame"),
    (
        "Interpolate",
        pb.InterpolateRequest(images=pb.Images(tensor=tensor(photos(1, 12, 10, 1))), steps=3),
        "images",
        "got one key frame, wanted two or more",
    ),
    ("Interpolate", pb.InterpolateRequest(latents=tensor(latents(2, 5))), "steps", "got 0, wanted 2 to 1024"),
    ("Interpolate", pb.InterpolateRequest(latents=tensor(latents(2, 5)), steps=1), "steps", "got 1"),
    ("Interpolate", pb.InterpolateRequest(latents=tensor(latents(3, 5)), steps=513), "steps", "wanted 2 to 512"),
    ("Interpolate", pb.InterpolateRequest(latents=tensor(latents(2, 5)), steps=3, path=7), "path", "got 7"),
    ("Interpolate", pb.InterpolateRequest(latents=tensor(NAN), steps=3), "latents.data", "got nan"),
    (
        "Interpolate",
        pb.InterpolateRequest(
            latents=tensor(np.stack([np.ones(5), -np.ones(5)]).astype(np.float32)),
            steps=3,
            path=pb.INTERPOLATION_PATH_SPHERICAL,
        ),
        "path",
        "key frames 0 and 1 in opposite directions",
    ),
]


@pytest.mark.parametrize(("rpc", "request_", "field", "message"), REFUSALS)
def test_bad_requests_are_told_field_got_and_wanted(
    stub: Any, rpc: str, request_: Any, field: str, message: str
) -> None:
    code, said, (detail,) = refused(getattr(stub, rpc), request_)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = detail.field_violations
    assert violation.field == field
    assert said == f"{field}: {violation.description}"
    assert "got " in violation.description
    assert "wanted " in violation.description
    assert message in said
    assert stub.Sample(pb.SampleRequest(count=1)).seed is not None, "the server lives on"


@pytest.mark.parametrize(
    "selector",
    [
        pb.ModelSelector(name="nothing"),
        pb.ModelSelector(name="linear", version=2),
        pb.ModelSelector(name="linear", version=0),
        pb.ModelSelector(version=-1),
        pb.ModelSelector(label="stable"),
        pb.ModelSelector(name="../../etc/passwd"),
        pb.ModelSelector(name="x" * 100_000),
    ],
)
@pytest.mark.parametrize("rpc", ["Encode", "Decode", "Sample", "Interpolate", "GetModel"])
def test_an_unknown_model_is_not_found(stub: Any, rpc: str, selector: pb.ModelSelector) -> None:
    request = getattr(pb, f"{rpc}Request")(model=selector)
    code, said, (detail,) = refused(getattr(stub, rpc), request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert (detail.reason, detail.domain) == ("MODEL_NOT_FOUND", "latentry")
    assert "wanted one of linear version 1" in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("mebibytes", "message"), [(17, "request: got 17825"), (80, "larger than max")], ids=["by us", "by gRPC itself"]
)
def test_an_oversized_message_is_refused_and_the_server_lives_on(
    stub: Any, linear_service: Service, mebibytes: int, message: str
) -> None:
    data = bytes(mebibytes << 20)
    huge = pb.DecodeRequest(latents=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[1, 5], data=data))
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"localhost:{linear_service.port}", options) as channel:
        code, said, _ = refused(vae_pb2_grpc.VaeServiceStub(channel).Decode, huge)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert message in said
    assert len(stub.Sample(pb.SampleRequest(count=1)).images.tensor.data) == 120


def test_files_of_a_few_bytes_cannot_claim_many_pixels(stub: Any) -> None:
    bomb = png(Image.new("RGBA", (5792, 5792)), "WEBP", lossless=True, method=0)
    assert len(bomb) < 100
    images = pb.Images(encoded=pb.EncodedImages(images=[bomb] * 1024))
    code, said, _ = refused(stub.Encode, pb.EncodeRequest(images=images, resize=pb.RESIZE_CROP))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "pixels in all, wanted at most 67108864 a request" in said


def test_a_flipped_bit_in_a_png_is_found(stub: Any) -> None:
    whole = png(grey())
    start = whole.index(b"IDAT") + 6
    for at in range(start, start + 60, 7):
        broken = bytearray(whole)
        broken[at] ^= 4
        code, said, _ = refused(stub.Encode, encoded(bytes(broken)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "cannot be read" in said


def test_bytes_that_are_no_message_are_refused(stub: Any, linear_service: Service) -> None:
    with grpc.insecure_channel(f"localhost:{linear_service.port}") as channel:
        call = channel.unary_unary("/latentry.v1.VaeService/Decode")
        code, said, _ = refused(call, b"\xff" * 100)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said == "request: got 100 bytes that cannot be parsed, wanted a message of this call"
    assert len(stub.Sample(pb.SampleRequest(count=1)).images.tensor.data) == 120


def test_a_full_queue_says_when_to_come_back(serve: Any, linear_repository: Any) -> None:
    service = serve(linear_repository, max_request_items=8, max_queue_items=8, max_batch_size=1)
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        decode = vae_pb2_grpc.VaeServiceStub(channel).Decode
        request = pb.DecodeRequest(latents=tensor(latents(8, 5)))
        calls = [decode.future(request, timeout=20) for _ in range(64)]
        codes = [call.code() for call in calls]
        full = next(call for call in calls if call.code() is not grpc.StatusCode.OK)
        status = status_pb2.Status.FromString(dict(full.trailing_metadata())["grpc-status-details-bin"])
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() >= 0
