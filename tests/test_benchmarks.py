"""The benchmarks' own arithmetic: what they read, compare and project, by numbers worked out by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks import (
    bench_models,
    bodies,
    children,
    clients,
    engine_load,
    figures,
    load,
    neighbours,
    pacing,
    projection,
    regression,
    serving,
)
from benchmarks.figures import Figure
from benchmarks.processor_time import Reading, Spent, difference
from benchmarks.projection import Costs
from benchmarks.stages import costs_of, least
from latentry.manifest import read
from latentry.v1 import vae_pb2 as pb

H2LOAD = """finished in 1.26s, 1582.11 req/s, 1.45MB/s
requests: 2000 total, 2000 started, 2000 done, {ok} succeeded, 0 failed, 0 errored, 0 timeout
status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.83MB (1916172) total, 18.13KB (18564) headers (space savings 91.41%), 1.78MB ({data}) data
                     min         max         mean         sd        +/- sd
time for request:     {least}     12.80ms      {mean}      2.69ms    78.13%
time for connect:      687us       930us       781us       104us    75.00%
"""


@pytest.mark.parametrize(("mean", "seconds"), [("9.18ms", 0.00918), ("287us", 0.000287), ("1.02s", 1.02)])
def test_h2loads_summary_is_read(mean: str, seconds: float) -> None:
    said = H2LOAD.format(ok=2000, data=1870000, least="1.60ms", mean=mean)
    assert load.read_summary(said, 2000, 784) == load.Load(1582.11, pytest.approx(seconds))


@pytest.mark.parametrize(("ok", "data"), [(1999, 1870000), (2000, 2000 * 784 - 1)])
def test_calls_that_failed_are_no_figure(ok: int, data: int) -> None:
    with pytest.raises(load.LoadFailed):
        load.read_summary(H2LOAD.format(ok=ok, data=data, least="1ms", mean="1ms"), 2000, 784)


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    ratio = figures.ratio("a / b", [10, 10, 90], [10, 20, 30], at_least=1.1)
    assert (ratio.rounds, ratio.median, ratio.met) == ((1.0, 0.5, 3.0), 1.0, False)
    assert Figure("x", "s", (1.0,), at_most=1.0).met
    assert Figure("x", "s", (1.0,)).met is None
    assert "<= 160" in Figure("x", "MiB", (170.0,), at_most=160).line()
    assert "MISSED" in Figure("x", "MiB", (170.0,), at_most=160).line()


def test_figures_are_kept_with_when_where_and_versions(tmp_path: Path) -> None:
    figures.save(tmp_path / "out" / "bench.json", [Figure("x", "s", (3.0, 1.0, 2.0), at_most=1.5)], rounds=3)
    kept = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert kept["figures"] == [
        {"name": "x", "unit": "s", "median": 2.0, "rounds": [3.0, 1.0, 2.0], "at_most": 1.5, "met": False}
    ]
    assert kept["date"].endswith("+00:00")
    assert kept["machine"]["processors"] == len(os.sched_getaffinity(0))
    assert {"python", "grpcio", "numpy"} <= set(kept["versions"])


def test_spent_time_is_shared_out_over_calls() -> None:
    spent = difference(Reading(1.0, 2.0, 0.5, 100), Reading(1.3, 2.1, 0.6, 1100), 1000, 0.02)
    assert (spent.main_us, spent.others_us, spent.kernel_us) == pytest.approx((300, 100, 100))
    assert (spent.total_us, spent.wake_ups, spent.generator_us) == pytest.approx((400, 1, 20))


def test_a_projection_is_bound_by_what_is_dearest() -> None:
    costs = Costs(
        single_us=200, single_loop_us=180, front_us=160, front_loop_us=125, engine_us=20, inference_us=60, load_us=20
    )
    assert projection.project(costs, 1, 16) == projection.Projection(1e6 / 180, "the one process")
    assert projection.project(costs, 1, 1).rate == pytest.approx(1e6 / 280), "one processor does the inference too"
    assert projection.project(costs, 4, 16) == projection.Projection(32_000, "front ends")
    assert projection.project(costs, 16, 64) == projection.Projection(50_000, "the engine's process")
    assert projection.project(costs.divided(2), 4, 16).rate == 2 * 32_000
    full = projection.project(costs, 16, 4)
    assert (full.rate, full.bound) == (pytest.approx(4e6 / 260), "processors")
    assert projection.table(costs, 16).count("\n") == len(projection.FRONT_ENDS)


def test_work_beside_busy_processors_is_measured_on_one_and_then_on_all_again() -> None:
    allowed = os.sched_getaffinity(0)
    assert neighbours.factor() > 0.5
    assert os.sched_getaffinity(0) == allowed


def test_costs_follow_from_the_cheapest_rounds() -> None:
    def rounds(*total_us: float) -> list[Spent]:
        return [Spent(each, 0.0, 0.0, 0.0, 15.0) for each in total_us]

    spent = {"queue": rounds(150, 120), "graph": rounds(180, 200), "whole": rounds(250, 240)}
    assert least(spent["queue"]).total_us == 120
    apart = [(140.0, 100.0, 60.0), (130.0, 90.0, 70.0)]
    assert costs_of(spent, apart, 12.0) == Costs(180, 180, 130, 90, 12, 70, 15)


def test_what_a_call_costs_the_engine_process_is_measured_in_that_process() -> None:
    """Some microseconds; a test beside others cannot say how many."""
    (us,) = engine_load.measure(calls=600, in_flight=60, rounds=1)
    assert 1 < us < 5000


@pytest.mark.parametrize(("count", "status"), [(1030, False), (1031, True), (900, False)])
def test_three_percent_more_instructions_are_a_regression(count: float, status: bool) -> None:
    kept = {"instructions": {regression._PYTHON: {"Decode of 1": 1000}}, "processor": 3.0}
    verdicts = regression.judge({"Decode of 1": count}, 4.49, kept)
    assert [verdict.worse for verdict in verdicts] == [status, False]
    assert regression.judge({}, 4.51, kept)[-1].worse


def test_what_was_not_kept_is_not_judged() -> None:
    (counted, processor) = regression.judge({"Decode of 1": 1e9}, 1e9, {})
    assert not counted.worse
    assert not processor.worse
    assert "not judged" in counted.line()


def test_the_processor_is_blamed_only_if_every_try_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter([9.0, 8.0, 3.0, 9.0, 8.0, 7.0])
    monkeypatch.setattr(regression, "processor_ratio", lambda: next(tries))
    assert regression._least_ratio(3.0) == 3.0
    assert regression._least_ratio(3.0) == 7.0


@pytest.mark.parametrize("kind", bench_models.KINDS)
def test_models_to_measure_are_models(kind: str, tmp_path: Path) -> None:
    folder = bench_models.write(tmp_path, kind)
    about = read(folder).manifest
    made = bench_models.KINDS[kind]
    assert (about.image_shape, about.latent_dim) == (made.shape, made.latent_dim)
    session = ort.InferenceSession(folder / "decoder.onnx", providers=["CPUExecutionProvider"])
    z = np.random.default_rng(1).standard_normal((3, made.latent_dim), np.float32)
    images, mean = session.run(["images", "mean"], {"latents": z})
    assert images.shape == mean.shape == (3, *made.shape)
    assert np.array_equal(images, np.round(mean * 255).astype(np.uint8))
    assert 0 <= mean.min() < mean.max() <= 1
    assert not np.array_equal(mean[0], mean[1])


def test_requests_are_what_they_say() -> None:
    request = pb.DecodeRequest.FromString(bodies.decode(64))
    assert list(request.latents.shape) == [64, 32]
    assert len(request.latents.data) == 64 * 32 * 4
    images = pb.EncodeRequest.FromString(bodies.encode(4, (512, 512, 1))).images.tensor
    assert len(images.data) == 4 << 20
    assert bodies.frame(b"abc") == b"\0\0\0\0\x03abc"


def test_the_best_client_is_one_that_people_use() -> None:
    rounds = {"http aiohttp": [1.0, 5.0], "http threads": [2.0, 4.0], "http pycurl": [], clients.BOUND: [9.0, 9.0]}
    assert clients.best(rounds) == [2.0, 5.0]


def test_a_call_that_brings_something_else_ends_the_load() -> None:
    with pytest.raises(SystemExit, match="got 3 bytes"):
        pacing.Count(1.0).add(time.perf_counter(), 3)
    assert json.loads(pacing.in_threads([lambda: time.sleep(0.01) or 784] * 2, 0.3))["rate"] > 0


def test_children_are_seen_with_what_they_started_and_gone_at_the_end() -> None:
    sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    child = children.Child([sys.executable, "-c", sleeper])
    give_up = time.monotonic() + 30
    while len(child.pids()) < 2 and time.monotonic() < give_up:
        time.sleep(0.01)
    both = child.pids()
    assert len(both) == 2
    assert child.threads() >= 2
    assert child.rss_mib() > 1
    assert all(child.cpu_s()[pid] for pid in both)
    child.stop()
    assert not set(both) & set(children._processes())


def test_who_listens_is_known_by_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert children.listens(port)
        assert children.listening(port, [os.getpid(), os.getppid()]) == {os.getpid()}
    assert not children.listening(port, [os.getpid()])


def test_a_server_that_does_not_start_is_told_with_what_it_said() -> None:
    child = children.Child([sys.executable, "-c", "import sys; sys.exit('no such port')"])
    with children.running(child), pytest.raises(RuntimeError, match="no such port"):
        child.wait(lambda: False)


def test_unknown_sections_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", "--only", "calls,speed"],
        capture_output=True, text=True, cwd=children.ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "got speed" in done.stderr
    assert set(serving.SECTIONS) == {"calls", "large", "streams", "footprint"}
