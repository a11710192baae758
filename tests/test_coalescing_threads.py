"""Calls of one `Client` from several threads go together while others are under way, and each is answered as if it were
alone."""

from __future__ import annotations

import _thread
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import grpc
import numpy as np
import pytest
from held_service import PATIENCE_S, Held, held
from test_metrics import scrape

from latentry import Client, LatentryError
from latentry.coalescing import Coalescer
from serving.server import Service

Z = np.random.default_rng(5).normal(size=(64, 5)).astype(np.float32)
IMAGES = np.random.default_rng(6).integers(0, 256, (20, 12, 10, 1), np.uint8)
CANCELLED, LATE = grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED

Call = Callable[[], Any]


@pytest.fixture
def gate(linear_service: Service) -> Iterator[Held]:
    with held(linear_service.port) as servicer:
        yield servicer


@pytest.fixture
def client(gate: Held) -> Iterator[Client]:
    with Client(f"localhost:{gate.port}") as client:
        client.info()
        yield client


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


@pytest.fixture
def alone(linear_service: Service) -> Iterator[Client]:
    with Client(f"localhost:{linear_service.port}", coalesce=False) as client:
        yield client


def until(true: Callable[[], bool]) -> None:
    """Wait for what happens soon."""
    ends = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.002)


def gathering(client: Client) -> int:
    """Calls that wait for company."""
    coalescer = client._coalescer
    assert isinstance(coalescer, Coalescer)
    with coalescer._lock:
        return sum(len(lane.waiting) for lane in coalescer._lanes.values())


def behind_two(
    threads: ThreadPoolExecutor, client: Client, gate: Held, calls: list[Call], first: Call | None = None
) -> tuple[list[Future[Any]], list[Future[Any]]]:
    """Start calls that all gather behind two others; both kinds, under way."""
    ahead = []
    for _ in range(2):
        ahead.append(threads.submit(first or (lambda: client.sample(1, seed=1))))
        gate.wait(1)
    waiting = []
    for at, call in enumerate(calls):
        waiting.append(threads.submit(call))
        until(lambda: gathering(client) == at + 1)  # noqa: B023 - called at once
    return ahead, waiting


def results(futures: list[Future[Any]]) -> list[Any]:
    """What the calls returned or raised."""
    wait(futures, timeout=PATIENCE_S)
    return [each.exception() or each.result() for each in futures]


def test_what_gathers_is_one_request(threads: ThreadPoolExecutor, client: Client, gate: Held, alone: Client) -> None:
    calls: list[Call] = [lambda k=k: client.sample(1 + k % 2, seed=k, first_index=3 * k) for k in range(12)]  # type: ignore[misc]
    ahead, waiting = behind_two(threads, client, gate, calls)
    gate.gate.set()
    made = results(waiting)
    assert [each.seed for each in results(ahead)] == [1, 1]
    assert [sum(span.count for span in each.spans) for each in gate.asked] == [0, 0, 18]
    for k, pictures in enumerate(made):
        expected = alone.sample(1 + k % 2, seed=k, first_index=3 * k)
        assert (pictures.seed, pictures.model) == (k, expected.model)
        assert pictures.latents.tobytes() == expected.latents.tobytes()
        assert np.abs(pictures.images.astype(int) - expected.images).max() <= 1


def test_each_call_hears_of_its_own_mistake(threads: ThreadPoolExecutor, client: Client, gate: Held) -> None:
    bad = Z[:2].copy()
    bad[1, 3] = np.inf
    calls: list[Call] = [lambda: client.decode(Z[:1]), lambda: client.decode(bad), lambda: client.decode(Z[1:3])]
    ahead, waiting = behind_two(threads, client, gate, calls, lambda: client.decode(Z[:1]))
    gate.gate.set()
    fine, wrong, other = results(waiting)
    assert (len(fine.images), len(other.images)) == (1, 2)
    assert "latents.data: got inf at [1, 3]" in wrong.message
    assert len(gate.asked) == 2 + 1 + 3
    results(ahead)


def test_text_that_no_message_holds_is_the_fault_of_one(
    threads: ThreadPoolExecutor, client: Client, gate: Held
) -> None:
    names = ["boot", "\ud800", "bag"]
    calls: list[Call] = [lambda name=name: client.sample(1, classes=name) for name in names]  # type: ignore[misc]
    ahead, waiting = behind_two(threads, client, gate, calls, lambda: client.sample(1, classes="boot"))
    gate.gate.set()
    assert [type(each) for each in results(waiting)] == [LatentryError, UnicodeEncodeError, LatentryError]
    results(ahead)


