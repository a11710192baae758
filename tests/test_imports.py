"""The arrows of the design: training -> latentry <- serving, and nothing heavy where it is not needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


def modules_of(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("serving", {"torch", "training", "lightning_fabric", "onnx"}),
        ("latentry", {"torch", "onnxruntime", "training", "serving", "onnx"}),
        ("training", {"grpc", "serving"}),
    ],
)
def test_importing_all_of_a_package_loads_nothing_of_its_neighbours(package: str, never: set[str]) -> None:
    loaded = loaded_by("import " + ", ".join(modules_of(package)))
    assert package in loaded
    assert not loaded & never


def test_importing_latentry_alone_is_light() -> None:
    assert not loaded_by("import latentry, latentry.manifest") & {"grpc", "numpy", "PIL", "torch", "onnxruntime"}
    assert "grpc" in loaded_by("from latentry import Client, grid")


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "export", "import", "verify", "inspect", "serve", "sample", "demo"]
)
def test_help_comes_without_torch_or_onnxruntime(command: str) -> None:
    code = f"from latentry.cli import main\ntry: main(['{command}', '--help'])\nexcept SystemExit: pass"
    assert not loaded_by(code) & {"torch", "onnxruntime"}


def imports_of(file: Path) -> set[str]:
    """Every module that the file's source imports, at whatever depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_only_the_engine_imports_onnxruntime() -> None:
    users = {file.name for file in (ROOT / "serving").rglob("*.py") if "onnxruntime" in imports_of(file)}
    assert users == {"engine.py"}


def test_only_the_edge_sees_messages() -> None:
    def users(folder: str, stubs: str) -> set[str]:
        return {file.name for file in (ROOT / folder).glob("*.py") if stubs in imports_of(file)}

    assert users("serving", "latentry.v1") == {"admin.py", "administration.py", "calls.py", "interceptor.py"}
    assert users("serving", "serving.inference") == {"administration.py", "calls.py"}
    assert not users("serving/latents", "latentry.v1")
    assert not users("serving/api", "serving.inference")


@pytest.mark.parametrize("package", ["latentry", "training", "serving"])
def test_no_package_imports_in_a_circle(package: str) -> None:
    graph = {name: set[str]() for name in modules_of(package)}
    for name in graph:
        path = ROOT / Path(*name.split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        graph[name] = {other for other in imports_of(file) if other in graph and other != name} - {package}
    while graph:
        free = {name for name, needs in graph.items() if not needs & set(graph)}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}
