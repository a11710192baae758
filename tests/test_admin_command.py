"""`latentry admin`, the calling commands and both clients, over TLS with tokens, certificates and labels."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import linear_model
import numpy as np
import pytest
from certificates import Authority, replace
from conftest import running_service, settings_for
from proxies import no_use_of_a_proxy
from test_access import ADMIN, APP, USUAL, write

import latentry
from latentry.cli import main
from serving import logs
from serving.server import Service

Code = grpc.StatusCode


class Place:
    """A service over TLS with identities, and the flags that get somebody in."""

    def __init__(self, service: Service, ca: Authority, folder: Path) -> None:
        self.service = service
        self.ca = ca
        self._folder = folder

    def token(self, token: str) -> Path:
        """A file with this token, as somebody's editor would leave it."""
        file = self._folder / "token"
        replace(file, f"{token}\n".encode())
        return file

    def flags(self, port: int, token: str | None = APP) -> list[str]:
        flags = ["--server", f"localhost:{port}", "--tls-ca", str(self.ca.file), "--timeout-s", "20"]
        return [*flags, "--token-file", str(self.token(token))] if token else flags

    @property
    def target(self) -> str:
        return f"localhost:{self.service.port}"


@contextlib.contextmanager
def served(folder: Path, **changes: Any) -> Iterator[Place]:
    """Versions 1 and 2 of `linear`, both served, 1 called stable."""
    for version in (1, 2):
        linear_model.write(folder / "models", version=version)
    ca = Authority(folder / "ca")
    certificate, key = ca.server()
    settings = settings_for(
        folder / "models",
        versions=("all",),
        labels=("linear:stable=1",),
        admin_port=0,
        identities=write(folder, USUAL),
        tls_certificate=certificate,
        tls_key=key,
        **{name: ca.file if value is True else value for name, value in changes.items()},
    )
    with running_service(settings) as service:
        yield Place(service, ca, folder)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with served(tmp_path) as place:
        yield place


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One for all tests that change nothing."""
    with served(tmp_path_factory.mktemp("same")) as place:
        yield place


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; its exit status and what it printed."""

    def latentry(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(argv))
        said = capsys.readouterr()
        return status, said.out, said.err

    return latentry


# ---- latentry admin ----


def test_an_administrator_lists_loads_labels_unloads_and_scans(place: Place, run: Run) -> None:
    flags = place.flags(place.service.admin_port, ADMIN)

    def admin(*argv: str) -> str:
        status, out, err = run("admin", *argv, *flags)
        assert (status, err) == (0, "")
        return out

    assert admin("list") == "linear 1  ready  called stable\nlinear 2  ready\n"
    assert admin("label", "linear", "stable", "2") == "linear  stable means 2\n"
    assert admin("unload", "linear", "1") == "linear 1  unloaded\n"
    assert admin("list") == "linear 1  available\nlinear 2  ready  called stable\n"
    assert admin("load", "linear", "1") == "linear 1  ready\n"
    assert admin("label", "linear", "stable", "0") == "linear  stable means nothing\n"
    bad = linear_model.write(place.service.settings.repository, version=3).folder / "encoder.onnx"
    bad.write_bytes(b"")
    assert "linear 3  refused  linear/3/encoder.onnx: SHA-256" in admin("scan")


def test_an_administrator_changes_the_log_level(same: Place, run: Run) -> None:
    before = logs.level()
    flags = same.flags(same.service.admin_port, ADMIN)
    try:
        status, out, _ = run("admin", "log-level", "debug", *flags)
        assert (status, out, logs.level()) == (0, f"log level debug, before {before}\n", "debug")
    finally:
        logs.set_level(before)


@pytest.mark.parametrize(
    ("argv", "token", "said"),
    [
        (["load", "linear", "9"], ADMIN, "NOT_FOUND: model: got 'linear' version 9"),
        (["load", "../etc", "1"], ADMIN, "INVALID_ARGUMENT: name: got '../etc'"),
        (["unload", "linear", "1"], ADMIN, "FAILED_PRECONDITION: linear version 1 is called stable"),
        (["label", "linear", "x", "9"], ADMIN, "FAILED_PRECONDITION: label 'x'"),
        (["log-level", "loud"], ADMIN, "INVALID_ARGUMENT: level: got 'loud'"),
        (["list"], APP, "PERMISSION_DENIED: app: got roles infer, wanted admin"),
        (["list"], "nobody", "UNAUTHENTICATED: authorization: got a token that is not known"),
        (["list"], None, "UNAUTHENTICATED: authorization: got none"),
    ],
)
def test_what_an_administrator_cannot_do_is_one_line_and_exit_status_1(
    same: Place, run: Run, argv: list[str], token: str | None, said: str
) -> None:
    status, out, err = run("admin", *argv, *same.flags(same.service.admin_port, token))
    assert (status, out) == (1, "")
    assert err.startswith(f"latentry admin: {said}")
    assert err.count("\n") == 1
    assert token is None or token not in err


