"""One place among the processes: who fills it now, what it counts, and when it is filled anew.

A child that ended untold is followed by another: at once if it had been up for a while, after longer and longer pauses
if it had not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from serving import own_python
from serving.processes import control, ledger
from serving.processes.control import Body, Control
from serving.settings_sources import PREFIX

log = logging.getLogger(__name__)

_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LIVED_S = 2.0  # who was up for as long has not died quickly
_SILENT_S = 5.0  # without a sign of life, a child that is up is killed
_SILENT_START_S = 60.0  # while it starts: its imports and its models may keep its loop from turning


class Slot:
    """`begin()` is what a new child hears first; `hear(slot, kind, body)` what it says; `ended(slot, status)` that it
    has ended, by itself or killed. `answers` are for its questions.
    """

    def __init__(
        self,
        name: str,
        begin: Callable[[], Body],
        hear: Callable[[Slot, str, Body], object],
        ended: Callable[[Slot, int], object],
        answers: Mapping[str, Callable[[Body], Any]],
    ) -> None:
        self.name = name
        self.ledger = ledger.create(name)
        self.control: Control | None = None
        self.up = False  # it has said that it is ready
        self.serving = False  # it takes calls and has somebody to answer them
        self._begin = begin
        self._hear = hear
        self._ended = ended
        self._answers = answers
        self._process: subprocess.Popen[bytes] | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._heard = 0.0
        self._up_since: float | None = None
        self._suspect = False
        self._quick_deaths = 0
        self._waiting: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that is there now."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start a child; raises `OSError`."""
        loop = asyncio.get_running_loop()
        ours, theirs = control.pair()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        with contextlib.ExitStack() as stack:
            stack.enter_context(ours)
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own Python
                    own_python.command("serving.processes.child", str(theirs.fileno())),
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    start_new_session=True,  # what a terminal sends to all of its processes is the supervisor's affair
                )
            stack.pop_all()  # it has started, and our end stays open
        self._empty.clear()
        self.up = self.serving = self._suspect = False
        self._heard, self._up_since = loop.time(), None
        self.control = Control(ours, self._message, self._gone, self._answers)
        try:
            self.control.send("begin", {**self._begin(), "name": self.name}, [self.ledger])
        except OSError:  # no descriptor: it ends, and another is tried
            log.exception("%s cannot be told what to be", self.name)
            self.kill()

    def send(self, kind: str, body: Body | None = None, descriptors: tuple[int, ...] = ()) -> None:
        """Say it to the child, if there is one."""
        if self.control is not None:
            self.control.send(kind, body, descriptors)

    def pause_s(self) -> float:
        """How long to wait before the next child."""
        lived = self._up_since is not None and asyncio.get_running_loop().time() - self._up_since > _LIVED_S
        self._quick_deaths = 0 if lived else self._quick_deaths + 1
        return _PAUSES_S[min(max(0, self._quick_deaths - 1), len(_PAUSES_S) - 1)]

    def look(self, trust: bool) -> None:
        """Kill a child that has not said anything for long, twice in a row; with `trust` it is given more time, since
        it was we who did not listen."""
        now = asyncio.get_running_loop().time()
        if trust:
            self._heard = now
        silent_s = now - self._heard
        late = self.control is not None and silent_s > (_SILENT_S if self.up else _SILENT_START_S)
        if late and self._suspect:
            log.error("%s has not said anything for %.0f s, and is killed", self.name, silent_s)
            self.kill()
        self._suspect = late

    def kill(self) -> None:
        """End it at once; `ended` is called for it as for any other end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)

    async def wait(self) -> None:
        """Until there is no process."""
        await self._empty.wait()

    def _message(self, kind: str, body: Body, descriptors: list[int]) -> None:
        control.close_all(descriptors)  # a child gives us none
        self._heard = asyncio.get_running_loop().time()
        if kind == "ready":
            self.up, self._up_since = True, self._heard
        elif kind == "serving":
            self.serving = body["serving"]
        if kind != "beat":
            self._hear(self, kind, body)

    def _gone(self) -> None:
        """The control socket is closed: it has ended, or is about to."""
        self.control = None
        self.up = self.serving = False
        self._waiting = asyncio.ensure_future(self._reap())

    async def _reap(self) -> None:
        process = self._process
        if process is None:
            return
        self.kill()
        status = await own_python.end_of(process)
        self._process = None
        self._empty.set()
        self._ended(self, status)
