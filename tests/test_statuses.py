"""Every gRPC status and exit status that the documents name, from a real server; and what a call's metadata do."""

from __future__ import annotations

import ast
import contextlib
import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import linear_model
import numpy as np
import pytest
from conftest import ROOT
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from linear_model import LinearModel
from test_metrics import decode_request, scrape

from latentry.v1 import vae_pb2 as pb
from latentry.v1 import vae_pb2_grpc
from serving.batcher import Batcher, Engine
from serving.batches import Results
from serving.inference import grpc_service_pb2 as oip
from serving.inference import grpc_service_pb2_grpc
from serving.server import Service

Array = np.ndarray[Any, np.dtype[Any]]
Code = grpc.StatusCode
ONCE = [("grpc.enable_retries", 0)]

# Each status that a document names, and the tests that get it from a server: file (without .py) and function.
STATUSES = {
    "INVALID_ARGUMENT": ["test_servicer.test_bad_requests_are_told_field_got_and_wanted"],
    "NOT_FOUND": ["test_servicer.test_an_unknown_model_is_not_found"],
    "UNAUTHENTICATED": ["test_security.test_each_token_opens_what_its_roles_say_and_nothing_else"],
    "PERMISSION_DENIED": ["test_security.test_each_token_opens_what_its_roles_say_and_nothing_else"],
    "RESOURCE_EXHAUSTED": [
        "test_servicer.test_a_full_queue_says_when_to_come_back",
        "test_servicer.test_an_oversized_message_is_refused_and_the_server_lives_on",
        "test_servicer.test_files_of_a_few_bytes_cannot_claim_many_pixels",
        "test_quotas.test_a_caller_over_its_quota_is_told_when_to_come_back",
    ],
    "FAILED_PRECONDITION": [
        "test_reloader.test_what_an_administrator_cannot_have_is_said",
        "test_reloader.test_a_labelled_version_is_not_unloaded",
    ],
    "DEADLINE_EXCEEDED": ["test_statuses.test_a_call_whose_time_runs_out_in_the_queue_never_runs"],
    "CANCELLED": ["test_statuses.test_a_call_whose_caller_goes_away_in_the_queue_never_runs"],
    "UNAVAILABLE": [
        "test_kills.test_calls_are_taken_during_the_grace_and_refused_after_it",
        "test_statuses.test_an_engine_that_fails_now_and_then_fails_its_own_calls_and_mixes_none",
        "test_statuses.test_while_an_engine_is_down_health_says_so_and_calls_are_told_to_come_back",
    ],
    "UNIMPLEMENTED": ["test_reloader.test_there_is_no_administration_unless_asked_for"],
    "INTERNAL": ["test_metrics.test_a_fault_of_ours_is_internal_and_tells_nothing"],
}

EXITS = {
    "0": ["test_lifecycle.test_an_idle_server_stops_with_status_0"],
    "1": ["test_statuses.test_what_nobody_thought_of_is_exit_status_1"],
    "2": [
        "test_statuses.test_what_stops_the_start_is_one_line_and_an_exit_status",
        "test_settings.test_the_command_line_says_what_is_wrong_in_a_line_and_exits_with_2",
    ],
    "3": ["test_lifecycle.test_a_port_that_is_taken_is_one_clear_line"],
    "4": ["test_lifecycle.test_a_repository_that_is_not_there_is_named"],
    "5": ["test_lifecycle.test_a_bad_model_stops_the_start_with_one_line"],
    "6": ["test_statuses.test_what_stops_the_start_is_one_line_and_an_exit_status"],
}


# ---- the documents ----


