"""Token buckets by caller, by a clock that the test turns; and what callers of a real server see of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from test_access import ADMIN, APP, USUAL, write
from test_metrics import decode_request, scrape
from test_servicer import photos, tensor

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving import quotas
from serving.api.work import _host
from serving.errors import QuotaExceeded
from serving.quotas import Quotas
from serving.server import Service


class Clock:
    """A clock that the test turns."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def wait_for(bucket: Quotas, caller: str, items: int) -> float:
    """How long the caller is told to wait."""
    with pytest.raises(QuotaExceeded) as caught:
        bucket.spend(caller, items)
    return caught.value.retry_after_s


# ---- the buckets ----


def test_a_full_bucket_is_spent_and_fills_at_the_rate(clock: Clock) -> None:
    bucket = Quotas(10, 50, clock)
    bucket.spend("a", 30)
    bucket.spend("a", 20)
    assert wait_for(bucket, "a", 5) == pytest.approx(0.5)
    clock.now += 0.5
    bucket.spend("a", 5)
    assert wait_for(bucket, "a", 1) == pytest.approx(0.1)
    clock.now += 1000
    bucket.spend("a", 50)
    assert wait_for(bucket, "a", 1) > 0, "no more than the burst is saved up"


def test_a_refusal_costs_nothing_and_says_what_was_got_and_wanted(clock: Clock) -> None:
    bucket = Quotas(2.5, 8, clock)
    bucket.spend("a", 5)
    for _ in range(3):
        with pytest.raises(QuotaExceeded, match=r"got 4 items, wanted at most 3 now, and 2\.5 more each second"):
            bucket.spend("a", 4)
    bucket.spend("a", 3)


def test_a_call_larger_than_the_bucket_passes_when_it_is_full_and_leaves_a_debt(clock: Clock) -> None:
    bucket = Quotas(10, 20, clock)
    bucket.spend("a", 1)
    assert wait_for(bucket, "a", 100) == pytest.approx(0.1), "it waits for a full bucket, not for ever"
    clock.now += 0.101
    bucket.spend("a", 100)
    assert wait_for(bucket, "a", 1) == pytest.approx(8.1)
    clock.now += 8.2
    bucket.spend("a", 1)


def test_callers_do_not_share(clock: Clock) -> None:
    bucket = Quotas(1, 2, clock)
    bucket.spend("a", 2)
    bucket.spend("b", 2)
    assert wait_for(bucket, "a", 1) == wait_for(bucket, "b", 1) == 1


def test_without_a_rate_there_is_no_quota(clock: Clock) -> None:
    bucket = Quotas(0, 1, clock)
    for _ in range(10):
        bucket.spend("a", 10**6)


def test_a_call_without_items_is_free(clock: Clock) -> None:
    bucket = Quotas(1, 5, clock)
    bucket.spend("a", 5)
    bucket.spend("a", 0)


def test_only_so_many_callers_are_remembered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever invents callers costs no memory without bound, and takes nobody's place who calls now."""
    monkeypatch.setattr(quotas, "_MOST_CALLERS", 100)
    bucket = Quotas(1, 5, clock)
    bucket.spend("steady", 5)
    for n in range(1000):
        bucket.spend(f"invented {n}", 1)
        assert wait_for(bucket, "steady", 5) > 0
    assert len(bucket._buckets) == 100


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 40)), max_size=60))
def test_nobody_gets_more_than_rate_and_burst_allow(calls: list[tuple[float, int]]) -> None:
    """And whoever waits as long as it is told to gets what it asked for."""
    clock = Clock()
    bucket, began, spent = Quotas(7, 20, clock), clock.now, 0
    for pause, items in calls:
        clock.now += pause
        try:
            bucket.spend("a", items)
        except QuotaExceeded as error:
            clock.now += error.retry_after_s + 1e-6
            bucket.spend("a", items)
        spent += items
        # A call of more than the burst is paid off afterwards.
        assert spent <= 20 + 7 * (clock.now - began) + max(0, items - 20) + 1e-3


@pytest.mark.parametrize("seconds", [0.0001, 0.0123, 1.00049, 2.0])
def test_who_comes_back_when_told_to_does_not_come_too_early(seconds: float) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.CopyFrom(QuotaExceeded("", seconds).details()[0])
    assert seconds <= retry.retry_delay.ToMilliseconds() / 1000 <= seconds + 0.001


