"""The check for machines with a GPU, run on the CPU: it measures, and it can fail."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import conditional_model
import linear_model
import numpy as np
import pytest
import variant_graphs

from benchmarks import gpu_check
from latentry import manifest
from latentry.manifest import PRECISIONS
from serving import devices, engine
from serving.devices import Device

CPU = Device(devices.CPU)


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(gpu_check, "BUCKETS", (1, 4, 80))
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--seconds", "0", *flags])
    return gpu_check.main()


def test_every_model_is_checked_and_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert said.count(": ok") == 3 * 4 + 6, "encoder and decoder of each precision, a prior and its density"
    timed = [line.split() for line in said.splitlines() if line.split()[:1] in (["1"], ["4"], ["80"])]
    assert len(timed) == 3 * 2 * 4, "three buckets of two graphs"
    figures = [[float(figure.replace(",", "")) for figure in line[1:]] for line in timed]
    assert all(figure > 0 for line in figures for figure in line[:2])
    assert sum(line[2] > 0 for line in figures) == 3 * 2 * 2, "torch beside fp32"


def test_every_precision_is_checked_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variant_graphs.add(linear_model.write(tmp_path), "fp16", "bf16", "int8")
    assert run(monkeypatch, "--device", "cpu", "--models", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert said.count(": ok") == 4 * 4
    for precision in PRECISIONS:
        assert f"linear 1 in {precision}: (12, 10, 1), 5 latents" in said
        assert f"encode {precision}" in said
        assert f"decode {precision}" in said


def test_a_conditional_model_is_checked_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conditional_model.write(tmp_path, 10)
    assert run(monkeypatch, "--device", "cpu", "--models", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert said.count(": ok") == 4
    assert len([line for line in said.splitlines() if line.split()[:1] == ["80"]]) == 2, "both graphs are timed"


def test_a_precision_that_cannot_be_run_is_said_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = linear_model.write(tmp_path)
    variant_graphs.add(model, "bf16", "int8", decoder_bf16=variant_graphs.bf16_throughout(model))
    assert run(monkeypatch, "--device", "cpu", "--models", str(tmp_path)) == 1
    said = capsys.readouterr().out
    assert "decoder.bf16.onnx: ONNX Runtime cannot run it on cpu" in said
    assert said.count(": ok") == 2 * 4, "the others are looked at all the same"


def test_what_the_cpu_cannot_run_is_held_against_fp32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = linear_model.write(tmp_path)
    variant_graphs.add(model, "bf16", decoder_bf16=variant_graphs.bf16_throughout(model))
    graphs = gpu_check._on_the_cpu(manifest.read(model.folder), "bf16", 1)
    assert {graph.precision for graph in graphs.values()} == {"fp32"}
    assert "the CPU cannot run bf16: held against fp32" in capsys.readouterr().out


@pytest.mark.skipif(devices.has_driver(), reason="this machine has an NVIDIA driver")
def test_without_a_gpu_it_fails_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 1
    assert "gpu-check: --device cuda: cuda:0: " in capsys.readouterr().err


@pytest.mark.parametrize(("noise", "good"), [(0.0, True), (1e-4, True), (0.02, False)])
def test_what_differs_is_found(tmp_path: Path, noise: float, good: bool) -> None:
    model = linear_model.write(tmp_path)
    encoder = engine.load_graphs(manifest.read(model.folder), CPU, ())["encoder"]
    spoilt = linear_model.encoder(model.shape, model.w * np.float32(1 + noise), model.v)
    other = engine.Graph(spoilt.SerializeToString(), CPU, {})
    images: Sequence[object] = np.random.default_rng(0).integers(0, 256, (80, *model.shape), np.uint8)
    wanted = gpu_check.TOLERANCES["fp32"].posterior
    assert gpu_check._agrees("encoder", encoder, other, images, {"mean": wanted, "logvar": wanted}) is good


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_differs_on_the_whole_is_found_though_no_value_differs_much(tmp_path: Path, precision: str) -> None:
    """A constant that a device gets wrong everywhere."""
    model = linear_model.write(tmp_path)
    wanted = gpu_check.TOLERANCES[precision].mean
    decoder = linear_model.decoder(model.shape, model.u)
    one = engine.Graph(decoder.SerializeToString(), CPU, {})
    for factor, good in ((0.5, True), (2.0, False)):
        variant_graphs.brighten(decoder, wanted.whole * factor)
        other = engine.Graph(decoder.SerializeToString(), CPU, {})
        latents: Sequence[object] = np.random.default_rng(0).standard_normal((80, 5), np.float32)
        assert wanted.whole * 2 < wanted.worst
        assert gpu_check._agrees("decoder", one, other, latents, {"mean": wanted}) is good
        decoder = linear_model.decoder(model.shape, model.u)
