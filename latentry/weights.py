"""Whether the weights of an ONNX tensor are numbers, told by their bits. Knows nothing of graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import TensorProto

    _Bits = npt.NDArray[np.unsignedinteger[Any]]

_AT_A_TIME = 1 << 20
# By ONNX's number of the type: its bits as an integer, the bits of the exponent, and those of the fraction. All
# of the exponent set is infinity, or NaN if any of the fraction is too.
_FLOATS = {
    1: ("<u4", 0x7F800000, 0x007FFFFF),  # FLOAT
    14: ("<u4", 0x7F800000, 0x007FFFFF),  # COMPLEX64
    11: ("<u8", 0x7FF0000000000000, 0x000FFFFFFFFFFFFF),  # DOUBLE
    15: ("<u8", 0x7FF0000000000000, 0x000FFFFFFFFFFFFF),  # COMPLEX128
    10: ("<u2", 0x7C00, 0x03FF),  # FLOAT16
    16: ("<u2", 0x7F80, 0x007F),  # BFLOAT16
    19: ("u1", 0x7C, 0x03),  # FLOAT8E5M2
}
# Types of a byte without infinity, of which one value, perhaps with either sign, is NaN: a mask, and that value.
_BYTES = {
    17: (0x7F, 0x7F),  # FLOAT8E4M3FN
    18: (0xFF, 0x80),  # FLOAT8E4M3FNUZ
    20: (0xFF, 0x80),  # FLOAT8E5M2FNUZ
    24: (0xFF, 0xFF),  # FLOAT8E8M0
}


def not_finite(tensor: TensorProto, *, infinite_too: bool) -> str | None:
    """What of the tensor is NaN, or infinite if that matters, in words; None if nothing is."""
    if tensor.data_type in _BYTES:
        mask, sick = _BYTES[tensor.data_type]
        values = _bits(tensor, "u1")
        count = int(((values & mask) == sick).sum())
        return f"NaN ({count} of {len(values)})" if count else None
    if tensor.data_type not in _FLOATS:
        return None
    nan = infinite = 0
    name, exponent, fraction = _FLOATS[tensor.data_type]
    bits = _bits(tensor, name)
    for start in range(0, len(bits), _AT_A_TIME):
        part = bits[start : start + _AT_A_TIME]
        extreme = part[(part & exponent) == exponent]
        nan += int(((extreme & fraction) != 0).sum())
        infinite += int(((extreme & fraction) == 0).sum())
    if nan:
        return f"NaN ({nan} of {len(bits)})"
    return f"infinity ({infinite} of {len(bits)})" if infinite and infinite_too else None


def _bits(tensor: TensorProto, kind: str) -> _Bits:
    """The values as unsigned integers, wherever the tensor keeps them."""
    import numpy as np

    dtype = np.dtype(kind)
    raw = tensor.raw_data
    if raw:  # ONNX Runtime refuses a length that does not fit the shape
        values: _Bits = np.frombuffer(raw, dtype, len(raw) // dtype.itemsize)
        return values
    if kind == "<u4":
        return np.array(tensor.float_data, "<f4").view(dtype)
    if kind == "<u8":
        return np.array(tensor.double_data, "<f8").view(dtype)
    return np.array(tensor.int32_data, "<i8").astype(dtype)  # each in the lowest bits
