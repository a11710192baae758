"""The message that an ONNX file is, without the rest of the package `onnx`, which takes 50 ms and 10 MB to import."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

_MODULE = "onnx.onnx_ml_pb2"  # generated, and needs protobuf alone


def model_type() -> type[ModelProto]:
    """The class `onnx.ModelProto`, whether `onnx` itself is imported before, later or never."""
    if _MODULE not in sys.modules:
        _load()
    if _MODULE in sys.modules:
        found: type[ModelProto] = sys.modules[_MODULE].ModelProto
        return found
    from onnx import ModelProto

    return ModelProto


def _load() -> None:
    """Run the generated file, if it is where it always was, under its own name: `onnx` finds it there."""
    package = util.find_spec("onnx")
    for folder in (package.submodule_search_locations if package else None) or ():
        spec = util.spec_from_file_location(_MODULE, Path(folder) / f"{_MODULE.rpartition('.')[2]}.py")
        if spec is not None and spec.loader is not None and Path(str(spec.origin)).is_file():
            module = util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules.setdefault(_MODULE, module)
            return
