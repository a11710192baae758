"""Logs: every line whole, nothing forged, no secret, and a log that fails troubles nobody."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import structlog

from serving import logs
from serving.call import Call, Stage

OURS = logging.getLogger("serving.test")
STYLES = ["json", "console"]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging as it was, so that no handler of ours outlives its descriptor."""
    loggers = [logging.getLogger(name) for name in ("", "latentry", "serving")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    logging.captureWarnings(False)
    structlog.reset_defaults()
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Callable[..., Callable[[], list[str]]]]:
    """`log(level, style)` logs to a file from now on; what it returns reads the lines."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def start(level: str = "info", style: str = "json") -> Callable[[], list[str]]:
        logs.configure(level, style, fd)
        return lambda: path.read_text().splitlines()

    yield start
    os.close(fd)


def a_call() -> Call:
    stages = [
        Stage("codec_in", 0, 0.001),
        Stage("queue", 0, 0.002, "encoder"),
        Stage("inference", 0, 0.003, "encoder"),
        Stage("queue", 0, 0.004, "decoder"),
        Stage("inference", 0, 0.005, "decoder"),
        Stage("codec_out", 0, 0.0065),
    ]
    return Call("Interpolate", "r-1", "app", "ipv4:10.0.0.9:1", "fashion", "3", 7, 100, 2000, stages=stages)


def test_the_line_of_a_request_has_what_is_needed_to_find_out_why(log: Callable[..., Callable[[], list[str]]]) -> None:
    lines = log("debug")
    logs.RequestLog("debug").ended(a_call(), grpc.StatusCode.OK, 0.03, ())
    (line,) = lines()
    assert {key: value for key, value in json.loads(line).items() if key != "timestamp"} == {
        "level": "debug",
        "logger": "serving.requests",
        "event": "request",
        "request_id": "r-1",
        "rpc": "Interpolate",
        "model": "fashion",
        "version": "3",
        "identity": "app",
        "peer": "ipv4:10.0.0.9:1",
        "priority": "interactive",
        "items": 7,
        "request_bytes": 100,
        "reply_bytes": 2000,
        "codec_ms": 7.5,
        "queue_ms": 6.0,
        "inference_ms": 8.0,
        "total_ms": 30.0,
        "code": "OK",
    }


@pytest.mark.parametrize("style", STYLES)
def test_no_token_reaches_the_log(log: Callable[..., Callable[[], list[str]]], style: str) -> None:
    lines = log("debug", style)
    metadata = (("authorization", "Bearer hunter2"), ("x-request-id", "r-1"))
    logs.RequestLog("info").ended(a_call(), grpc.StatusCode.UNAUTHENTICATED, 0.03, metadata)
    assert "UNAUTHENTICATED" in lines()[0]
    assert "hunter2" not in lines()[0]


def test_requests_are_logged_at_their_level_and_above_only(log: Callable[..., Callable[[], list[str]]]) -> None:
    lines = log("info")
    for level in ("debug", "off", "info", "error"):
        logs.RequestLog(level).ended(a_call(), grpc.StatusCode.OK, 0.03)
    assert [json.loads(line)["level"] for line in lines()] == ["info", "error"]


def test_a_request_that_is_not_logged_costs_next_to_nothing(log: Callable[..., Callable[[], list[str]]]) -> None:
    log("info")
    requests, call = logs.RequestLog("debug"), a_call()
    started = time.perf_counter()
    for _ in range(10_000):
        requests.ended(call, grpc.StatusCode.OK, 0.03)
    assert time.perf_counter() - started < 0.2  # 20 microseconds a call; measured: 0.2


def test_the_level_changes_while_running(log: Callable[..., Callable[[], list[str]]]) -> None:
    lines = log("warning")
    assert logs.level() == "warning"
    OURS.info("one")
    logs.set_level("debug")
    assert logs.level() == "debug"
    OURS.debug("two")
    logs.set_level("error")
    OURS.warning("three")
    assert [json.loads(line)["event"] for line in lines()] == ["two"]
    with pytest.raises(ValueError, match="level: got 'loud', wanted one of debug, info, warning, error"):
        logs.set_level("loud")
    assert logs.level() == "error"


@pytest.mark.parametrize("style", STYLES)
def test_the_line_that_names_the_ports_can_be_found(log: Callable[..., Callable[[], list[str]]], style: str) -> None:
    lines = log("info", style)
    for host in ("127.0.0.1", "[::1]"):
        OURS.info("gRPC on %s:%d, metrics on port %d", host, 50051, 9464)
    for line in lines():
        found = re.search(r"gRPC on \S+:(\d+), metrics on port (\d+)", line)
        assert found
        assert found.groups() == ("50051", "9464")


@pytest.mark.parametrize("style", STYLES)
def test_what_callers_send_cannot_forge_a_line(log: Callable[..., Callable[[], list[str]]], style: str) -> None:
    lines = log("debug", style)
    evil = "x\n2026-01-01T00:00:00Z INFO serving: forged\r\x1b[2K\u2028\u202e\x85 code=OK"
    OURS.warning("got %s", evil, extra={"field": evil})
    logs.RequestLog("debug").ended(Call("Encode", evil, evil, model=evil), grpc.StatusCode.OK, 0.03)
    assert len(lines()) == 2
    assert all(re.match(r"""({"timestamp": ")?\S+Z\b.{,20}(WARNING|warning|DEBUG|debug)""", line) for line in lines())
    assert not set("\r\x1b\u2028\u202e\x85") & set("".join(lines()))


