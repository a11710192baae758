"""What modules that protoc has made describe."""

from __future__ import annotations

import ast

from google.protobuf.descriptor_pb2 import FileDescriptorProto


def described(generated: str | bytes) -> FileDescriptorProto:
    """The file that a generated module describes, without what compilers write or leave out."""
    (data,) = [
        ast.literal_eval(node.args[0])
        for node in ast.walk(ast.parse(generated))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "AddSerializedFile"
    ]
    return without_json_names(FileDescriptorProto.FromString(data))


def without_json_names(file: FileDescriptorProto) -> FileDescriptorProto:
    """Compilers write them or leave them out; they follow from the names."""
    plain = FileDescriptorProto.FromString(file.SerializeToString())
    messages = list(plain.message_type)
    while messages:
        message = messages.pop()
        messages += message.nested_type
        for each in message.field:
            each.ClearField("json_name")
    return plain
