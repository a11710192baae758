"""The batcher with a runner whose time the test pulls: no clock, no sleeping."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from serving.batcher import Batcher
from serving.batches import Room, Run
from serving.errors import DeadlinePassed, EngineFailed, QueueFull, Unloaded
from serving.pool import Pool

OUT = frozenset({"double"})


class Puppet:
    """An engine that blocks until the test lets it go, and an observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.error: Exception | None = None
        self.restart_errors: list[Exception] = []
        self.restarts = 0
        self.asked: list[frozenset[str]] = []
        self.seen: list[tuple[int, int]] = []
        self.ups: list[tuple[int, bool]] = []
        self.failures: list[int] = []
        self._permits = threading.Semaphore(0)
        self._began = threading.Semaphore(0)

    # ---- the engine ----

    def run(self, rows: np.ndarray[Any, Any], outputs: frozenset[str]) -> dict[str, Any]:
        self.batches.append([float(v) for v in rows[:, 0]])
        self.asked.append(outputs)
        self._began.release()
        assert self._permits.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        return {"double": rows * 2, "triple": rows * 3}

    def bucket(self, rows: int) -> int:
        return rows

    def restart(self) -> None:
        self.restarts += 1
        if self.restart_errors:
            raise self.restart_errors.pop()

    # ---- the test ----

    def let(self, batches: int = 1) -> None:
        for _ in range(batches):
            self._permits.release()

    async def began(self) -> None:
        assert await asyncio.to_thread(self._began.acquire, timeout=10)

    # ---- the observer ----

    def ran(self, run: Run, queue_s: Sequence[float]) -> None:
        assert run.seconds >= 0
        self.seen.append((run.rows, len(queue_s)))

    def failed(self, device: int) -> None:
        self.failures.append(device)

    def up(self, device: int, up: bool) -> None:
        self.ups.append((device, up))


class Nonsense(Puppet):
    """An engine that returns something else."""

    def __init__(self, results: Any) -> None:
        super().__init__()
        self._results = results

    def run(self, rows: np.ndarray[Any, Any], outputs: frozenset[str]) -> Any:
        return self._results


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
async def pool(puppet: Puppet) -> AsyncIterator[Pool]:
    made = Pool(1)
    yield made
    puppet.let(100)
    await asyncio.to_thread(made.close)


@pytest.fixture
def batcher(puppet: Puppet, pool: Pool) -> Batcher:
    return make(puppet, pool)


def make(
    puppet: Puppet, pool: Pool, *others: Puppet, max_batch: int = 4, max_waiting: int = 20, **more: Any
) -> Batcher:
    rooms = more.pop("rooms", [Room(max_waiting)])
    return Batcher([puppet, *others], pool, puppet, rooms=rooms, max_batch=max_batch, **more)


def rows(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)[:, None]


def submit(batcher: Batcher, *values: float, **kwargs: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(batcher.submit(rows(*values), kwargs.pop("outputs", OUT), **kwargs))


async def values(task: asyncio.Task[Any]) -> list[float]:
    return [float(v) for v in (await asyncio.wait_for(task, 10))["double"][:, 0]]


async def test_an_idle_device_runs_at_once_what_one_turn_of_the_loop_brought(batcher: Batcher, puppet: Puppet) -> None:
    tasks = [submit(batcher, 1), submit(batcher, 2), submit(batcher, 3)]
    puppet.let()
    assert [await values(task) for task in tasks] == [[2], [4], [6]]
    assert puppet.batches == [[1, 2, 3]]
    assert puppet.seen == [(3, 3)]


async def test_calls_gather_while_the_device_is_busy(batcher: Batcher, puppet: Puppet) -> None:
    first = submit(batcher, 1)
    await puppet.began()
    rest = [submit(batcher, float(v)) for v in range(2, 8)]
    await asyncio.sleep(0)
    assert batcher.rows_waiting == 6
    puppet.let(3)
    assert [await values(task) for task in [first, *rest]] == [[2 * v] for v in range(1, 8)]
    assert puppet.batches == [[1], [2, 3, 4, 5], [6, 7]]
    assert batcher.rows_waiting == 0


async def test_a_large_call_is_split_and_small_ones_are_not_starved(batcher: Batcher, puppet: Puppet) -> None:
    large = submit(batcher, *range(10))
    await puppet.began()
    small = submit(batcher, 100)
    await asyncio.sleep(0)
    puppet.let(3)
    assert await values(large) == [2.0 * v for v in range(10)]
    assert await values(small) == [200]
    assert puppet.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [100, 8, 9]]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(batcher: Batcher, puppet: Puppet) -> None:
    running = submit(batcher, 1)
    await puppet.began()
    waiting = submit(batcher, *range(20))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="20 items are waiting of at most 20") as caught:
        await batcher.submit(rows(1), OUT)
    assert caught.value.retry_after_s > 0
    puppet.let(6)
    assert await values(running) == [2]
    assert len(await values(waiting)) == 20


