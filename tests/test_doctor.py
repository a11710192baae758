"""`latentry doctor`: it sees what would stop a start, and what is worth knowing."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trustme

from latentry.cli import main
from latentry.manifest import embedded_models
from serving import devices, doctor, doctor_machine
from serving.findings import Finding

FREE = {"port": 0, "metrics_port": 0}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LATENTRY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    shutil.copytree(embedded_models() / "fashion", tmp_path / "models" / "fashion")
    return tmp_path / "models"


def found(what: str, **flags: Any) -> list[Finding]:
    """What it says of `what` for these flags."""
    return [finding for finding in doctor.examine(None, {**FREE, **flags}) if finding.what == what]


def the_only(what: str, **flags: Any) -> Finding:
    (finding,) = found(what, **flags)
    return finding


def test_a_machine_that_serves_has_no_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--port", "0", "--metrics-port", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for what in ("Python", "ONNX Runtime", "NVIDIA driver", "CUDA libraries", "threads", "memory", "device", "models"):
        assert any(line[9:].startswith(f"{what}: ") for line in lines), what
    assert all(line.startswith(("ok ", "warning ")) for line in lines)
    assert any("fashion version 1 verifies: 28x28x1, 32 latents" in line for line in lines)


def test_a_problem_is_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--models", "/nowhere"]) == 1
    assert "problem  models: model repository /nowhere: No such file or directory" in capsys.readouterr().out


def test_settings_that_make_no_sense_are_a_problem_and_the_machine_is_looked_at_all_the_same() -> None:
    findings = doctor.examine(None, {"prot": 3})
    assert findings[-1].verdict == "problem"
    assert "--prot: no such setting; did you mean --port?" in findings[-1].text
    assert any(finding.what == "memory" for finding in findings)


@pytest.mark.skipif(devices.has_driver(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_auto_takes_the_cpu_and_cuda_is_a_problem() -> None:
    auto = the_only("device", device="auto")
    assert auto.verdict == "ok"
    assert "cpu (CPUExecutionProvider): auto: no NVIDIA driver" in auto.text
    cuda = the_only("device", device="cuda:1")
    assert cuda.verdict == "problem"
    assert "cuda:1: no NVIDIA driver" in cuda.text
    assert the_only("NVIDIA driver").verdict == "ok"


def test_libraries_that_are_missing_come_with_the_line_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine.engine, "provider_report", lambda: ("1", "13.0", ["CUDAExecutionProvider"]))
    monkeypatch.setattr(doctor_machine, "_place_of", lambda name: None if "cudnn" in name else "/lib")
    finding = doctor_machine._libraries(driver=True)
    assert finding.verdict == "warning"
    assert "missing libcudnn.so.9; found libcudart.so.13 (/lib)" in finding.text
    assert "pip install -c constraints.txt -e '.[cuda]'" in finding.text
    monkeypatch.setattr(doctor_machine, "_place_of", lambda _: "/lib")
    assert doctor_machine._libraries(driver=True).verdict == "ok"
    monkeypatch.setattr(doctor_machine.engine, "provider_report", lambda: ("1", "", ["CPUExecutionProvider"]))
    assert "not needed" in doctor_machine._libraries(driver=True).text


def test_two_builds_of_onnxruntime_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "version_of", lambda _: "1.0")
    assert the_only_problem(list(doctor_machine._onnxruntime())).startswith("onnxruntime-gpu and onnxruntime overwrite")


def the_only_problem(findings: list[Finding]) -> str:
    (text,) = [finding.text for finding in findings if finding.verdict == "problem"]
    return text


def test_the_limits_of_a_control_group_are_seen(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{600 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{200 << 20}\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    by_name = {finding.what: finding for finding in doctor_machine.examine(tmp_path)}
    assert by_name["memory"].verdict == "warning"
    assert by_name["memory"].text == "400 MiB available, the control group's limit is 600 MiB"
    assert by_name["threads"].text.startswith("1 for each graph")


def test_more_threads_than_processors_is_a_warning() -> None:
    assert [finding.verdict for finding in found("threads", threads=1024)] == ["ok", "warning"]


@pytest.mark.parametrize("key", ["port", "metrics_port", "admin_port"])
def test_a_port_that_is_taken_is_a_problem(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = the_only(key, **{key: port})
    assert finding.verdict == "problem"
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in finding.text
    assert the_only(key, **{key: port}).verdict == "ok"


def test_an_address_of_another_machine_is_a_problem() -> None:
    assert the_only("port", host="192.0.2.1", insecure=True).verdict == "problem"


def test_a_model_that_does_not_verify_is_a_problem(models: Path) -> None:
    shutil.copytree(models / "fashion" / "1", models / "fashion" / "2")
    finding = the_only("models", models=models)
    assert (finding.verdict, "version: got 1, wanted 2" in finding.text) == ("problem", True)
    assert the_only("models", models=models, versions=("1",)).verdict == "ok"
    graph = models / "fashion" / "1" / "encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    assert "SHA-256" in the_only("models", models=models, versions=("1",)).text


def test_a_repository_without_a_model_is_a_problem(tmp_path: Path) -> None:
    assert "no model, wanted <name>/<version>/manifest.json" in the_only("models", models=tmp_path).text


def test_names_that_lead_nowhere_are_said(models: Path) -> None:
    (models / "fashion" / "latest").mkdir()
    assert [finding.verdict for finding in found("models", models=models)] == ["problem", "ok"]
    labels = found("labels", models=models, labels=("fashion:stable=1", "fashion:canary=7", "other:stable=1"))
    assert [finding.text for finding in labels] == [
        f"fashion:canary=7: there is no {models / 'fashion' / '7'}",
        f"other: there is no {models / 'other'}",
    ]
    assert the_only("default_model", models=models, default_model="other").verdict == "problem"
    assert "by its policy" in found("models", models=models, versions=("7",))[-1].text


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[[int], dict[str, Path]]:
    """`certificate(days)` writes one that is good for so long, and its key; returns the flags that name them."""
    authority = trustme.CA()

    def write(days: int) -> dict[str, Path]:
        ends = datetime.now(timezone.utc) + timedelta(days=days, hours=1)
        issued = authority.issue_cert("localhost", not_after=ends)
        paths = {"tls_certificate": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"}
        issued.cert_chain_pems[0].write_to_path(str(paths["tls_certificate"]))
        issued.private_key_pem.write_to_path(str(paths["tls_key"]))
        return paths

    return write


def test_a_certificate_is_good_about_to_expire_expired_or_of_another_key(certificate: Any, tmp_path: Path) -> None:
    good = the_only("certificate", **certificate(90))
    assert (good.verdict, "good for 90 more days" in good.text) == ("ok", True)
    assert the_only("certificate", **certificate(20)).verdict == "warning"
    assert the_only("certificate", **certificate(-2)).verdict == "problem"
    flags = certificate(90)
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(str(flags["tls_key"]))
    assert the_only("certificate", **flags).verdict == "problem"
    flags["tls_key"] = tmp_path / "nowhere"
    assert "nowhere" in the_only("certificate", **flags).text


def test_an_identities_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "identities.toml"
    file.write_text(f'[[identity]]\nname = "app"\ntoken_sha256 = "{"0" * 64}"\nroles = ["infer"]\n')
    assert the_only("identities", identities=file).verdict == "ok"
    file.write_text("no TOML at all")
    assert the_only("identities", identities=file).verdict == "problem"


def test_listening_insecurely_is_a_warning() -> None:
    assert the_only("security", host="0.0.0.0", insecure=True).verdict == "warning"  # noqa: S104
    assert the_only("security").verdict == "ok"


def test_tracing_that_is_not_installed_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda _: None)
    finding = the_only("traces", trace_endpoint="http://localhost:4317")
    assert (finding.verdict, "[tracing]" in finding.text) == ("problem", True)


def test_a_folder_for_tensorrt_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert the_only("tensorrt_cache", tensorrt_cache=tmp_path / "nowhere").verdict == "problem"
    assert not found("tensorrt_cache", tensorrt_cache=tmp_path)
