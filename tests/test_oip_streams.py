"""Streams of the Open Inference Protocol: every request is answered, in order, whatever becomes of the others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import oip_fixtures
import pytest
from linear_model import LinearModel
from oip_fixtures import arrays, request

from serving.inference import grpc_service_pb2 as oip
from serving.server import Service


@pytest.fixture
def stub(linear_service: Service) -> Iterator[Any]:
    with oip_fixtures.calls(linear_service.port) as stub:
        yield stub


def statistics(stub: Any, name: str) -> Any:
    (found,) = stub.ModelStatistics(oip.ModelStatisticsRequest(name=name)).model_stats
    return found


def test_answers_come_in_the_order_of_the_requests(stub: Any, linear: LinearModel) -> None:
    """Small ones do not overtake large ones, nor one model's another's."""
    images = np.random.default_rng(0).integers(0, 256, (300, *linear.shape), np.uint8)
    sizes = [300, 1, 2, 299, 1] * 8
    asked = [
        request("linear_reconstruct" if n > 2 else "linear_encoder", {"images": images[:n]}, id=str(i))
        for i, n in enumerate(sizes)
    ]
    answers = list(stub.ModelStreamInfer(iter(asked)))
    assert [answer.infer_response.id for answer in answers] == [str(i) for i in range(len(sizes))]
    assert not any(answer.error_message for answer in answers)
    for n, answer in zip(sizes, answers, strict=True):
        found = arrays(answer.infer_response)
        np.testing.assert_allclose(
            found["latents" if n > 2 else "mean"], linear.encode(images[:n])[0], rtol=1e-4, atol=1e-5
        )


def test_a_request_that_fails_is_answered_and_the_stream_goes_on(stub: Any) -> None:
    before = statistics(stub, "linear_sample").inference_stats
    asked = [
        request("linear_sample", parameters={"seed": 1}, id="a"),
        request("linear_sample", parameters={"seed": -1}, id="b"),
        request("nobody_sample", id="c"),
        request("linear_sample", parameters={"seed": 1}, id="d"),
    ]
    answers = list(stub.ModelStreamInfer(iter(asked)))
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d"]
    assert answers[1].error_message == "parameters[seed]: got -1, wanted a whole number from 0 to 18446744073709551615"
    assert answers[2].error_message.startswith("model: got 'nobody_sample'")
    first, last = (arrays(answers[i].infer_response)["latents"] for i in (0, 3))
    assert (first == last).all()
    after = statistics(stub, "linear_sample").inference_stats
    assert (after.success.count - before.success.count, after.fail.count - before.fail.count) == (2, 1)


def test_each_answer_comes_while_the_stream_is_open(stub: Any) -> None:
    asked: queue.Queue[Any] = queue.Queue()
    answers = stub.ModelStreamInfer(iter(asked.get, None))
    for seed in range(5):
        asked.put(request("linear_sample", parameters={"seed": seed}))
        answer = next(answers).infer_response
        assert answer.parameters["seed"].int64_param == seed
    time.sleep(0.3)
    started = time.perf_counter_ns()
    asked.put(request("linear_sample"))
    spent = next(answers).infer_response.parameters["total_ns"].int64_param
    assert 0 < spent < time.perf_counter_ns() - started  # on this request, not on the stream
    asked.put(None)
    assert next(answers, None) is None


def test_an_empty_stream_ends(stub: Any) -> None:
    assert list(stub.ModelStreamInfer(iter(()))) == []


def test_a_caller_that_leaves_makes_no_more_work(stub: Any) -> None:
    """It sends without end and reads nothing: what is answered ahead of it is bounded."""
    sent = 0

    def endless() -> Iterator[Any]:
        nonlocal sent
        while not stop.is_set():
            sent += 1
            yield request("linear_sample", parameters={"count": 1024, "format": "float32"})

    stop = threading.Event()
    before = statistics(stub, "linear_sample").inference_stats.success.count
    answers = stub.ModelStreamInfer(endless())
    next(answers)
    settled = _settled(stub)
    assert settled - before < 200
    answers.cancel()
    stop.set()
    assert _settled(stub) - settled <= 40
    assert arrays(stub.ModelInfer(request("linear_sample", parameters={"seed": 3})))["images"].shape == (1, 12, 10, 1)


def _settled(stub: Any) -> int:
    """How many are answered, once that does not change any more."""
    counts = [-1]
    while len(counts) < 4 or len({*counts[-3:]}) > 1:
        assert len(counts) < 200
        counts.append(statistics(stub, "linear_sample").inference_stats.success.count)
        time.sleep(0.1)
    return int(counts[-1])