async def test_a_cancelled_call_does_not_run(batcher: Batcher, puppet: Puppet) -> None:
    first = submit(batcher, 1)
    await puppet.began()
    doomed, kept = submit(batcher, 2), submit(batcher, 3)
    await asyncio.sleep(0)
    doomed.cancel()
    puppet.let(2)
    assert await values(first) == [2]
    assert await values(kept) == [6]
    assert puppet.batches == [[1], [3]]
    assert batcher.rows_waiting == 0


async def test_a_call_past_its_deadline_does_not_run(batcher: Batcher, puppet: Puppet) -> None:
    first = submit(batcher, 1)
    await puppet.began()
    now = asyncio.get_running_loop().time()
    late, kept = submit(batcher, 2, deadline=now - 1), submit(batcher, 3, deadline=now + 100)
    await asyncio.sleep(0)
    puppet.let(2)
    assert await values(first) == [2]
    assert await values(kept) == [6]
    with pytest.raises(DeadlinePassed):
        await late
    assert puppet.batches == [[1], [3]]


async def test_a_failed_batch_fails_its_own_calls_only(batcher: Batcher, puppet: Puppet) -> None:
    puppet.error = RuntimeError("device lost")
    doomed = [submit(batcher, 1), submit(batcher, *range(5))]
    puppet.let()
    for task in doomed:
        with pytest.raises(EngineFailed):
            await task
    puppet.error = None
    puppet.let()
    assert await values(submit(batcher, 7)) == [14]
    assert puppet.batches[-1] == [7], "what was left of a failed call must not run"


@pytest.mark.parametrize("results", [None, {}, {"double": np.float32(1)}, {"double": np.zeros((7, 1))}])
async def test_an_engine_that_returns_nonsense_fails_its_calls_and_loses_none(
    pool: Pool, puppet: Puppet, results: Any
) -> None:
    broken = make(Nonsense(results), pool)
    tasks = [submit(broken, 1), submit(broken, 2, 3)]
    for task in tasks:
        with pytest.raises(EngineFailed):
            await asyncio.wait_for(task, 10)
    whole = make(puppet, pool)
    puppet.let()
    assert await values(submit(whole, 7)) == [14], "the device goes on"


async def test_rows_that_cannot_be_gathered_fail_their_calls_only(batcher: Batcher, puppet: Puppet) -> None:
    wrong = asyncio.create_task(batcher.submit(np.zeros((2, 3), np.float32), OUT))
    right = submit(batcher, 1)
    for task in (wrong, right):
        with pytest.raises(ValueError, match="dimension"):
            await asyncio.wait_for(task, 10)
    puppet.let()
    assert await values(submit(batcher, 7)) == [14]


