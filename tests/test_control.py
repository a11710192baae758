"""What the supervisor and its children say to each other, where the system has no room for it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from handover_fixtures import until

from serving.processes import control
from serving.processes.control import Control


async def test_a_descriptor_that_was_lost_leaves_the_others_to_whom_they_were_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel drops those for which a process has no room, and says so."""
    heard: list[tuple[str, list[int]]] = []
    real, lost = socket.recv_fds, [True, False]

    def receive(sock: socket.socket, size: int, most: int) -> Any:
        data, descriptors, flags, address = real(sock, size, most)
        if descriptors and lost.pop(0):
            os.close(descriptors.pop())
            flags |= socket.MSG_CTRUNC
        return data, descriptors, flags, address

    monkeypatch.setattr(control.socket, "recv_fds", receive)
    ours, theirs = control.pair()
    here = Control(ours, lambda *said: None, lambda: None)
    there = Control(theirs, lambda kind, body, descriptors: heard.append((kind, descriptors)), lambda: None)
    with Path(os.devnull).open("rb") as file:  # noqa: ASYNC230 - at once
        here.send("first", descriptors=[file.fileno()])
        here.send("none")
        here.send("second", descriptors=[file.fileno()])
        await until(lambda: len(heard) == 3)
        assert [(kind, len(descriptors)) for kind, descriptors in heard] == [("first", 0), ("none", 0), ("second", 1)]
        assert os.path.sameopenfile(heard[-1][1][0], file.fileno())
    os.close(heard[-1][1][0])
    here.close()
    there.close()
