"""Calls that are handed over to an engine side: the same answers, the same errors, nothing left over."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from pathlib import Path
from typing import Any

import conditional_model
import linear_model
import numpy as np
import pytest
from handover_fixtures import SOON_S, connected, ends, hold, until
from linear_model import LinearModel
from loaded_models import loaded
from test_imports import loaded_by

from serving import call
from serving.batches import Job, Run
from serving.catalog import Refusal
from serving.errors import DeadlinePassed, EngineFailed, QueueFull, Unloaded
from serving.handover import back, records
from serving.handover.running import Running
from serving.metrics import Metrics

PIXELS = frozenset({"images"})
BOTH = frozenset({"images", "mean"})


def latents(n: int, z: int = 5, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((n, z), np.float32)


def pictures(n: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, (n, 12, 10, 1), np.uint8)


def pixels(mean: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.round(mean * np.float32(255)).astype(np.uint8)


async def nothing_is_left(both: Any) -> None:
    """All places are free, and no call is remembered on either side."""
    gc.collect()
    await until(lambda: both.arena.taken == 0 and not both.remote._calls._waiting)
    await until(lambda: not both.back.calls)


# ---- answers ----


@pytest.mark.parametrize("n", [1, 3, 64, 1000, 5000])  # in the socket, in the arena, in several batches, larger than it
async def test_numbers_are_those_of_the_model_however_many_rows(linear: LinearModel, n: int) -> None:
    z = latents(n)
    images = pictures(n)
    async with connected(linear.folder, max_queue_items=10_000, max_request_items=10_000) as both:
        got = {name: array.copy() for name, array in (await both.model.decode_outputs(z, BOTH, None)).items()}
        mean, logvar = [array.copy() for array in await both.model.encode(images, None)]
        await nothing_is_left(both)
    wanted = linear.decode(z)
    np.testing.assert_allclose(got["mean"], wanted, atol=1e-6)
    assert np.abs(got["images"].astype(int) - pixels(wanted)).max() <= 1
    assert (got["images"].dtype, got["images"].shape) == (np.uint8, (n, 12, 10, 1))
    np.testing.assert_allclose(mean, linear.encode(images)[0], atol=1e-4)
    np.testing.assert_allclose(logvar, linear.encode(images)[1], atol=1e-4)


@pytest.mark.parametrize("n", [1, 300])
async def test_rows_keep_their_classes(tmp_path: Path, n: int) -> None:
    model = conditional_model.write(tmp_path, classes=10)
    z, classes = latents(n), np.arange(n) % 10
    images = pictures(n)
    async with connected(model.linear.folder) as both:
        got = (await both.model.decode(z, True, None, classes)).copy()
        mean = (await both.model.encode(images, None, classes))[0].copy()
        await nothing_is_left(both)
    np.testing.assert_allclose(got, model.decode(z, classes), atol=1e-6)
    np.testing.assert_allclose(mean, model.encode(images, classes)[0], atol=1e-4)


async def test_a_full_arena_and_many_calls_at_once_change_no_number(linear: LinearModel) -> None:
    sizes = [1, 400, 7, 2000, 64, 1, 900, 33] * 4
    async with connected(linear.folder, max_queue_items=100_000) as both:
        given = [latents(n, seed=k) for k, n in enumerate(sizes)]
        got = [each.copy() for each in await asyncio.gather(*[both.model.decode(z, True, None) for z in given])]
        await nothing_is_left(both)
        taken = both.arena.take(both.arena.size)
    assert taken == 0
    for z, images in zip(given, got, strict=True):
        np.testing.assert_allclose(images, linear.decode(z), atol=1e-6)


async def test_exhausted_memory_is_slower_and_no_error(linear: LinearModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    z = latents(300)
    async with loaded(linear.folder) as model, ends(model) as both:
        monkeypatch.setattr(os, "posix_fallocate", none)
        await both.connect()
        np.testing.assert_allclose(await both.model.decode(z, True, None), linear.decode(z), atol=1e-6)
        assert both.arena.taken == 0
        both.remote.close()
        monkeypatch.setattr(os, "memfd_create", none)
        remote = await both.connect()
        assert remote._arena is None
        np.testing.assert_allclose(await both.model.decode(z, True, None), linear.decode(z), atol=1e-6)


def test_numbers_are_the_same_on_uvloop(linear: LinearModel) -> None:
    uvloop = pytest.importorskip("uvloop")
    z = latents(700)

    async def decode() -> Any:
        async with connected(linear.folder) as both:
            small = await both.model.decode(z[:1], True, None)
            return small, await both.model.decode(z, True, None)

    loop = uvloop.new_event_loop()
    try:
        small, large = loop.run_until_complete(decode())
    finally:
        loop.close()
    np.testing.assert_allclose(small, linear.decode(z[:1]), atol=1e-6)
    np.testing.assert_allclose(large, linear.decode(z), atol=1e-6)


async def test_calls_hear_of_their_batches_and_share_them(linear: LinearModel) -> None:
    heard: list[list[tuple[float, Run]]] = [[] for _ in range(3)]
    async with loaded(linear.folder, max_batch_size=8) as model, ends(model) as both:
        await both.connect()
        held = hold(model)
        first = asyncio.ensure_future(both.model.decode(latents(1), False, None))
        await asyncio.to_thread(held.begun.wait, SOON_S)

        async def decode(n: int, into: list[tuple[float, Run]]) -> None:
            await both.model.batchers["decoder"].submit(
                latents(n), PIXELS, tell=lambda queue_s, run: into.append((queue_s, run))
            )

        calls = [asyncio.ensure_future(decode(n, into)) for n, into in zip((3, 2, 12), heard, strict=True)]
        await until(lambda: len(both.there.get().batchers["decoder"]._interactive) == 3)  # type: ignore[attr-defined]
        held.go.set()
        await asyncio.gather(first, *calls)
    assert [[run.rows for _, run in each] for each in heard] == [[8], [8], [8, 8, 1]]
    assert heard[0][0][1] is heard[1][0][1] is heard[2][0][1]
    assert all(queue_s > 0 and run.seconds > 0 and run.started_ns > 1e18 for each in heard for queue_s, run in each)


async def test_a_call_records_its_stages_as_in_one_process(linear: LinearModel) -> None:
    record = call.begin("Decode")
    async with connected(linear.folder) as both:
        await both.model.decode(latents(2), False, None)
    assert [(stage.name, stage.graph) for stage in record.stages] == [("queue", "decoder"), ("inference", "decoder")]


async def test_what_is_encoded_is_watched_where_the_engine_is(linear: LinearModel) -> None:
    images = pictures(7)
    metrics = Metrics()
    async with connected(linear.folder, metrics=metrics, reconstruct_share=1) as both:
        await both.model.encode(images, None)
        await asyncio.gather(*both.there.get()._checks)
    labels = {"model": "linear", "version": "1"}
    assert metrics.registry.get_sample_value("latentry_reconstruction_error_count", labels) == 7


async def test_what_a_call_took_is_free_without_the_collector_of_garbage(linear: LinearModel) -> None:
    """Results are large, and garbage is looked for by the number of objects, not by their size."""
    async with connected(linear.folder) as both:
        gc.collect()
        gc.disable()
        try:
            for n in (1, 300):
                await both.model.decode_outputs(latents(n), BOTH, None)
            await nothing_is_left(both)
            await until(lambda: not [each for each in gc.get_objects() if isinstance(each, Running | Job)])
        finally:
            gc.enable()


async def test_what_fits_no_graph_is_refused_here(linear: LinearModel) -> None:
    async with connected(linear.folder) as both:
        batcher = both.model.batchers["decoder"]
        for rows in (latents(0), latents(2, z=4), latents(2).astype(np.float64)):
            with pytest.raises(ValueError, match=r"^rows: got float.. \[.*\], wanted float32 \['n', 5\]$"):
                await batcher.submit(rows, PIXELS)
        with pytest.raises(KeyError, match="outputs: got"):
            await batcher.submit(latents(1), frozenset({"nonsense"}))
        assert (await batcher.submit(latents(1), PIXELS))["images"].shape == (1, 12, 10, 1)


# ---- errors ----


async def test_errors_are_those_of_the_batcher(linear: LinearModel) -> None:
    async with loaded(linear.folder, max_queue_items=1024, max_model_share=1.0) as model, ends(model) as both:
        await both.connect()
        held = hold(model)
        batcher = both.model.batchers["decoder"]
        running = asyncio.ensure_future(batcher.submit(latents(1), PIXELS))
        await asyncio.to_thread(held.begun.wait, SOON_S)
        waiting = asyncio.ensure_future(batcher.submit(latents(1024), PIXELS))
        await until(lambda: model.batchers["decoder"].rows_waiting == 1024)  # type: ignore[attr-defined]
        with pytest.raises(QueueFull, match="queue full: 1024 items are waiting of at most 1024; try again") as full:
            await batcher.submit(latents(1), PIXELS)
        assert full.value.retry_after_s > 0
        held.go.set()
        await asyncio.gather(running, waiting)
        del running, waiting  # and their results
        with pytest.raises(DeadlinePassed):
            await batcher.submit(latents(1), PIXELS, asyncio.get_running_loop().time() - 1)
        held.fails = True
        with pytest.raises(EngineFailed):
            await batcher.submit(latents(300), PIXELS)
        assert (await batcher.submit(latents(2), PIXELS))["images"].shape == (2, 12, 10, 1)
        model.batchers["decoder"].close()
        with pytest.raises(Unloaded):
            await batcher.submit(latents(300), PIXELS)
        await nothing_is_left(both)


@pytest.mark.parametrize("fails", [False, True])
async def test_places_are_free_after_cancelled_calls_whatever_comes_of_them(linear: LinearModel, fails: bool) -> None:
    async with loaded(linear.folder, max_batch_size=256) as model, ends(model) as both:
        await both.connect(arena_bytes=1 << 22)
        held = hold(model)
        calls = [asyncio.ensure_future(both.model.decode(latents(200, seed=k), False, None)) for k in range(8)]
        await asyncio.to_thread(held.begun.wait, SOON_S)
        await until(lambda: model.batchers["decoder"].rows_waiting > 1000)  # type: ignore[attr-defined]
        assert both.arena.taken == 8
        for each in calls[:6]:  # one runs, five wait
            each.cancel()
        await asyncio.gather(*calls[:6], return_exceptions=True)
        await until(lambda: model.batchers["decoder"].rows_waiting == 400)  # type: ignore[attr-defined]
        await until(lambda: both.arena.taken == 2)
        held.fails = fails
        held.go.set()
        kinds = [type(each) for each in await asyncio.gather(*calls, return_exceptions=True)]
        calls.clear()  # and their results
        await nothing_is_left(both)
        assert kinds[:6] == [asyncio.CancelledError] * 6
        images = await both.model.decode(latents(3), True, None)
    np.testing.assert_allclose(images, linear.decode(latents(3)), atol=1e-6)


# ---- the catalog ----


async def test_who_changes_the_catalog_can_wait_until_it_is_followed(linear: LinearModel) -> None:
    async with connected(linear.folder) as both:
        for version in (1, None) * 10:
            both.there.set_label("linear", "stable", version)
            await both.back.followed()
            assert both.here.labels("linear").get("stable") == version


async def test_a_front_end_that_does_not_follow_is_waited_for_in_vain_and_not_for_long(
    linear: LinearModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(back, "PATIENCE_S", 0.05)
    async with connected(linear.folder) as both:
        sock = both.socket()
        sock.sendall(records.said(records.HELLO, {"version": records.VERSION, "arena": 0}))
        await until(lambda: both.there.get()._users == 2)
        both.there.set_label("linear", "stable", 1)
        await asyncio.wait_for(both.back.followed(), SOON_S)
        assert both.here.labels("linear") == {"stable": 1}, "the others are"
        monkeypatch.setattr(back, "PATIENCE_S", 2 * SOON_S)
        waiting = asyncio.ensure_future(both.back.followed())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        sock.close()
        await asyncio.wait_for(waiting, SOON_S)


async def test_the_catalog_is_the_engines(linear: LinearModel) -> None:
    async with connected(linear.folder) as both:
        here, there = both.here.get(), both.there.get()
        assert here.manifest == there.manifest
        for name in ("digest", "limits", "provider", "precision", "has_parameters", "has_prior", "up"):
            assert getattr(here, name) == getattr(there, name), name
        both.there.set_label("linear", "stable", 1)
        both.there.refuse("linear", 2, Refusal("files: no", (), 0.0))
        both.there.set_unasked("linear", {1})
        await until(lambda: both.here.unasked("linear") == {1})
        assert both.here.get(label="stable").manifest.version == 1
        assert both.here.refusals("linear")[2].reason == "files: no"
        both.there.set_label("linear", "stable", None)
        both.there.accept("linear", 2)
        both.there.set_unasked("linear", set())
        await until(lambda: not both.here.unasked("linear"))
        assert not both.here.labels("linear")
        assert not both.here.refused


async def test_a_model_whose_engine_is_lost_is_not_up_here_either(linear: LinearModel) -> None:
    seen: list[bool] = []
    async with loaded(linear.folder) as model, ends(model) as both:
        await both.connect(changed=lambda: seen.append(both.here.get().up))
        batcher: Any = model.batchers["decoder"]
        batcher._set_down(0)
        both.back.changed()
        await until(lambda: not both.model.up)
        assert not both.model.works_on(0)
        with pytest.raises(EngineFailed):
            await both.model.decode(latents(1), False, None)
        batcher._down.clear()
        both.back.changed()
        await until(lambda: both.model.up)
    assert seen == [True, False, True, False]  # at the end, it has gone


async def test_calls_go_on_with_what_they_began_with_while_another_takes_its_place(tmp_path: Path) -> None:
    old, new = linear_model.write(tmp_path), linear_model.write(tmp_path, version=2)
    z = latents(3)
    async with loaded(old.folder) as first, loaded(new.folder) as second, ends(first) as both:
        await both.connect()
        both.there.set_label("linear", "stable", 1)
        with both.model.used() as begun:
            both.there.put(second)
            both.there.set_label("linear", "stable", 2)
            both.there.remove("linear", 1)
            retired = asyncio.ensure_future(first.retire(None))
            await until(lambda: {*both.here.versions("linear")} == {2})
            np.testing.assert_allclose(await begun.decode(z, True, None), old.decode(z), atol=1e-6)
            np.testing.assert_allclose(await both.model.decode(z, True, None), new.decode(z), atol=1e-6)
            assert not retired.done()
        assert await asyncio.wait_for(retired, SOON_S)
        with pytest.raises(Unloaded):
            await begun.decode(z, True, None)


async def test_who_is_told_too_late_that_a_model_has_gone_may_ask_again(linear: LinearModel) -> None:
    async with loaded(linear.folder) as model, ends(model) as both:
        await both.connect()
        with both.model.used() as begun:
            both.there.remove("linear", 1)
            assert not await model.retire(0.0)
            with pytest.raises(Unloaded):
                await begun.decode(latents(1), True, None)
        await until(lambda: not model._users)


# ---- questions ----


async def test_questions_are_answered(linear: LinearModel) -> None:
    async def double(body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"n": 2 * body["n"]}

    def fail(body: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("cannot")

    on_ask = {"double": double, "echo": lambda body: body, "fail": fail}
    async with loaded(linear.folder) as model, ends(model, on_ask=on_ask) as both:
        remote = await both.connect()
        answers = await asyncio.gather(*[remote.ask("double", {"n": n}) for n in range(5)])
        assert answers == [{"n": 2 * n} for n in range(5)]
        assert await remote.ask("echo", {"ü": [1, None]}) == {"ü": [1, None]}
        for kind in ("fail", "unknown"):
            with pytest.raises(RuntimeError, match=r"^in the engine process: .*(cannot|unknown)"):
                await remote.ask(kind, {})
        assert (await both.model.decode(latents(1), False, None)).shape == (1, 12, 10, 1)


def test_a_front_end_needs_no_onnxruntime() -> None:
    assert not loaded_by("import serving.handover") & {"onnxruntime", "prometheus_client", "PIL"}
    assert "onnxruntime" not in loaded_by("import serving.processes.frontend_process")
