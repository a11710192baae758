"""What a model folder or an ONNX file says of itself, as plain values: read, checked and parsed, never run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentry import manifest as manifests
from latentry import onnx_file, onnx_runtime
from latentry.manifest import Manifest, ManifestError
from latentry.onnx_parts import OnnxError
from latentry.onnx_summary import summary


def of(path: Path) -> dict[str, Any]:
    """A folder: `folder`, `digest`, `manifest`, `card` (a path or None) and `graphs` by file name; a file: `graphs`.

    Raises `ManifestError` if it is not what it should be, and `OSError` if it cannot be read.
    """
    _want_there(path)
    return {"graphs": {path.name: _graph(read_file(path), path.name)}} if path.is_file() else _folder(path)


def read_file(path: Path) -> bytes:
    """The bytes of a lone graph. Raises `OnnxError`, without having read it, if it is larger than any can be."""
    size = path.stat().st_size
    if size > manifests.MAX_FILE_BYTES:
        most = f"wanted at most {manifests.MAX_FILE_BYTES}, all that ONNX can hold"
        raise OnnxError(f"{path}: got {size} bytes, {most}; export a smaller model")
    return path.read_bytes()


def card(folder: Path) -> str:
    """The model card of a folder, as its digest vouches for it. It is a stranger's text: what would move a terminal's
    cursor is a `?`."""
    _want_there(folder)
    if folder.is_file():
        raise ManifestError(f"{folder}: got a file, wanted a model folder: a graph has no card")
    whole = manifests.read(folder)
    wanted = whole.manifest.files.get(manifests.CARD_FILE)
    if wanted is None:
        raise ManifestError(f"{folder}: no {manifests.CARD_FILE} among its files")
    data = (whole.path / manifests.CARD_FILE).read_bytes()
    if manifests.sha256(data) != wanted:
        raise ManifestError(f"{folder}: {manifests.CARD_FILE} changed while it was read; try again")
    text = data.decode(errors="replace").rstrip()
    return "".join(each if each.isprintable() or each in "\n\t" else "?" for each in text)


def _want_there(path: Path) -> None:
    if not path.exists():
        raise ManifestError(f"{path}: no such file or folder; wanted a model folder, NAME/VERSION, or a FILE.onnx")


def _folder(folder: Path) -> dict[str, Any]:
    whole = manifests.read(folder)
    there = manifests.CARD_FILE in whole.manifest.files
    return {
        "folder": str(folder),
        "digest": whole.digest,
        "card": str(folder / manifests.CARD_FILE) if there else None,
        "manifest": _manifest(whole.manifest),
        "graphs": {file: _graph(data, file) for file, data in sorted(whole.graphs.items())},
    }


def _manifest(about: Manifest) -> dict[str, Any]:
    return {
        "name": about.name,
        "version": about.version,
        "image_shape": list(about.image_shape),
        "latent_dim": about.latent_dim,
        "likelihood": {"name": about.likelihood.name, "parameters": dict(about.likelihood.parameters)},
        "prior": None if about.prior is None else asdict(about.prior),
        "classes": about.classes,
        "labels": list(about.labels),
        "attributes": sorted(about.attributes),
        "precisions": {precision: dict(about.variants.get(precision, {})) for precision in about.precisions},
        "evaluation": dict(about.evaluation),
    }


def _graph(data: bytes, file: str) -> dict[str, Any]:
    """One graph; `problem` says why no model folder may hold it, and then no runtime is asked to load it."""
    about = asdict(summary(data, file))
    problem = None
    try:
        onnx_file.check(data, file)
        cpu = onnx_runtime.why_not(data) or "loads"
    except OnnxError as error:
        problem, cpu = str(error), "not tried"
    providers = {name: cpu if name == onnx_runtime.CPU else "not tried" for name in onnx_runtime.providers()}
    return {**about, "problem": problem, "onnxruntime": onnx_runtime.version(), "providers": providers}
