"""What becomes of calls when one side dies, does not read, or says what makes no sense."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handover_fixtures import SOON_S, connected, ends, hold, until
from linear_model import LinearModel
from loaded_models import loaded

from serving.catalog import Catalog
from serving.errors import EngineFailed
from serving.handover import EngineGone, Remote, front_end, records
from serving.handover.arena import Arena

PIXELS = frozenset({"images"})
TESTS = Path(__file__).resolve().parent


def latents(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((n, 5), np.float32)


@contextlib.contextmanager
def engine_process(repository: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """One whose decoder never ends, and the socket of a front end of it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, str(TESTS / "handover_engine.py"), str(repository), str(theirs.fileno())]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment) as process:
        theirs.close()
        try:
            yield process, ours
        finally:
            process.kill()


# ---- an engine process that dies ----


async def test_an_engine_that_is_killed_fails_its_calls_retryably_and_the_next_one_answers(linear: LinearModel) -> None:
    catalog, changes = Catalog(), []
    sizes = [1, 100, 3000] * 20 + [1] * 4  # in the socket, in the arena, in neither
    with engine_process(linear.folder.parent.parent) as (process, sock):
        remote = Remote(sock, catalog, changed=lambda: changes.append(None), arena_bytes=1 << 20)
        await asyncio.wait_for(remote.start(), SOON_S)
        model = catalog.get()
        images = np.zeros((1, 12, 10, 1), np.uint8)
        assert (await model.encode(images, None))[0].shape == (1, 5)
        calls = [asyncio.ensure_future(model.decode(latents(n), False, None)) for n in sizes]
        await asyncio.sleep(0)
        process.send_signal(signal.SIGKILL)
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), SOON_S)
    assert {type(each) for each in results} == {EngineFailed}
    assert remote.closed.done()
    assert not model.up
    assert len(changes) == 2  # it came, it went
    assert catalog.get() is model
    with pytest.raises(EngineFailed):
        await model.decode(latents(1), False, None)
    with pytest.raises(EngineFailed):
        await remote.ask("anything", {})
    async with loaded(linear.folder) as restarted, ends(restarted) as both:
        await both.connect(catalog)
        assert catalog.get() is not model
        images = await catalog.get().decode(latents(2000), True, None)
    np.testing.assert_allclose(images, linear.decode(latents(2000)), atol=1e-6)


async def test_an_engine_that_goes_before_it_says_what_it_serves_is_gone() -> None:
    ours, theirs = socket.socketpair()
    remote = Remote(ours, Catalog())
    starting = asyncio.ensure_future(remote.start())
    await asyncio.sleep(0)
    theirs.close()
    with pytest.raises(EngineGone):
        await asyncio.wait_for(starting, SOON_S)
    assert remote.closed.done()
    ours, theirs = socket.socketpair()
    theirs.close()
    never_began = Remote(ours, Catalog())
    with pytest.raises(EngineGone):
        await never_began.start()
    for each in (remote, never_began, never_began):
        each.close()  # once more changes nothing


async def test_questions_end_with_the_engine(linear: LinearModel) -> None:
    async def never(_: dict[str, Any]) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async with loaded(linear.folder) as model, ends(model, on_ask={"never": never}) as both:
        remote = await both.connect()
        asking = asyncio.ensure_future(remote.ask("never", {}))
        await until(lambda: any(each._questions._answering for each in both.back._front_ends))
        both.back.close()
        with pytest.raises(EngineFailed):
            await asyncio.wait_for(asking, SOON_S)


# ---- a front end that dies, or does not read ----


async def test_a_front_end_that_goes_leaves_nothing_and_the_other_goes_on(linear: LinearModel) -> None:
    async with loaded(linear.folder) as model, ends(model) as both:
        leaving, other = Catalog(), await both.connect()
        await both.connect(leaving)
        held = hold(model)
        calls = [asyncio.ensure_future(leaving.get().decode(latents(n), False, None)) for n in (1, 200, 64, 1)]
        await asyncio.to_thread(held.begun.wait, SOON_S)
        await until(lambda: both.back.calls == 4)
        staying = asyncio.ensure_future(both.model.decode(latents(200), True, None))
        both.remotes[1].close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in results} == {EngineFailed}
        await asyncio.wait_for(both.serving[1], SOON_S)
        held.go.set()
        np.testing.assert_allclose(await staying, linear.decode(latents(200)), atol=1e-6)
        assert not other.closed.done()
        assert model._users == 1
        assert model.batchers["decoder"].rows_waiting == 0  # type: ignore[attr-defined]


def submits(queue: int, calls: int, rows: int) -> bytes:
    """Records that a front end may send."""
    z = latents(rows).tobytes()
    head = records.HEAD.size + len(z) + -len(z) % 8
    return b"".join(
        records.HEAD.pack(head, records.SUBMIT, 0, 1, number, 0, 0.0, queue, rows) + records.pad(z)
        for number in range(1, calls + 1)
    )


def hello(sock: socket.socket, arena: Arena | None = None) -> None:
    said = records.said(records.HELLO, {"version": records.VERSION, "arena": arena.size if arena else 0})
    socket.send_fds(sock, [said], [arena.descriptor] if arena else [])


DECODER = 4 * 1 + 1  # the queue of the first model's decoder


