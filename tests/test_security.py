"""Who gets in: every way to listen, every kind of credentials, every kind of call, against the real service."""

from __future__ import annotations

import ast
import contextlib
import http.client
import itertools
import queue
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import http2_frames as http2
import pytest
from certificates import Authority, replace
from certificates import failed_handshakes as failed_handshakes
from conftest import ROOT, running_service, settings_for
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from test_access import ADMIN, APP, PROMETHEUS, USUAL, entry

from latentry.v1 import admin_pb2, admin_pb2_grpc, vae_pb2_grpc
from latentry.v1 import vae_pb2 as pb
from serving.errors import ConfigError
from serving.inference import grpc_service_pb2 as oip
from serving.inference import grpc_service_pb2_grpc
from serving.server import Service

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
HTTP = {200: OK, 401: UNAUTHENTICATED, 403: DENIED}

WAYS = ("plain", "TLS", "mTLS")
TOKENS = {"no token": None, "infer": APP, "admin and infer": ADMIN, "metrics": PROMETHEUS, "wrong": "wrong-token"}
ROLES = {"infer": {"infer"}, "admin and infer": {"admin", "infer"}, "metrics": {"metrics"}}


@dataclass
class Client:
    """Calls a service as somebody: with a token or none, with a certificate or none."""

    service: Service
    ca: Authority | None = None
    certificate: tuple[bytes, bytes] | None = None
    token: str | None = None
    host: str = "localhost"

    def channel(self, port: int) -> grpc.Channel:
        if self.ca is None:
            return grpc.insecure_channel(f"localhost:{port}")
        options = [("grpc.ssl_target_name_override", self.host)] if self.host != "localhost" else []
        return grpc.secure_channel(f"localhost:{port}", self.ca.channel_credentials(self.certificate), options)

    @property
    def metadata(self) -> Any:
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def call(self, what: str) -> Any:
        """How it ends to ask for what needs the role `what`."""
        if what == "metrics":
            return HTTP[self.scrape()]
        with self.channel(self.service.port if what == "infer" else self.service.admin_port) as channel:
            return self.call_on(channel, what)

    def call_on(self, channel: grpc.Channel, what: str = "infer") -> Any:
        stub: Any = (vae_pb2_grpc.VaeServiceStub if what == "infer" else admin_pb2_grpc.AdminServiceStub)(channel)
        try:
            if what == "infer":
                stub.Sample(pb.SampleRequest(count=1), metadata=self.metadata, timeout=20)
            else:
                stub.ListVersions(admin_pb2.ListVersionsRequest(), metadata=self.metadata, timeout=20)
        except grpc.RpcError as error:
            return "the token is repeated" if self.token and self.token in str(error.details()) else error.code()
        return OK

    def scrape(self, path: str = "/metrics") -> int:
        """The status of a page; the certificate's files are those of the test that set it."""
        context = self.ca.client_context() if self.ca else None
        if self.ca and context and self.certificate:
            context.load_cert_chain(*self.ca.write("scraper", self.certificate))
        port = self.service.metrics_port
        plain = http.client.HTTPConnection("localhost", port, timeout=10)
        connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=context) if context else plain
        with contextlib.closing(connection):
            connection.request("GET", path, headers=dict(self.metadata))
            return connection.getresponse().status


@dataclass
class Place:
    """A service that listens in one of the ways, and what its clients need."""

    service: Service
    ca: Authority | None
    certificate: tuple[bytes, bytes] | None

    def client(self, token: str | None = None, **changes: Any) -> Client:
        return Client(
            **{"service": self.service, "ca": self.ca, "certificate": self.certificate, "token": token, **changes}
        )


def tls(ca: Authority, mutual: bool = False) -> dict[str, Any]:
    """The settings for it."""
    certificate, key = ca.server()
    return {"tls_certificate": certificate, "tls_key": key, **({"tls_client_ca": ca.file} if mutual else {})}