def documented_statuses() -> set[str]:
    """The statuses in the tables of docs/operations.md and README.md, and in the comments of the .proto files."""
    operations = (ROOT / "docs" / "operations.md").read_text()
    tables = operations.partition("## Statuses")[2].partition("\n## ")[0] + (ROOT / "README.md").read_text()
    cells = "\n".join(re.findall(r"^\| (`[A-Z_]{5,}`[^|]*)\|", tables, re.M))
    protos = "\n".join(file.read_text() for file in (ROOT / "protos").rglob("*.proto"))
    return {*re.findall(r"`([A-Z_]+)`", cells), *re.findall(r"^//   ([A-Z_]{5,}) ", protos, re.M)}


def test_every_status_in_the_documents_has_a_test() -> None:
    documented = documented_statuses()
    assert len(documented) >= 10
    assert documented <= set(STATUSES)
    assert documented <= {code.name for code in Code}


def test_every_exit_status_in_the_documents_has_a_test() -> None:
    documented = re.findall(r"^\| ([0-9]) \|", (ROOT / "docs" / "operations.md").read_text(), re.M)
    assert sorted(EXITS) == documented


@pytest.mark.parametrize("named", sorted({test for tests in (*STATUSES.values(), *EXITS.values()) for test in tests}))
def test_every_test_that_is_named_exists(named: str) -> None:
    file, _, function = named.partition(".")
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
    assert function in {each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}


# ---- an engine in the test's hands ----


class Hand:
    """An engine that the test can hold, break and lose, around the real one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._let = threading.Event()
        self._let.set()
        self.ran: list[int] = []  # the batches that were begun: how many rows each
        self.first: list[float] = []  # of each batch, its first number
        self.fails: Callable[[], bool] = lambda: False
        self.failed = 0
        self.lost = False

    def run(self, rows: Array, outputs: frozenset[str]) -> Results:
        self.ran.append(len(rows))
        self.first.append(float(rows.flat[0]))
        assert self._let.wait(20)
        if self.lost or self.fails():
            self.failed += 1
            raise RuntimeError("CUDA failure 2: out of memory at 0xdeadbeef")
        return self._engine.run(rows, outputs)

    def bucket(self, rows: int) -> int:
        return self._engine.bucket(rows)

    def restart(self) -> None:
        if self.lost:
            raise RuntimeError("no device")
        self._engine.restart()

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is begun in here waits until the end of it."""
        self._let.clear()
        try:
            yield
        finally:
            self._let.set()


def decoder(service: Service, version: int | None = None, graph: str = "decoder") -> tuple[Batcher, Hand]:
    """The decoder's queue of a running service, its engine from now on in the test's hands."""
    batcher = service.catalog.get(version=version).batchers[graph]
    hand = Hand(batcher._engines[0])
    batcher._engines = [hand]
    return batcher, hand


def until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    """Poll until something is so."""
    give_up = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.005)


@pytest.fixture
def stub_to() -> Iterator[Callable[[Service], Any]]:
    """A stub that tries nothing twice."""
    channels: list[grpc.Channel] = []

    def connect(service: Service) -> Any:
        channels.append(grpc.insecure_channel(f"localhost:{service.port}", ONCE))
        return vae_pb2_grpc.VaeServiceStub(channels[-1])

    yield connect
    for channel in channels:
        channel.close()


StubTo = Callable[[Service], Any]


