"""Image files as they come: each odd one is read as docs/images.md says, over the wire on the shipped model."""

from __future__ import annotations

import io
import re
import runpy
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import ROOT, running_service, settings_for
from PIL import Image

from latentry import animation
from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving.api import codec, image_files
from serving.errors import InvalidArgument

Uint8s = np.ndarray[Any, np.dtype[np.uint8]]
DRAWS = np.random.default_rng(0)
COLOURS = DRAWS.integers(0, 256, (12, 10, 4), np.uint8)
CROP, STRETCH = pb.RESIZE_CROP, pb.RESIZE_STRETCH


@pytest.fixture(scope="module")
def fashion() -> Iterator[Any]:
    """A stub to a service of the shipped models."""
    with (
        running_service(settings_for(ROOT / "models", default_model="fashion")) as service,
        grpc.insecure_channel(f"localhost:{service.port}") as channel,
    ):
        yield vae_pb2_grpc.VaeServiceStub(channel)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, kind: int = 0, more: bytes = b"") -> bytes:
    """A PNG as its specification has it; `rows` without the filters' bytes."""
    size = len(rows) // height
    filtered = b"".join(b"\0" + rows[at : at + size] for at in range(0, len(rows), size)) if size else b""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    packed = chunk(b"IDAT", zlib.compress(filtered))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + packed + chunk(b"IEND", b"")


def encoded(*files: bytes) -> pb.Images:
    return pb.Images(encoded=pb.EncodedImages(images=files))


def read(data: bytes, shape: tuple[int, int, int] = (12, 10, 3), resize: int = 0) -> Uint8s:
    """The pixels that a model of this shape is given."""
    return codec.read_images(encoded(data), shape, 1, resize).reshape(shape)


def refusal(*files: bytes, shape: tuple[int, int, int] = (28, 28, 1), resize: int = 0) -> str:
    with pytest.raises(InvalidArgument) as caught:
        codec.read_images(encoded(*files), shape, 8, resize)
    return str(caught.value)


