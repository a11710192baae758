"""Weights that lie in files of their own: read into the graph, if these files lie beside it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, external_data_helper

from latentry import onnx_parts
from latentry.manifest import MAX_FILE_BYTES, sha256
from training.errors import ExportError

_ROOM = 1 << 20  # for the nodes that wrap the graph


def check_size(path: Path, size: int) -> None:
    """Raises `ExportError` if a graph of so many bytes could not be wrapped and kept in one file."""
    if size > MAX_FILE_BYTES - _ROOM:
        raise ExportError(
            f"{path}: got {size} bytes with its weights, wanted less than {MAX_FILE_BYTES}, what one ONNX file can "
            "hold: export it in half precision, or a smaller model"
        )


def take_in(model: ModelProto, path: Path, size: int) -> dict[str, str]:
    """Read the weights that lie in other files into the graph of `size` bytes at `path`; the digests of these files.

    Raises `ExportError` if one lies elsewhere than beside the graph, is not there, or if they are too large.
    """
    folder, digests = path.absolute().parent, {}
    for tensor in [held.tensor for held in onnx_parts.tensors(model)]:
        if not external_data_helper.uses_external_data(tensor):
            continue
        about = {entry.key: entry.value for entry in tensor.external_data}
        beside = _beside(folder, about.get("location", ""), path, tensor.name)
        if beside.name not in digests:
            size += beside.stat().st_size
            check_size(path, size)
            digests[beside.name] = sha256(beside.read_bytes())
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (ValueError, OSError, onnx.checker.ValidationError) as error:
            raise ExportError(f"{beside}: the weight {tensor.name} cannot be read from it: {error}") from error
        tensor.data_location = TensorProto.DEFAULT
        tensor.ClearField("external_data")
    return digests


def _beside(folder: Path, location: str, path: Path, tensor: str) -> Path:
    """The file that holds a weight; it may lie nowhere but beside the graph's."""
    found = folder / location
    if not location or Path(location).name != location or found.is_symlink():
        raise ExportError(
            f"{path}: the weight {tensor} lies in {location or 'no file'}: got a link or a place elsewhere, wanted a "
            "file beside the graph: put it there, or save the graph with its weights inside"
        )
    if not found.is_file():
        raise ExportError(f"{path}: the weight {tensor} lies in {location}: got no such file beside the graph")
    return found
