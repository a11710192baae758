"""Rows with the class of each as one array, so that they wait, are split and are gathered together.

What waits in queues is an array of rows; a row of a conditional model is a record of the two. Knows nothing of graphs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Classes = npt.NDArray[np.int64]

_ROW, _CLASS = "row", "class"


def attach(rows: Array, classes: Classes) -> Array:
    """Records [N] of `rows` [N, ...], which are copied, and `classes` [N]; `split` gives them back."""
    # Aligned, so that parts of it are numbers that any processor reads.
    record = np.dtype([(_ROW, rows.dtype, rows.shape[1:]), (_CLASS, np.int64)], align=True)
    records = np.empty(len(rows), record)
    records[_ROW], records[_CLASS] = rows, classes
    return records


def split(rows: Array) -> tuple[Array, Classes | None]:
    """The rows and their classes, as views, of what `attach` made; rows that have no classes as they are, and None."""
    if rows.dtype.names is None:
        return rows, None
    return rows[_ROW], rows[_CLASS]


def spread(rows: Array, known: int) -> Array:
    """Rows to try a graph on that knows so many classes: of classes from the last to the first, evenly; as they are
    for a graph that takes none.
    """
    if not known:
        return rows
    return attach(rows, np.linspace(known - 1, 0, len(rows)).round().astype(np.int64))
