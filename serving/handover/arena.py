"""Memory that two processes share, for what is too large to go through a socket.

A front end makes it, and it alone says what is where, so that there are no locks, and nothing to clean up: memory
without a name in any file system goes with the processes that hold it. Its places are powers of two, from one page up;
a place that is given back is used again as it is, and joined with its neighbour only when a larger one is wanted.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import weakref
from collections import deque

import numpy as np

from serving.batches import Array
from serving.handover.records import Malformed

log = logging.getLogger(__name__)

_UNIT_BITS = 12  # the smallest place is of 4 KiB
_STEP = 1 << 20  # memory is asked of the kernel in steps


class Arena:
    """`size` bytes, a power of two. `memory` is all of it, `descriptor` what the other process maps."""

    def __init__(self, size: int) -> None:
        """Raises `OSError` if there is no such memory here."""
        if size < _STEP or size & (size - 1):
            raise ValueError(f"size: got {size} bytes, wanted a power of two, of {_STEP} at least")
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memory without a name")
        self.size = size
        self.descriptor = os.memfd_create("latentry-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self.memory = mmap.mmap(self.descriptor, size)
        except BaseException:
            os.close(self.descriptor)
            raise
        self._free: list[list[int]] = [[] for _ in range(size.bit_length() - _UNIT_BITS)]
        self._free[-1].append(0)
        self._taken: dict[int, int] = {}
        self._returned: deque[int] = deque()
        self._lent: dict[int, weakref.ref[Array]] = {}
        self._scattered = False  # whether a place was given back since neighbours were joined
        self._backed = 0  # bytes from the start that the kernel has promised

    @property
    def taken(self) -> int:
        """How many places are in use."""
        self._collect()
        return len(self._taken)

    def take(self, size: int) -> int:
        """Where there are so many bytes, from now until they are given back; -1 if there is no such place."""
        self._collect()
        order = max(0, (size - 1).bit_length() - _UNIT_BITS)
        place = self._cut(order)
        if place < 0 and self._scattered:
            self._join()
            place = self._cut(order)
        if place >= 0 and not self._is_backed(place + (1 << (order + _UNIT_BITS))):
            self._free[order].append(place)
            return -1
        if place >= 0:
            self._taken[place] = order
        return place

    def give(self, place: int) -> None:
        """Nobody reads or writes this place any more."""
        self._returned.append(place)

    def lend(self, place: int, size: int) -> Array:
        """The bytes there. The place is given back when no array refers to them any more, in whatever thread."""
        lent, returned = np.frombuffer(self.memory, np.uint8, size, place), self._returned
        self._lent[place] = weakref.ref(lent, lambda _: returned.append(place))
        return lent

    def close(self) -> None:
        """Let go of the memory; the other process may still hold it."""
        os.close(self.descriptor)
        del self.memory

    def _collect(self) -> None:
        while self._returned:
            place = self._returned.popleft()
            self._free[self._taken.pop(place)].append(place)
            self._lent.pop(place, None)
            self._scattered = True

    def _cut(self, order: int) -> int:
        for larger in range(order, len(self._free)):
            if self._free[larger]:
                place = self._free[larger].pop()
                for half in range(larger - 1, order - 1, -1):
                    self._free[half].append(place + (1 << (half + _UNIT_BITS)))
                return place
        return -1

    def _join(self) -> None:
        self._scattered = False
        for order in range(len(self._free) - 1):
            free, size = set(self._free[order]), 1 << (order + _UNIT_BITS)
            for place in sorted(free, reverse=True):
                if place & size == 0 and place + size in free:
                    free -= {place, place + size}
                    self._free[order + 1].append(place)
            self._free[order] = sorted(free, reverse=True)  # the lowest go first: their memory is there already

    def _is_backed(self, end: int) -> bool:
        """Whether there is memory up to `end`. Asked for before it is written: writing what is not there would kill."""
        if end <= self._backed:
            return True
        end = min(self.size, -(-end // _STEP) * _STEP)
        try:
            os.posix_fallocate(self.descriptor, self._backed, end - self._backed)
        except OSError as error:
            log.warning("no more shared memory than %d bytes: %s", self._backed, error.strerror)
            return False
        self._backed = end
        return True


def attach(descriptor: int, size: int) -> mmap.mmap:
    """The memory of another process's arena, which is of `size` bytes and stays so; closes the descriptor.

    Raises `Malformed` if it is not, or cannot be had.
    """
    sealed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    try:
        if os.fstat(descriptor).st_size != size or fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & sealed != sealed:
            raise Malformed(f"arena: wanted {size} bytes that nobody can take away")
        return mmap.mmap(descriptor, size)
    except OSError as error:
        raise Malformed(f"arena: {error.strerror}") from error
    finally:
        os.close(descriptor)
