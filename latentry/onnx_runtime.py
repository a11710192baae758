"""What the ONNX Runtime that is installed can read, and on what it can run: asked of it, as releases differ.

Imports onnxruntime when first used. Runs no graph.
"""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, Any

from latentry.printable import plain

if TYPE_CHECKING:
    from onnx import ModelProto

CPU = "CPUExecutionProvider"

# What the oldest release that we take (1.22) reads: nothing has to be asked up to here.
_OPSET, _IR_VERSION = 22, 10
_FAR = 100  # beyond what anyone has released

_LONGEST = 400  # characters of what it says
_LOOKED_AT = 4000  # of those, as names of nodes are as long as they like
# What it says for its developers, in the order in which it is taken away.
_INSIDE = tuple(
    re.compile(pattern)
    for pattern in (
        r"\[ONNXRuntimeError\] : [0-9]+ : [A-Z_]+ : ",
        r"Load model from (\S+|) ?failed: ?",
        # A file, a line and a signature; of a condition that did not hold, what that was.
        r"/\S+\.(?:cc|cpp|cu|h|hpp):[0-9]+ \S.* was false\. ?",
        r"/\S+\.(?:cc|cpp|cu|h|hpp):[0-9]+ [^()]*\(.*?\)(?: const)?(?= [A-Z\[]) ?",
        r"\S+\.(?:cc|cpp|cu|h|hpp):[0-9]+ \S+ ",
    )
)


def too_old_for(model: ModelProto) -> str | None:
    """The file's versions, what is read of them, and what to do; None if all is well, or if that cannot be known."""
    opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)
    if opset <= _OPSET and model.ir_version <= _IR_VERSION:
        return None
    known = newest()
    if known is None or (opset <= known[0] and model.ir_version <= known[1]):
        return None
    got = f"opset {opset} and IR version {model.ir_version}, of which {version()} reads up to {known[0]} and {known[1]}"
    return f"{got}; export with opset_version=18, or install a newer onnxruntime"


@functools.cache
def newest() -> tuple[int, int] | None:
    """The newest opset and the newest IR version that it reads; None if it does not say."""
    if not _reads(_OPSET, _IR_VERSION) or _reads(_FAR, _FAR):
        return None
    opset = next((n for n in range(_OPSET, _FAR) if not _reads(n + 1, _IR_VERSION)), _FAR)
    return opset, next((n for n in range(_IR_VERSION, _FAR) if not _reads(_OPSET, n + 1)), _FAR)


def providers() -> list[str]:
    """The execution providers of this build, the preferred first. Not all need work on this machine."""
    return list(_runtime().get_available_providers())


def version() -> str:
    """The release of ONNX Runtime."""
    return str(_runtime().__version__)


def why_not(data: bytes) -> str | None:
    """Why the CPU provider cannot load a graph, on one line; None if it can. No node is run: nothing is optimised."""
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        runtime.InferenceSession(data, options, providers=[CPU])
    except Exception as error:  # it raises a dozen kinds, none of them documented
        return said(error)
    return None


def said(error: BaseException) -> str:
    """What an exception of ONNX Runtime says of a graph, in one line that is fit to be printed: without where in its
    sources it was raised, and what it calls the file."""
    text = " ".join(str(error)[:_LOOKED_AT].split())
    for inside in _INSIDE:
        text = inside.sub("", text)
    return plain(text.strip().rstrip("."), _LONGEST) or type(error).__name__


def _reads(opset: int, ir_version: int) -> bool:
    """Whether it loads the smallest graph there is: one that hands its input on."""
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", opset)]
    model: Any = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    return why_not(model.SerializeToString()) is None


def _runtime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reads this when it is loaded, and else reports home
    import onnxruntime

    return onnxruntime
