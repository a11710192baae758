"""Counts that outlive the process that makes them: a memory file that a child maps and the supervisor keeps.

    [bytes used, u64] then for each series [bytes of key, u64][key, padded to 8][value, float64]

The key is a JSON list: the family, the sample, the labels. A value is written with one store of the processor, and a
series is there once the bytes used say so; so that a child which is killed between any two instructions leaves every
count as it was before or after, and its successor goes on counting. NaN marks a series that was taken away.

Knows no metric.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any

from serving.errors import StartError
from serving.swift_metrics import Cell

_U64 = struct.Struct("<Q")
_F64 = struct.Struct("<d")
_FIRST_BYTES = 1 << 16

Key = tuple[str, str, tuple[tuple[str, str], ...]]  # family, sample, labels


def create(name: str) -> int:
    """The descriptor of a new ledger. It ends with the last process that has it."""
    if not hasattr(os, "memfd_create"):
        raise StartError("--frontends: more than 1 needs Linux")
    fd = os.memfd_create(f"latentry-{name}")
    os.ftruncate(fd, _FIRST_BYTES)
    os.pwrite(fd, _U64.pack(_U64.size), 0)
    return fd


def read(fd: int) -> Iterator[tuple[Key, float]]:
    """Every series that is there, and its value; for any process that has the descriptor."""
    data = os.pread(fd, _U64.unpack(os.pread(fd, _U64.size, 0))[0], 0)
    for text, at in _entries(data):
        value = _F64.unpack_from(data, at)[0]
        if not math.isnan(value):
            yield _key(text), value


class Ledger:
    """The one writer of the ledger `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = Lock()
        self._map()
        self._used: int = _U64.unpack_from(self._bytes)[0]
        self._places = dict(_entries(self._bytes[: self._used]))

    def place(self, family: str, sample: str, labels: Mapping[str, str]) -> Cell:
        """Where the value of this series is: float64s, and the index of its own. 0 if it is new, or was taken away."""
        text = json.dumps([family, sample, sorted(labels.items())], separators=(",", ":"))
        with self._lock:
            at = self._places.get(text) or self._add(text)
            doubles, index = self._doubles, at // 8
            if math.isnan(doubles[index]):
                doubles[index] = 0.0
            return doubles, index

    def take_away(self, family: str, labels: Mapping[str, str]) -> None:
        """The series of a family with these labels, among others, are there no longer; nor is what is added to them."""
        with self._lock:
            for text, at in self._places.items():
                name, _, its = _key(text)
                if name == family and labels.items() <= dict(its).items():
                    self._doubles[at // 8] = math.nan

    def _add(self, text: str) -> int:
        raw = text.encode()
        raw += b" " * (-len(raw) % 8)
        at = self._used + _U64.size + len(raw)
        end = at + _F64.size
        if end > len(self._bytes):
            os.ftruncate(self._fd, max(end, 2 * len(self._bytes)))
            self._map()  # values that were placed before keep their view, which is of the same memory
        self._bytes[self._used : end] = _U64.pack(len(raw)) + raw + _F64.pack(0.0)
        self._used = end
        self._bytes[: _U64.size] = _U64.pack(end)
        self._places[text] = at
        return at

    def _map(self) -> None:
        self._bytes = mmap.mmap(self._fd, os.fstat(self._fd).st_size)
        self._doubles = memoryview(self._bytes).cast("d")


def _entries(data: Any) -> Iterator[tuple[str, int]]:
    """The text of each key in `data`, and where its value is."""
    at, end = _U64.size, len(data)
    while at < end:
        size = _U64.unpack_from(data, at)[0]
        text = bytes(data[at + _U64.size : at + _U64.size + size]).rstrip().decode()
        yield text, at + _U64.size + size
        at += _U64.size + size + _F64.size


def _key(text: str) -> Key:
    family, sample, labels = json.loads(text)
    return family, sample, tuple((name, value) for name, value in labels)