def test_in_a_traceback_for_people_every_line_is_indented(log: Callable[..., Callable[[], list[str]]]) -> None:
    lines = log("info", "console")
    try:
        raise ValueError("a\n2026-01-01T00:00:00Z INFO serving: forged\x1b")
    except ValueError:
        OURS.exception("failed")
    assert re.fullmatch(r"\S+ ERROR serving.test: failed", lines()[0])
    assert "    2026-01-01T00:00:00Z INFO serving: forged\\x1b" in lines()
    assert all(line.startswith("    ") for line in lines()[1:])


def test_a_traceback_is_one_line_of_json(log: Callable[..., Callable[[], list[str]]]) -> None:
    lines = log()
    try:
        raise ValueError("inside")
    except ValueError:
        OURS.exception("failed")
    (line,) = lines()
    assert "ValueError: inside" in json.loads(line)["exception"]


def test_libraries_warnings_and_structlog_go_the_same_way(log: Callable[..., Callable[[], list[str]]]) -> None:
    lines = log("debug")
    logging.getLogger("PIL.PngImagePlugin").debug("STREAM of a caller's file")
    logging.getLogger("grpc").warning("of a library")
    structlog.get_logger("serving.test").info("of %s", "structlog", size=3, what=Path("x"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("of Python", stacklevel=1)
    first, second, third = map(json.loads, lines())
    assert (first["logger"], first["level"], first["event"]) == ("grpc", "warning", "of a library")
    assert (second["event"], second["size"], second["what"]) == ("of structlog", 3, repr(Path("x")))
    assert third["logger"] == "py.warnings"


def test_auto_is_for_people_on_a_terminal_alone(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    try:
        logs.configure("info", "auto", theirs)
        OURS.info("hello")
        assert os.read(ours, 1000).endswith(b"INFO serving.test: hello\r\n")
    finally:
        os.close(ours)
        os.close(theirs)
    with (tmp_path / "log").open("w+") as file:
        logs.configure("info", "auto", file.fileno())
        OURS.info("hello")
        assert json.loads((tmp_path / "log").read_text())["event"] == "hello"


def test_a_full_disk_is_counted_and_troubles_nobody(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = logs.lost
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        logs.configure("info", "json", full)
        for _ in range(3):
            OURS.info("nobody reads this")
        assert logs.lost == before + 3
        with (tmp_path / "log").open("w") as file:  # space again, where the descriptor points to
            os.dup2(file.fileno(), full)
        OURS.info("there is space")
    finally:
        os.close(full)
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events == ["there is space", "3 log lines were lost"]
    assert capfd.readouterr() == ("", "")


def test_a_reader_that_went_away_is_counted() -> None:
    before = logs.lost
    reader, writer = os.pipe()
    os.close(reader)
    try:
        logs.configure("info", "json", writer)
        OURS.info("nobody reads this")
    finally:
        os.close(writer)
    assert logs.lost == before + 1


def test_a_reader_that_stands_still_holds_nobody_up() -> None:
    before = logs.lost
    reader, writer = os.pipe()
    try:
        logs.configure("info", "json", writer)
        started = time.perf_counter()
        for _ in range(200):
            OURS.info("x" * 3000)
        assert time.perf_counter() - started < 1
        assert logs.lost > before + 100
        os.set_blocking(reader, False)
        os.read(reader, 1 << 20)
        OURS.info("goes on")
        lines = os.read(reader, 1 << 20).decode().splitlines()
        assert json.loads(lines[-2])["event"] == "goes on"
        assert json.loads(lines[-1])["event"] == f"{logs.lost - before} log lines were lost"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_slow_reader_takes_what_it_can_and_holds_nobody_up() -> None:
    """4 KiB each 40 ms: a line is taken within what a line could wait for, so that without a budget all would wait."""
    before, count = logs.lost, 400
    reader, writer = os.pipe()
    parts: list[bytes] = []
    ended = threading.Event()

    def read_slowly() -> None:
        while part := os.read(reader, 4096 if not ended.is_set() else 1 << 20):
            parts.append(part)
            ended.wait(0.04)

    thread = threading.Thread(target=read_slowly)
    thread.start()
    try:
        logs.configure("info", "json", writer)
        started = time.perf_counter()
        for _ in range(count):
            OURS.info("x" * 3000)
        assert time.perf_counter() - started < 1
    finally:
        ended.set()
        os.close(writer)
        thread.join()
        os.close(reader)
    events = [json.loads(line)["event"] for line in b"".join(parts).decode().splitlines()]
    taken = sum(event.startswith("x") for event in events)
    assert 10 < taken < count <= taken + logs.lost - before, "what was not taken is counted"


def test_a_message_that_does_not_fit_its_arguments_is_counted_without_a_traceback(
    log: Callable[..., Callable[[], list[str]]], capfd: pytest.CaptureFixture[str]
) -> None:
    before, lines = logs.lost, log()
    root = logging.getLogger()
    root.handlers[:] = [each for each in root.handlers if type(each).__module__ == "serving.logs"]  # pytest's raise
    OURS.info("%d", "no number")
    assert logs.lost == before + 1
    OURS.info("goes on")
    assert len(lines()) == 2
    assert capfd.readouterr() == ("", "")


def test_a_closed_standard_error_is_survived() -> None:
    code = (
        "import logging; from serving import logs; logs.configure('info', 'auto');"
        "logging.getLogger('serving').info('x'); assert logs.lost == 1"
    )
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    assert subprocess.run(command, timeout=60).returncode == 0


def test_configuring_again_leaves_one_handler(log: Callable[..., Callable[[], list[str]]]) -> None:
    log()
    lines = log()
    OURS.info("once")
    assert len(lines()) == 1
