"""ONNX Runtime on the CPU, with its failures in one line that names the file and the node."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is loaded, and else reports home
import onnxruntime

from latentry.printable import plain
from training.errors import ExportError

VERSION: str = onnxruntime.__version__
_NODE = re.compile(r"running (\w+) node\. Name:'([^']*)'")

Array = NDArray[Any]


class NodeFailed(Exception):
    """A run that a node stopped: its operator and its name."""

    def __init__(self, operator: str, name: str, why: str) -> None:
        super().__init__(why)
        self.operator, self.name = operator, name


class Session:
    """A graph that takes one array. Raises `ExportError` if ONNX Runtime cannot load it."""

    def __init__(self, data: bytes, file: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it says is in the exception too
        # the weights are inside: what points to another file finds none
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it raises a dozen kinds, none of them documented
            raise ExportError(
                f"{file}: ONNX Runtime {VERSION} cannot load it: {_line(error)}; export it with an opset and with "
                "operators that this release knows, or install a newer one"
            ) from error
        self._file = file
        self._input = self._session.get_inputs()[0].name

    def run(self, given: Array, outputs: Sequence[str]) -> list[Array]:
        """The named outputs. Raises `NodeFailed` if a node stops it."""
        try:
            results: list[Array] = self._session.run(list(outputs), {self._input: given})
        except Exception as error:
            found = _NODE.search(str(error))
            operator, name = found.groups() if found else ("the graph", "")
            raise NodeFailed(operator, plain(name, 100), _line(error)) from error
        return [np.asarray(result) for result in results]


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return plain(text.rpartition(" was false. ")[2], 300)  # before it stands where in its sources, and what was not so
