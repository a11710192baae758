"""Processes of a service that are killed or stand still: calls fail retryably, and soon all is as before.

LATENTRY_KILL_ROUNDS is how often each process is killed here, one time after another; 1 unless it is set.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2_grpc
from server_process import ServerProcess, server_process
from test_frontends import CHECK, NOT_SERVING, SERVING, SMALL, on_both, ready
from test_hostile import wait_for
from test_kills import callers, more_answers
from test_statuses import details

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc

Code = grpc.StatusCode
ROUNDS = int(os.environ.get("LATENTRY_KILL_ROUNDS") or 1)
ENGINE, FRONTENDS = "latentry-engine", ("latentry-fe-0", "latentry-fe-1")

pytestmark = pytest.mark.timeout(120 + 60 * ROUNDS)


@pytest.fixture(scope="module")
def server(linear_repository: Path) -> Iterator[ServerProcess]:
    with server_process(linear_repository, "--reload-s", "0", frontends=2) as it:
        yield it


def kill(server: ServerProcess, name: str, number: int = signal.SIGKILL) -> int:
    """Signal a child; returns which process it was."""
    pid = server.children()[name]
    os.kill(pid, number)
    return pid


def whole_again(server: ServerProcess, name: str, killed: int) -> None:
    """Until another has its place, and calls are taken."""

    def back() -> bool:
        children = server.children()
        return children.get(name, killed) != killed and len(children) == 3 and server.metric("latentry_frontends") == 2

    wait_for(back, f"{name} is back", 60)
    wait_for(lambda: ready(server) == 200, "the service is ready", 60)
    if ROUNDS > 1:
        time.sleep(2.5)  # who dies sooner has died quickly, and the next one comes later and later


@contextlib.contextmanager
def waiting(server: ServerProcess, count: int) -> Iterator[list[Any]]:
    """So many calls that wait for the engine, from connections to both front ends: it stands still meanwhile."""
    with on_both(server) as channels:
        os.kill(server.children()[ENGINE], signal.SIGSTOP)
        before = server.metric("latentry_in_flight")
        stubs = [vae_pb2_grpc.VaeServiceStub(each) for each in channels]
        yield [stubs[n % len(stubs)].Sample.future(SMALL, timeout=60) for n in range(count)]
        assert before == 0


def test_counts_outlive_the_front_end_that_made_them(server: ServerProcess) -> None:
    """After n calls, n: whoever of those who answered them was killed meanwhile."""
    counted = 'latentry_requests_total{code="OK",model="linear",rpc="Sample",version="1"}'
    before = server.metrics()
    calls = 0
    for round_ in range(ROUNDS):
        name = FRONTENDS[round_ % 2]
        with on_both(server) as channels:
            for each in channels:
                vae_pb2_grpc.VaeServiceStub(each).Sample(SMALL, timeout=20)
                calls += 1
        killed = kill(server, name)
        whole_again(server, name, killed)
        after = server.metrics()
        assert after[counted] - before.get(counted, 0) == calls
        assert (
            after['latentry_request_seconds_count{rpc="Sample"}']
            - before.get('latentry_request_seconds_count{rpc="Sample"}', 0)
            == calls
        )
        restarts = 'latentry_process_restarts_total{process="frontend"}'
        assert after[restarts] - before[restarts] == round_ + 1


@pytest.mark.parametrize("name", [ENGINE, *FRONTENDS])
def test_under_load_a_killed_process_is_followed_by_another(server: ServerProcess, name: str) -> None:
    """No answer is wrong, no call ends in another way than OK or UNAVAILABLE, and clients that try again see none."""
    with callers(server) as outcomes:
        for _ in range(ROUNDS):
            killed = kill(server, name)
            whole_again(server, name, killed)
            more_answers(outcomes)
    assert set(outcomes) <= {"OK", "UNAVAILABLE"}, outcomes
    assert server.metric("latentry_in_flight") == server.metric("latentry_queue_items") == 0


def test_an_engine_killed_with_many_calls_queued_fails_them_retryably(server: ServerProcess) -> None:
    for _ in range(ROUNDS):
        with waiting(server, 64) as calls:
            killed = kill(server, ENGINE)
            assert {call.code() for call in calls} == {Code.UNAVAILABLE}
            assert details(calls[0], error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() >= 0
        whole_again(server, ENGINE, killed)
        with on_both(server) as channels:
            for each in channels:
                assert vae_pb2_grpc.VaeServiceStub(each).Sample(SMALL, timeout=20).images.tensor.data


def test_a_front_end_killed_in_the_middle_of_a_reply_takes_its_own_calls_down_alone(server: ServerProcess) -> None:
    for round_ in range(ROUNDS):
        name = FRONTENDS[round_ % 2]
        with on_both(server) as channels:
            streams = [
                vae_pb2_grpc.VaeServiceStub(each).StreamSample(
                    pb.StreamSampleRequest(sample=pb.SampleRequest(count=20_000, seed=1), chunk_items=10), timeout=60
                )
                for each in channels
            ]
            for stream in streams:
                next(stream)  # each is in the middle of it
            killed = kill(server, name)
            ends = []
            for stream in streams:
                try:
                    ends.append((Code.OK, sum(len(part.part.latents.data) for part in stream)))
                except grpc.RpcError as error:
                    ends.append((error.code(), 0))
            assert {code for code, _ in ends} == {Code.OK, Code.UNAVAILABLE}
            assert {bytes_ for code, bytes_ in ends if code is Code.OK} == {(20_000 - 10) * 5 * 4}
        whole_again(server, name, killed)


def test_while_there_is_no_engine_health_says_so(server: ServerProcess) -> None:
    for _ in range(ROUNDS):
        with on_both(server) as channels:
            watches = [health_pb2_grpc.HealthStub(each).Watch(CHECK, timeout=60) for each in channels]
            assert {next(watch).status for watch in watches} == {SERVING}
            killed = kill(server, ENGINE)
            assert {next(watch).status for watch in watches} == {NOT_SERVING}
            assert ready(server) == 503
            with pytest.raises(grpc.RpcError) as caught:
                vae_pb2_grpc.VaeServiceStub(channels[0]).Sample(SMALL, timeout=20)
            assert caught.value.code() is Code.UNAVAILABLE
            assert {next(watch).status for watch in watches} == {SERVING}
        whole_again(server, ENGINE, killed)


def test_processes_that_stand_still_are_replaced(server: ServerProcess) -> None:
    """Both at once; while they do, the metrics of the others are told."""
    stopped = {name: kill(server, name, signal.SIGSTOP) for name in (ENGINE, FRONTENDS[1])}
    assert server.metric("latentry_requests_total") > 0
    for name, pid in stopped.items():
        whole_again(server, name, pid)
    assert server.log.count("has not said anything for") >= 2
    with on_both(server) as channels:
        for each in channels:
            vae_pb2_grpc.VaeServiceStub(each).Sample(SMALL, timeout=20)


def test_a_killed_supervisor_leaves_no_process_and_no_file(linear_repository: Path, tmp_path: Path) -> None:
    """The next one has the same port at once."""
    for _ in range(ROUNDS):
        before = files()
        with server_process(linear_repository, frontends=2, first=f"export TMPDIR={tmp_path}") as server:
            children = server.children()
            assert len(children) == 3
            server.process.kill()
            server.process.wait(10)
            wait_for(partial(all_ended, children), "they end", 30)
            assert files() <= before
            assert not list(tmp_path.iterdir())
        again = ServerProcess(linear_repository, "--port", str(server.port), frontends=2)
        try:
            again.port = server.port
            again.wait_until_serving()
            assert again.stop() == 0
        finally:
            again.close()


def all_ended(children: dict[str, int]) -> bool:
    return not [pid for pid in children.values() if Path("/proc", str(pid)).exists()]


def files() -> set[Path]:
    """What shared memory has names."""
    return {path for path in Path("/dev/shm").iterdir() if "latentry" in path.name}  # noqa: S108 - only looked at
