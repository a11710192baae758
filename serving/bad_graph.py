"""What is wrong with a graph, in one line: said by whoever loads or checks one."""

from __future__ import annotations

from latentry.printable import plain

_LONGEST = 4000  # characters of a message


class BadGraph(ValueError):
    """A graph that cannot be loaded, or is not what its manifest says; the message is one line, fit for a log whatever
    names the graph has."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message, _LONGEST))


class NoKernel(BadGraph):
    """A graph that is sound, but has an operator that the device cannot run on this type: a Conv of bf16 numbers
    on a CPU, say (our own bf16 graphs hold bf16 weights, and compute in float32)."""
