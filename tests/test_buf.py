"""`buf` finds nothing to say of our protos, and they break no client of the last release."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from npm_packages import node_modules
from server_process import ROOT

import latentry
from serving.server import Service

PROTOS = ROOT / "protos"
RELEASED = PROTOS / "released"
VAE = Path("latentry", "v1", "vae.proto")


def newest() -> Path:
    """The descriptor set of the last release."""
    return max(RELEASED.glob("*.binpb"), key=lambda path: numbers(path.stem))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.fixture(scope="module")
def buf() -> Path:
    return node_modules() / ".bin" / "buf"


def run(buf: Path, *arguments: str | Path) -> tuple[int, str]:
    """Its exit status, and all that it said."""
    done = subprocess.run([buf, *arguments], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_lint_finds_nothing(buf: Path) -> None:
    assert run(buf, "lint", PROTOS) == (0, "")


def test_they_are_formatted(buf: Path) -> None:
    assert run(buf, "format", "--diff", "--exit-code", PROTOS) == (0, ""), "run `buf format -w protos`"


def test_they_break_no_client_of_the_last_release(buf: Path) -> None:
    assert run(buf, "breaking", PROTOS, "--against", newest()) == (0, "")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("int32 count = 2;", "int32 count = 99;", 'field "2" with name "count" on message "SampleRequest" was deleted'),
        (
            "  int32 latent_dim = 4; // Z",
            "  // Z",
            'field "4" with name "latent_dim" on message "ModelInfo" was deleted',
        ),
        ("DATA_TYPE_UINT8 = 1;", "DATA_TYPE_BYTE = 1;", 'changed name from "DATA_TYPE_UINT8" to "DATA_TYPE_BYTE"'),
        ("int32 count = 2;", "int32 number = 2;", 'changed name from "count" to "number"'),
        ("int32 count = 2;", "int64 count = 2;", 'changed type from "int32" to "int64"'),
        (
            "rpc ListModels(ListModelsRequest)",
            "rpc ListAll(ListModelsRequest)",
            'RPC "ListModels" on service "VaeService" was deleted',
        ),
    ],
    ids=["number", "deleted field", "value's name", "field's name", "type", "deleted call"],
)
def test_a_change_that_breaks_clients_is_refused(buf: Path, tmp_path: Path, before: str, after: str, said: str) -> None:
    status, output = changed(buf, tmp_path, before, after)
    assert status != 0
    assert said in output


def test_an_addition_is_not(buf: Path, tmp_path: Path) -> None:
    status, output = changed(
        buf,
        tmp_path,
        "message SampleRequest {",
        "// New.\nmessage New {\n  int32 one = 1; // of it\n}\n\nmessage SampleRequest {\n  New new = 1000; // new",
    )
    assert (status, output) == (0, "")


def changed(buf: Path, folder: Path, before: str, after: str) -> tuple[int, str]:
    """What `buf breaking` says of a copy of the protos with this one change."""
    copy = shutil.copytree(PROTOS, folder / "protos")
    text = (copy / VAE).read_text()
    assert text.count(before) == 1
    (copy / VAE).write_text(text.replace(before, after))
    assert run(buf, "build", copy)[0] == 0, "it is a proto still"
    return run(buf, "breaking", copy, "--against", newest())


def test_the_page_on_clients_looks_around_with_buf_alone(buf: Path, linear_service: Service) -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    (command,) = re.findall(r"^npx @bufbuild/buf (.*)$", page, re.M)
    status, output = run(buf, *command.replace("localhost:50051", f"localhost:{linear_service.port}").split())
    assert status == 0, output
    assert json.loads(output)["defaultModel"] == "linear"


def test_a_released_version_changes_no_more(tmp_path: Path) -> None:
    """Whoever changes the protos after a release gives the next one a version first."""
    assert numbers(newest().stem) <= numbers(latentry.__version__)
    kept = RELEASED / f"{latentry.__version__}.binpb"
    made = tmp_path / "made.binpb"
    protos = sorted((PROTOS / "latentry").rglob("*.proto"))
    options = [f"-I{PROTOS}", "--include_imports", f"--descriptor_set_out={made}"]
    subprocess.run([sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", *options, *protos], check=True)
    unlike = kept.exists() and made.read_bytes() != kept.read_bytes()
    assert not unlike, f"{latentry.__version__} is released: raise the version before the protos change"