async def test_a_front_end_that_does_not_read_is_cut_off_and_the_other_goes_on(linear: LinearModel) -> None:
    async with loaded(linear.folder) as model, ends(model, most_unsent=1 << 20) as both:
        await both.connect()
        deaf = both.socket()
        hello(deaf)
        await until(lambda: model._users == 2)
        data = memoryview(submits(DECODER, calls=10_000, rows=10))  # 12 MB of images
        deaf.setblocking(False)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while data and not both.serving[1].done():
                with contextlib.suppress(BlockingIOError):
                    data = data[deaf.send(data) :]
                await asyncio.sleep(0)
        await asyncio.wait_for(both.serving[1], SOON_S)
        assert model._users == 1
        np.testing.assert_allclose(
            await both.model.decode(latents(3), True, None), linear.decode(latents(3)), atol=1e-6
        )
        deaf.close()


# ---- what makes no sense ----


def head(kind: int, **fields: Any) -> bytes:
    return records.record(kind, fields.pop("body", b""), **fields)


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\nHost: here\r\nAccept: */*\r\n\r\n",
    "zeros": bytes(400),
    "ones": b"\xff" * 400,
    "a record without its head": struct.pack("<IB", 8, records.SUBMIT) + bytes(75),
    "a record of no kind": head(200),
    "what only engines say": head(records.DONE, number=1),
    "JSON that is none": head(records.ASK, body=b"{"),
    "a question that is none": records.said(records.ASK, {"kind": 1}),
    "another hello": records.said(records.HELLO, {"version": records.VERSION, "arena": 0}),
    "an unknown queue": submits(999, 1, 1),
    "no rows": head(records.SUBMIT, number=1, queue=DECODER),
    "rows that are not all there": records.HEAD.pack(48, records.SUBMIT, 0, 1, 1, 0, 0.0, DECODER, 100) + bytes(8),
    "outputs of no graph": records.HEAD.pack(64, records.SUBMIT, 0, 64, 1, 0, 0.0, DECODER, 1) + bytes(24),
    "a place outside": records.HEAD.pack(40, records.SUBMIT, 2, 1, 1, (1 << 20) - 8, 0.0, DECODER, 64),
    "a place far outside": records.HEAD.pack(40, records.SUBMIT, 2, 1, 1, (1 << 64) - 8, 0.0, DECODER, 64),
    "outputs placed outside": records.HEAD.pack(64, records.SUBMIT, 4, 1, 1, 1 << 20, 0.0, DECODER, 1) + bytes(24),
    "the same call twice": submits(DECODER, 1, 3) + submits(DECODER, 1, 3),
    "a model that it has not": head(records.RELEASE, number=77),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_ends_its_connection_and_nothing_else(linear: LinearModel, name: str) -> None:
    async with connected(linear.folder) as both:
        arena, sock = Arena(1 << 20), both.socket()
        hello(sock, arena)
        await until(lambda: both.there.get()._users == 2)
        sock.sendall(GARBAGE[name])
        await asyncio.wait_for(both.serving[1], SOON_S)
        assert both.there.get()._users == 1
        np.testing.assert_allclose(
            await both.model.decode(latents(3), True, None), linear.decode(latents(3)), atol=1e-6
        )
        sock.close()


SENSE = {
    "a call": submits(DECODER, 1, 1),
    "a question": records.said(records.ASK, ["spend", {}]),
    "what it follows": records.record(records.FOLLOWED, number=1),
    "a hello of no version": records.said(records.HELLO, {}),
    "a hello of another version": records.said(records.HELLO, {"version": records.VERSION + 1, "arena": 0}),
    "an arena that did not come along": records.said(records.HELLO, {"version": records.VERSION, "arena": 1 << 20}),
}


@pytest.mark.parametrize("name", ["text", "zeros", "ones", *SENSE])
async def test_nothing_is_heard_before_a_hello(linear: LinearModel, name: str) -> None:
    async with connected(linear.folder) as both:
        sock = both.socket()
        sock.sendall({**GARBAGE, **SENSE}[name])
        await asyncio.wait_for(both.serving[1], SOON_S)
        assert (await both.model.decode(latents(3), True, None)).shape == (3, 12, 10, 1)
        sock.close()


@pytest.mark.parametrize("name", ["text", "zeros", "ones", "a record of no kind", "JSON that is none"])
async def test_an_engine_that_makes_no_sense_is_as_one_that_has_gone(name: str) -> None:
    ours, theirs = socket.socketpair()
    remote = Remote(ours, Catalog())
    starting = asyncio.ensure_future(remote.start())
    await asyncio.sleep(0)
    theirs.sendall(GARBAGE[name])
    with pytest.raises(EngineGone):
        await asyncio.wait_for(starting, SOON_S)
    theirs.close()


async def test_an_answer_that_nobody_asked_for_ends_the_connection_and_fails_the_calls(linear: LinearModel) -> None:
    async with loaded(linear.folder) as model, ends(model) as both:
        remote = await both.connect()
        held = hold(model)
        waiting = asyncio.ensure_future(both.model.decode(latents(1), True, None))
        await asyncio.to_thread(held.begun.wait, SOON_S)
        for front_end in both.back._front_ends:
            front_end.put(records.record(records.DONE, number=12345))
        with pytest.raises(EngineFailed):
            await asyncio.wait_for(waiting, SOON_S)
        assert remote.closed.done()
        held.go.set()


async def test_an_engine_side_without_room_for_an_arena_serves_who_comes_without(
    linear: LinearModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, size: int) -> Any:
        os.close(descriptor)
        raise records.Malformed("arena: no memory")

    monkeypatch.setattr(front_end, "attach", full)
    async with loaded(linear.folder) as model, ends(model) as both:
        with pytest.raises(EngineGone):
            await both.connect()
        await both.connect(arena_bytes=0)
        z = latents(2000)
        np.testing.assert_allclose(await both.model.decode(z, True, None), linear.decode(z), atol=1e-6)
