"""Training and serving prepare an image file alike: what a model was trained on is what it is served."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from latentry import pixels
from latentry.v1 import vae_pb2 as pb
from serving.api import codec
from training.images import fit

RNG = np.random.default_rng(0)
RGBA = Image.fromarray(RNG.integers(0, 256, (30, 20, 4), np.uint8))
FILES = {
    "RGB": RGBA.convert("RGB"),
    "L": RGBA.convert("L"),
    "RGBA": RGBA,
    "LA": RGBA.convert("LA"),
    "P": RGBA.quantize(16),
    "I;16": Image.fromarray(RNG.integers(0, 65536, (30, 20)).astype(np.uint16)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(30, 20), (12, 16)])
@pytest.mark.parametrize("mode", FILES)
def test_the_same_file_gives_the_same_pixels(mode: str, size: tuple[int, int], channels: int) -> None:
    buffer = io.BytesIO()
    FILES[mode].save(buffer, "PNG")
    with Image.open(buffer) as image:
        trained = fit(image, size, channels)
    request = pb.Images(encoded=pb.EncodedImages(images=[buffer.getvalue()]))
    (served,) = codec.read_images(request, (*size, channels), 1, pb.RESIZE_CROP)
    assert served.tolist() == trained.tolist()


def test_a_png_is_turned_by_its_exif_chunk_alone() -> None:
    """Not by texts that some programs hide an orientation in: a server does not unpack them."""
    picture, hidden = Image.new("L", (4, 3)), PngImagePlugin.PngInfo()
    hidden.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>')
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for options, size in (({"pnginfo": hidden}, (4, 3)), ({"exif": exif}, (3, 4))):
        file = io.BytesIO()
        picture.save(file, "PNG", **options)
        with Image.open(file) as opened:
            assert pixels.upright(opened).size == size
