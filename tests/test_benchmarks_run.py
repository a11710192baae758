"""The benchmarks run: each in a form so small that its figures mean nothing."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import calls, clients, engine_load, instructions, long_streams, regression, servers, serving, stages
from benchmarks.load import Load
from benchmarks.plan import Plan
from benchmarks.processor_time import Spent
from latentry.v1 import vae_pb2 as pb
from serving.api.servicer import VaeServicer

needs_h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")


def test_instructions_are_counted_and_more_of_them_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 20 us of Python in a call are seen for what they are, and a call that has them not is as before."""
    monkeypatch.setattr(
        instructions, "REQUESTS", {name: instructions.REQUESTS[name] for name in ("Decode of 1", "Encode of 1")}
    )
    before = instructions.measure(10, 2)
    decode = VaeServicer.Decode

    async def slower(self: VaeServicer, request: pb.DecodeRequest, context: object) -> pb.DecodeResponse:
        for _ in range(400):
            pass
        return await decode(self, request, context)

    monkeypatch.setattr(VaeServicer, "Decode", slower)
    after = instructions.measure(10, 2)
    assert before["Decode of 1"] > 500
    assert 800 < after["Decode of 1"] - before["Decode of 1"] < 2000, "two or three instructions an iteration"
    assert after["Encode of 1"] == pytest.approx(before["Encode of 1"], rel=0.03)
    kept = {"instructions": {regression._PYTHON: before}}
    assert [verdict.worse for verdict in regression.judge(after, 1.0, kept)] == [True, False, False]


def test_the_processors_ratio_is_that_of_a_call_to_an_echo() -> None:
    assert regression.processor_ratio(turns=1) > 1


@needs_h2load
def test_what_a_server_spends_is_measured_with_its_batcher_cut_off(tmp_path: Path) -> None:
    args = argparse.Namespace(in_flight=4, calls=100)
    pressed, spent, engines = stages._measure("queue", Plan(tmp_path), args)
    (only,) = spent.values()
    assert pressed.rate > 0
    assert only.total_us > only.kernel_us >= 0
    assert not engines, "one process does all"


def test_stages_are_told_and_projected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    total_us = {"echo asyncio": 120, "echo": 100, "decode": 150, "queue": 200, "graph": 230, "whole": 290, "two": 330}
    monkeypatch.setattr(stages, "_REPEATS", 10)

    def measured(level: str, plan: Plan, args: argparse.Namespace) -> tuple[Load, dict[int, Spent], set[int]]:
        front, engine = Spent(total_us[level] - 90.0, 0.0, 5.0, 1.0, 15.0), Spent(30.0, 60.0, 5.0, 1.0, 15.0)
        return Load(5000.0, 0.01), {1: front, 2: engine}, {2}

    monkeypatch.setattr(stages, "_measure", measured)
    monkeypatch.setattr(engine_load, "measure", lambda calls: [14.0, 12.0])
    assert stages.main(["--rounds", "2", "--out", str(tmp_path / "s.json")]) == 0
    said = capsys.readouterr().out
    assert [said.count(name) for name in stages._NAMES.values()].count(0) == 0
    kept = json.loads((tmp_path / "s.json").read_text())
    medians = {figure["name"]: figure["median"] for figure in kept["figures"]}
    assert [medians[name] for _, _, name in stages._STAGES] == [100, 50, 50, 30, 60]
    assert kept["costs"] == {
        "single_us": 230,
        "single_loop_us": 170,
        "front_us": 240,
        "front_loop_us": 240,
        "engine_us": 12,
        "inference_us": 60,
        "load_us": 15,
    }
    assert kept["projected_calls_per_s"]["such processors"]["2"] == pytest.approx(2e6 / 240)


def test_streams_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_streams, "IMAGES", 100)
    monkeypatch.setattr(long_streams, "_REPEATS", 2)
    out = tmp_path / "bench.json"
    assert serving.main(["--only", "streams", "--rounds", "1", "--seconds", "0.05", "--out", str(out)]) == 0
    kept = json.loads(out.read_text())
    assert {figure["name"] for figure in kept["figures"]} >= {"Sample(1)", "StreamSample(100)"}
    assert all(figure["median"] > 0 for figure in kept["figures"])


@needs_h2load
def test_calls_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(tmp_path, 1, 0.3)
    ours = next(server for server in servers.ours(plan) if server.name == servers.OURS)
    monkeypatch.setattr(calls, "IN_FLIGHT", (1, 4))
    monkeypatch.setattr(clients, "KINDS", {servers.OURS: ("async",)})
    seen = calls._one_round(ours, plan)
    assert set(seen) == {"ready", "MiB", "rate 1", "seconds 1", "rate 4", "seconds 4", "async"}
    assert all(value > 0 for value in seen.values())