async def test_cancelled_calls_take_nobodys_place_in_the_queue(batcher: Batcher, puppet: Puppet) -> None:
    first = submit(batcher, 1)
    await puppet.began()
    doomed = [submit(batcher, *range(10)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in doomed:
        task.cancel()
    await asyncio.sleep(0)
    kept = submit(batcher, 5)
    await asyncio.sleep(0)
    assert batcher.rows_waiting == 1
    puppet.let(2)
    assert [await values(first), await values(kept)] == [[2], [10]]


async def test_each_call_gets_the_outputs_it_asked_for(batcher: Batcher, puppet: Puppet) -> None:
    both = submit(batcher, 1, outputs=frozenset({"triple"}))
    one = submit(batcher, 2)
    puppet.let()
    assert set(await both) == {"triple"}
    assert set(await one) == {"double"}
    assert puppet.asked == [frozenset({"double", "triple"})]


async def test_two_queues_take_turns_on_one_device(puppet: Puppet, pool: Pool) -> None:
    a, b = (make(puppet, pool, max_batch=2) for _ in range(2))
    tasks = [submit(a, 1, 2, 3, 4, 5), submit(b, 10, 20, 30)]
    puppet.let(5)
    for task in tasks:
        await task
    assert puppet.batches == [[1, 2], [10, 20], [3, 4], [30], [5]]


async def test_any_mix_of_sizes_gives_each_call_its_own_rows(pool: Pool, puppet: Puppet) -> None:
    puppet.let(10_000)
    batcher = make(puppet, pool, max_batch=7, max_waiting=10_000)
    rng = np.random.default_rng(0)
    calls = [rng.normal(size=int(n)).astype(np.float32) for n in rng.integers(1, 40, 200)]
    replies = await asyncio.gather(*(batcher.submit(c[:, None], OUT) for c in calls))
    for call, reply in zip(calls, replies, strict=True):
        assert reply["double"][:, 0].tolist() == (call * 2).tolist()
    assert max(len(batch) for batch in puppet.batches) == 7
    assert sum(len(batch) for batch in puppet.batches) == sum(len(c) for c in calls)


async def test_interactive_calls_go_before_background_ones(batcher: Batcher, puppet: Puppet) -> None:
    first = submit(batcher, 1)
    await puppet.began()
    background = submit(batcher, 10, 11, 12, 13, background=True)
    interactive = submit(batcher, 2, 3)
    await asyncio.sleep(0)
    puppet.let(3)
    for task in (first, background, interactive):
        await task
    assert puppet.batches == [[1], [2, 3, 10, 11], [12, 13]], "background calls fill what room is left"


async def test_background_calls_of_another_queue_wait_too(puppet: Puppet, pool: Pool) -> None:
    a, b = make(puppet, pool), make(puppet, pool)
    first = submit(a, 1)
    await puppet.began()
    background, interactive = submit(a, 10, background=True), submit(b, 2)
    await asyncio.sleep(0)
    puppet.let(3)
    for task in (first, background, interactive):
        await task
    assert puppet.batches == [[1], [2], [10]]


async def test_background_calls_are_not_starved(puppet: Puppet, pool: Pool) -> None:
    batcher = make(puppet, pool, max_batch=1, max_waiting=100)
    puppet.let(100)
    background = submit(batcher, 99, background=True)
    interactive = [submit(batcher, v) for v in range(30)]
    await asyncio.gather(background, *interactive)
    assert puppet.batches.index([99]) < 9


async def test_a_queue_may_wait_a_little_for_more(puppet: Puppet, pool: Pool) -> None:
    batcher = make(puppet, pool, max_delay_s=0.2)
    puppet.let(10)
    first = submit(batcher, 1)
    await asyncio.sleep(0.01)
    second = submit(batcher, 2)
    assert [await values(first), await values(second)] == [[2], [4]]
    assert puppet.batches == [[1, 2]]


async def test_a_full_batch_does_not_wait_for_more(puppet: Puppet, pool: Pool) -> None:
    batcher = make(puppet, pool, max_delay_s=1000)
    puppet.let(10)
    assert await values(submit(batcher, 1, 2, 3, 4)) == [2, 4, 6, 8]


async def test_a_model_has_its_share_of_the_queue_only(puppet: Puppet, pool: Pool) -> None:
    all_models = Room(10)
    a, b = (make(puppet, pool, rooms=[all_models, Room(6)]) for _ in range(2))
    first = submit(a, 1)
    await puppet.began()
    waiting = [submit(a, *range(6))]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="6 items are waiting of at most 6"):
        await a.submit(rows(1), OUT)
    waiting.append(submit(b, *range(4)))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="10 items are waiting of at most 10"):
        await b.submit(rows(1), OUT)
    puppet.let(10)
    await asyncio.gather(first, *waiting)
    assert (all_models.rows, a.rows_waiting, b.rows_waiting) == (0, 0, 0)


