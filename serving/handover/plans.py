"""What the rows and the outputs of a graph look like, so that their bytes alone have to be handed over.

Both sides work it out from the manifest. Outputs follow each other by name, each begins at a multiple of 8 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from mmap import mmap
from typing import Any

import numpy as np

from latentry.manifest import Manifest
from serving import labelled, ports
from serving.batches import Array, Results
from serving.handover.records import Malformed, pad

Buffer = bytes | bytearray | mmap | Array


class Outputs:
    """Some of the outputs of a graph. `mask` has the bits that stand for them."""

    def __init__(self, mask: int, ports: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
        self.mask = mask
        self.names = frozenset(ports)
        self._fields = [(name, np.dtype(dtype), item, _row_bytes(dtype, item)) for name, (dtype, item) in ports.items()]

    def size(self, rows: int) -> int:
        """Bytes of these outputs of so many rows."""
        size = 0
        for _, _, _, row_bytes in self._fields:
            size += (rows * row_bytes + 7) & -8
        return size

    def views(self, rows: int, buffer: Buffer, at: int) -> dict[str, Array]:
        """The outputs that lie in `buffer` from `at` on, each [rows, ...]."""
        arrays = {}
        for name, dtype, item, row_bytes in self._fields:
            arrays[name] = np.ndarray((rows, *item), dtype, buffer, at)
            at += (rows * row_bytes + 7) & -8
        return arrays

    def bytes_of(self, rows: int, results: Results) -> bytes:
        """What `views` reads. Raises `ValueError` if a result is not of the size that it should be."""
        parts = []
        for name, _, _, row_bytes in self._fields:
            data = results[name].tobytes()
            if len(data) != rows * row_bytes:
                raise ValueError(f"output {name}: got {len(data)} bytes, wanted {rows} times {row_bytes}")
            parts.append(pad(data))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, rows: int, results: Results, buffer: Buffer, at: int) -> None:
        """Put them where `views` reads them."""
        for name, view in self.views(rows, buffer, at).items():
            view[...] = results[name]


class Plan:
    """The rows of one graph, `dtype` [n, *item], and its outputs."""

    def __init__(self, about: Manifest, graph: str, parameters: int) -> None:
        inputs, outputs = ports.wanted(about, graph)
        ((dtype, item),) = (port for name, port in inputs.items() if name != ports.LABELS)
        rows: Array = np.empty((0, *item), dtype)
        if ports.LABELS in inputs:
            rows = labelled.attach(rows, np.empty(0, np.int64))
        self.dtype, self.item = rows.dtype, rows.shape[1:]
        self.row_bytes = _row_bytes(self.dtype, self.item)
        if graph == "decoder" and parameters:
            height, width, _ = about.image_shape
            outputs = {**outputs, ports.PARAMETERS: (np.float32, (height, width, parameters))}
        self._outputs = dict(sorted(outputs.items()))
        self._chosen: dict[frozenset[str] | int, Outputs] = {}

    def rows(self, n: int, buffer: Buffer, at: int) -> Array:
        """The rows that lie in `buffer` from `at` on."""
        return np.ndarray((n, *self.item), self.dtype, buffer, at)

    def named(self, names: frozenset[str]) -> Outputs:
        """The outputs of these names; raises `KeyError` if the graph has no such."""
        if names not in self._chosen:
            unknown = names - self._outputs.keys()
            if unknown or not names:
                raise KeyError(f"outputs: got {sorted(unknown) or 'none'}, wanted some of {sorted(self._outputs)}")
            self._chosen[names] = self._of(sum(1 << k for k, name in enumerate(self._outputs) if name in names))
        return self._chosen[names]

    def masked(self, mask: int) -> Outputs:
        """The outputs of these bits; raises `Malformed` if the graph has no such."""
        if mask not in self._chosen:
            if not 0 < mask < 1 << len(self._outputs):
                raise Malformed(f"outputs: got bits {mask:b} of {len(self._outputs)}")
            self._chosen[mask] = self._of(mask)
        return self._chosen[mask]

    def _of(self, mask: int) -> Outputs:
        chosen = [name for k, name in enumerate(self._outputs) if mask >> k & 1]
        return Outputs(mask, {name: self._outputs[name] for name in chosen})


def _row_bytes(dtype: Any, item: tuple[int, ...]) -> int:
    return int(np.dtype(dtype).itemsize * np.prod(item, dtype=np.int64))
