"""Between tensors of messages and arrays, both ways, and every check of a tensor's type, shape, size and numbers.

Knows nothing of models but their width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from latentry.v1 import vae_pb2 as pb
from serving.errors import InvalidArgument

Array = npt.NDArray[Any]
Float32s = npt.NDArray[np.float32]

MAX_LATENT = 1e6  # a latent's magnitude: far beyond any prior, and far from where float32 overflows
_SURELY_SANE = 0.9 * MAX_LATENT**2  # a sum of squares in which none can be larger, however it was rounded
_DTYPES: dict[int, np.dtype[Any]] = {pb.DATA_TYPE_UINT8: np.dtype("<u1"), pb.DATA_TYPE_FLOAT32: np.dtype("<f4")}
_NAMES: dict[int, str] = {pb.DATA_TYPE_UINT8: "UINT8", pb.DATA_TYPE_FLOAT32: "FLOAT32"}


def read_tensor(tensor: pb.Tensor, field: str, shape: str) -> Array:
    """The array that `tensor` holds, of any shape; `shape` says in words what is wanted.

    Raises `InvalidArgument` if the type is unknown or the bytes are not those of dtype and shape.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidArgument(f"{field}.dtype", tensor.dtype, "DATA_TYPE_UINT8 (1) or DATA_TYPE_FLOAT32 (2)")
    if len(tensor.shape) > 8 or (tensor.shape and min(tensor.shape) < 1):
        raise InvalidArgument(f"{field}.shape", list(tensor.shape[:9]), shape)
    sides, data = tuple(tensor.shape), tensor.data
    wanted = math.prod(sides) * dtype.itemsize
    if len(data) != wanted:
        what = f"{wanted} bytes, as {_NAMES[tensor.dtype]} {list(sides)} takes"
        raise InvalidArgument(f"{field}.data", f"{len(data)} bytes", what)
    array = np.frombuffer(data, dtype).reshape(sides)
    return array if array.dtype.isnative else array.astype(dtype.newbyteorder("="))


def read_latents(tensor: pb.Tensor, latent_dim: int, max_items: int, field: str = "latents") -> Float32s:
    """Latents [N, Z], checked: float32, finite, Z as the model's, N from 1 to `max_items`."""
    wanted = f"[N, {latent_dim}] with N from 1 to {max_items}"
    latents = read_tensor(tensor, field, wanted)
    if latents.dtype != np.float32:
        raise InvalidArgument(f"{field}.dtype", "DATA_TYPE_UINT8", "DATA_TYPE_FLOAT32")
    if latents.ndim != 2 or latents.shape[1] != latent_dim or len(latents) > max_items:
        raise InvalidArgument(f"{field}.shape", list(latents.shape), wanted)
    if np.vdot(latents, latents) <= _SURELY_SANE:  # NaN is not; one pass, which nearly all need no more than
        return latents
    sane = np.abs(latents) <= MAX_LATENT
    if not sane.all():
        item, latent = (int(i) for i in np.argwhere(~sane)[0])
        got = f"{latents[item, latent]} at [{item}, {latent}]"
        raise InvalidArgument(f"{field}.data", got, f"finite numbers from -{MAX_LATENT:g} to {MAX_LATENT:g}")
    return latents


def write_tensor(array: Array) -> pb.Tensor:
    """`array` (uint8 or float32) as a message."""
    dtype = pb.DATA_TYPE_UINT8 if array.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    little = array.astype(_DTYPES[dtype], copy=False)
    return pb.Tensor(dtype=dtype, shape=array.shape, data=little.tobytes())


def check_reach(latents: Float32s, field: str) -> None:
    """Raises `InvalidArgument` unless latents that were moved away from `field` are such as `read_latents` takes."""
    farthest = float(np.abs(latents).max())
    if not farthest <= MAX_LATENT:  # NaN is not
        wanted = f"latents that stay within -{MAX_LATENT:g} to {MAX_LATENT:g}"
        raise InvalidArgument(field, f"latents that are moved to {farthest:.7g}", wanted)
