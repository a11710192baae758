"""`latentry health` says by its exit status whether a server is ready, over TLS too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from conftest import running_service, settings_for
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from proxies import no_use_of_a_proxy

from latentry.cli import main

Serve = Callable[[grpc.ServerCredentials | None], str]


@contextmanager
def serving(credentials: grpc.ServerCredentials | None) -> Iterator[str]:
    """A server of health alone, where all is well and the model `broken` is not; its address."""
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        servicer = health.HealthServicer()
        servicer.set("broken", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = (
            server.add_secure_port("127.0.0.1:0", credentials)
            if credentials
            else server.add_insecure_port("127.0.0.1:0")
        )
        server.start()
        yield f"localhost:{port}"
        server.stop(None).wait()


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda credentials: stack.enter_context(serving(credentials))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def credentials_for(authority: trustme.CA, name: str, ask_clients: bool = False) -> grpc.ServerCredentials:
    issued = authority.issue_cert(name)
    pair = (issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    return grpc.ssl_server_credentials([pair], authority.cert_pem.bytes() if ask_clients else None, ask_clients)


def test_the_status_is_the_servers_or_a_models(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(None)
    assert main(["health", "--server", server]) == 0
    assert main(["health", "--server", server, "--service", "broken"]) == 1
    assert capsys.readouterr().out == "SERVING\nNOT_SERVING\n"
    assert main(["health", "--server", server, "--service", "nothing"]) == 1
    assert capsys.readouterr().err == "latentry health: NOT_FOUND: \n"


def test_this_machine_is_asked_without_a_proxy(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(None)
    with no_use_of_a_proxy(monkeypatch):
        assert main(["health", "--server", server]) == 0


def test_over_tls_the_authority_is_needed(
    serve: Serve, authority: trustme.CA, ca: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(credentials_for(authority, "localhost"))
    assert main(["health", "--server", server, "--tls-ca", ca]) == 0
    assert main(["health", "--server", server]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err


def test_a_certificate_for_another_name_is_asked_for_by_that_name(serve: Serve, authority: trustme.CA, ca: str) -> None:
    server = serve(credentials_for(authority, "vae.example"))
    assert main(["health", "--server", server, "--tls-ca", ca]) == 1
    assert main(["health", "--server", server, "--tls-ca", ca, "--tls-name", "vae.example"]) == 0


def test_over_mtls_a_certificate_is_shown(serve: Serve, authority: trustme.CA, ca: str, tmp_path: Path) -> None:
    server = serve(credentials_for(authority, "localhost", ask_clients=True))
    probe = authority.issue_cert("probe")
    probe.private_key_pem.write_to_path(str(tmp_path / "probe.key"))
    probe.cert_chain_pems[0].write_to_path(str(tmp_path / "probe.pem"))
    pair = ["--tls-certificate", str(tmp_path / "probe.pem"), "--tls-key", str(tmp_path / "probe.key")]
    assert main(["health", "--server", server, "--tls-ca", ca, *pair]) == 0
    assert main(["health", "--server", server, "--tls-ca", ca]) == 1


def test_flags_that_make_no_sense_are_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--tls-key", "probe.key"]) == 2
    assert main(["health", "--tls-ca", "/nowhere"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "latentry health: --tls-certificate and --tls-key: got one, wanted both or neither",
        "latentry health: /nowhere: No such file or directory",
    ]


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
def test_a_container_asks_its_own_server_whatever_its_tls(
    with_tls: bool,
    authority: trustme.CA,
    linear_repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more: dict[str, Path] = {}
    if with_tls:
        issued = authority.issue_cert("elsewhere.example")
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        for pem in issued.cert_chain_pems:
            pem.write_to_path(tmp_path / "certificate.pem", append=True)
        more = {"tls_certificate": tmp_path / "certificate.pem", "tls_key": tmp_path / "key.pem"}
    with running_service(settings_for(linear_repository, **more)) as service:
        monkeypatch.setenv("LATENTRY_METRICS_PORT", str(service.metrics_port))
        assert main(["health", "--here"]) == 0
        assert capsys.readouterr().out == "ready\n"
        service.health.accepting = False
        assert main(["health", "--here"]) == 1
        assert "503" in capsys.readouterr().err
    assert main(["health", "--here"]) == 1