def test_the_other_port_administers_nothing_and_nobody_answers_without_tls(same: Place, run: Run) -> None:
    status, _, err = run("admin", "list", *same.flags(same.service.port, ADMIN))
    assert (status, "UNIMPLEMENTED" in err) == (1, True)
    server = ["--server", f"localhost:{same.service.admin_port}", "--timeout-s", "10"]
    status, _, err = run("admin", "list", *server)
    assert (status, "UNAVAILABLE" in err) == (1, True)


def test_this_machine_is_administered_without_a_proxy(
    serve: Any, linear_repository: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(linear_repository, admin_port=0)
    replace(tmp_path / "token", ADMIN.encode())
    flags = ["--server", f"localhost:{service.admin_port}", "--token-file", str(tmp_path / "token")]
    with no_use_of_a_proxy(monkeypatch):
        assert run("admin", "list", *flags, "--timeout-s", "5") == (0, "linear 1  ready\n", "")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tls-ca", "{tmp}/none.pem"], "none.pem"),
        (["--token-file", "{tmp}/none"], "none"),
        (["--token-file", "{tmp}/empty"], "--token-file: got {tmp}/empty, wanted a file with one token"),
        (["--token-file", "{tmp}/two"], "--token-file: got {tmp}/two, wanted a file with one token"),
        (["--tls-certificate", "{tmp}/two"], "--tls-certificate and --tls-key: got one, wanted both or neither"),
        (["--tls-key", "{tmp}/two"], "--tls-certificate and --tls-key: got one, wanted both or neither"),
        (["--tls-ca", "{tmp}"], "{tmp}"),
    ],
)
@pytest.mark.parametrize(("command", "status"), [(["admin", "list"], 2), (["sample", "--out", "{tmp}/x.png"], 1)])
def test_flags_that_lead_nowhere_are_one_line(
    tmp_path: Path, run: Run, command: list[str], status: int, flags: list[str], said: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "two").write_text("one two\n")
    argv = [each.format(tmp=tmp_path) for each in (*command, "--server", "localhost:1", *flags)]
    got, _, err = run(*argv)
    assert got == status
    assert said.format(tmp=tmp_path) in err
    assert err.count("\n") == 1


def test_a_token_in_the_clear_stays_on_this_machine(tmp_path: Path, run: Run, same: Place) -> None:
    """Both commands that call and the one that administers refuse before anything is sent."""
    flags = ["--server", "latentry.example:50051", "--token-file", str(same.token(ADMIN)), "--timeout-s", "5"]
    for command in (["sample", "--out", str(tmp_path / "x.png")], ["models"], ["admin", "list"]):
        status, _, err = run(*command, *flags)
        assert status != 0
        assert "token: got one without tls for latentry.example:50051" in err, command
        assert ADMIN not in err


# ---- the commands that call ----