def refused(call: Any, request: Any) -> str:
    """What a call over the wire is told."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(caught.value.details())


def far(got: Uint8s, wanted: Any) -> int:
    """The largest difference, in levels."""
    return int(np.abs(got.astype(int) - np.asarray(wanted, float).reshape(got.shape)).max())


def with_segments(jpeg: bytes, marker: int, *segments: bytes) -> bytes:
    """A JPEG with these segments in place of its JFIF header."""
    packed = [struct.pack(">BBH", 0xFF, marker, len(each) + 2) + each for each in segments]
    return jpeg[:2] + b"".join(packed) + jpeg[20:]


# ---- odd images that are read ----


# What rows and columns of the file stand for, as the EXIF standard has it: pixel [i, j] of an upright [H, W] image.
STORED: dict[int, Any] = {
    1: lambda i, j, h, w: (i, j),  # row 0 is the top, column 0 the left-hand side
    2: lambda i, j, h, w: (i, w - 1 - j),  # top, right
    3: lambda i, j, h, w: (h - 1 - i, w - 1 - j),  # bottom, right
    4: lambda i, j, h, w: (h - 1 - i, j),  # bottom, left
    5: lambda i, j, h, w: (j, i),  # left, top
    6: lambda i, j, h, w: (j, w - 1 - i),  # right, top
    7: lambda i, j, h, w: (h - 1 - j, w - 1 - i),  # right, bottom
    8: lambda i, j, h, w: (h - 1 - j, i),  # left, bottom
}


def lying(upright: Uint8s, orientation: int) -> Uint8s:
    h, w = upright.shape[:2]
    rows, columns = (h, w) if orientation < 5 else (w, h)
    place = STORED[orientation]
    return np.array([[upright[place(i, j, h, w)] for j in range(columns)] for i in range(rows)], np.uint8)


@pytest.mark.parametrize("orientation", STORED)
def test_an_image_is_set_upright_as_its_exif_says(orientation: int) -> None:
    upright = COLOURS[..., :3]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(lying(upright, orientation))
    assert (read(saved(image, "PNG", exif=exif)) == upright).all()
    assert (read(saved(image, "WEBP", lossless=True, exif=exif)) == upright).all()
    smooth = np.linspace(0, 250, 120).reshape(12, 10).astype(np.uint8)
    photo = saved(Image.fromarray(lying(smooth, orientation)), "JPEG", quality=100, exif=exif)
    assert far(read(photo, (12, 10, 1)), smooth) <= 3


def over_white(colour: Any, alpha: Any) -> Any:
    share = np.asarray(alpha, float)[..., None] / 255
    return np.asarray(colour, float) * share + 255 * (1 - share)


def test_what_is_transparent_lies_on_white() -> None:
    whole = Image.fromarray(COLOURS)
    wanted = over_white(COLOURS[..., :3], COLOURS[..., 3])
    assert far(read(saved(whole)), wanted) <= 1
    assert far(read(saved(whole, "WEBP", lossless=True, exact=True)), wanted) <= 1
    grey = Image.merge("LA", [Image.fromarray(COLOURS[..., 0]), Image.fromarray(COLOURS[..., 3])])
    assert far(read(saved(grey), (12, 10, 1)), over_white(COLOURS[..., :1], COLOURS[..., 3])) <= 1


def test_a_palette_is_read_with_its_transparency() -> None:
    palette, alphas = COLOURS[0, :4, :3], np.array([0, 100, 255], np.uint8)  # the fourth is opaque
    indices = DRAWS.integers(0, 4, (12, 10), np.uint8)
    table = chunk(b"PLTE", palette.tobytes())
    opaque = png(10, 12, indices.tobytes(), kind=3, more=table)
    assert (read(opaque) == palette[indices]).all()
    clear = png(10, 12, indices.tobytes(), kind=3, more=table + chunk(b"tRNS", alphas.tobytes()))
    wanted = over_white(palette[indices], np.append(alphas, 255)[indices])
    assert far(read(clear), wanted) <= 1


def test_one_transparent_grey_is_white() -> None:
    greys = np.array([[5, 6], [6, 7]], np.uint8)
    data = png(2, 2, greys.tobytes(), more=chunk(b"tRNS", struct.pack(">H", 6)))
    assert read(data, (2, 2, 1))[..., 0].tolist() == [[5, 255], [255, 7]]


def test_of_16_bits_the_upper_8_count() -> None:
    deep = DRAWS.integers(0, 65536, (12, 10, 3)).astype(">u2")
    colour = png(10, 12, deep.tobytes(), depth=16, kind=2)
    assert (read(colour) == deep >> 8).all()
    grey = png(10, 12, deep[..., 0].tobytes(), depth=16)
    assert (read(grey, (12, 10, 1))[..., 0] == deep[..., 0] >> 8).all()
    alpha = np.full((12, 10, 1), 0xFFFF, ">u2")
    clear = png(10, 12, np.concatenate([deep, alpha], -1).astype(">u2").tobytes(), depth=16, kind=6)
    assert (read(clear) == deep >> 8).all()


def test_one_bit_is_black_and_white() -> None:
    assert read(png(8, 1, b"\x0f", depth=1), (1, 8, 1))[0, :, 0].tolist() == [0] * 4 + [255] * 4


@pytest.mark.parametrize("marked", [True, False])
def test_cmyk_jpegs_are_inverted_as_adobe_has_them(marked: bool) -> None:
    inks = (200, 30, 90, 40)  # of 255
    wanted = [(255 - ink) * (255 - inks[3]) / 255 for ink in inks[:3]]
    data = saved(Image.new("CMYK", (10, 12), inks), "JPEG", quality=100)
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    if not marked:
        data = data[:at] + data[at + 16 :]
    assert far(read(data), np.broadcast_to(wanted, (12, 10, 3))) <= 3


def test_colour_becomes_grey_and_grey_colour() -> None:
    colour = COLOURS[..., :3]
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert far(read(saved(Image.fromarray(colour)), (12, 10, 1)), luma) <= 1
    grey = read(saved(Image.fromarray(colour[..., 0])))
    assert (grey == colour[..., :1]).all()


def test_of_an_animation_the_first_frame_counts() -> None:
    shots = np.stack([COLOURS[..., :3], 255 - COLOURS[..., :3]])
    first, second = (Image.fromarray(shot) for shot in shots)
    assert (read(animation.write(shots, "webp", quality=100)) == shots[0]).all()
    assert (read(saved(first, save_all=True, append_images=[second])) == shots[0]).all()
    beside = saved(first, save_all=True, default_image=True, append_images=[second, first])
    assert (read(beside) == shots[0]).all()


def test_odd_images_over_the_wire(fashion: Any, fashion_images: Uint8s) -> None:
    """In one request to the shipped model, beside a plain one."""
    upright = fashion_images[7, :, :, 0]
    image = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.merge("LA", [Image.new("L", (28, 28), 0), Image.fromarray(255 - upright)])
    files = [
        saved(image),
        saved(Image.fromarray(lying(upright, 6)), exif=exif),
        saved(clear),
        saved(Image.fromarray(upright.astype(np.uint16) << 8)),
        saved(image.convert("RGB"), "WEBP", lossless=True),
        saved(image.convert("P")),
        saved(image, save_all=True, append_images=[Image.new("L", (28, 28))]),
        animation.write(fashion_images[7:9], "webp", quality=100),
    ]
    plain = pb.Images(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[1, 28, 28, 1], data=upright.tobytes()))
    (wanted,) = means(fashion.Encode(pb.EncodeRequest(images=plain)))
    for got in means(fashion.Encode(pb.EncodeRequest(images=encoded(*files)))):
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def means(reply: pb.EncodeResponse) -> Any:
    return np.frombuffer(reply.mean.data, "<f4").reshape(tuple(reply.mean.shape))


# ---- sizes ----


def test_images_of_mixed_sizes_are_each_named(fashion: Any, fashion_images: Uint8s) -> None:
    image = Image.fromarray(fashion_images[0, :, :, 0])
    files = [saved(image.resize(size)) for size in [(28, 28), (30, 20), (28, 28), (29, 28), (1, 1)]]
    request = pb.EncodeRequest(images=encoded(*files))
    wanted = "wanted 28x28 (height x width), or a `resize`"
    assert (
        refused(fashion.Encode, request) == f"images.encoded.images[1]: got 20x30 (also [3] 28x29, [4] 1x1), {wanted}"
    )
    for resize in (CROP, STRETCH):
        request.resize = resize
        assert len(means(fashion.Encode(request))) == 5


def test_no_more_than_ten_wrong_sizes_are_named() -> None:
    with pytest.raises(InvalidArgument) as caught:
        codec.read_images(encoded(*[png(1, 1, b"\0")] * 30), (28, 28, 1), 30, 0)
    assert "[9] 1x1, 20 more), wanted 28x28" in str(caught.value)


def test_an_upright_image_of_a_lying_model_is_refused_and_one_that_lies_in_its_file_is_not() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lies = Image.fromarray(lying(COLOURS[..., :3], 6))
    assert lies.size == (12, 10)
    assert (read(saved(lies, exif=exif)) == COLOURS[..., :3]).all()
    assert "images[1]: got 10x12, wanted 12x10" in refusal(saved(lies, exif=exif), saved(lies), shape=(12, 10, 3))


@pytest.mark.parametrize("long", [65_535, 100_000])
@pytest.mark.parametrize("tall", [True, False])
def test_a_line_of_pixels(fashion: Any, long: int, tall: bool) -> None:
    """Cropped, its middle fills the frame; stretched, its halves do."""
    line = np.zeros(long, np.uint8)
    line[long // 2 :] = 255
    line[long // 2 - 50 : long // 2 + 50] = 180
    size = (1, long) if tall else (long, 1)
    data = png(*size, line.tobytes())
    assert refusal(data).startswith(f"images.encoded.images[0]: got {size[1]}x{size[0]}, wanted 28x28")
    began = time.perf_counter()
    assert (read(data, (28, 28, 1), CROP) == 180).all()
    stretched = read(data, (28, 28, 1), STRETCH)[..., 0].astype(int)
    assert time.perf_counter() - began < 2
    halves = stretched if tall else stretched.T
    assert np.ptp(halves, axis=1).max() == 0
    assert halves[:12].max() <= 30
    assert halves[16:].min() >= 225
    for resize in (CROP, STRETCH):
        fashion.Encode(pb.EncodeRequest(images=encoded(data), resize=resize))


IN_LITTLE_MEMORY = """
import resource, sys
from latentry.v1 import vae_pb2 as pb
from serving.api import codec
images = pb.Images(encoded=pb.EncodedImages(images=[open(name, "rb").read() for name in sys.argv[1:]]))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20),) * 2)
for resize in (pb.RESIZE_CROP, pb.RESIZE_STRETCH):
    assert codec.read_images(images, (2048, 2048, 1), 2, resize).shape == (2, 2048, 2048, 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_line_of_pixels_is_resized_in_little_memory(tmp_path: Path) -> None:
    """Pillow before 12.2 widens first: 2048 x 100000 pixels of a tall line, where 96 MiB are to be had."""
    for name, size in [("tall", (1, 100_000)), ("wide", (100_000, 1))]:
        (tmp_path / name).write_bytes(png(*size, bytes(100_000)))
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, str(tmp_path / "tall"), str(tmp_path / "wide")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)


