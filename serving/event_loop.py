"""How a process of ours turns: on uvloop where there is one, with a collector of garbage that looks at what is new."""

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

# With Python's own 700, what 64 calls at a time hold is looked at several times before they end; with many more, memory
# that waits for the collector adds up.
_YOUNG_OBJECTS = 3000


def run(main: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` does."""
    return asyncio.run(main) if uvloop is None else uvloop.run(main)


def settle() -> None:
    """What is loaded now stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 10, 10)
    gc.enable()
