"""The batcher with a runner whose time the test pulls: no clock, no sleeping."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from serving.batcher import Batcher, Device
from serving.errors import DeadlinePassed, QueueFull

OUT = frozenset({"double"})


class Puppet:
    """A runner that blocks until the test lets it go, and an observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.error: Exception | None = None
        self.asked: list[frozenset[str]] = []
        self.seen: list[tuple[int, int]] = []
        self.waiting_now = 0
        self._permits = threading.Semaphore(0)
        self._began = threading.Semaphore(0)

    def __call__(self, rows: np.ndarray[Any, Any], outputs: frozenset[str]) -> dict[str, Any]:
        self.batches.append([float(v) for v in rows[:, 0]])
        self.asked.append(outputs)
        self._began.release()
        assert self._permits.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        return {"double": rows * 2, "triple": rows * 3}

    def let(self, batches: int = 1) -> None:
        for _ in range(batches):
            self._permits.release()

    async def began(self) -> None:
        assert await asyncio.to_thread(self._began.acquire, timeout=10)

    def waiting(self, rows: int) -> None:
        self.waiting_now = rows

    def ran(self, rows: int, queue_s: list[float], run_s: float) -> None:
        assert run_s >= 0
        self.seen.append((rows, len(queue_s)))


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
async def device(puppet: Puppet) -> AsyncIterator[Device]:
    made = Device()
    yield made
    puppet.let(100)
    await asyncio.to_thread(made.close)


@pytest.fixture
def batcher(puppet: Puppet, device: Device) -> Batcher:
    return Batcher(puppet, device, puppet, max_batch=4, max_waiting=20)


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
    assert puppet.waiting_now == 6
    puppet.let(3)
    assert [await values(task) for task in [first, *rest]] == [[2 * v] for v in range(1, 8)]
    assert puppet.batches == [[1], [2, 3, 4, 5], [6, 7]]
    assert puppet.waiting_now == 0


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
    assert puppet.waiting_now == 0


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
        with pytest.raises(RuntimeError, match="device lost"):
            await task
    puppet.error = None
    puppet.let()
    assert await values(submit(batcher, 7)) == [14]
    assert puppet.batches[-1] == [7], "what was left of a failed call must not run"


@pytest.mark.parametrize("results", [None, {}, {"double": np.float32(1)}, {"double": np.zeros((7, 1))}])
async def test_a_runner_that_returns_nonsense_fails_its_calls_and_loses_none(
    device: Device, puppet: Puppet, results: Any
) -> None:
    broken = Batcher(lambda rows, outputs: results, device, puppet, max_batch=4, max_waiting=20)
    tasks = [submit(broken, 1), submit(broken, 2, 3)]
    for task in tasks:
        with pytest.raises((RuntimeError, TypeError, KeyError)):
            await asyncio.wait_for(task, 10)
    whole = Batcher(puppet, device, puppet, max_batch=4, max_waiting=20)
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
    assert puppet.waiting_now == 1
    puppet.let(2)
    assert [await values(first), await values(kept)] == [[2], [10]]


async def test_each_call_gets_the_outputs_it_asked_for(batcher: Batcher, puppet: Puppet) -> None:
    both = submit(batcher, 1, outputs=frozenset({"triple"}))
    one = submit(batcher, 2)
    puppet.let()
    assert set(await both) == {"triple"}
    assert set(await one) == {"double"}
    assert puppet.asked == [frozenset({"double", "triple"})]


async def test_two_queues_take_turns_on_one_device(puppet: Puppet, device: Device) -> None:
    a, b = (Batcher(puppet, device, puppet, max_batch=2, max_waiting=20) for _ in range(2))
    tasks = [submit(a, 1, 2, 3, 4, 5), submit(b, 10, 20, 30)]
    puppet.let(5)
    for task in tasks:
        await task
    assert puppet.batches == [[1, 2], [10, 20], [3, 4], [30], [5]]


async def test_any_mix_of_sizes_gives_each_call_its_own_rows(device: Device, puppet: Puppet) -> None:
    puppet.let(10_000)
    batcher = Batcher(puppet, device, puppet, max_batch=7, max_waiting=10_000)
    rng = np.random.default_rng(0)
    calls = [rng.normal(size=int(n)).astype(np.float32) for n in rng.integers(1, 40, 200)]
    replies = await asyncio.gather(*(batcher.submit(c[:, None], OUT) for c in calls))
    for call, reply in zip(calls, replies, strict=True):
        assert reply["double"][:, 0].tolist() == (call * 2).tolist()
    assert max(len(batch) for batch in puppet.batches) == 7
    assert sum(len(batch) for batch in puppet.batches) == sum(len(c) for c in calls)