def claim(width: int, height: int) -> bytes:
    """A PNG whose header says more than there is; its checksums are right."""
    return png(width, height, b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (claim(60_000, 60_000), "got 60000x60000, wanted at most 33554432 pixels and 131072 a side"),
        (claim(12_000, 12_000), "got 12000x12000, wanted at most"),  # where Pillow warns
        (claim(1, 1 << 25), "got 33554432x1, wanted at most"),
        (claim(2**31 - 1, 2**31 - 1), "wanted at most"),
        (claim(5_000, 5_000), "cannot be read"),
        (saved(Image.new("L", (60_000, 2)), "JPEG").replace(b"\0\2\xea\x60", b"\xea\x60\xea\x60"), "got 60000x60000"),
    ],
)
@pytest.mark.parametrize("resize", [CROP, STRETCH])
def test_decompression_bombs_are_refused_by_their_headers(
    data: bytes, said: str, resize: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert said in refusal(data, resize=resize)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_many_images_that_are_a_bomb_together_are_refused() -> None:
    assert "100000000 pixels in all, wanted at most" in refusal(*[claim(5_000, 5_000)] * 4, resize=CROP)


def test_a_jpeg_of_many_scans_is_refused() -> None:
    """Each is a pass over all pixels, for a dozen bytes."""
    photo = saved(Image.new("L", (28, 28), 9), "JPEG", progressive=True)
    scan = photo[photo.rindex(b"\xff\xda") : -2]
    assert far(read(photo[:-2] + 100 * scan + photo[-2:], (28, 28, 1)), np.full((28, 28), 9)) <= 1
    assert "cannot be read" in refusal(photo[:-2] + image_files.MAX_SCANS * scan + photo[-2:])


# ---- broken files ----


WHOLE = Image.fromarray(DRAWS.integers(0, 256, (28, 28), np.uint8))
FILES = {"PNG": saved(WHOLE), "JPEG": saved(WHOLE, "JPEG", quality=30), "WEBP": saved(WHOLE, "WEBP", quality=30)}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_was_cut_short_is_refused(kind: str) -> None:
    whole = FILES[kind]
    for length in [*range(0, len(whole) - 2, 7), len(whole) - 3]:
        assert f"got {length} bytes that cannot be read" in refusal(whole[:length])


def test_a_png_with_any_byte_changed_is_refused() -> None:
    whole = FILES["PNG"]
    for at in range(len(whole)):
        assert "wanted" in refusal(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(fashion: Any, kind: str) -> None:
    said = refused(fashion.Encode, pb.EncodeRequest(images=encoded(FILES["PNG"], saved(WHOLE, kind))))
    assert said.startswith("images.encoded.images[1]: got")
    assert said.endswith("wanted a whole PNG, JPEG or WebP file")


# ---- metadata ----


TIFF = b"II*\0" + struct.pack("<I", 8)
TURN = struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0)  # orientation 3: upside down
PHOTO = saved(Image.fromarray(np.repeat(np.arange(28, dtype=np.uint8)[:, None] * 9, 28, 1)), "JPEG", quality=100)


def exif_of(entries: bytes, count: int | None = None) -> bytes:
    return b"Exif\0\0" + TIFF + struct.pack("<H", len(entries) // 12 if count is None else count) + entries


@pytest.mark.parametrize(
    "segments",
    [
        [exif_of(b"")] + [exif_of(TURN * 5_000)] * 40,  # Pillow joins them: 2.4 MB
        [exif_of(TURN, count=60_000)],
        [exif_of(b"\xff" * 60_000)],
        [b"Exif\0\0garbage"],
        [b"Exif\0\0"],
    ],
)
def test_a_jpeg_with_huge_or_broken_exif_is_an_image(segments: list[bytes]) -> None:
    began = time.perf_counter()
    image = read(with_segments(PHOTO, 0xE1, *segments), (28, 28, 1))[..., 0]
    assert time.perf_counter() - began < 2
    plain = read(PHOTO, (28, 28, 1))[..., 0]
    assert (image == plain).all() or (image == plain[::-1, ::-1]).all()


def test_metadata_of_a_png_is_passed_over() -> None:
    """Texts and profiles that unpack to much, chunks without number, an animation that makes no sense."""
    rows = WHOLE.tobytes()
    for more in [
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 << 20))),
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(8 << 20))),
        chunk(b"tEXt", b"a\0b") * 20_000,
        chunk(b"acTL", bytes(8)),
        chunk(b"fcTL", bytes(26)),
        chunk(b"eXIf", b"garbage"),
    ]:
        assert read(png(28, 28, rows, more=more), (28, 28, 1)).tobytes() == rows


