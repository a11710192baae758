"""Who may do what: identities, tokens, roles, and the services that are not our own."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import logging
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import replace
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from latentry.cli import main
from serving import identities, token_command
from serving.access import Access, Role, credentials_of
from serving.access_interceptor import AccessInterceptor, role_for
from serving.errors import ConfigError, PermissionDenied, Unauthenticated
from serving.wrapped_handlers import wrap

APP, ADMIN, PROMETHEUS = "app-token-0123456789", "admin-token-0123456789", "scrape-token-0123456789"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Clock:
    """A clock that the test turns."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def entry(name: str, roles: str, token: str = "", certificate: str = "") -> str:
    """An [[identity]] as the file has it."""
    lines = ["[[identity]]", f'name = "{name}"', f"roles = [{roles}]"]
    if token:
        lines.append(f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"')
    if certificate:
        lines.append(f'certificate = "{certificate}"')
    return "\n".join(lines) + "\n"


USUAL = (
    entry("app", '"infer"', APP)
    + entry("ops", '"admin", "infer"', ADMIN)
    + entry("prometheus", '"metrics"', PROMETHEUS)
    + entry("robot", '"infer"', certificate="robot.example")
    + entry("bound", '"admin"', "bound-token", "Bound.Example")
)


def write(folder: Path, text: str) -> Path:
    file = folder / "identities.toml"
    replace(file, text.encode())
    return file


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(write(tmp_path, USUAL), client_ca=False)


@pytest.mark.parametrize(
    ("authorization", "names", "role", "expected"),
    [
        (f"Bearer {APP}", [], Role.INFER, "app"),
        (f"bearer {APP}", [], Role.INFER, "app"),
        (f"BEARER   {APP}", [], Role.INFER, "app"),
        (f"Bearer {ADMIN}", [], Role.ADMIN, "ops"),
        (f"Bearer {ADMIN}", [], Role.INFER, "ops"),
        (f"Bearer {PROMETHEUS}", [], Role.METRICS, "prometheus"),
        (None, ["robot.example"], Role.INFER, "robot"),
        (None, ["other.example", "ROBOT.example"], Role.INFER, "robot"),
        (f"Bearer {APP}", ["robot.example"], Role.INFER, "app"),
        ("Bearer bound-token", ["bound.example"], Role.ADMIN, "bound"),
        (f"Bearer {APP}", [], Role.ADMIN, PermissionDenied),
        (f"Bearer {APP}", [], Role.METRICS, PermissionDenied),
        (f"Bearer {PROMETHEUS}", [], Role.INFER, PermissionDenied),
        (None, ["robot.example"], Role.ADMIN, PermissionDenied),
        (None, [], Role.INFER, Unauthenticated),
        (None, ["nobody.example"], Role.INFER, Unauthenticated),
        ("Bearer wrong", [], Role.INFER, Unauthenticated),
        ("Bearer wrong", ["robot.example"], Role.INFER, Unauthenticated),
        ("Bearer bound-token", [], Role.ADMIN, Unauthenticated),
        (None, ["bound.example"], Role.ADMIN, Unauthenticated),
    ],
)
def test_the_right_credentials_with_the_right_role_and_no_others(
    access: Access, authorization: str | None, names: Sequence[str], role: Role, expected: Any
) -> None:
    if isinstance(expected, str):
        assert access.authorise(role, authorization, names) == expected
    else:
        with pytest.raises(expected):
            access.authorise(role, authorization, names)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        APP,
        f"Basic {APP}",
        f"Bearer {APP}\n",
        f"Bearer {APP}\nx-admin: 1",
        f" Bearer {APP}",
        f"Bearer {APP} ",
        f"Bearer\t{APP}",
        f"Bearer {APP}, Bearer {APP}",
        f"Bearer {APP}\0",
        "Bearer tökén",
        "Bearer \udcff",
        "Bearer " + "A" * (1 << 20),
        "Bearer " + hashlib.sha256(APP.encode()).hexdigest(),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_token_that_is_none_is_refused_and_not_repeated(access: Access, authorization: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        access.authorise(Role.INFER, authorization, [])
    message = str(caught.value)
    assert len(message) < 100
    assert APP not in message
    assert "\n" not in message


def test_every_identity_is_compared_whichever_matches(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    for token in (APP, ADMIN, PROMETHEUS):
        compared.clear()
        access.authorise(next(iter(Role)) if token != PROMETHEUS else Role.METRICS, f"Bearer {token}", [])
        assert len(compared) == 5


def test_without_identities_and_client_ca_everybody_may_do_everything() -> None:
    access = Access(None, client_ca=False)
    assert not access.enabled
    assert {access.authorise(role, "nonsense", []) for role in Role} == {""}


def test_with_a_client_ca_alone_a_certificate_is_enough_to_infer_and_scrape() -> None:
    access = Access(None, client_ca=True)
    assert access.enabled
    assert access.authorise(Role.INFER, None, ["a.example", "b.example"]) == "a.example"
    assert access.authorise(Role.METRICS, "Bearer x", ["a.example"]) == "a.example"
    with pytest.raises(PermissionDenied):
        access.authorise(Role.ADMIN, None, ["a.example"])
    with pytest.raises(Unauthenticated):
        access.authorise(Role.INFER, f"Bearer {APP}", [])


def test_a_certificate_s_name_cannot_forge_a_log_line() -> None:
    name = Access(None, client_ca=True).authorise(Role.INFER, None, ["a\n2026 ERROR forged \x1b[31m" + "x" * 999])
    assert name.isprintable()
    assert len(name) <= 253


def test_a_call_s_credentials_are_its_header_and_its_certificate_s_dns_names() -> None:
    dns = {"x509_common_name": [b"cn"], "peer_dns": [b"a.example", b"b.example"], "peer_email": [b"c@example"]}
    assert credentials_of([("authorization", "Bearer x")], dns) == ("Bearer x", ("a.example", "b.example"))
    assert credentials_of([("other", "y")], {"x509_common_name": [b"cn"]}) == (None, ("cn",))
    assert credentials_of(None, {}) == (None, ())
    twice, _ = credentials_of([("authorization", "Bearer x"), ("authorization", "Bearer y")], {})
    assert twice == "Bearer x, Bearer y"
    assert credentials_of([("authorization", b"\xff")], {})[0] == "\xff"


GOOD = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "identity: wanted 1 to 1000 tables"),
        ("[[identity]]\nname = \n", "line 2"),
        ("\xff", "no TOML"),
        ("identity = " + "[" * 9999, "no TOML"),
        ("x = 1", "got 'x', wanted nothing but [[identity]]"),
        ("identity = 3", "identity: wanted"),
        ("identity = [3]", "identity 1: wanted a table"),
        ('# c\n\n[[identity]]\ntoken = "geheim"', "identity 1 (line 3): got 'token', wanted only name"),
        ("[[identity]]\nroles = ['infer']", "name: got none"),
        ("[[identity]]\nname = ''", "name: got 0 other characters"),
        ("[[identity]]\nname = 'a b'", "name: got 3 other characters"),
        (r"[[identity]]" "\n" r'name = "a\nb"', "name: got 3 other characters"),
        ("[[identity]]\nname = 5", "name: got int"),
        ("[[identity]]\nname = 'a'\nroles = ['infer']", "got neither token_sha256 nor certificate"),
        ("[[identity]]\nname = 'a'\ntoken_sha256 = 'geheim'", "token_sha256: got 6 other characters"),
        (f"[[identity]]\nname = 'a'\ntoken_sha256 = '{GOOD}'", "roles: wanted a list of infer, admin, metrics"),
        (f"[[identity]]\nname = 'a'\ntoken_sha256 = '{GOOD}'\nroles = []", "roles: wanted"),
        (f"[[identity]]\nname = 'a'\ntoken_sha256 = '{GOOD}'\nroles = ['root']", "roles: got 'root'"),
        (f"[[identity]]\nname = 'a'\ntoken_sha256 = '{GOOD}'\nroles = [[]]", "roles: got []"),
        ("[[identity]]\nname = 'a'\ncertificate = ''\nroles = ['infer']", "certificate: got 0 other"),
        (entry("a", "'infer'", "x") + entry("a", "'infer'", "y"), "identity 2 (line 5): name: got a twice"),
        (entry("a", "'infer'", "x") + entry("b", "'infer'", "x"), "got the token and certificate of a"),
        ("".join(entry(f"n{i}", "'infer'", f"t{i}") for i in range(1001)), "identity: wanted 1 to 1000"),
        ("#" * (1 << 18) + "\n", "more than 262144 bytes"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_file_stops_the_start_and_says_where(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "identities.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        Access(file, client_ca=False)
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: No such file"):
        Access(tmp_path / "nowhere", client_ca=False)


def test_a_changed_file_counts_within_a_second(tmp_path: Path) -> None:
    clock = Clock()
    file = write(tmp_path, USUAL)
    access = Access(file, False, clock)
    write(tmp_path, entry("new", "'infer'", "new-token"))
    assert access.authorise(Role.INFER, f"Bearer {APP}", []) == "app", "the file is not looked at in every call"
    clock.now += 1.5
    assert access.authorise(Role.INFER, "Bearer new-token", []) == "new"
    with pytest.raises(Unauthenticated):
        access.authorise(Role.INFER, f"Bearer {APP}", [])


@pytest.mark.parametrize("bad", ["[[identity", "", None])
def test_a_bad_new_file_leaves_the_old_identities_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str | None
) -> None:
    clock = Clock()
    file = write(tmp_path, USUAL)
    access = Access(file, False, clock)
    if bad is None:
        file.unlink()
    else:
        write(tmp_path, bad)
    for _ in range(5):
        clock.now += 2
        assert access.authorise(Role.INFER, f"Bearer {APP}", []) == "app"
    assert len(caplog.records) == 1
    assert "the identities from before stay" in caplog.text
    write(tmp_path, entry("new", "'infer'", "new-token"))
    clock.now += 2
    assert access.authorise(Role.INFER, "Bearer new-token", []) == "new"


def test_a_file_that_everybody_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path, USUAL)
    Access(file, False)
    assert not caplog.records
    file.chmod(0o644)
    Access(file, False)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# The services that are not our own


class Anything(grpc.GenericRpcHandler):
    """A service with a call of each kind, and of each way to write a stream."""

    def service(self, handler_call_details: Any) -> Any:
        service, _, name = handler_call_details.method.lstrip("/").partition("/")
        if service not in ("some.Service", "latentry.v1.NewService"):
            return None
        kind = name.removesuffix("_written")
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(getattr(self, f"_{name}"))

    async def _unary_unary(self, request: bytes, context: Any) -> bytes:
        return request

    async def _unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield request

    async def _unary_stream_written(self, request: bytes, context: Any) -> None:
        for _ in range(3):
            await context.write(request)

    async def _stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([each async for each in requests])

    async def _stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for each in requests:
            yield each


@asynccontextmanager
async def guarded(access: Access) -> AsyncIterator[grpc.Channel]:
    """A channel to a server with the interceptor, the usual services and one more.

    Its calls are made in threads: grpc's asynchronous client answers INTERNAL when a stream that it writes is refused.
    """
    server = grpc.aio.server()
    wrap(server, [AccessInterceptor(access).wrap])
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    reflection.enable_server_reflection((reflection.SERVICE_NAME,), server)
    channelz.add_channelz_servicer(server)
    server.add_generic_rpc_handlers((Anything(),))
    port = server.add_insecure_port("localhost:0")
    await server.start()
    try:
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


def bearer(token: str | None) -> Any:
    return [("authorization", f"Bearer {token}")] if token else None


async def outcome(call: Callable[..., Any], request: Any, metadata: Any) -> Any:
    """The reply, a list of the replies, or the status it ended with."""

    def wait() -> Any:
        try:
            reply = call(request, metadata=metadata, timeout=10)
            return list(reply) if isinstance(reply, Iterator) else reply
        except grpc.RpcError as error:
            return error.code()

    return await asyncio.to_thread(wait)


@pytest.mark.parametrize("name", [*KINDS, "unary_stream_written"])
async def test_any_kind_of_call_of_an_unknown_service_is_for_admins(access: Access, name: str) -> None:
    replies: Any = {"unary_unary": b"x", "stream_unary": b"xxx"}.get(name, [b"x"] * 3)
    kind = name.removesuffix("_written")

    async def call(channel: grpc.Channel, token: str | None) -> Any:
        request: Any = b"x" if kind.startswith("unary") else iter([b"x", b"x", b"x"])
        return await outcome(getattr(channel, kind)(f"/some.Service/{name}"), request, bearer(token))

    async with guarded(access) as channel:
        assert await call(channel, ADMIN) == replies
        assert await call(channel, APP) is grpc.StatusCode.PERMISSION_DENIED
        assert await call(channel, "wrong") is grpc.StatusCode.UNAUTHENTICATED
        assert await call(channel, None) is grpc.StatusCode.UNAUTHENTICATED
    async with guarded(Access(None, False)) as channel:
        assert await call(channel, None) == replies


async def test_a_new_service_of_ours_is_shut_until_somebody_says_who_may_call_it(access: Access) -> None:
    async with guarded(access) as channel:
        call = channel.unary_unary("/latentry.v1.NewService/unary_unary")
        assert await outcome(call, b"x", bearer(APP)) is grpc.StatusCode.PERMISSION_DENIED


async def test_health_is_open_to_all(access: Access) -> None:
    async with guarded(access) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        assert (await outcome(stub.Check, request, None)).status == 1
        watch = stub.Watch(request, timeout=10)
        assert (await asyncio.to_thread(next, watch)).status == 1
        watch.cancel()


async def test_reflection_is_for_those_who_infer(access: Access) -> None:
    async with guarded(access) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def reflect(token: str | None) -> Any:
            requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            return await outcome(stub.ServerReflectionInfo, requests, bearer(token))

        (reply,) = await reflect(APP)
        assert reply.list_services_response.service[0].name == reflection.SERVICE_NAME
        assert await reflect(PROMETHEUS) is grpc.StatusCode.PERMISSION_DENIED
        assert await reflect(None) is grpc.StatusCode.UNAUTHENTICATED


def test_on_the_administrations_port_reflection_is_for_admins() -> None:
    assert role_for(reflection.SERVICE_NAME, Role.ADMIN) is Role.ADMIN
    assert role_for(reflection.SERVICE_NAME) is Role.INFER


async def test_channelz_is_for_admins(access: Access) -> None:
    async with guarded(access) as channel:
        call = channelz_pb2_grpc.ChannelzStub(channel).GetServers
        request = channelz_pb2.GetServersRequest()
        assert len((await outcome(call, request, bearer(ADMIN))).server) > 0
        assert await outcome(call, request, bearer(APP)) is grpc.StatusCode.PERMISSION_DENIED
        assert await outcome(call, request, None) is grpc.StatusCode.UNAUTHENTICATED


async def test_odd_headers_over_the_wire_are_refused(access: Access) -> None:
    async with guarded(access) as channel:
        call = channel.unary_unary("/some.Service/unary_unary")
        good = ("authorization", f"Bearer {ADMIN}")
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        assert await outcome(call, b"x", [good]) == b"x"
        assert await outcome(call, b"x", [good, good]) is unauthenticated
        assert await outcome(call, b"x", [("authorization", "")]) is unauthenticated
        assert await outcome(call, b"x", bearer("A" * 4000)) is unauthenticated
        assert await outcome(call, b"x", bearer("A" * 100_000)) is grpc.StatusCode.RESOURCE_EXHAUSTED


# The command that makes tokens


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*flags: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        token_command.add_token_arguments(parser)
        status = token_command.run_token(parser.parse_args(flags))
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_a_token_is_printed_once_and_kept_as_a_hash(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "identities.toml"
    status, out, err = run("--name", "app", "--roles", "infer, metrics", "--file", str(file))
    token = out.strip()
    assert (status, err, len(token)) == (0, "", 43)
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    access = Access(file, False)
    assert access.authorise(Role.METRICS, f"Bearer {token}", []) == "app"
    other = run("--name", "other", "--file", str(file))[1].strip()
    assert other != token
    access = Access(file, False)
    assert access.authorise(Role.INFER, f"Bearer {token}", []) == "app"
    assert access.authorise(Role.INFER, f"Bearer {other}", []) == "other"


def test_without_a_file_the_lines_for_it_go_to_standard_error(run: Any) -> None:
    status, out, err = run("--name", "app")
    (identity,) = identities.parse(err.encode(), Path("x"))
    assert status == 0
    assert identity.name == "app"
    assert identity.token_sha256 == hashlib.sha256(out.strip().encode()).hexdigest()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--name", "app"), "name: got app twice"),
        (("--name", 'a"\n[[identity]]'), "name: got"),
        (("--name", "b", "--roles", "root"), "roles: got 'root'"),
        (("--name", "b", "--roles", ""), "roles: got ''"),
    ],
)
def test_a_name_that_is_there_and_nonsense_change_nothing(
    run: Any, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    file = write(tmp_path, USUAL)
    status, out, err = run(*flags, "--file", str(file))
    assert (status, out) == (2, "")
    assert message in err
    assert file.read_text() == USUAL
    assert [each.name for each in tmp_path.iterdir()] == ["identities.toml"]


def test_the_file_stays_readable_for_the_group_that_reads_it_and_a_link_stays_a_link(run: Any, tmp_path: Path) -> None:
    file = write(tmp_path, USUAL.rstrip("\n"))
    file.chmod(0o644)
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    assert run("--name", "more", "--file", str(link))[0] == 0
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [each.name for each in identities.read(file)][-2:] == ["bound", "more"]


def test_of_two_commands_at_once_one_is_refused(run: Any, tmp_path: Path) -> None:
    file = write(tmp_path, USUAL)
    (tmp_path / ".identities.toml.new").touch()
    status, _, err = run("--name", "more", "--file", str(file))
    assert status == 2
    assert "is there already" in err


def test_the_command_is_part_of_latentry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--name", "app"]) == 0
    assert len(capsys.readouterr().out.strip()) == 43