def test_each_call_keeps_its_own_deadline(threads: ThreadPoolExecutor, client: Client, gate: Held) -> None:
    def hasty() -> Any:
        client.timeout_s = 1.0
        return client.sample(1, seed=3)

    def patient() -> Any:
        client.timeout_s = 60.0
        return client.sample(1, seed=4)

    ahead, waiting = behind_two(threads, client, gate, [hasty, patient])
    with pytest.raises(LatentryError) as caught:
        waiting[0].result(PATIENCE_S)
    assert caught.value.code is LATE
    gate.gate.set()
    assert results(waiting)[1].seed == 4
    assert [each.seed for each in results(ahead)] == [1, 1]
    assert len(gate.asked) == 3


def test_calls_that_are_late_are_not_sent(threads: ThreadPoolExecutor, client: Client, gate: Held) -> None:
    def hasty() -> Any:
        client.timeout_s = 1.0
        return client.sample(1, seed=3)

    ahead, waiting = behind_two(threads, client, gate, [hasty] * 3)
    assert [each.code for each in results(waiting)] == [LATE] * 3
    assert not gathering(client), "nor kept"
    gate.gate.set()
    assert [each.seed for each in results(ahead)] == [1, 1]
    assert len(gate.asked) == 2


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_waits_for_the_main_thread_is_sent_by_another(
    threads: ThreadPoolExecutor, client: Client, gate: Held, interrupted: bool
) -> None:
    """Python interrupts the main thread alone, at any moment."""

    def follow() -> list[Future[Any]]:
        gate.wait(1)  # the main thread's
        waiting = [threads.submit(client.sample, 1, seed=seed) for seed in (3, 4)]
        until(lambda: gathering(client) == len(waiting))
        if interrupted:
            _thread.interrupt_main()
        else:
            gate.gate.set()
        return waiting

    ahead = threads.submit(client.sample, 1, seed=1)
    gate.wait(1)
    following = threads.submit(follow)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            client.sample(1, seed=2)
    else:
        assert client.sample(1, seed=2).seed == 2
    waiting = following.result(PATIENCE_S)
    gate.wait(1)
    gate.gate.set()
    assert [each.seed for each in results([ahead, *waiting])] == [1, 3, 4]


def test_closing_the_client_fails_what_waits_and_what_travels(
    threads: ThreadPoolExecutor, client: Client, gate: Held
) -> None:
    ahead, waiting = behind_two(threads, client, gate, [lambda: client.sample(1, seed=2)] * 5)
    client.close()
    assert {each.code for each in results(ahead + waiting)} == {CANCELLED}
    gate.gate.set()
    assert client.sample(1, seed=9).seed == 9


def test_many_threads_get_what_they_asked_for(linear_service: Service, alone: Client) -> None:
    expected = alone.sample(64 * 6, seed=3)
    model = {"model": "linear", "version": "1", "code": "OK"}
    before = scrape(linear_service)("latentry_requests_total", rpc="Sample", **model)
    made: dict[int, Any] = {}
    with Client(f"localhost:{linear_service.port}") as client:

        def work(k: int) -> None:
            for at in range(k, 64 * 6, 64):
                made[at] = client.sample(1, seed=3, first_index=at)

        workers = [threading.Thread(target=work, args=(k,)) for k in range(64)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE_S)
    assert scrape(linear_service)("latentry_requests_total", rpc="Sample", **model) - before < 64 * 6 / 2
    for at in range(64 * 6):
        assert made[at].latents.tobytes() == expected.latents[at].tobytes()
        assert np.abs(made[at].images[0].astype(int) - expected.images[at]).max() <= 1


def test_another_process_waits_for_nothing_that_its_parent_sent(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = client._coalescing()
    assert client._coalescing() is ours
    child = os.getpid() + 1
    monkeypatch.setattr("os.getpid", lambda: child)
    assert client._coalescing() is not ours


def test_a_client_is_closed_again_and_again_while_threads_call(linear_service: Service) -> None:
    """gRPC's thread sends what gathered, and `close` waits for gRPC's thread."""
    over = threading.Event()
    others: list[BaseException] = []

    def call(client: Client) -> None:
        while not over.is_set():
            try:
                client.decode(Z[:1])
            except LatentryError as error:
                if error.code is not CANCELLED:
                    others.append(error)

    with Client(f"localhost:{linear_service.port}", timeout_s=20) as client:
        callers = [threading.Thread(target=call, args=(client,), daemon=True) for _ in range(16)]
        for each in callers:
            each.start()
        for number in range(60):
            time.sleep(0.001 * (number % 20))
            closing = threading.Thread(target=client.close, daemon=True)
            closing.start()
            closing.join(PATIENCE_S)
            assert not closing.is_alive(), "it is closed"
        over.set()
        for each in callers:
            each.join(PATIENCE_S)
            assert not each.is_alive(), "its call has ended"
        assert not others
        assert client.decode(Z[:3]).images.shape[0] == 3