def test_pillows_warnings_stay_with_it_whatever_runs_beside() -> None:
    odd = with_segments(PHOTO, 0xE1, exif_of(b"\xff" * 6_000))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        for image in threads.map(lambda _: read(odd, (28, 28, 1)), range(80)):
            assert image.shape == (28, 28, 1)
    assert warnings.filters == before


# ---- what comes back ----


ANIMATIONS: dict[Any, str] = {pb.IMAGE_FORMAT_GIF: "GIF", pb.IMAGE_FORMAT_ANIMATED_WEBP: "WEBP"}


@pytest.mark.parametrize("form", ANIMATIONS)
def test_a_walk_comes_back_as_an_animation(fashion: Any, form: Any) -> None:
    ends = np.random.default_rng(1).normal(size=(2, latent_dim(fashion))).astype("<f4")
    keys = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=ends.shape, data=ends.tobytes())
    output = pb.ImageOutput(format=form, quality=100, frame_ms=250)
    request = pb.InterpolateRequest(latents=keys, steps=9, output=output)
    (data,) = fashion.Interpolate(request).images.encoded.images
    request.output.Clear()
    raw = np.frombuffer(fashion.Interpolate(request).images.tensor.data, np.uint8).reshape(9, 28, 28)
    with Image.open(io.BytesIO(data)) as file:
        assert (file.format, file.n_frames, file.info["loop"]) == (ANIMATIONS[form], 9, 0)  # type: ignore[attr-defined]
        for at, image in enumerate(raw):
            file.seek(at)
            assert (np.asarray(file.convert("L")) == image).all()
            assert file.info["duration"] == 250


