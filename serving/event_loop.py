"""How a process of ours turns: on uvloop where there is one, with a collector of garbage that keeps out of the way."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, TypeVar

try:
    import uvloop
except ImportError:  # there is none for Windows
    uvloop = None  # type: ignore[assignment]

T = TypeVar("T")

# Calls make much that refers to itself (tasks, futures, errors), but little of it outlives them: a young generation of
# some 1,000 calls, where Python's own 700 objects are fewer than one batch of calls makes.
_YOUNG_OBJECTS = 20_000


def run(main: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` does."""
    return asyncio.run(main) if uvloop is None else uvloop.run(main)


def settle() -> None:
    """What is loaded now stays: the collector need not look at it again, nor so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 50)
    gc.enable()