def details(error: grpc.RpcError, kind: type[Message]) -> Any:
    """The detail of this kind that came with a status."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    found = kind()
    assert any(detail.Unpack(found) for detail in status.details), status
    return found


def request_of(z: Array) -> pb.DecodeRequest:
    request = decode_request(len(z))
    request.latents.data = z.astype("<f4").tobytes()
    return request


# ---- UNAVAILABLE: the engine ----


def test_an_engine_that_fails_now_and_then_fails_its_own_calls_and_mixes_none(
    serve: Any, linear: LinearModel, linear_repository: Path, stub_to: StubTo
) -> None:
    """Calls of every size and from many threads: each gets its own images or UNAVAILABLE, and every failure counts."""
    service = serve(linear_repository, max_batch_size=8)
    _, hand = decoder(service)
    turn = iter(range(10**6))
    hand.fails = lambda: next(turn) % 5 == 4
    stub = stub_to(service)

    def call(seed: int) -> Code:
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(int(rng.integers(1, 20)), 5)).astype(np.float32)
        future = stub.Decode.future(request_of(z), timeout=20)
        if future.code() is not Code.OK:
            assert future.details() == "the engine failed and is being restarted; try again", "nothing of the inside"
            assert details(future, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1000
            return future.code()
        images = np.frombuffer(future.result().images.tensor.data, np.uint8).reshape(len(z), *linear.shape)
        assert np.abs(images - 255 * linear.decode(z)).max() <= 0.51, "another call's images"
        return Code.OK

    with ThreadPoolExecutor(8) as threads:
        codes = Counter(threads.map(call, range(200)))
    assert set(codes) == {Code.OK, Code.UNAVAILABLE}
    assert codes[Code.OK] > 50
    page = scrape(service)
    assert page("latentry_engine_restarts_total", device="cpu") == hand.failed > 5
    about = {"rpc": "Decode", "model": "linear", "version": "1"}
    for code, count in codes.items():
        assert page("latentry_requests_total", code=code.name, **about) == count
    assert page("latentry_queue_items", model="linear", version="1", graph="decoder") == 0
    assert page("latentry_in_flight") == 0


def test_while_an_engine_is_down_health_says_so_and_calls_are_told_to_come_back(
    serve: Any, linear_repository: Path, stub_to: StubTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.pool._RESTART_PAUSES_S", (0.05,))
    service = serve(linear_repository)
    _, hand = decoder(service)
    stub = stub_to(service)
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watches = [
            health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=30)
            for name in ("", "latentry.v1.VaeService", "linear")
        ]
        assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.SERVING] * 3
        hand.lost = True
        for _ in range(3):  # under it, and while it is down
            with pytest.raises(grpc.RpcError) as caught:
                stub.Decode(decode_request(1), timeout=20)
            assert caught.value.code() is Code.UNAVAILABLE
            assert details(caught.value, error_details_pb2.RetryInfo).HasField("retry_delay")
        assert len(hand.ran) == 1, "calls that come later are refused without a run"
        assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.NOT_SERVING] * 3
        assert stub.GetModel(pb.GetModelRequest()).model.state == pb.MODEL_STATE_FAILED
        page = scrape(service)
        assert (page("latentry_ready"), page("latentry_engine_restarts_total", device="cpu")) == (0, 1)
        assert page("latentry_device_up", device="cpu", provider="CPUExecutionProvider") == 0
        hand.lost = False
        assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.SERVING] * 3
    stub.Decode(decode_request(1), timeout=20)
    page = scrape(service)
    assert page("latentry_device_up", device="cpu", provider="CPUExecutionProvider") == page("latentry_ready") == 1


def test_while_the_newest_version_is_down_the_one_before_answers(
    serve: Any, tmp_path: Path, stub_to: StubTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.pool._RESTART_PAUSES_S", (0.05,))
    for version in (1, 2):
        linear_model.write(tmp_path, version=version)
    service = serve(tmp_path, versions=("all",))
    _, hand = decoder(service, 2)
    stub = stub_to(service)

    def answers() -> int:
        return int(stub.Decode(decode_request(1), timeout=20).model.version)

    assert answers() == 2
    hand.lost = True
    with pytest.raises(grpc.RpcError):
        answers()
    until(lambda: not service.catalog.versions("linear")[2].up)  # it was tried again, in vain
    assert answers() == 1
    hand.lost = False
    until(lambda: answers() == 2)


def test_a_device_is_up_again_when_all_that_is_loaded_works_on_it(
    serve: Any, tmp_path: Path, stub_to: StubTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.pool._RESTART_PAUSES_S", (0.05,))
    service = serve(linear_model.write(tmp_path).folder.parent.parent, reload_s=0.05)
    hands = {graph: decoder(service, graph=graph)[1] for graph in ("encoder", "decoder")}
    stub = stub_to(service)
    images = pb.Images(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=(1, 12, 10, 1), data=bytes(120)))
    calls = {
        "encoder": lambda: stub.Encode.future(pb.EncodeRequest(images=images), timeout=20).code(),
        "decoder": lambda: stub.Decode.future(decode_request(1), timeout=20).code(),
    }

    def up() -> float:
        return scrape(service)("latentry_device_up", device="cpu", provider="CPUExecutionProvider")

    assert up() == 1
    for graph, hand in hands.items():
        hand.lost = True
        assert calls[graph]() is Code.UNAVAILABLE
    assert up() == 0
    hands["encoder"].lost = False
    until(lambda: calls["encoder"]() is Code.OK)
    assert up() == 0, "the decoder is still down"
    linear_model.write(tmp_path, version=2)  # and what is down goes for good
    until(lambda: up() == 1)


def test_an_engine_that_fails_ends_the_streams_under_it_and_no_others(
    serve: Any, linear_repository: Path, stub_to: StubTo
) -> None:
    """A stream's parts up to the failure are right, and another one from there on has the rest."""
    service = serve(linear_repository, max_batch_size=8)
    stub = stub_to(service)
    whole = stub.Sample(pb.SampleRequest(count=200, seed=1)).images.tensor.data
    _, hand = decoder(service)
    hand.fails = lambda: len(hand.ran) in (4, 9)
    came, ends, ended = b"", Counter[Code](), Code.UNKNOWN
    while ended is not Code.OK:
        at = len(came) // 120
        sample = pb.SampleRequest(count=200 - at, seed=1, first_index=at)
        replies = stub.StreamSample(pb.StreamSampleRequest(sample=sample, chunk_items=8), timeout=20)
        with contextlib.suppress(grpc.RpcError):
            for reply in replies:
                came += reply.part.images.tensor.data
        ended = replies.code()
        ends[ended] += 1
        if ended is not Code.OK:
            assert details(replies, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1000
    assert came == whole
    assert ends == {Code.UNAVAILABLE: 2, Code.OK: 1}
    page = scrape(service)
    assert page("latentry_engine_restarts_total", device="cpu") == hand.failed == 2
    about = {"rpc": "StreamSample", "model": "linear", "version": "1"}
    assert {code: page("latentry_requests_total", code=code.name, **about) for code in ends} == ends
    kind = {"grpc_type": "server_stream", "grpc_service": "latentry.v1.VaeService", "grpc_method": "StreamSample"}
    assert page("grpc_server_handled_total", grpc_code="Unavailable", **kind) == 2
    assert page("grpc_server_started_total", **kind) == 3
    assert page("latentry_queue_items", model="linear", version="1", graph="decoder") == 0
    assert page("latentry_in_flight") == 0


def test_an_engine_that_fails_under_a_request_of_the_protocols_stream_fails_that_one(
    serve: Any, linear_repository: Path
) -> None:
    """Whatever went wrong with one request, the others of the stream have their answers."""
    service = serve(linear_repository)
    _, hand = decoder(service)
    hand.fails = lambda: len(hand.ran) == 2
    with grpc.insecure_channel(f"localhost:{service.port}", ONCE) as channel:
        infer = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        replies = infer(
            (oip.ModelInferRequest(model_name="linear_sample", id=each) for each in iter(answers.get, None)), timeout=20
        )
        said = []
        for each in "123":  # one after the other: together they would share a batch
            answers.put(each)
            said.append(next(replies))
        answers.put(None)
        assert list(replies) == []
    assert [each.infer_response.id for each in said] == ["1", "2", "3"]
    assert [each.error_message for each in said] == ["", "the engine failed and is being restarted; try again", ""]
    assert scrape(service)("latentry_engine_restarts_total", device="cpu") == hand.failed == 1


# ---- DEADLINE_EXCEEDED and CANCELLED ----


def test_a_call_whose_time_runs_out_in_the_queue_never_runs(
    serve: Any, linear_repository: Path, stub_to: StubTo
) -> None:
    service = serve(linear_repository)
    batcher, hand = decoder(service)
    stub = stub_to(service)
    with hand.held():
        first = stub.Decode.future(decode_request(1), timeout=20)
        until(lambda: len(hand.ran) == 1)
        late = stub.Decode.future(decode_request(7), timeout=0.2)
        until(lambda: batcher.rows_waiting == 7)
        assert late.code() is Code.DEADLINE_EXCEEDED
        until(lambda: batcher.rows_waiting == 0)
    first.result(20)
    stub.Decode(decode_request(2), timeout=20)
    assert hand.ran == [1, 2]
    about = {"rpc": "Decode", "model": "linear", "version": "1"}
    assert scrape(service)("latentry_requests_total", code="DEADLINE_EXCEEDED", **about) == 1


@pytest.mark.parametrize("how", ["cancels", "hangs up"])
def test_a_call_whose_caller_goes_away_in_the_queue_never_runs(
    serve: Any, linear_repository: Path, stub_to: StubTo, how: str
) -> None:
    service = serve(linear_repository)
    batcher, hand = decoder(service)
    stub = stub_to(service)
    own = [*ONCE, ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"localhost:{service.port}", own) as other, hand.held():
        first = stub.Decode.future(decode_request(1), timeout=20)
        until(lambda: len(hand.ran) == 1)
        gone = vae_pb2_grpc.VaeServiceStub(other).Decode.future(decode_request(7), timeout=20)
        until(lambda: batcher.rows_waiting == 7)
        gone.cancel() if how == "cancels" else other.close()
        assert gone.code() is Code.CANCELLED
        until(lambda: batcher.rows_waiting == 0)
    first.result(20)
    stub.Decode(decode_request(2), timeout=20)
    assert hand.ran == [1, 2]
    about = {"rpc": "Decode", "model": "linear", "version": "1"}
    assert scrape(service)("latentry_requests_total", code="CANCELLED", **about) == 1


# ---- metadata ----


def test_background_calls_run_after_interactive_ones_that_came_later(
    serve: Any, linear_repository: Path, stub_to: StubTo
) -> None:
    service = serve(linear_repository, max_batch_size=1)
    batcher, hand = decoder(service)
    stub = stub_to(service)

    def call(number: int, priority: str) -> Any:
        waiting = batcher.rows_waiting
        z = np.full((1, 5), number, np.float32)
        future = stub.Decode.future(request_of(z), timeout=20, metadata=[("latentry-priority", priority)])
        until(lambda: len(hand.ran) == 1 and batcher.rows_waiting == waiting + (number > 0))
        return future

    with hand.held():
        calls = [call(number, "background" if 0 < number < 3 else "interactive") for number in range(6)]
    for future in calls:
        future.result(20)
    assert hand.first == [0, 3, 4, 5, 1, 2]


@pytest.mark.parametrize("value", ["urgent", "", "Background"])
def test_another_priority_is_refused(stub: Any, value: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Sample(pb.SampleRequest(count=1), metadata=[("latentry-priority", value)])
    assert caught.value.code() is Code.INVALID_ARGUMENT
    said = f"metadata latentry-priority: got {value!r}, wanted interactive or background"
    assert caught.value.details() == said
    violation = details(caught.value, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == "metadata latentry-priority"


def id_of(stub: Any, request: pb.SampleRequest, *given: str) -> str:
    """The request id that comes back, whatever becomes of the call."""
    call = stub.Sample.with_call if request.count else stub.Sample.future
    metadata = [("x-request-id", each) for each in given]
    if request.count:
        _, ended = call(request, metadata=metadata)
    else:
        ended = call(request, metadata=metadata)
        assert ended.code() is Code.INVALID_ARGUMENT
    ids = [value for key, value in ended.trailing_metadata() if key == "x-request-id"]
    assert len(ids) == 1
    return str(ids[0])


@pytest.mark.parametrize("request_", [pb.SampleRequest(count=1), pb.SampleRequest()], ids=["answered", "refused"])
def test_a_request_id_comes_back_and_one_that_is_none_is_replaced(stub: Any, request_: pb.SampleRequest) -> None:
    for good in ("r-1", "x" * 128, "!#$%&~/{}"):
        assert id_of(stub, request_, good) == good
    made = [id_of(stub, request_, *given) for given in ((), ("",), ("x" * 129,), ("two words",), ("a", "b"))]
    assert made.pop() == "a", "the first of two"
    assert all(re.fullmatch(r"[0-9a-f]{16}", each) for each in made)
    assert len(set(made)) == len(made)


# ---- exit statuses ----


def serve_and_end(*flags: str) -> tuple[int, list[str]]:
    """The exit status of `latentry serve` and the lines on standard error."""
    command = [sys.executable, "-m", "latentry", "serve", *flags]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, cwd=ROOT, check=False)
    return ended.returncode, ended.stderr.splitlines()


PORTS = ("--port", "0", "--metrics-port", "0")


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--prot", "0"], 2, "did you mean --port?"),
        (["--port", "grpc"], 2, "--port: got 'grpc'"),
        (["--config", "{tmp}/unknown.toml"], 2, "unknown.toml: 'prot': no such setting; did you mean port?"),
        (["--tls-certificate", "{tmp}/none.pem", "--tls-key", "{tmp}/none.key"], 2, "none.pem: No such file"),
        (["--identities", "{tmp}/none.toml"], 2, "none.toml: No such file"),
        ([*PORTS, "--admin-port", "{taken}"], 3, "cannot listen on 127.0.0.1:{taken}"),
        ([*PORTS, "--host", "192.0.2.1", "--insecure"], 3, "cannot "),
        ([*PORTS, "--models", "{tmp}"], 4, "no model, wanted <name>/<version>/manifest.json"),
        ([*PORTS, "--labels", "fashion:stable=99"], 4, "--labels: got fashion:stable=99"),
        ([*PORTS, "--device", "cuda:7"], 6, "--device cuda:7: cuda:7: "),
    ],
)
def test_what_stops_the_start_is_one_line_and_an_exit_status(
    tmp_path: Path, flags: list[str], status: int, said: str
) -> None:
    (tmp_path / "unknown.toml").write_text("prot = 1\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        known = {"tmp": tmp_path, "taken": taken.getsockname()[1]}
        got, lines = serve_and_end(*(flag.format(**known) for flag in flags))
    assert got == status
    assert lines[-1].startswith(("latentry serve: ", "latentry: "))
    assert said.format(**known) in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_what_nobody_thought_of_is_exit_status_1() -> None:
    """The log has the traceback, in one line of JSON; the last line says what it was."""
    program = f"""
import sys
import latentry.cli, serving.server
def broken(settings):
    raise RuntimeError("a fault of ours")
serving.server.Service = broken
sys.exit(latentry.cli.main(["serve", *{PORTS!r}]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert ended.returncode == 1
    logged, last = ended.stderr.splitlines()[-2:]
    assert "RuntimeError: a fault of ours" in json.loads(logged)["exception"]
    assert last == "latentry serve: RuntimeError: a fault of ours"


def test_a_signal_before_anything_is_loaded_is_exit_status_0() -> None:
    """Ctrl-C or SIGTERM as soon as the first line is there."""
    for number in (signal.SIGTERM, signal.SIGINT):
        command = [sys.executable, "-m", "latentry", "serve", *PORTS]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
            try:
                assert process.stderr is not None
                assert "device" in process.stderr.readline()
                process.send_signal(number)
                _, rest = process.communicate(timeout=20)
                assert (process.returncode, "Traceback" in rest) == (0, False)
            finally:
                process.kill()