def test_every_command_takes_tls_a_token_and_a_label(same: Place, run: Run, tmp_path: Path) -> None:
    flags = same.flags(same.service.port)
    status, out, err = run("models", *flags)
    assert (status, err) == (0, "")
    assert "    called stable\n" in out
    assert "linear 2  12x10x1" in out
    drawn = {}
    for which in (["--label", "stable"], ["--version", "1"], ["--version", "2"], []):
        file = tmp_path / "drawn.npz"
        status, _, err = run("sample", "--count", "2", "--seed", "3", "--out", str(file), *which, *flags)
        assert (status, err) == (0, "")
        drawn[" ".join(which)] = np.load(file)["images"]
    assert (drawn["--label stable"] == drawn["--version 1"]).all()
    assert (drawn["--version 2"] == drawn[""]).all()
    assert (drawn["--version 1"] != drawn["--version 2"]).any()
    np.save(tmp_path / "z.npy", np.zeros((2, 5), np.float32))
    for command in (["decode"], ["interpolate"]):
        out_file = tmp_path / f"{command[0]}.png"
        argv = (*command, str(tmp_path / "z.npy"), "--out", str(out_file), "--label", "stable", *flags)
        assert run(*argv)[0] == 0
        assert out_file.stat().st_size > 50
    files = (str(tmp_path / "decode.png"), "--out", str(tmp_path / "e.npz"))
    assert run("encode", *files, "--resize", "crop", *flags)[0] == 0


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (["--label", "none"], "NOT_FOUND: model: got 'linear' label 'none'"),
        (["--version", "9"], "NOT_FOUND: model: got 'linear' version 9"),
        (["--model", "none"], "NOT_FOUND: model: got 'none'"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(
    same: Place, run: Run, tmp_path: Path, which: list[str], said: str
) -> None:
    status, _, err = run("sample", "--out", str(tmp_path / "x.png"), *which, *same.flags(same.service.port))
    assert (status, err.count("\n")) == (1, 1)
    assert said in err


def test_a_label_and_a_version_at_once_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("sample", "--label", "stable", "--version", "1")
    assert "not allowed with argument --label" in capsys.readouterr().err


@pytest.mark.usefixtures("impatient")
def test_a_server_of_another_authority_is_not_talked_to(same: Place, run: Run, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    flags = ["--server", same.target, "--tls-ca", str(stranger.file), "--timeout-s", "10"]
    status, _, err = run("models", *flags, "--token-file", str(same.token(APP)))
    assert (status, err.count("\n")) == (1, 1)
    assert "UNAVAILABLE" in err


@pytest.mark.usefixtures("impatient")
def test_a_client_certificate_gets_a_command_in(tmp_path: Path, run: Run) -> None:
    with served(tmp_path, tls_client_ca=True) as place:
        certificate, key = place.ca.write("robot", place.ca.issue("robot.example"))
        flags = place.flags(place.service.port, None)
        assert run("models", *flags)[0] == 1
        status, out, _ = run("models", *flags, "--tls-certificate", str(certificate), "--tls-key", str(key))
        assert (status, "linear 2" in out) == (0, True)


# ---- the clients ----


def how_it_ends(target: str, **given: Any) -> list[Any]:
    """The status, or the version that answered, of `Client` and of `AsyncClient`."""

    async def asynchronously() -> Any:
        async with latentry.AsyncClient(target, timeout_s=10, **given) as client:
            await client.sample(1)
            return (await client.info()).model.version

    def synchronously() -> Any:
        with latentry.Client(target, timeout_s=10, **given) as client:
            client.sample(1)
            return client.info().model.version

    ends: list[Any] = []
    for call in (synchronously, lambda: asyncio.run(asynchronously())):
        try:
            ends.append(call())
        except latentry.LatentryError as error:
            ends.append(error.code)
    return ends


@pytest.mark.usefixtures("impatient")
def test_both_clients_get_in_with_the_right_credentials_and_no_others(same: Place, tmp_path: Path) -> None:
    right, wrong = same.ca.channel_credentials(), Authority(tmp_path / "ca").channel_credentials()
    assert how_it_ends(same.target, tls=right, token=APP) == [2, 2]
    assert how_it_ends(same.target, tls=right, token=APP, label="stable", priority="background") == [1, 1]
    assert how_it_ends(same.target, tls=right, token=APP, version=1) == [1, 1]
    assert how_it_ends(same.target, tls=right, token=APP, label="none") == [Code.NOT_FOUND] * 2
    assert how_it_ends(same.target, tls=right) == [Code.UNAUTHENTICATED] * 2
    assert how_it_ends(same.target, tls=right, token="wrong") == [Code.UNAUTHENTICATED] * 2  # noqa: S106 - it is wrong
    assert how_it_ends(same.target, tls=wrong, token=APP) == [Code.UNAVAILABLE] * 2
    assert how_it_ends(same.target, tls=right, token=APP, priority="urgent") == [Code.INVALID_ARGUMENT] * 2


@pytest.mark.parametrize("kind", [latentry.Client, latentry.AsyncClient])
def test_a_token_goes_over_tls_only_unless_it_stays_on_this_machine(kind: Any) -> None:
    for target in ("latentry.example:50051", "10.0.0.1:50051", "localhost.example:50051", "dns:///localhost:1"):
        with pytest.raises(ValueError, match="token: got one without tls for"):
            kind(target, token=APP)
        kind(target, token=APP, tls=True)
        kind(target)
    for target in ("localhost:50051", "127.0.0.1:50051", "[::1]:50051", "unix:/run/latentry"):
        kind(target, token=APP)


@pytest.mark.parametrize("kind", [latentry.Client, latentry.AsyncClient])
@pytest.mark.parametrize("token", ["a b", "a\nx-admin: 1", "", "tökén", "x" * 100_000])
def test_a_token_that_is_none_is_refused_before_it_is_sent(kind: Any, token: str) -> None:
    with pytest.raises(ValueError, match="token: got") as caught:
        kind("localhost:50051", token=token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("kind", [latentry.Client, latentry.AsyncClient])
def test_a_version_and_a_label_at_once_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="version and label: got 1 and 'stable', wanted one of them"):
        kind("localhost:50051", version=1, label="stable")
