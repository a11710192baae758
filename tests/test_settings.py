"""Settings: where they come from, what they refuse, how they are shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from latentry.cli import main
from latentry.manifest import embedded_models
from serving import settings_text
from serving.errors import ConfigError, StartError
from serving.settings import Policy, Settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LATENTRY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "latentry.toml"


def refusal(config: Path | None = None, **given: Any) -> str:
    """The one line that such settings are refused with."""
    with pytest.raises(ConfigError) as caught:
        Settings(config, **given)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_flags_win_over_the_environment_over_the_file_over_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("port = 1\nmetrics_port = 2\nadmin_port = 3\n")
    monkeypatch.setenv("LATENTRY_PORT", "11")
    monkeypatch.setenv("LATENTRY_METRICS_PORT", "12")
    settings = Settings(file, port="21")
    assert (settings.port, settings.metrics_port, settings.admin_port) == (21, 12, 3)
    assert settings.max_batch_size == 64


def test_the_environment_names_the_file_and_a_flag_another(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("port = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("port = 2\n")
    monkeypatch.setenv("LATENTRY_CONFIG", str(file))
    assert Settings().port == 1
    assert Settings(other).port == 2
    monkeypatch.setenv("LATENTRY_CONFIG", "")
    assert Settings().port == 50051


def test_a_value_that_is_the_default_wins_all_the_same(file: Path) -> None:
    file.write_text("port = 1\n")
    assert Settings(file, port=50051).port == 50051


def test_lists_come_as_arrays_from_the_file_and_separated_by_blanks_or_semicolons_elsewhere(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('versions = ["latest:2", "fashion=1,3"]\n')
    wanted = ("latest:2", "fashion=1,3")
    assert Settings(file).versions == wanted
    assert Settings(versions=["latest:2", "fashion=1,3"]).versions == wanted
    for text in ("latest:2 fashion=1,3", " latest:2;fashion=1,3 ", "latest:2;\tfashion=1,3".replace("\t", " ")):
        monkeypatch.setenv("LATENTRY_VERSIONS", text)
        assert Settings().versions == wanted


def test_an_empty_variable_stands_for_none(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('admin_port = 5\nlabels = ["fashion:stable=1"]\nmodels = "there"\n')
    for name in ("ADMIN_PORT", "LABELS", "MODELS"):
        monkeypatch.setenv(f"LATENTRY_{name}", "")
    settings = Settings(file)
    assert (settings.admin_port, settings.labels, settings.models) == (None, (), None)
    assert settings.repository == embedded_models()
    monkeypatch.setenv("LATENTRY_PORT", "")
    assert refusal() == "LATENTRY_PORT: got '', wanted a whole number, 0 to 65535"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LATENTRY_PORT", "tcp://10.0.0.1:50051"),
        ("LATENTRY_ADMIN_PORT", "tcp://10.0.0.1:1"),
        ("LATENTRY_METRICS_PORT", "udp://[fd00::1]:1"),
        ("LATENTRY_SERVICE_HOST", "10.0.0.1"),
        ("LATENTRY_SERVICE_PORT", "50051"),
        ("LATENTRY_SERVICE_PORT_GRPC", "50051"),
        ("LATENTRY_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("LATENTRY_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("LATENTRY_PORT_50051_TCP_PORT", "50051"),
        ("LATENTRY_PORT_50051_TCP_PROTO", "tcp"),
        ("LATENTRY_METRICS_SERVICE_PORT_HTTP", "9464"),
        ("LATENTRY_CANARY_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("LATENTRY_CANARY_PORT", "tcp://10.0.0.1:50051"),
        ("LATENTRY_DATA", "/data"),
        ("LATENTRYX", "no business of ours"),
    ],
)
def test_what_kubernetes_and_the_tests_add_is_passed_over(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert Settings() == Settings.model_construct()


def test_unknown_keys_are_refused_with_the_nearest(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(prot=1) == "--prot: no such setting; did you mean --port?"
    file.write_text("max_batchsize = 3\n")
    assert refusal(file) == f"{file}: 'max_batchsize': no such setting; did you mean max_batch_size?"
    file.write_text("[batching]\nmax_batch_size = 3\n")
    assert "'batching': no such setting" in refusal(file)
    file.write_text('"a\\nforged line" = 3\n')
    assert "'a\\nforged line': no such setting; latentry serve --help lists them" in refusal(file)
    monkeypatch.setenv("LATENTRY_DRAIN", "3")
    assert refusal().startswith("LATENTRY_DRAIN: no such setting (environment variable); did you mean LATENTRY_DRAIN_")
    monkeypatch.delenv("LATENTRY_DRAIN")
    monkeypatch.setenv("LATENTRY_port", "3")
    assert refusal().endswith("did you mean LATENTRY_PORT?")


def test_a_refusal_names_the_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port = 70000\n")
    assert refusal(file) == f"{file}: port: got 70000, wanted 0 to 65535"
    monkeypatch.setenv("LATENTRY_PORT", "70001")
    assert refusal(file) == "LATENTRY_PORT: got '70001', wanted 0 to 65535"
    assert refusal(file, port=70002) == "--port: got 70002, wanted 0 to 65535"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = ", "wanted TOML in UTF-8"),
        ("port = 1\nport = 2\n", "wanted TOML in UTF-8"),
        ("x" * (1 << 20) + "\n", "got more than 1048576 bytes"),
        ("a = " + "[" * 100_000, "wanted TOML in UTF-8"),
        ("port = true", "port: got true, wanted 0 to 65535"),
        ("port = 1.5", "port: got 1.5, wanted a whole number, 0 to 65535"),
        ("drain_s = nan", "drain_s: got nan, wanted 0 to 3600"),
        ("drain_s = inf", "drain_s: got inf, wanted 0 to 3600"),
        ("host = 4", "host: got 4, wanted text"),
        ("versions = [1, 3]", "versions: got 1, wanted a list of texts"),
        ("insecure = 2", "insecure: got 2, wanted true or false"),
        ("models = ['a']", "models: got ['a'], wanted a path"),
        (r'models = "a\u0000b"', r"models: got 'a\x00b', wanted a path, in UTF-8 and without control characters"),
    ],
)
def test_a_bad_file_is_refused(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    assert refusal(file).startswith(f"{file}: ")
    assert message in refusal(file)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: Is a directory, wanted a TOML file"
    assert "No such file or directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b'host = "\xe9"\n')
    assert "wanted TOML in UTF-8" in refusal(tmp_path / "latin")
    assert "got more than" in refusal(Path("/dev/zero"))


PEM = "server.pem"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": "abc"}, "--port: got 'abc', wanted a whole number, 0 to 65535"),
        ({"port": -1}, "--port: got -1"),
        ({"threads": 1025}, "--threads: got 1025, wanted 0 to 1024"),
        ({"threads": False}, "--threads: got false, wanted 0 to 1024"),
        ({"max_batch_size": 0}, "--max-batch-size: got 0, wanted 1 to 4096"),
        ({"max_model_share": 0}, "--max-model-share: got 0, wanted above 0, at most 1"),
        ({"max_model_share": 1.1}, "--max-model-share: got 1.1"),
        ({"reconstruct_share": -0.1}, "--reconstruct-share: got -0.1, wanted 0 to 1"),
        ({"log_level": "loud"}, "--log-level: got 'loud', wanted one of debug, info, warning, error"),
        ({"log_format": "xml"}, "--log-format: got 'xml', wanted one of auto, json, console"),
        ({"insecure": "maybe"}, "--insecure: got 'maybe', wanted true or false"),
        ({"device": "gpu"}, "--device: got 'gpu', wanted auto, cpu, cuda, cuda:N or cuda:N,M, each N once"),
        ({"device": "cuda:1,01"}, "--device: got 'cuda:1,01'"),
        ({"host": ""}, "--host: got '', wanted an address or a host name, without a port"),
        ({"host": "0.0.0.0:50051"}, "--host: got '0.0.0.0:50051'"),
        ({"host": "::1 forged"}, "--host: got '::1 forged'"),
        ({"default_model": "../x"}, "--default-model: got '../x', wanted 1 to 64 of a-z"),
        ({"trace_endpoint": "localhost:4317"}, "--trace-endpoint: got 'localhost:4317', wanted http://HOST:PORT"),
        ({"trace_endpoint": "http://user:secret@host:1"}, "wanted http://HOST:PORT"),
        ({"trace_endpoint": "http://host:99999"}, "wanted http://HOST:PORT"),
        ({"versions": ("latest:0",)}, "--versions: got 'latest:0', wanted latest, latest:N, all, a list such as 1,3"),
        ({"versions": ("1,01",)}, "--versions: got '1,01'"),
        ({"versions": ("UPPER=all",)}, "--versions: got 'UPPER=all'"),
        ({"versions": ("all", "latest")}, "--versions: got two policies for every model, wanted one"),
        ({"versions": ("a=all", "a=latest")}, "--versions: got two policies for a, wanted one"),
        ({"labels": ("stable=1",)}, "--labels: got 'stable=1', wanted NAME:LABEL=VERSION"),
        ({"labels": ("a:stable=latest",)}, "--labels: got 'a:stable=latest'"),
        ({"labels": ("a:s=1", "a:s=2")}, "--labels: got a:s with versions 1 and 2, wanted one version a label"),
        ({"max_queue_items": 5}, "--max-queue-items: got 5, wanted 1024 (max_request_items) or more"),
        ({"max_request_items": 5000}, "max_queue_items: got 4096, wanted 5000 (max_request_items) or more"),
        ({"port": 7, "metrics_port": 7}, "--metrics-port: got 7, wanted another port than port"),
        ({"admin_port": 9464}, "--admin-port: got 9464, wanted another port than metrics_port"),
        ({"tls_key": PEM}, "--tls-key: got server.pem, wanted tls_certificate with it"),
        ({"tls_certificate": PEM}, "--tls-certificate: got server.pem, wanted tls_key with it"),
        ({"tls_client_ca": PEM}, "--tls-client-ca: got server.pem, wanted tls_certificate and tls_key with it"),
        ({"models": "a\nb"}, r"--models: got 'a\nb', wanted a path"),
        ({"models": "\udcff"}, r"--models: got '\udcff', wanted a path, in UTF-8"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    assert refusal(**given).startswith(message) or message in refusal(**given)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "::ffff:10.0.0.1"])  # noqa: S104
def test_an_address_that_others_reach_wants_credentials_and_encryption_or_insecure(host: str) -> None:
    message = refusal(host=host)
    assert f"--host: got {host!r}" in message
    assert "--identities" in message
    assert "--insecure" in message
    assert "tokens must not cross in the open" in refusal(host=host, identities="who.toml")
    tls = {"tls_certificate": PEM, "tls_key": PEM}
    assert "callers must be known" in refusal(host=host, **tls)
    assert Settings(host=host, insecure=True).host == host
    assert Settings(host=host, identities="who.toml", **tls).host == host
    assert Settings(host=host, tls_client_ca="ca.pem", **tls).host == host


def test_administration_that_others_reach_wants_identities_even_if_insecure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--admin-port: got 0, wanted identities with it"):
        Settings(host="0.0.0.0", insecure=True, admin_port=0)  # noqa: S104 - what the test is about
    assert Settings(host="0.0.0.0", insecure=True, admin_port=0, identities=tmp_path).admin_port == 0  # noqa: S104
    assert Settings(admin_port=0).admin_port == 0
    tls = {"tls_certificate": tmp_path, "tls_key": tmp_path, "tls_client_ca": tmp_path}
    with pytest.raises(ConfigError, match="a certificate alone is no admin's"):
        Settings(admin_port=0, **tls)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.3.2.1", "::ffff:127.0.0.1"])
def test_loopback_wants_nothing(host: str) -> None:
    assert Settings(host=host).host == host.strip("[]")


def test_ports_may_all_be_any_free_one() -> None:
    settings = Settings(port=0, metrics_port=0, admin_port=0)
    assert (settings.port, settings.metrics_port, settings.admin_port) == (0, 0, 0)


def test_levels_are_read_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTRY_LOG_LEVEL", "INFO")
    assert Settings(request_log_level="Off") == Settings(log_level="info", request_log_level="off")


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("latest", {9}),
        ("latest:2", {9, 4}),
        ("latest:99", {1, 3, 4, 9}),
        ("all", {1, 3, 4, 9}),
        ("1,3", {1, 3}),
        ("3,7", {3}),
        ("7", set()),
    ],
)
def test_a_policy_chooses_versions(policy: str, chosen: set[int]) -> None:
    settings = Settings(versions=(policy, "other=4"))
    assert settings.policy_for("fashion").choose([4, 1, 9, 3]) == chosen
    assert settings.policy_for("other").choose([4, 1, 9, 3]) == {4}
    assert settings.policy_for("fashion").choose([]) == set()


def test_without_a_policy_for_all_the_latest_serves() -> None:
    settings = Settings(versions=("other=all",))
    assert settings.policy_for("fashion") == Policy(latest=1)
    assert Settings(versions=()).policy_for("fashion") == Policy(latest=1)


def test_labels_are_by_model_and_name() -> None:
    settings = Settings(labels=("a:stable=3", "a:canary=4", "b:stable=1", "b:stable=1"))
    assert settings.label_map == {"a": {"stable": 3, "canary": 4}, "b": {"stable": 1}}


def test_what_is_printed_gives_the_same_settings_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('models = "mö\\"d\\\\els"\ndrain_s = 0.1\nquota_items_per_s = 1e9\nlabels = ["a:b=1"]\n')
    monkeypatch.setenv("LATENTRY_LOG_LEVEL", "debug")
    flags = ["--config", str(file), "--port", "7", "--versions", "latest:2", "a=1,3", "--no-reflection"]
    assert main(["serve", "--print-config", *flags]) == 0
    printed = capsys.readouterr().out
    assert "port = 7  # flag --port\n" in printed
    assert 'log_level = "debug"  # environment LATENTRY_LOG_LEVEL\n' in printed
    assert f"drain_s = 0.1  # file {file}\n" in printed
    assert "threads = 0  # default\n" in printed
    assert "# admin_port: none  # default\n" in printed
    before = Settings(file, port=7, versions=("latest:2", "a=1,3"), reflection=False)
    monkeypatch.delenv("LATENTRY_LOG_LEVEL")
    file.write_text(printed)
    assert Settings(file) == before


def test_every_setting_is_printed_and_described_in_a_group() -> None:
    sources = settings_text.Sources({}, {}, {}, None)
    printed = settings_text.to_toml(Settings(), sources)
    for key, field in Settings.model_fields.items():
        assert f"\n{key} = " in printed or f"\n# {key}: none" in printed, key
        assert field.description, key


def test_the_command_line_says_what_is_wrong_in_a_line_and_exits_with_2() -> None:
    for flags, message in {
        ("--port", "abc"): "latentry serve: --port: got 'abc', wanted a whole number, 0 to 65535",
        ("--host", "0.0.0.0"): "latentry serve: --host: got '0.0.0.0', wanted a loopback address",  # noqa: S104
        ("--prot", "3"): "latentry serve: error: --prot: no such flag; did you mean --port?",
        ("--max-batch", "3"): "latentry serve: error: --max-batch: no such flag; did you mean --max-batch-size?",
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "latentry", "serve", *flags], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(message)
        assert len(done.stderr.splitlines()) <= 2


def test_a_full_disk_leaves_the_exit_status(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "latentry", "serve", "--port", "abc"]
        assert subprocess.run(command, stderr=full, timeout=60).returncode == 2


def test_the_help_of_every_flag_says_what_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    shown = "".join(capsys.readouterr().out.split())  # argparse breaks lines where it likes
    for key, field in Settings.model_fields.items():
        text = f"{field.description} (default: {settings_text.default_text(field)})"
        assert settings_text.flag_of(key) in shown
        assert "".join(text.split()) in shown, key


def test_the_document_is_what_the_code_makes() -> None:
    """If not: `make docs`."""
    assert (ROOT / "docs" / "configuration.md").read_text() == settings_text.to_markdown()


def test_a_config_error_is_a_start_error() -> None:
    with pytest.raises(StartError, match="--port: got 70000, wanted 0 to 65535"):
        Settings(models=Path(), port=70000)