@pytest.fixture(scope="module", params=WAYS)
def place(request: Any, linear_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With identities; a client's certificate is one that they do not know."""
    folder = tmp_path_factory.mktemp("place")
    ca = Authority(folder / "ca") if request.param != "plain" else None
    file = folder / "identities.toml"
    replace(file, USUAL.encode())
    more = tls(ca, request.param == "mTLS") if ca else {}
    with running_service(settings_for(linear_repository, admin_port=0, identities=file, **more)) as service:
        yield Place(service, ca, ca.issue("nobody.example") if ca and request.param == "mTLS" else None)


@pytest.mark.parametrize(("kind", "what"), list(itertools.product(TOKENS, ("infer", "admin", "metrics"))))
def test_each_token_opens_what_its_roles_say_and_nothing_else(place: Place, kind: str, what: str) -> None:
    expected = UNAUTHENTICATED if kind not in ROLES else OK if what in ROLES[kind] else DENIED
    assert place.client(TOKENS[kind]).call(what) is expected


def test_refusals_are_counted(place: Place) -> None:
    def refused() -> float:
        return sum(
            sample.value
            for metric in place.service.metrics.requests.collect()
            for sample in metric.samples
            if sample.name == "latentry_requests_total" and sample.labels["code"] == "UNAUTHENTICATED"
        )

    before = refused()
    for _ in range(3):
        assert place.client("wrong").call("infer") is UNAUTHENTICATED
    assert within_seconds(lambda: refused() == before + 3)
    assert place.client(APP).call("infer") is OK
    assert refused() == before + 3


def test_probes_need_no_token(place: Place) -> None:
    client = place.client()
    with client.channel(place.service.port) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
    assert client.scrape("/livez") == client.scrape("/readyz") == 200


def test_reflection_needs_the_role(place: Place) -> None:
    def reflect(token: str | None) -> Any:
        client = place.client(token)
        with client.channel(place.service.port) as channel:
            requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            try:
                return len(list(stub.ServerReflectionInfo(requests, metadata=client.metadata, timeout=10)))
            except grpc.RpcError as error:
                return error.code()

    assert reflect(APP) == 1
    assert reflect(PROMETHEUS) is DENIED
    assert reflect(None) is UNAUTHENTICATED


def test_calls_of_administration_are_not_to_be_had_on_the_other_port(place: Place) -> None:
    client = place.client(ADMIN)
    with client.channel(place.service.port) as channel:
        assert client.call_on(channel, "admin") is grpc.StatusCode.UNIMPLEMENTED


# mutual TLS


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def test_with_a_client_ca_alone_a_certificate_opens_all_but_administration(
    serve: Any, linear_repository: Path, ca: Authority
) -> None:
    """Which is not there at all then: test_settings has that."""
    service = serve(linear_repository, **tls(ca, mutual=True))
    client = Client(service, ca, ca.issue("app.example"))
    assert [client.call(what) for what in ("infer", "metrics")] == [OK, OK]
    stranger = Client(service, ca)
    assert [stranger.call(what) for what in ("infer", "metrics")] == [UNAVAILABLE, UNAUTHENTICATED]
    assert stranger.scrape("/livez") == 200


def test_a_certificate_s_identity_has_its_roles(
    serve: Any, linear_repository: Path, ca: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "identities.toml"
    replace(file, USUAL.encode())
    service = serve(linear_repository, admin_port=0, identities=file, **tls(ca, mutual=True))
    robot = Client(service, ca, ca.issue("robot.example"))
    assert [robot.call(what) for what in ("infer", "metrics", "admin")] == [OK, DENIED, DENIED]
    by_common_name = Client(service, ca, ca.issue(common_name="robot.example"))
    assert by_common_name.call("infer") is OK
    assert Client(service, ca, ca.issue("x.example", common_name="robot.example")).call("infer") is UNAUTHENTICATED
    bound = Client(service, ca, ca.issue("bound.example"), token="bound-token")  # noqa: S106
    assert bound.call("admin") is OK
    assert Client(service, ca, ca.issue("robot.example"), token="bound-token").call("admin") is UNAUTHENTICATED  # noqa: S106


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # see the fixture
@pytest.mark.usefixtures("failed_handshakes")
@pytest.mark.parametrize("how", ["expired", "of another authority", "for another name", "no TLS"])
def test_clients_and_servers_that_do_not_trust_each_other_do_not_talk(
    serve: Any, linear_repository: Path, ca: Authority, tmp_path: Path, how: str
) -> None:
    service = serve(linear_repository, **tls(ca, mutual=True))
    stranger = Authority(tmp_path / "stranger")
    good = Client(service, ca, ca.issue("app.example"))
    bad = {
        "expired": Client(service, ca, ca.issue("app.example", days=1, since=-2)),
        "of another authority": Client(service, ca, stranger.issue("app.example")),
        "for another name": Client(service, ca, ca.issue("app.example"), host="other.example"),
        "no TLS": Client(service),
    }[how]
    assert bad.call("infer") is UNAVAILABLE
    if how == "of another authority":
        with pytest.raises((ssl.SSLError, ConnectionError)):
            bad.scrape()
        trusts_another = Client(service, stranger, ca.issue("app.example"))
        assert trusts_another.call("infer") is UNAVAILABLE
    assert good.call("infer") is OK


# what changes while we serve


def within_seconds(condition: Callable[[], bool]) -> bool:
    """Whether it comes about in ten seconds: files are looked at once a second."""
    give_up = time.monotonic() + 10
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True


def serial(port: int, ca: Authority) -> str:
    """The certificate that a new connection gets."""
    context = ca.client_context()
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("localhost", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        certificate = connection.getpeercert()
    assert certificate
    return str(certificate["serialNumber"])


def test_a_rotated_certificate_is_served_without_a_restart_while_a_connection_stays_open(
    serve: Any, linear_repository: Path, ca: Authority
) -> None:
    service = serve(linear_repository, admin_port=0, **tls(ca))
    ports = (service.port, service.admin_port, service.metrics_port)
    client = Client(service, ca)
    with client.channel(service.port) as channel:
        assert client.call_on(channel) is OK
        before = {port: serial(port, ca) for port in ports}
        assert len(set(before.values())) == 1
        ca.server(days=60)
        assert within_seconds(lambda: all(serial(port, ca) != before[port] for port in ports))
        assert client.call_on(channel) is OK
        ca.write("server", (ca.issue("localhost")[0], ca.issue("localhost")[1]))
        time.sleep(1.2)
        assert serial(service.port, ca) != before[service.port], "a pair that does not match is not taken"
    assert client.call("infer") is OK


def test_who_is_removed_is_removed_from_open_streams_too(serve: Any, linear_repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "identities.toml"
    replace(file, USUAL.encode())
    service = serve(linear_repository, identities=file)
    asked: queue.Queue[Any] = queue.Queue()
    sample = oip.ModelInferRequest(model_name="linear_sample")
    with Client(service, token=APP).channel(service.port) as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = [("authorization", f"Bearer {APP}")]
        answers = stub.ModelStreamInfer(iter(asked.get, None), metadata=metadata, timeout=30)
        asked.put(sample)
        assert next(answers).infer_response.model_name == "linear_sample"
        replace(file, entry("new", '"infer"', "brand-new").encode())

        def refused() -> bool:
            asked.put(sample)
            try:
                next(answers)
            except grpc.RpcError as error:
                return error.code() is UNAUTHENTICATED
            return False

        assert within_seconds(refused)
        asked.put(None)


def test_identities_change_without_a_restart_on_open_connections_too(
    serve: Any, linear_repository: Path, tmp_path: Path
) -> None:
    file = tmp_path / "identities.toml"
    replace(file, USUAL.encode())
    service = serve(linear_repository, identities=file)
    old, new = Client(service, token=APP), Client(service, token="brand-new")  # noqa: S106
    with old.channel(service.port) as channel:
        assert (old.call_on(channel), new.call_on(channel)) == (OK, UNAUTHENTICATED)
        replace(file, entry("new", '"infer"', "brand-new").encode())
        assert within_seconds(lambda: new.call_on(channel) is OK)
        assert old.call_on(channel) is UNAUTHENTICATED
        replace(file, b"[[identity")
        time.sleep(1.2)
        assert new.call_on(channel) is OK


# what is odd


def answered_by_hand(service: Service, authorization: str) -> bool:
    """Whether a call with this header, which no client would send, gets a reply."""
    said = b""
    with http2.connection(service.port) as peer:
        header = http2.headers("/latentry.v1.VaeService/ListModels", 1, (("authorization", authorization),))
        peer.sendall(header + http2.message(b"", 1))
        peer.settimeout(10)
        while True:  # until the stream has ended: with trailers, or with RST_STREAM
            data = peer.recv(1 << 16)
            said += data
            ours = [(kind, flags) for kind, flags, stream, _ in http2.frames(said) if stream == 1]
            ended = any(kind == http2.RST_STREAM or flags & http2.END_STREAM for kind, flags in ours)
            if ended or not data:
                break
    assert APP.encode() not in said
    return any(kind == http2.DATA for kind, _ in ours)


@pytest.mark.parametrize("value", [f"Bearer {APP}\n", f"Bearer {APP}\r\nx: y", f"Bearer {APP}\0", "Bearer tökén"])
def test_a_token_with_a_newline_gets_nobody_in(serve: Any, linear_repository: Path, tmp_path: Path, value: str) -> None:
    """gRPC's own client refuses to send one, so it is sent by hand."""
    file = tmp_path / "identities.toml"
    replace(file, USUAL.encode())
    service = serve(linear_repository, identities=file)
    assert Client(service, token=value.removeprefix("Bearer ")).call("infer") is grpc.StatusCode.INTERNAL
    assert not answered_by_hand(service, value)
    assert answered_by_hand(service, f"Bearer {APP}"), "the way of asking is right"
    assert Client(service, token=APP).call("infer") is OK


def test_bad_files_stop_the_service(linear_repository: Path, ca: Authority, tmp_path: Path) -> None:
    replace(tmp_path / "bad.toml", b"[[identity")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        Service(settings_for(linear_repository, identities=tmp_path / "bad.toml"))
    files = tls(ca)
    ca.server(days=1, since=-2)
    with pytest.raises(ConfigError, match=r"server\.pem: certificate has expired"):
        Service(settings_for(linear_repository, **files))


def test_compressed_messages_are_refused_unread(linear_service: Service) -> None:
    """60 kB of gzip are 60 MB of memory, for every call of everybody who reaches the port."""
    for method in ("/latentry.v1.VaeService/ListModels", "/grpc.health.v1.Health/Check"):
        with grpc.insecure_channel(
            f"localhost:{linear_service.port}", [("grpc.max_send_message_length", -1)], grpc.Compression.Gzip
        ) as channel:
            call: Any = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError) as caught:
                call(bytes(1 << 20), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, method
        assert "gzip" in str(caught.value.details())


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc", "..", ".", "", "a/b", "linear\0", "linear\n", "LINEAR", "x" * 999]
)
def test_no_name_in_a_request_for_administrators_becomes_a_path(serve: Any, linear_repository: Path, name: str) -> None:
    service = serve(linear_repository, admin_port=0)
    with grpc.insecure_channel(f"localhost:{service.admin_port}") as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        for call, request in (
            (stub.LoadModel, admin_pb2.LoadModelRequest(name=name, version=1)),
            (stub.UnloadModel, admin_pb2.UnloadModelRequest(name=name, version=1)),
            (stub.SetLabel, admin_pb2.SetLabelRequest(name=name, label="stable", version=1)),
            (stub.SetLabel, admin_pb2.SetLabelRequest(name="linear", label=name, version=1)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=20)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert str(linear_repository) not in str(caught.value.details())


# what the documentation says


def test_nothing_that_serves_can_unpickle_or_evaluate() -> None:
    never = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "torch"}
    for file in [*(ROOT / "serving").rglob("*.py"), *(ROOT / "latentry").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not {name.partition(".")[0] for name in names} & never, file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), file
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), file
                assert node.value.value is False, file


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(test_\w+)\.py::(\w+)`", (ROOT / "docs" / "security.md").read_text())
    assert len(named) > 30
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / "tests" / f"{file}.py").read_text(), re.MULTILINE), test
