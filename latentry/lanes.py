"""Pieces of calls that wait for company: a lane holds those that can go in one request, in order. Knows nothing of how
they are sent: `Coalescer` and `AsyncCoalescer` do that.

The first piece of a lane goes at once. While requests of a lane are under way, what comes gathers, and goes when one
has come back: nobody waits for company that may never come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

import grpc

from latentry import inputs
from latentry.pieces import Piece
from latentry.v1 import vae_pb2 as pb

AT_ONCE = 2  # requests of a lane under way
_FEW = 64  # calls that are not worth two requests; with more, one half travels while the other is worked on

# Refusals that may be for what one call gave: each is sent alone then, and hears its own.
APART = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)


class Waiting(Protocol):
    """A call that waits."""

    @property
    def piece(self) -> Piece:
        """What it sends."""

    @property
    def gone(self) -> bool:
        """Whether it does not wait any more."""


W = TypeVar("W", bound=Waiting)


class Lane(Generic[W]):
    """The calls with the pieces of one kind."""

    __slots__ = ("alike", "boarding", "flying", "info", "waiting")

    def __init__(self, alike: Hashable, info: pb.ModelInfo) -> None:
        self.alike = alike
        self.info = info  # of the model, as the last call knew it: its limits can change while a lane is busy
        self.waiting: deque[W] = deque()
        self.flying: set[object] = set()  # requests under way
        self.boarding = False  # whether one of them is about to `take`

    def take(self, free: int) -> list[W]:
        """Those that go in the next request: as many as it holds, or their share if there are to be `free` of them."""
        most = max(_FEW, -(-len(self.waiting) // free))
        most_items, most_bytes = self.info.limits.max_items, inputs.room(self.info)
        taken: list[W] = []
        items = size = 0
        while self.waiting and len(taken) < most:
            next_ = self.waiting[0]
            if not next_.gone:
                items += next_.piece.items
                size += next_.piece.size
                if taken and (items > most_items or size > most_bytes):
                    break
                taken.append(next_)
            self.waiting.popleft()
        return taken
