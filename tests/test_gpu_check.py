"""The check for machines with a GPU, run on the CPU: it measures, and it can fail."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import linear_model
import numpy as np
import pytest

from benchmarks import gpu_check
from latentry import manifest
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
    assert said.count(": ok") == 4 + 5, "encoder and decoder of both, and a prior"
    timed = [line.split() for line in said.splitlines() if line.split()[:1] in (["1"], ["4"], ["80"])]
    assert len(timed) == 12
    assert all(float(figure.replace(",", "")) > 0 for line in timed for figure in line[1:]), "torch among them"


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
    assert gpu_check._agrees("encoder", encoder, other, images, {"mean": 2e-3, "logvar": 2e-3}) is good