# ---- a server ----

Call = Callable[..., grpc.Call]


@pytest.fixture
def call() -> Iterator[Call]:
    """Decode so many items over a connection of its own; the call that has ended."""
    channels: list[grpc.Channel] = []

    def make(service: Service, items: int, token: str | None = None) -> Any:
        own = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        channels.append(grpc.insecure_channel(f"localhost:{service.port}", own))
        metadata = [("authorization", f"Bearer {token}")] if token else []
        future = vae_pb2_grpc.VaeServiceStub(channels[-1]).Decode.future(
            decode_request(items), timeout=20, metadata=metadata
        )
        future.code()
        return future

    yield make
    for channel in channels:
        channel.close()


def retry_s(ended: grpc.Call) -> float:
    status = status_pb2.Status.FromString(dict(ended.trailing_metadata())["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    return retry.retry_delay.ToMilliseconds() / 1000


OK, EXHAUSTED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_caller_over_its_quota_is_told_when_to_come_back(serve: Any, linear_repository: Path, call: Call) -> None:
    service = serve(linear_repository, quota_items_per_s=0.5, quota_burst_items=10)
    assert call(service, 10).code() is OK
    refused = call(service, 3)
    assert refused.code() is EXHAUSTED
    assert refused.details().startswith("quota: got 3 items, wanted at most 0 now, and 0.5 more each second")
    assert 5 <= retry_s(refused) <= 6, "three items at half an item a second, less the time since"
    assert scrape(service)("latentry_quota_refusals_total") == 1
    about = {"rpc": "Decode", "model": "linear", "version": "1"}
    assert scrape(service)("latentry_requests_total", code="RESOURCE_EXHAUSTED", **about) == 1


def test_two_identities_have_a_bucket_each(serve: Any, linear_repository: Path, tmp_path: Path, call: Call) -> None:
    service = serve(linear_repository, quota_items_per_s=0.001, quota_burst_items=4, identities=write(tmp_path, USUAL))
    assert call(service, 4, APP).code() is OK
    assert call(service, 1, APP).code() is EXHAUSTED, "over another connection, too"
    assert call(service, 4, ADMIN).code() is OK
    assert call(service, 1, "nobody").code() is grpc.StatusCode.UNAUTHENTICATED


def test_without_identities_an_address_is_a_caller_whatever_its_connection(
    serve: Any, linear_repository: Path, call: Call
) -> None:
    service = serve(linear_repository, quota_items_per_s=0.001, quota_burst_items=4)
    assert [call(service, 2).code() for _ in range(3)] == [OK, OK, EXHAUSTED]
    assert _host("ipv4:10.0.0.1:5000") == _host("ipv4:10.0.0.1:5001") != _host("ipv4:10.0.0.2:5000")
    assert _host("ipv6:%5B::1%5D:5000") == _host("ipv6:%5B::1%5D:5001") != _host("ipv6:%5B::2%5D:5000")


def test_every_call_is_charged_for_its_items(serve: Any, linear_repository: Path) -> None:
    """Images in, latents in, samples, and the images of a walk, with its key frames."""
    service = serve(linear_repository, quota_items_per_s=1e-6, quota_burst_items=20)
    images = pb.Images(tensor=tensor(photos(3, 12, 10, 1)))
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        stub = vae_pb2_grpc.VaeServiceStub(channel)
        stub.Encode(pb.EncodeRequest(images=images))  # 3
        stub.Decode(decode_request(2))  # 5
        stub.Sample(pb.SampleRequest(count=4))  # 9
        stub.Interpolate(pb.InterpolateRequest(images=images, steps=3))  # 12 for the key frames, 17 for the walk
        stub.GetModel(pb.GetModelRequest())
        stub.ListModels(pb.ListModelsRequest())
        stub.Sample(pb.SampleRequest(count=3))
        with pytest.raises(grpc.RpcError, match="wanted at most 0 now"):
            stub.Sample(pb.SampleRequest(count=1))


def test_without_a_burst_a_request_of_the_most_items_passes(serve: Any, linear_repository: Path, call: Call) -> None:
    service = serve(linear_repository, quota_items_per_s=0.001, max_request_items=16)
    assert [call(service, 16).code(), call(service, 1).code()] == [OK, EXHAUSTED]
