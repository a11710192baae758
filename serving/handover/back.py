"""The engine process's side of the hand-over sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from itertools import count
from weakref import WeakKeyDictionary

from serving.catalog import Catalog
from serving.handover.front_end import FrontEnd
from serving.handover.questions import OnAsk
from serving.handover.state import State, state_of
from serving.model import Model

MOST_UNSENT = 256 << 20
PATIENCE_S = 5.0  # as long as one may be silent before it is killed


class Back:
    """Runs what front ends submit on the models of `catalog`, and tells them of every change of it.

    `devices` is how many the pool has. `on_ask` are the functions for what front ends ask (`Remote.ask`), by kind. A
    front end that leaves more than `most_unsent` bytes unread is cut off.
    """

    def __init__(
        self,
        catalog: Catalog,
        devices: int,
        *,
        on_ask: OnAsk | None = None,
        most_unsent: int = MOST_UNSENT,
    ) -> None:
        self._catalog = catalog
        self._devices = devices
        self._on_ask = on_ask or {}
        self._most_unsent = most_unsent
        self._front_ends: set[FrontEnd] = set()
        self._numbers: WeakKeyDictionary[Model, int] = WeakKeyDictionary()
        self._next = count(1)
        self._pushing = False
        self._pushed = ""  # the state that all front ends have

    @property
    def calls(self) -> int:
        """How many calls front ends wait for."""
        return sum(front_end.calls for front_end in self._front_ends)

    async def serve(self, sock: socket.socket) -> None:
        """Serve one front end on its connected AF_UNIX stream socket, which is ours from now on, until it has gone,
        sends what makes no sense, or does not read. Raises nothing for any of these.
        """
        front_end = FrontEnd(sock, self._on_ask, self._most_unsent)
        self._front_ends.add(front_end)
        try:
            front_end.start()
            if await front_end.hello:
                self._pushed = ""  # this one has what may be newer than what the others have
                self._tell_state(front_end, self._state())
                await front_end.gone
        finally:
            self._front_ends.discard(front_end)
            front_end.close()

    def changed(self) -> None:
        """The catalog, or an engine's state, may have changed: front ends hear of it once this turn of the loop."""
        if self._front_ends and not self._pushing:
            self._pushing = True
            asyncio.get_running_loop().call_soon(self._push)

    async def followed(self) -> None:
        """Until all front ends serve what the catalog is now, or a front end that does not has had `PATIENCE_S`."""
        self._push()
        waits = [asyncio.ensure_future(front_end.follows()) for front_end in self._front_ends]
        if waits:
            _, late = await asyncio.wait(waits, timeout=PATIENCE_S)
            for each in late:
                each.cancel()

    def close(self) -> None:
        """Cut all front ends off; `serve` returns for each."""
        for front_end in list(self._front_ends):
            front_end.close()

    def _push(self) -> None:
        self._pushing = False
        state = self._state()
        text = json.dumps(state)
        if text != self._pushed:
            self._pushed = text
            for front_end in self._front_ends:
                self._tell_state(front_end, state)

    def _tell_state(self, front_end: FrontEnd, state: State) -> None:
        """Once it has said hello: until then it has nothing, and is told all."""
        if front_end.hello.done():
            models = {self._number(model): model for model in self._catalog.all()}
            front_end.follow(state, models)

    def _state(self) -> State:
        return state_of(self._catalog, self._devices, self._number)

    def _number(self, model: Model) -> int:
        if model not in self._numbers:
            self._numbers[model] = next(self._next)
        return self._numbers[model]
