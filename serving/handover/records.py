"""What is written on a hand-over socket: records of a fixed head and a body.

    head, 40 bytes:  length  kind  flags  outputs  number  place  when  queue  rows

    front end to engine process
        HELLO      JSON; the arena's descriptor comes with it
        SUBMIT     number: the call's; queue, outputs (a bit each), rows, when: the deadline or 0; the body: the rows,
                   unless they are in the arena
        CANCEL     number: of a call that nobody waits for any more
        RELEASE    number: of a model that no call uses any more
        FOLLOWED   number: that of the `CATALOG` which it has taken over
        ASK        JSON; number: the question's
    engine process to front end
        CATALOG    JSON: what is served; number: one more than the last
        RUN        place: one of `RUNS` slots; number: when it began, ns; when: seconds; queue: padding; rows
        HEARD      number: of a call that had rows in an earlier run, in slot `place`; when: seconds in the queue
        DONE       number: the call's, each answered once; flags: how it ended; if `OK`, when: seconds in the queue,
                   place: the slot of the last run; the body: the outputs, unless they are in the arena. Else when:
                   after which to try again; rows: the bytes of the message, which is the body
        REPLY      JSON; number: of the question

All is little-endian, and whole records are multiples of 8 bytes, so that arrays in them are aligned. Both ends are of
one version, on one machine: nothing here is a promise to others.
"""

from __future__ import annotations

import json
import struct
from typing import Any

VERSION = 1
HEAD = struct.Struct("<IBBHQQdII")
Head = tuple[int, int, int, int, int, int, float, int, int]
MOST_BYTES = 1 << 29  # of one record

HELLO, SUBMIT, CANCEL, RELEASE, FOLLOWED, ASK, CATALOG, RUN, HEARD, DONE, REPLY = range(1, 12)
RUNS = 64

# Flags of SUBMIT.
BACKGROUND, ROWS_PLACED, OUTPUTS_PLACED = 1, 2, 4
# Flags of DONE.
OK, CANCELLED, QUEUE_FULL, DEADLINE_PASSED, ENGINE_FAILED, UNLOADED, FAILED = range(7)
# Flags of REPLY.
ANSWERED, NOT_ANSWERED = range(2)

_PADS = [b" " * (-n % 8) for n in range(8)]


class Malformed(ValueError):
    """The other end says what makes no sense."""


def pad(data: bytes) -> bytes:
    """`data` with spaces, to a multiple of 8 bytes."""
    return data if not len(data) & 7 else data + _PADS[len(data) & 7]


def record(
    kind: int,
    body: bytes = b"",
    *,
    flags: int = 0,
    number: int = 0,
    place: int = 0,
    when: float = 0.0,
    queue: int = 0,
    rows: int = 0,
) -> bytes:
    """A record of one of the kinds that are not written often."""
    body = pad(body)
    return HEAD.pack(HEAD.size + len(body), kind, flags, 0, number, place, when, queue, rows) + body


def said(kind: int, what: Any, *, number: int = 0, flags: int = 0) -> bytes:
    """A record with JSON."""
    return record(kind, json.dumps(what, separators=(",", ":")).encode(), number=number, flags=flags)


def heard(head: Head, data: bytes | bytearray, at: int) -> Any:
    """The JSON of a record whose body begins at `at`; raises `ValueError`."""
    return json.loads(data[at : at + head[0] - HEAD.size])
