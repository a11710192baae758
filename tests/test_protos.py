"""The protos say what everything in them means, and the stubs are what the protos say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import ROOT
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

PROTOS = sorted((ROOT / "protos" / "latentry").rglob("*.proto"))
NUMBERS = {
    FieldDescriptorProto.TYPE_INT32,
    FieldDescriptorProto.TYPE_INT64,
    FieldDescriptorProto.TYPE_FLOAT,
    FieldDescriptorProto.TYPE_DOUBLE,
}


def protoc(*arguments: str | Path) -> None:
    compiler = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}"]
    subprocess.run([*compiler, *arguments], check=True)


def test_the_checked_in_stubs_are_what_protoc_makes(tmp_path: Path) -> None:
    assert PROTOS
    protoc(*(f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")), *PROTOS)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*_pb2*") if path.is_file()}
    kept = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / "latentry").rglob("*_pb2*.py*")}
    kept = {path: data for path, data in kept.items() if path.suffix in (".py", ".pyi")}
    assert made == kept, "run `make protos`"


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    """Our protos as protoc reads them, comments included."""
    made = tmp_path_factory.mktemp("described") / "made.binpb"
    protoc("--include_source_info", f"--descriptor_set_out={made}", *PROTOS)
    return list(FileDescriptorSet.FromString(made.read_bytes()).file)


Place = tuple[int, ...]  # of a declaration in its file: the path of SourceCodeInfo.Location


def declarations(file: FileDescriptorProto) -> Iterator[tuple[Place, str]]:
    """Every service, call, message, field, oneof, enum and value in it, with its name."""
    for i, service in enumerate(file.service):
        yield (6, i), service.name
        yield from (((6, i, 2, j), f"{service.name}.{rpc.name}") for j, rpc in enumerate(service.method))
    yield from in_messages(file.message_type, (4,), "")
    yield from in_enums(file.enum_type, (5,), "")


def in_messages(messages: Sequence[DescriptorProto], path: Place, outer: str) -> Iterator[tuple[Place, str]]:
    for i, message in enumerate(messages):
        if message.options.map_entry:
            continue
        here, name = (*path, i), outer + message.name
        yield here, name
        yield from (((*here, 2, j), f"{name}.{field.name}") for j, field in enumerate(message.field))
        optional = {field.oneof_index for field in message.field if field.proto3_optional}  # a oneof that none wrote
        written = (j for j in range(len(message.oneof_decl)) if j not in optional)
        yield from (((*here, 8, j), f"{name}.{message.oneof_decl[j].name}") for j in written)
        yield from in_messages(message.nested_type, (*here, 3), f"{name}.")
        yield from in_enums(message.enum_type, (*here, 4), f"{name}.")


def in_enums(enums: Sequence[EnumDescriptorProto], path: Place, outer: str) -> Iterator[tuple[Place, str]]:
    for i, enum in enumerate(enums):
        yield (*path, i), outer + enum.name
        yield from (((*path, i, 2, j), f"{outer}{enum.name}.{value.name}") for j, value in enumerate(enum.value))


def comments(file: FileDescriptorProto) -> dict[str, str]:
    """What is said of each declaration, above it or behind it on its line."""
    said = {tuple(at.path): at.leading_comments + at.trailing_comments for at in file.source_code_info.location}
    return {name: said[path] for path, name in declarations(file)}


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def test_every_declaration_is_documented_in_more_words_than_its_name(described: list[FileDescriptorProto]) -> None:
    told = {name: text for file in described for name, text in comments(file).items()}
    assert {"VaeService", "VaeService.Sample", "Images.kind", "SampleRequest", "SampleRequest.seed"} <= {*told}
    assert [name for name, text in told.items() if not words(text) - words(name.rpartition(".")[2])] == []


def taken(described: list[FileDescriptorProto]) -> dict[str, DescriptorProto]:
    """Every message that a call takes, and those within."""
    messages = {f".{file.package}.{message.name}": message for file in described for message in file.message_type}
    found, left = {}, [rpc.input_type for file in described for service in file.service for rpc in service.method]
    while left:
        name = left.pop()
        if name in messages and name not in found:
            found[name] = messages[name]
            left += [field.type_name for field in messages[name].field]
    return found


def test_every_number_that_a_call_takes_is_documented_with_its_limits(described: list[FileDescriptorProto]) -> None:
    """A figure, or the field of Limits or ModelInfo that has it; seeds are any 64 bits."""
    told = {name: text for file in described for name, text in comments(file).items()}
    numbers = [
        f"{message.name}.{field.name}"
        for message in taken(described).values()
        for field in message.field
        if field.type in NUMBERS
    ]
    assert {"SampleRequest.count", "NeighbourWalk.step", "ImageOutput.quality"} <= {*numbers}
    assert [name for name in numbers if not re.search(r"\d|Limits\.|ModelInfo\.", told[name])] == []
