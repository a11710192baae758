"""Weights that lie in files of their own: read into the graph, if these files lie beside it.

A file is read once: the bytes that are hashed are those that the weights are taken from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto, TensorProto, external_data_helper

from latentry import onnx_parts
from latentry.manifest import MAX_FILE_BYTES, sha256
from latentry.onnx_parts import short
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
    folder, contents = path.absolute().parent, dict[str, bytes]()
    for tensor in [held.tensor for held in onnx_parts.tensors(model)]:
        if not external_data_helper.uses_external_data(tensor):
            continue
        about = {entry.key: entry.value for entry in tensor.external_data}
        beside = _beside(folder, about.get("location", ""), path, tensor.name)
        if beside.name not in contents:
            contents[beside.name] = _read(beside, path, size)
            size += len(contents[beside.name])
        tensor.raw_data = _part(contents[beside.name], about, f"{path}: the weight {short(tensor.name)}")
        tensor.data_location = TensorProto.DEFAULT
        tensor.ClearField("external_data")
    return {name: sha256(content) for name, content in contents.items()}


def _read(beside: Path, path: Path, size: int) -> bytes:
    try:
        check_size(path, size + beside.stat().st_size)
        return beside.read_bytes()
    except OSError as error:
        raise ExportError(f"{beside}: cannot be read: {error.strerror}") from error


def _part(content: bytes, about: Mapping[str, str], what: str) -> bytes:
    """The bytes of one weight, of a file that may hold many."""
    try:
        offset = int(about.get("offset", 0))
        length = int(about.get("length", len(content) - offset))
    except ValueError as error:
        raise ExportError(f"{what}: got an offset or a length that is no number: save it again") from error
    if not 0 <= offset <= offset + length <= len(content):
        raise ExportError(
            f"{what}: got {length} bytes from {offset} of a file of {len(content)}, wanted a part of the file: is it "
            "the file that was saved with the graph?"
        )
    return content[offset : offset + length]


def _beside(folder: Path, location: str, path: Path, tensor: str) -> Path:
    """The file that holds a weight; it may lie nowhere but beside the graph's."""
    found, what = folder / location, f"{path}: the weight {short(tensor)} lies in {short(location) or 'no file'}"
    try:
        elsewhere = not location or Path(location).name != location or found.is_symlink()
        there = elsewhere or found.is_file()
    except (OSError, ValueError):  # a name that no file can have
        elsewhere = there = False
    if elsewhere:
        raise ExportError(
            f"{what}: got a link or a place elsewhere, wanted a file beside the graph: put it there, or save the graph "
            "with its weights inside"
        )
    if not there:
        raise ExportError(f"{what}: got no such file beside the graph")
    return found
