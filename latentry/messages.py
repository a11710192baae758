"""Between numpy arrays and the tensors of `latentry.v1`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentry.pictures import Array
from latentry.v1 import vae_pb2 as pb

_DTYPES: dict[int, type[np.generic]] = {pb.DATA_TYPE_UINT8: np.uint8, pb.DATA_TYPE_FLOAT32: np.float32}


def write_tensor(array: Array) -> pb.Tensor:
    """`array` as a message; uint8 stays, any other type becomes float32."""
    if array.dtype != np.uint8:
        array = array.astype("<f4", copy=False)
    dtype = pb.DATA_TYPE_UINT8 if array.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    return tensor_of(dtype, array.shape, array.tobytes())


def tensor_of(dtype: pb.DataType, shape: Sequence[int], data: bytes) -> pb.Tensor:
    """The message of a tensor's bytes."""
    return pb.Tensor(dtype=dtype, shape=shape, data=data)


def read_tensor(tensor: pb.Tensor) -> Array:
    """The array of a reply."""
    dtype = np.dtype(_DTYPES[tensor.dtype])
    array = np.frombuffer(tensor.data, dtype.newbyteorder("<")).reshape(tuple(tensor.shape))
    return array.astype(dtype, copy=False)