def latent_dim(stub: Any) -> int:
    dim: int = stub.GetModel(pb.GetModelRequest()).model.latent_dim
    return dim


@pytest.mark.parametrize("form", ANIMATIONS)
def test_images_that_are_no_sequence_are_no_animation(fashion: Any, form: Any) -> None:
    said = refused(fashion.Sample, pb.SampleRequest(count=1, output=pb.ImageOutput(format=form)))
    name = pb.ImageFormat.Name(form)
    assert said.startswith(f"output.format: got {name} ({form}), wanted an array or a file an image")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"format": 99}, "output.format: got 99, wanted 0 to 7"),
        ({"format": -1}, "output.format: got -1, wanted 0 to 7"),
        ({"format": pb.IMAGE_FORMAT_GIF, "frame_ms": 19}, "output.frame_ms: got 19, wanted 20 to 10000, or 0"),
        ({"format": pb.IMAGE_FORMAT_GIF, "frame_ms": 10_001}, "output.frame_ms: got 10001"),
        ({"frame_ms": -1}, "output.frame_ms: got -1"),
        ({"format": pb.IMAGE_FORMAT_ANIMATED_WEBP, "quality": 101}, "output.quality: got 101, wanted 1 to 100"),
        ({"quality": -1}, "output.quality: got -1"),
    ],
)
def test_a_form_that_there_is_not_is_refused(output: dict[str, int], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        codec.check_output(pb.ImageOutput(**output), animated=True)  # type: ignore[arg-type]  # enums are ints
    assert str(caught.value).startswith(said)


def test_the_forms_that_there_are_pass() -> None:
    for form in [pb.IMAGE_FORMAT_UNSPECIFIED, pb.IMAGE_FORMAT_RAW_FLOAT32, pb.IMAGE_FORMAT_WEBP, *ANIMATIONS]:
        for frame_ms in (0, 20, 10_000):
            codec.check_output(pb.ImageOutput(format=form, frame_ms=frame_ms, quality=100), animated=True)


def test_without_pillows_webp_other_forms_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda feature: feature != "webp")
    for form in (pb.IMAGE_FORMAT_WEBP, pb.IMAGE_FORMAT_ANIMATED_WEBP):
        with pytest.raises(InvalidArgument, match="has no WebP"):
            codec.check_output(pb.ImageOutput(format=form), animated=True)
    codec.check_output(pb.ImageOutput(format=pb.IMAGE_FORMAT_GIF), animated=True)


