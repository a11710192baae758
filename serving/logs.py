"""Logs: one line an event, JSON or for people, from our modules and from libraries alike, to standard error.

Modules log with `logging.getLogger(__name__)` and, for fields, `extra={...}`. A line that cannot be written (a full
disk, a reader that went away or stands still) is counted in `lost` and never troubles whoever logged it. What callers
sent cannot forge a line: control characters are escaped. Knows nothing of what is logged, but for a request's line.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import sys
import time
from collections.abc import Mapping
from typing import Any

import grpc
import structlog
from structlog.typing import EventDict, WrappedLogger

from serving.call import Call

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

lost = 0  # lines that could not be written since the process began

_OURS = ("latentry", "serving")
_CHUNK = 4096  # bytes that a pipe takes whole when it says that it takes any (PIPE_BUF)
_STALL_S = 0.05  # how long lines wait in each second for a reader that is slow or stands still: callers wait too
_LEAST_WAIT_S = 0.001  # the unit of poll
_LONGEST = 200  # characters of what a caller chose, in the line of a request

_requests = logging.getLogger("serving.requests")

# Control characters, line separators, and marks that turn the direction of text.
_ESCAPES = {n: f"\\x{n:02x}" for n in (*range(0x20), *range(0x7F, 0xA0))} | {
    n: f"\\u{n:04x}" for n in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_ESCAPES |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
_BUT_NEWLINES = {n: text for n, text in _ESCAPES.items() if n != ord("\n")}


def configure(level: str, style: str, fd: int = 2) -> None:
    """Log to the descriptor `fd` from now on; `style` is json, console, or auto: console on a terminal, else json."""
    if style == "auto":
        style = "console" if fd >= 0 and os.isatty(fd) else "json"
    renderer = render_console if style == "console" else structlog.processors.JSONRenderer(_to_json)
    known: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    handler = _Handler(-1 if fd == 2 and sys.stderr is None else fd)  # a closed 2 may be some other file by now
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*known, structlog.stdlib.ExtraAdder(), _without_what_others_add],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *known,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    logging.captureWarnings(True)
    # It writes a traceback for each caller that leaves at the wrong moment or sends a header that is no text.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    set_level(level)


def set_level(name: str) -> None:
    """Log from this level on: debug, info, warning or error. Libraries are heard from warning on.

    Raises `ValueError` for another name.
    """
    if name not in LEVELS:
        raise ValueError(f"level: got {name!r}, wanted one of {', '.join(LEVELS)}")
    for ours in _OURS:
        logging.getLogger(ours).setLevel(LEVELS[name])
    # Below that, libraries tell of what callers sent: Pillow, of each chunk of each file.
    logging.getLogger().setLevel(max(LEVELS[name], logging.WARNING))


def level() -> str:
    """The level from which on is logged."""
    now = logging.getLogger(_OURS[1]).getEffectiveLevel()
    return next((name for name, number in LEVELS.items() if number >= now), "error")


class RequestLog:
    """Logs one line for each call that has ended, at `level`; `off` for none. Costs next to nothing when not logged."""

    def __init__(self, level: str) -> None:
        self._level = LEVELS.get(level, 0)

    @property
    def wants_stages(self) -> bool:
        """While it logs."""
        return self._level > 0 and _requests.isEnabledFor(self._level)

    def ended(self, call: Call, code: grpc.StatusCode, seconds: float, metadata: object = None) -> None:
        """`call` was answered with `code` after `seconds`. Its `metadata`, where tokens are, is not looked at."""
        if not self.wants_stages:
            return
        took = {"codec_ms": 0.0, "queue_ms": 0.0, "inference_ms": 0.0}
        for stage in call.stages:
            key = f"{stage.name.partition('_')[0]}_ms"
            if key in took:
                took[key] += 1000 * stage.seconds
        fields: dict[str, object] = {
            "request_id": call.request_id[:_LONGEST],
            "rpc": call.rpc,
            "model": call.model[:_LONGEST],
            "version": call.version[:_LONGEST],
            "identity": call.identity[:_LONGEST],
            "peer": call.peer[:_LONGEST],
            "priority": call.priority,
            "items": call.items,
            "request_bytes": call.request_bytes,
            "reply_bytes": call.reply_bytes,
            **{name: round(value, 3) for name, value in took.items()},
            "total_ms": round(1000 * seconds, 3),
            "code": code.name,
        }
        # Not `log`: it would look up the line of code that logs, which is always this one.
        _requests.handle(_requests.makeRecord(_requests.name, self._level, "", 0, "request", (), None, extra=fields))


def render_console(_: WrappedLogger, __: str, event: EventDict) -> str:
    """`TIME LEVEL LOGGER: EVENT KEY=VALUE ...`, and below it, indented, the traceback if there is one."""
    time, level, logger = (event.pop(key, "-") for key in ("timestamp", "level", "logger"))
    text, trace = str(event.pop("event", "")).translate(_ESCAPES), event.pop("exception", "")
    fields = "".join(f" {key}={_value(value)}" for key, value in event.items())
    below = "".join(f"\n    {line}" for line in str(trace).translate(_BUT_NEWLINES).split("\n") if trace)
    return f"{time} {str(level).upper()} {logger}: {text}{fields}{below}"


def _without_what_others_add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Formatters of other handlers leave their work in the record."""
    for key in ("message", "asctime"):
        event.pop(key, None)
    return event


def _value(value: object) -> str:
    text = str(value).translate(_ESCAPES)
    return json.dumps(text, ensure_ascii=False) if text == "" or " " in text or '"' in text or "=" in text else text


def _to_json(event: Mapping[str, Any], **_: Any) -> str:
    ordered = {key: event[key] for key in ("timestamp", "level", "logger", "event") if key in event}
    return json.dumps(ordered | dict(event), default=repr)


class _Handler(logging.Handler):
    """Writes lines to a descriptor; counts those that it cannot write, and says how many when it can again."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        if fd >= 0:  # else nothing can ever be written
            self._poll.register(fd, select.POLLOUT)
        self._patience = _STALL_S  # how long it may still wait: spent by waiting, regained within a second
        self._asked = time.monotonic()  # when that was last worked out
        self._unsaid = 0  # lost since the last line that was written
        self._torn = False  # that line was written in part

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of `record`, or count it as lost."""
        try:
            self._write(("\n" if self._torn else "") + self.format(record) + "\n")
        except (OSError, ValueError, TypeError):  # not written; not a message for these arguments
            self.handleError(record)
            return
        if self._unsaid:
            unsaid, self._unsaid = self._unsaid, 0
            self.emit(_requests.makeRecord(__name__, logging.WARNING, "", 0, "%d log lines were lost", (unsaid,), None))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - as the base class calls it
        """Count the line as lost."""
        global lost
        lost += 1
        self._unsaid += 1

    def _write(self, text: str) -> None:
        left = memoryview(text.encode("utf-8", "backslashreplace"))
        while left:
            if not self._poll.poll(0) and not self._wait():
                raise OSError(errno.EAGAIN, "the reader is slow or stands still")
            written = os.write(self._fd, left[:_CHUNK])
            left = left[written:]
            self._torn = bool(left)

    def _wait(self) -> bool:
        """Whether more can be written, after what is left of the patience; none once a line was lost."""
        now = time.monotonic()
        self._patience = min(_STALL_S, self._patience + _STALL_S * (now - self._asked))
        self._asked = now
        if self._unsaid or self._patience < _LEAST_WAIT_S:
            return False
        ready = bool(self._poll.poll(1000 * self._patience))
        self._patience -= time.monotonic() - now
        return ready
