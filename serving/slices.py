"""A large batch in slices, each in a thread of its own: threads that all graphs share, so that more graphs cost none.

Rows do not depend on each other. A graph's own threads would share the work of each operator and meet after each,
which for graphs this small costs more than it gives, and they would be there for every graph that is loaded. Knows
nothing of what the work is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Work = Callable[[Array], Mapping[str, Array]]

# Rows of a slice. A further thread wants the interpreter's lock twice, which a busy loop gives up late: where calls of
# one image each made the batches, slices of 16 rows cost more processor time a call than none at all. These are for
# batches that are full, as those of large calls are.
LEAST = 32


def run(work: Work, rows: Array, threads: int) -> dict[str, Array]:
    """What `work` gives for the rows, by name, [n, ...] each: as many slices at once as there are `threads`, this one
    among them. Raises what `work` raises, once no slice is running any more.
    """
    number = min(threads, len(rows) // LEAST)
    if number < 2:
        return dict(work(rows))
    first, *others = np.array_split(rows, number)
    waiting = [_helpers(threads - 1).submit(work, each) for each in others]
    try:
        results = [work(first)]
    finally:
        wait(waiting)
    results += [each.result() for each in waiting]
    return {name: np.concatenate([each[name] for each in results]) for name in results[0]}


@functools.cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    """Made when first needed; they end with the process."""
    return ThreadPoolExecutor(threads, thread_name_prefix="latentry-slice")
