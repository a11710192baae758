"""Between numpy, Pillow and the messages of `latentry.v1`, as a client sees them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from latentry.pictures import Array, ModelRef
from latentry.v1 import vae_pb2 as pb

# An array [N, H, W, C] or (grey) [N, H, W]; or one or more Pillow images, paths of image files, or their bytes.
OneImage: TypeAlias = "Image.Image | Path | str | bytes"
ImageInput: TypeAlias = "npt.NDArray[Any] | OneImage | Sequence[OneImage]"

RESIZES = {None: pb.RESIZE_UNSPECIFIED, "crop": pb.RESIZE_CROP, "stretch": pb.RESIZE_STRETCH}
PATHS = {"linear": pb.INTERPOLATION_PATH_LINEAR, "spherical": pb.INTERPOLATION_PATH_SPHERICAL}
FORMATS = {"uint8": pb.IMAGE_FORMAT_RAW_UINT8, "float32": pb.IMAGE_FORMAT_RAW_FLOAT32}

# Modes that PNG does not hold, and those that say the same. What it holds, 16 bits included, the server reads.
_PNG_MODES = {"CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}

_DTYPES: dict[int, type[np.generic]] = {pb.DATA_TYPE_UINT8: np.uint8, pb.DATA_TYPE_FLOAT32: np.float32}


def choice(name: str, value: str | None, known: dict[Any, Any]) -> Any:
    """The enum value that `value` stands for; raises `ValueError` with those there are."""
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(repr(k) for k in known)}")
    return known[value]


def check_seed(seed: int) -> int:
    """`seed`, if it is one; raises `ValueError`."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed}, wanted 0 to 2^64 - 1")
    return seed


def write_tensor(array: Array) -> pb.Tensor:
    """`array` as a message; uint8 stays, any other type becomes float32."""
    if array.dtype != np.uint8:
        array = array.astype("<f4", copy=False)
    dtype = pb.DATA_TYPE_UINT8 if array.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    return pb.Tensor(dtype=dtype, shape=array.shape, data=array.tobytes())


def read_tensor(tensor: pb.Tensor) -> Array:
    """The array of a reply."""
    dtype = np.dtype(_DTYPES[tensor.dtype])
    array = np.frombuffer(tensor.data, dtype.newbyteorder("<")).reshape(tuple(tensor.shape))
    return array.astype(dtype, copy=False)


def latent_array(latents: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Latents as float32 [N, Z]; raises `ValueError` if there are not two dimensions."""
    array = np.asarray(latents, np.float32)
    if array.ndim != 2:
        raise ValueError(f"latents: got shape {list(array.shape)}, wanted [N, Z]")
    return array


def image_items(images: ImageInput) -> Array | list[bytes]:
    """An array [N, H, W, C], or image files as bytes (Pillow images become PNG); raises `ValueError` for neither."""
    if isinstance(images, np.ndarray):
        array = images[..., None] if images.ndim == 3 else images
        if array.ndim != 4:
            raise ValueError(f"images: got an array of shape {list(images.shape)}, wanted [N, H, W, C] or [N, H, W]")
        return array
    each = [images] if isinstance(images, Image.Image | Path | str | bytes) else list(images)
    return [_file_bytes(image) for image in each]


def write_images(items: Array | list[bytes]) -> pb.Images:
    """What `image_items` gave, as a message."""
    if isinstance(items, list):
        return pb.Images(encoded=pb.EncodedImages(images=items))
    return pb.Images(tensor=write_tensor(items))


def model_ref(ref: pb.ModelRef) -> ModelRef:
    """The model that a reply names."""
    return ModelRef(ref.name, ref.version, ref.digest)


def _file_bytes(image: OneImage) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if not isinstance(image, Image.Image):
        raise TypeError(f"images: got a {type(image).__name__}, wanted Pillow images, paths or bytes")
    buffer = io.BytesIO()
    plain = image.convert(_PNG_MODES[image.mode]) if image.mode in _PNG_MODES else image
    plain.save(buffer, "PNG", compress_level=1, exif=image.getexif())
    return buffer.getvalue()
