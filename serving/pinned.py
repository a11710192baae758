"""Page-locked memory: what a GPU copies to and from at the bus's full speed, without a detour.

ONNX Runtime for Python cannot allocate it, so numpy's own memory is registered with CUDA's runtime library, which the
provider has loaded already.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import weakref
from typing import Any

import numpy.typing as npt

log = logging.getLogger(__name__)

_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")


def pin(array: npt.NDArray[Any]) -> bool:
    """Lock the array's pages for as long as it lives. False, and nothing else changed, where that cannot be done."""
    cuda = _library()
    if cuda is None or array.nbytes == 0:
        return False
    address = ctypes.c_void_p(array.ctypes.data)
    if cuda.cudaHostRegister(address, ctypes.c_size_t(array.nbytes), ctypes.c_uint(0)) != 0:
        cuda.cudaGetLastError()  # it stays until it is asked for: ONNX Runtime would take it for a kernel's
        log.warning("CUDA would not lock %d bytes; copies to the GPU go through its own buffer", array.nbytes)
        return False
    weakref.finalize(array, cuda.cudaHostUnregister, address).atexit = False
    return True


def _library() -> Any:
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None
