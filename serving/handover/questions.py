"""What a front end asks the engine process in JSON, and who answers it there."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serving.handover.link import Data, Handler
from serving.handover.records import (
    ASK,
    NOT_ANSWERED,
    REPLY,
    Head,
    heard,
    said,
)
from serving.tasks import Tasks

log = logging.getLogger(__name__)

Body = dict[str, Any]
OnAsk = Mapping[str, Callable[[Body], Body | Awaitable[Body]]]


class Questions:
    """Those of one front end; answers are `put`."""

    def __init__(self, on_ask: OnAsk, put: Callable[[bytes], None]) -> None:
        self._on_ask = on_ask
        self._put = put
        self._answering = Tasks()

    @property
    def handlers(self) -> Mapping[int, Handler]:
        """Of the records that they come in."""
        return {ASK: self._asked}

    def close(self) -> None:
        """Nobody waits for the answers."""
        self._answering.cancel()

    def _asked(self, head: Head, data: Data, at: int) -> None:
        kind, body = heard(head, data, at)
        try:
            answer = self._on_ask[kind](body)
        except Exception as error:
            self._reply(head[4], error)
            return
        if not inspect.isawaitable(answer):
            self._reply(head[4], answer)
            return
        self._answering.start(self._reply_later(head[4], answer))

    async def _reply_later(self, number: int, answer: Awaitable[Body]) -> None:
        try:
            self._reply(number, await answer)
        except Exception as error:
            self._reply(number, error)

    def _reply(self, number: int, answer: Body | Exception) -> None:
        if isinstance(answer, Exception):
            log.error("a front end's question was not answered", exc_info=answer)
            self._put(said(REPLY, str(answer), number=number, flags=NOT_ANSWERED))
        else:
            self._put(said(REPLY, answer, number=number))
