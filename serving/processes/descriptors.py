"""Whether the processes may open as many files and connections as they need, and standard streams that are open."""

from __future__ import annotations

import contextlib
import os
import resource

from serving.errors import StartError

_LEAST = 256  # of one process: libraries, sockets of gRPC, and some connections
_A_FRONT_END = 4  # in the engine process and in the supervisor


def raise_limit(frontends: int) -> None:
    """Take as many as the system gives; raises `StartError` if that is too few for so many front ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a system may give less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    got, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _LEAST + _A_FRONT_END * frontends
    if got != resource.RLIM_INFINITY and got < wanted:
        raise StartError(f"open files (ulimit -n): got {got}, wanted {wanted} or more for {frontends} front ends")


def open_standard() -> None:
    """A standard stream that is closed becomes /dev/null: else a socket would take its place, and children write to
    it."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            os.set_inheritable(fd, True)