async def test_a_call_that_cannot_be_ready_in_time_does_not_run(batcher: Batcher, puppet: Puppet) -> None:
    """A run has never taken less than 0.05 s, so two more batches cannot be done in 0.08 s."""
    slow = submit(batcher, 1)
    await puppet.began()
    await asyncio.sleep(0.05)
    now = asyncio.get_running_loop().time()
    hopeless, hopeful = submit(batcher, *range(8), deadline=now + 0.08), submit(batcher, 7, deadline=now + 100)
    await asyncio.sleep(0)
    puppet.let(10)
    assert await values(slow) == [2]
    with pytest.raises(DeadlinePassed):
        await hopeless
    assert await values(hopeful) == [14]
    assert puppet.batches == [[1], [7]]


async def test_two_devices_share_the_work(puppet: Puppet) -> None:
    pool, other = Pool(2), Puppet()
    batcher = make(puppet, pool, other)
    tasks = [submit(batcher, *range(4)), submit(batcher, *range(4, 8))]
    await puppet.began()
    await other.began()
    puppet.let()
    other.let()
    assert [await values(task) for task in tasks] == [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert (puppet.batches, other.batches) == ([[0, 1, 2, 3]], [[4, 5, 6, 7]])
    pool.close()


async def test_an_engine_that_failed_is_restarted_at_once(batcher: Batcher, puppet: Puppet) -> None:
    puppet.error = RuntimeError("out of memory")
    puppet.let(2)
    with pytest.raises(EngineFailed):
        await submit(batcher, 1)
    puppet.error = None
    assert await values(submit(batcher, 2)) == [4]
    assert (puppet.restarts, puppet.failures, puppet.ups) == (1, [0], [])


async def test_an_engine_that_cannot_be_restarted_is_tried_again_and_its_calls_are_told(
    batcher: Batcher, puppet: Puppet
) -> None:
    puppet.error, puppet.restart_errors = RuntimeError("device lost"), [RuntimeError("still lost")]
    running = submit(batcher, 1)
    await puppet.began()
    waiting = submit(batcher, 2)
    await asyncio.sleep(0)
    puppet.let(10)
    for task in (running, waiting):
        with pytest.raises(EngineFailed):
            await task
    with pytest.raises(EngineFailed):
        await batcher.submit(rows(3), OUT)
    assert (batcher.rows_waiting, batcher.up) == (0, False)
    puppet.error = None
    while not batcher.up:  # noqa: ASYNC110 - the batcher has no event for tests
        await asyncio.sleep(0.05)
    assert puppet.ups == [(0, False), (0, True)]
    assert await values(submit(batcher, 7)) == [14]


async def test_a_device_whose_engine_is_lost_leaves_the_work_to_the_others(puppet: Puppet) -> None:
    pool, lost = Pool(2), Puppet()
    lost.error, lost.restart_errors = RuntimeError("lost"), [RuntimeError("lost")] * 100
    lost.let(100)
    puppet.let(100)
    batcher = make(puppet, pool, lost)
    while (1, False) not in puppet.ups:
        await asyncio.gather(*(submit(batcher, v, v, v, v) for v in range(2)), return_exceptions=True)
    replies = [await values(submit(batcher, v)) for v in range(20)]
    assert replies == [[2.0 * v] for v in range(20)]
    assert batcher.up
    pool.close()


async def test_calls_are_told_of_each_of_their_batches(batcher: Batcher, puppet: Puppet) -> None:
    told: list[tuple[float, Run]] = []
    puppet.let(10)
    await batcher.submit(rows(*range(6)), OUT, tell=lambda queue_s, run: told.append((queue_s, run)))
    assert [run.rows for _, run in told] == [4, 2]
    assert all(queue_s >= 0 and run.seconds >= 0 for queue_s, run in told)


async def test_closing_fails_what_waits_and_refuses_what_comes(batcher: Batcher, puppet: Puppet) -> None:
    running = submit(batcher, 1)
    await puppet.began()
    waiting = submit(batcher, 2)
    await asyncio.sleep(0)
    batcher.close()
    puppet.let()
    with pytest.raises(Unloaded):
        await waiting
    with pytest.raises(Unloaded):
        await batcher.submit(rows(3), OUT)
    assert await values(running) == [2]
    assert batcher.rows_waiting == 0


async def test_refusing_when_full_takes_microseconds(puppet: Puppet, pool: Pool) -> None:
    """However long the queue is; the bound here is generous, for slow machines."""
    many = make(puppet, pool, max_batch=1000, max_waiting=20_000)
    waiting = [submit(many, 1) for _ in range(1_000)]
    await puppet.began()
    waiting += [submit(many, 1) for _ in range(20_000)]
    await asyncio.sleep(0)
    started = time.perf_counter()
    for _ in range(1000):
        with pytest.raises(QueueFull):
            await many.submit(rows(1), OUT)
    assert (time.perf_counter() - started) / 1000 < 0.001
    puppet.let(100)
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_background_calls_of_either_of_two_busy_queues_are_not_starved(puppet: Puppet, pool: Pool) -> None:
    """An encoder's and a decoder's: turns that alternate must not meet the fair turn always on the same side."""
    puppet.let(10_000)
    queues = [make(puppet, pool, max_batch=1, max_waiting=1000) for _ in range(2)]
    background = [submit(queue, 1000 + i, background=True) for i, queue in enumerate(queues)]
    interactive = [submit(queue, v) for v in range(100) for queue in queues]
    await asyncio.gather(*background, *interactive)
    assert all(puppet.batches.index([1000 + i]) < 40 for i in range(2))


async def test_a_device_that_does_something_else_leaves_calls_to_the_others(puppet: Puppet) -> None:
    pool, other = Pool(2), Puppet()
    batcher = make(puppet, pool, other)
    other.let(10)
    begun, free = threading.Event(), threading.Event()

    def warm() -> str:
        begun.set()
        assert free.wait(10)
        return "warm"

    warming = asyncio.create_task(pool.call(0, warm))
    assert await asyncio.to_thread(begun.wait, 10)
    replies = [await values(submit(batcher, v)) for v in range(5)]
    assert replies == [[2.0 * v] for v in range(5)]
    assert (puppet.batches, len(other.batches)) == ([], 5)
    free.set()
    assert await warming == "warm"
    pool.close()


async def test_what_is_raised_between_batches_is_told_and_the_device_goes_on(batcher: Batcher, puppet: Puppet) -> None:
    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await batcher._pool.call(0, fail)
    puppet.let()
    assert await values(submit(batcher, 1)) == [2]


async def test_the_calls_of_a_failed_batch_do_not_wait_for_the_restart(batcher: Batcher, puppet: Puppet) -> None:
    restarting, go_on = threading.Event(), threading.Event()

    def restart() -> None:
        restarting.set()
        assert go_on.wait(10)

    puppet.restart = restart  # type: ignore[method-assign]
    puppet.error = RuntimeError("device lost")
    puppet.let()
    with pytest.raises(EngineFailed):
        await submit(batcher, 1)
    assert await asyncio.to_thread(restarting.wait, 10)
    puppet.error = None
    waiting = submit(batcher, 2)
    await asyncio.sleep(0)
    assert batcher.rows_waiting == 1, "what comes meanwhile waits for the restart"
    go_on.set()
    puppet.let()
    assert await values(waiting) == [4]


async def test_cancelled_calls_leave_nothing_behind(batcher: Batcher, puppet: Puppet) -> None:
    running = submit(batcher, 0)
    await puppet.began()
    arrays = [np.zeros((1, 1000), np.float32) for _ in range(10)]
    gone = [weakref.ref(array) for array in arrays]
    tasks = [asyncio.create_task(batcher.submit(array, OUT)) for array in arrays]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    del arrays, tasks, task
    gc.collect()
    assert not any(each() is not None for each in gone)
    puppet.let()
    assert await values(running) == [0]


async def test_a_cancelled_call_does_not_shorten_the_wait_for_more(puppet: Puppet, pool: Pool) -> None:
    batcher = make(puppet, pool, max_delay_s=0.3)
    puppet.let(10)
    cancelled = submit(batcher, 1)
    await asyncio.sleep(0.25)
    cancelled.cancel()
    started = asyncio.get_running_loop().time()
    assert await values(submit(batcher, 2)) == [4]
    assert asyncio.get_running_loop().time() - started > 0.25


async def test_what_waits_behind_a_batch_that_cannot_be_gathered_runs(puppet: Puppet, pool: Pool) -> None:
    batcher = make(puppet, pool, max_batch=4)
    puppet.let(10)
    wrong = asyncio.create_task(batcher.submit(np.zeros((2, 3), np.float32), OUT))
    right = [submit(batcher, 1, 2), submit(batcher, 3, 4)]
    with pytest.raises(ValueError, match="dimension"):
        await asyncio.wait_for(wrong, 10)
    assert await values(right[1]) == [6, 8]
    with pytest.raises(ValueError, match="dimension"):
        await right[0]


async def test_a_call_of_no_rows_is_refused(batcher: Batcher) -> None:
    with pytest.raises(ValueError, match="rows: got none"):
        await batcher.submit(rows(), OUT)


# ---- a call that is alone ----


class Quick:
    """An engine that answers at once, and remembers in which threads."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def run(self, rows: np.ndarray[Any, Any], outputs: frozenset[str]) -> dict[str, Any]:
        self.threads.append(threading.get_ident())
        return {"double": rows * 2}

    def bucket(self, rows: int) -> int:
        return rows

    def restart(self) -> None:
        raise AssertionError("it has not failed")


def quick(pool: Pool, **more: Any) -> tuple[Quick, Batcher]:
    engine = Quick()
    return engine, Batcher([engine], pool, Puppet(), rooms=[Room(5000)], max_batch=more.pop("max_batch", 8))


@pytest.mark.parametrize("alone", [True, False])
async def test_a_brief_batch_is_run_in_the_loop_while_nobody_else_calls(alone: bool) -> None:
    """Once it is known to be brief."""
    pool = Pool(1, lambda: alone)
    engine, batcher = quick(pool)
    for value in range(100):
        assert (await batcher.submit(rows(value), OUT))["double"].tolist() == [[2.0 * value]]
    here = threading.get_ident()
    assert engine.threads[0] != here
    assert (engine.threads[-1] == here) is alone
    pool.close()


async def test_a_call_of_many_batches_does_not_hold_the_loop() -> None:
    pool = Pool(1, lambda: True)
    engine, batcher = quick(pool, max_batch=1)
    for value in range(100):  # they are brief, one by one
        await batcher.submit(rows(value), OUT)
    several = await batcher.submit(rows(*range(3000)), OUT)
    assert several["double"].ravel().tolist() == [2.0 * v for v in range(3000)]
    assert threading.get_ident() not in engine.threads[-3000:-1]
    pool.close()
