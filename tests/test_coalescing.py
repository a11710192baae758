"""Calls of an `AsyncClient` that are made together go in one request, and each is answered as if it were alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import conditional_model
import grpc
import linear_model
import numpy as np
import pytest
from conftest import running_service, settings_for
from held_service import Held, held
from test_metrics import scrape

from latentry import AsyncClient, Client, LatentryError
from serving.server import Service

Z = np.random.default_rng(5).normal(size=(64, 5)).astype(np.float32)
IMAGES = np.random.default_rng(6).integers(0, 256, (20, 12, 10, 1), np.uint8)
CANCELLED, LATE = grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED


def requests(service: Service, rpc: str) -> float:
    """Calls of the linear model that the service has answered well."""
    value: float = scrape(service)("latentry_requests_total", rpc=rpc, model="linear", version="1", code="OK")
    return value


@asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[AsyncClient]:
    """A client that has heard of its model, so that its calls can go at once."""
    async with AsyncClient(f"localhost:{port}", **options) as client:
        await client.info()
        yield client


@pytest.fixture
def gate(linear_service: Service) -> Iterator[Held]:
    with held(linear_service.port) as servicer:
        yield servicer


@pytest.fixture
def alone(linear_service: Service) -> Iterator[Client]:
    with Client(f"localhost:{linear_service.port}", coalesce=False) as client:
        yield client


async def outcomes(calls: list[Any]) -> list[Any]:
    """What they return or raise, made in one turn of the loop."""
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_calls_that_are_made_together_are_one_request(linear_service: Service, alone: Client) -> None:
    before = requests(linear_service, "Decode")
    async with connected(linear_service.port) as client:
        made = await asyncio.gather(*(client.decode(Z[k : k + 1]) for k in range(32)))
    assert requests(linear_service, "Decode") == before + 1
    expected = alone.decode(Z[:32])
    levels = np.concatenate([each.images for each in made]).astype(int) - expected.images
    assert np.abs(levels).max() <= 1
    for k, each in enumerate(made):
        assert each.latents.tobytes() == Z[k].tobytes()
        assert each.model == expected.model
        assert 0 < each.provenance.timings.inference_s <= each.provenance.timings.total_s
        assert each.images.base is None, "memory of its own"
        each.images[:] = 0  # as that of a call alone, it can be written to


async def test_many_calls_are_two_requests_so_that_one_travels_while_the_other_is_worked_on(
    linear_service: Service,
) -> None:
    before = requests(linear_service, "Sample")
    async with connected(linear_service.port) as client:
        made = await asyncio.gather(*(client.sample(1, seed=k) for k in range(200)))
    assert [each.seed for each in made] == list(range(200))
    assert requests(linear_service, "Sample") == before + 2


async def test_unless_it_is_told_not_to(linear_service: Service) -> None:
    before = requests(linear_service, "Decode")
    async with connected(linear_service.port, coalesce=False) as client:
        await asyncio.gather(*(client.decode(Z[k : k + 1]) for k in range(6)))
    assert requests(linear_service, "Decode") == before + 6


async def test_images_of_a_seed_are_the_same_in_company(linear_service: Service, alone: Client) -> None:
    asked: list[dict[str, Any]] = [
        {"count": 1, "seed": 7, "first_index": 3},
        {"count": 3, "seed": 7, "first_index": 2},
        {"count": 2, "seed": 2**64 - 1, "first_index": 2**63 - 2},
        {"count": 1, "seed": 0},
    ]
    for options in ({}, {"truncation": 0.7, "temperature": 0.5}, {"truncation": 0.7, "truncation_mode": "clamp"}):
        before = requests(linear_service, "Sample")
        async with connected(linear_service.port) as client:
            made = await asyncio.gather(*(client.sample(**each, **options) for each in asked))
        assert requests(linear_service, "Sample") == before + 1
        for each, pictures in zip(asked, made, strict=True):
            assert pictures.seed == each["seed"]
            expected = alone.sample(**each, **options)
            assert pictures.latents.tobytes() == expected.latents.tobytes()
            assert np.abs(pictures.images.astype(int) - expected.images).max() <= 1


async def test_samples_without_a_seed_get_one_each(linear_service: Service, alone: Client) -> None:
    async with connected(linear_service.port) as client:
        made = await asyncio.gather(*(client.sample(2) for _ in range(10)))
    assert len({each.seed for each in made}) == 10
    for each in made:
        assert each.latents.tobytes() == alone.sample(2, seed=each.seed).latents.tobytes()


async def test_images_are_encoded_together_with_the_draws_of_each_seed(linear_service: Service, alone: Client) -> None:
    before = requests(linear_service, "Encode")
    async with connected(linear_service.port) as client:
        made = await asyncio.gather(
            *(client.encode(IMAGES[2 * k : 2 * k + 2], seed=k, first_index=5 * k) for k in range(5)),
            *(client.encode(IMAGES[k : k + 1]) for k in range(10)),
        )
    assert requests(linear_service, "Encode") == before + 2, "with seeds, and without"
    for k, each in enumerate(made[:5]):
        expected = alone.encode(IMAGES[2 * k : 2 * k + 2], seed=k, first_index=5 * k)
        assert each.seed == k
        for name in ("mean", "logvar", "latents"):
            np.testing.assert_allclose(getattr(each, name), getattr(expected, name), atol=1e-5)
    for k, each in enumerate(made[5:]):
        assert each.latents is None
        np.testing.assert_allclose(each.mean, alone.encode(IMAGES[k : k + 1]).mean, atol=1e-5)


async def test_only_what_is_alike_goes_together(linear_service: Service, alone: Client) -> None:
    before = requests(linear_service, "Decode"), requests(linear_service, "Encode"), requests(linear_service, "Sample")
    async with connected(linear_service.port) as client:
        calls: list[Any] = [client.decode(Z[k : k + 1], dtype="float32" if k % 2 else "uint8") for k in range(8)]
        calls += [client.encode(IMAGES[:1] / 255 if k % 2 else IMAGES[:1]) for k in range(4)]
        calls += [client.sample(1, seed=1, temperature=k % 2 + 1.0) for k in range(4)]
        made = await asyncio.gather(*calls)
    after = requests(linear_service, "Decode"), requests(linear_service, "Encode"), requests(linear_service, "Sample")
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 2, 2]
    for k, each in enumerate(made[:8]):
        assert each.images.dtype == (np.float32 if k % 2 else np.uint8)
    np.testing.assert_allclose(made[11].mean, made[8].mean, atol=1e-5)
    for each in made[12:14]:
        temperature = 2.0 if each is made[13] else 1.0
        assert each.latents.tobytes() == alone.sample(1, seed=1, temperature=temperature).latents.tobytes()


async def test_requests_are_no_larger_than_the_server_takes(serve: Any, linear_repository: Path) -> None:
    service = serve(linear_repository, max_request_items=4)
    async with connected(service.port) as client:
        made = await asyncio.gather(*(client.sample(1 + k % 2, seed=k) for k in range(10)))
        assert [len(each.images) for each in made] == [1, 2] * 5
        assert requests(service, "Sample") == 5, "of 3 images each, since 3 and 2 are more than 4"


async def test_large_calls_go_alone(linear_service: Service) -> None:
    before = requests(linear_service, "Sample")
    async with connected(linear_service.port) as client:
        made = await asyncio.gather(*(client.sample(count, seed=1) for count in (1, 100, 1, 100)))
    assert [len(each.images) for each in made] == [1, 100, 1, 100]
    assert requests(linear_service, "Sample") == before + 3


async def test_while_two_requests_are_under_way_calls_gather(gate: Held) -> None:
    async with connected(gate.port) as client:
        calls = []
        for sent in range(2):
            calls.append(asyncio.create_task(client.sample(1, seed=sent)))
            await asyncio.to_thread(gate.wait, 1)
        calls += [asyncio.create_task(client.sample(1, seed=seed)) for seed in range(2, 30)]
        await asyncio.sleep(0)
        gate.gate.set()
        made = await asyncio.gather(*calls)
    assert [len(each.spans) for each in gate.asked] == [0, 0, 28]
    assert [each.seed for each in made] == list(range(30))


async def test_each_call_hears_of_its_own_mistake(linear_service: Service) -> None:
    bad = Z[:3].copy()
    bad[2, 4] = np.nan
    async with connected(linear_service.port) as client:
        before = requests(linear_service, "Decode")
        fine, wrong, other, wide = await outcomes(
            [client.decode(Z[:2]), client.decode(bad), client.decode(Z[2:3]), client.decode(np.zeros((1, 6)))]
        )
        assert requests(linear_service, "Decode") == before + 2, "each of the three alone"
        samples = await outcomes([client.sample(1, seed=k, first_index=-k) for k in range(2)])
    assert len(fine.images) == 2
    assert len(other.images) == 1
    assert wrong.code is wide.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "latents.data: got nan at [2, 4]" in wrong.message
    assert "latents.shape: got [1, 6], wanted [N, 5]" in wide.message
    assert samples[0].seed == 0
    assert "first_index: got -1" in samples[1].message


async def test_what_is_too_much_for_a_quota_together_is_asked_for_apart(serve: Any, linear_repository: Path) -> None:
    service = serve(linear_repository, quota_items_per_s=0.001, quota_burst_items=3)
    async with connected(service.port) as client:
        await client.sample(1)
        made = await outcomes([client.sample(1, seed=k) for k in range(8)])
    refused = [each for each in made if isinstance(each, LatentryError)]
    assert len(refused) == 6, "the two that the quota still had room for were answered"
    assert {each.code for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_classes_of_each_call_go_with_it(serve: Any, tmp_path: Path) -> None:
    model = conditional_model.write(tmp_path, 4)
    service = serve(tmp_path)
    async with connected(service.port) as client:
        made = await asyncio.gather(
            client.decode(Z[:3], classes=2, dtype="float32"),
            client.decode(Z[3:5], classes=[0, 3], dtype="float32"),
            client.decode(Z[5:6], classes=1, dtype="float32"),
        )
        assert requests(service, "Decode") == 1
        classes = np.array([2, 2, 2, 0, 3, 1])
        images = np.concatenate([each.images for each in made])
        np.testing.assert_allclose(images, model.decode(Z[:6], classes), atol=1e-5)
        seen = await asyncio.gather(*(client.encode(IMAGES[k : k + 1], classes=k % 4, seed=k) for k in range(8)))
        np.testing.assert_allclose(
            np.concatenate([each.mean for each in seen]), model.encode(IMAGES[:8], np.arange(8) % 4)[0], atol=1e-5
        )
        asked: list[Any] = [0, 9, "boot", "\ud800", 3]
        drawn = await outcomes([client.sample(1, seed=1, classes=each) for each in asked])
        none, text = (await outcomes([client.sample(1), client.sample(1, classes="\ud800")]))[:2]
    assert [getattr(each, "seed", None) for each in drawn] == [1, None, None, None, 1]
    assert "classes[0]: got 9, wanted 0 to 3" in drawn[1].message
    assert "classes[0]: got 'boot'" in drawn[2].message
    assert isinstance(drawn[3], ValueError)
    assert "classes: got none" in none.message
    assert isinstance(text, ValueError)


async def test_clients_of_two_models_do_not_meet(serve: Any, tmp_path: Path) -> None:
    linear_model.write(tmp_path, "a")
    linear_model.write(tmp_path, "b", z=7)
    service = serve(tmp_path, default_model="a")
    async with connected(service.port, model="a") as a, connected(service.port, model="b") as b:
        made = await asyncio.gather(*(client.sample(1, seed=k) for k in range(5) for client in (a, b)))
    assert [(each.model.name, each.latents.shape[1]) for each in made] == [("a", 5), ("b", 7)] * 5


async def test_a_cancelled_call_leaves_and_the_others_stay(gate: Held) -> None:
    async with connected(gate.port) as client:
        calls = [asyncio.create_task(client.sample(1, seed=seed)) for seed in range(5)]
        await asyncio.to_thread(gate.wait, 1)
        calls[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[0]
        gate.gate.set()
        assert [each.seed for each in await asyncio.gather(*calls[1:])] == [1, 2, 3, 4]


async def test_a_request_that_nobody_waits_for_is_cancelled(gate: Held) -> None:
    async with connected(gate.port) as client:
        calls = [asyncio.create_task(client.sample(1, seed=seed)) for seed in range(5)]
        await asyncio.to_thread(gate.wait, 1)
        for call in calls:
            call.cancel()
        assert await asyncio.to_thread(gate.left.acquire, timeout=30)
        assert all(isinstance(each, asyncio.CancelledError) for each in await outcomes(calls))
        gate.gate.set()
        assert (await client.sample(1, seed=9)).seed == 9


async def test_each_call_keeps_its_own_deadline(gate: Held) -> None:
    async with connected(gate.port) as client:
        calls = []
        for timeout_s in (60.0, 0.4, 60.0):
            client.timeout_s = timeout_s
            calls.append(asyncio.create_task(client.sample(1, seed=1)))
            await asyncio.sleep(0)
        client.timeout_s = 0.3
        large = asyncio.create_task(client.sample(100, seed=1))
        for late in (calls[1], large):
            with pytest.raises(LatentryError) as caught:
                await late
            assert caught.value.code is LATE
        gate.gate.set()
        assert [(await calls[0]).seed, (await calls[2]).seed] == [1, 1]


async def test_one_that_never_left_is_late_too(gate: Held) -> None:
    async with connected(gate.port) as client:
        calls = []
        for sent in range(2):
            calls.append(asyncio.create_task(client.sample(1, seed=sent)))
            await asyncio.to_thread(gate.wait, 1)
        client.timeout_s = 0.2
        with pytest.raises(LatentryError) as caught:
            await client.sample(1, seed=5)
        assert caught.value.code is LATE
        gate.gate.set()
        assert [(await call).seed for call in calls] == [0, 1]
        assert len(gate.asked) == 2


async def test_closing_the_client_fails_what_waits_and_what_travels(gate: Held) -> None:
    async with connected(gate.port) as client:
        calls = []
        for sent in range(4):
            calls.append(asyncio.create_task(client.sample(1, seed=sent)))
            if sent < 2:
                await asyncio.to_thread(gate.wait, 1)
        await asyncio.sleep(0)
        await client.close()
        for call in calls:
            with pytest.raises(LatentryError) as caught:
                await call
            assert caught.value.code is CANCELLED
        gate.gate.set()
        made = await asyncio.gather(client.sample(1, seed=8), client.sample(1, seed=9))
        assert [each.seed for each in made] == [8, 9]


async def test_a_server_that_knows_no_spans_is_asked_one_by_one(gate: Held, alone: Client) -> None:
    gate.old = True
    gate.gate.set()
    async with connected(gate.port) as client:
        made = await asyncio.gather(*(client.sample(2, seed=seed) for seed in range(3)))
        seen = await asyncio.gather(*(client.encode(IMAGES[k : k + 1], seed=k) for k in range(3)))
    for k in range(3):
        assert made[k].latents.tobytes() == alone.sample(2, seed=k).latents.tobytes()
        expected: Any = alone.encode(IMAGES[k : k + 1], seed=k)
        np.testing.assert_allclose(seen[k].latents, expected.latents, atol=1e-5)  # type: ignore[arg-type]
    assert len(gate.asked) == 8


async def test_calls_wait_together_for_a_server_that_restarts(linear_repository: Path, free_port: int) -> None:
    async with AsyncClient(f"localhost:{free_port}") as client:
        with running_service(settings_for(linear_repository, port=free_port)):
            await client.sample(1)
        calls = asyncio.gather(*(client.sample(1, seed=seed) for seed in range(9)))
        await asyncio.sleep(0.1)
        with running_service(settings_for(linear_repository, port=free_port)) as service:
            assert [each.seed for each in await calls] == list(range(9))
            assert requests(service, "Sample") == 1


def test_under_another_event_loop_nothing_waits_for_the_first(gate: Held) -> None:
    client = AsyncClient(f"localhost:{gate.port}")

    async def abandoned() -> None:
        await client.info()
        calls = [asyncio.create_task(client.sample(1, seed=seed)) for seed in range(2)]
        await asyncio.to_thread(gate.wait, 1)
        assert not any(call.done() for call in calls)  # the end of the loop cancels them

    async def together() -> list[Any]:
        made = await asyncio.gather(*(client.sample(1, seed=seed) for seed in range(3)))
        await client.close()
        return [each.seed for each in made]

    asyncio.run(abandoned())
    gate.gate.set()
    assert asyncio.run(together()) == [0, 1, 2]


async def test_calls_that_were_all_cancelled_at_once_leave_nobody_waiting(linear_service: Service) -> None:
    """With whatever was about to be sent for them, as at the end of `asyncio.run`."""
    async with connected(linear_service.port, timeout_s=20) as client:
        await client.decode(Z[:1])
        for steps in range(4):
            calls = [asyncio.ensure_future(client.decode(z[None])) for z in Z[:10]]
            before = asyncio.current_task()
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {before}:
                if task.get_coro().__qualname__.startswith(("AsyncCoalescer.", "AsyncClient.")):
                    task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert len((await asyncio.wait_for(client.decode(Z[:2]), 10)).images) == 2