@pytest.mark.parametrize("form", [pb.IMAGE_FORMAT_PNG, *ANIMATIONS])
def test_files_that_nobody_waits_for_are_not_written(fashion_images: Uint8s, form: Any) -> None:
    """Nor is a tensor resized, or a file read."""
    gone = threading.Event()
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            gone.set()
        return gone.is_set()

    with pytest.raises(CancelledError):
        codec.write_files(fashion_images[:50], pb.ImageOutput(format=form), stopped)
    assert asked == 3
    for images in (encoded(*[FILES["PNG"]] * 9), pb.Images(tensor=codec.write_tensor(fashion_images[:9]))):
        asked = 0
        gone.clear()
        with pytest.raises(CancelledError):
            codec.read_images(images, (14, 14, 1), 9, CROP, stopped)
        assert asked == 3


# ---- the page ----


PAGE = (ROOT / "docs" / "images.md").read_text()


def test_the_page_has_the_limits_that_there_are() -> None:
    most = (image_files.MAX_PIXELS, image_files.MAX_SIDE, image_files.MAX_REQUEST_PIXELS, image_files.MAX_SCANS)
    for limit in (*most, animation.MAX_FRAME_MS):
        assert f" {limit:,}" in PAGE
    for form in pb.ImageFormat.keys()[1:]:
        assert f"`{form.removeprefix('IMAGE_FORMAT_')}`" in PAGE


def test_the_pages_example_writes_an_animation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    Path("example.py").write_text(example)
    runpy.run_path("example.py")
    with Image.open("fade.gif") as file:
        assert (file.size, file.n_frames, file.info["duration"]) == ((64, 64), 24, 40)  # type: ignore[attr-defined]
