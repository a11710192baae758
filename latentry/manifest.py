"""The model folder: what `training` writes and `serving` reads, and the only thing the two share.

    models/<name>/<version>/
        manifest.json   this schema, with the SHA-256 of every other file
        encoder.onnx    images uint8 [N,H,W,C]  -> mean, logvar float32 [N,Z]
        decoder.onnx    latents float32 [N,Z]   -> images uint8 [N,H,W,C], mean float32 [N,H,W,C] in [0,1]
        encoder.int8.onnx, decoder.int8.onnx    perhaps: the same in another precision, and so for fp16 and bf16
        prior.onnx      perhaps: noise float32 [N,K] -> latents [N,Z], fits the latents better than N(0, I)
        density.onnx    perhaps: latents [N,Z] -> log_prob float32 [N], that density in nats
        README.md       the model card
        preview.png     reconstructions and samples

A folder may come from anywhere, so reading one trusts nothing: sizes are bounded, every file must lie inside the
folder, every digest must match, and the bytes that were checked are the bytes that are used. Knows nothing of ONNX.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latentry.manifest_error import ManifestError, want
from latentry.manifest_json import MAX_DEPTH, parse
from latentry.manifest_schema import (
    CARD_FILE,
    DECODER_FILE,
    DENSITY_FILE,
    ENCODER_FILE,
    FLOW,
    FORMAT,
    FP32,
    MANIFEST_FILE,
    MAX_CLASSES,
    MAX_LATENT_DIM,
    MAX_PROVENANCE_BYTES,
    MAX_SIDE,
    PRECISIONS,
    PREVIEW_FILE,
    PRIOR_FILE,
    AggregatePosterior,
    Likelihood,
    Manifest,
    Prior,
    check_name,
    graph_file,
    parse_version,
)

__all__ = [
    "CARD_FILE",
    "DECODER_FILE",
    "DENSITY_FILE",
    "ENCODER_FILE",
    "FLOW",
    "FORMAT",
    "FP32",
    "MANIFEST_FILE",
    "MAX_CLASSES",
    "MAX_DEPTH",
    "MAX_FILE_BYTES",
    "MAX_LATENT_DIM",
    "MAX_MANIFEST_BYTES",
    "MAX_PROVENANCE_BYTES",
    "MAX_SIDE",
    "PRECISIONS",
    "PREVIEW_FILE",
    "PRIOR_FILE",
    "AggregatePosterior",
    "Likelihood",
    "Manifest",
    "ManifestError",
    "ModelFolder",
    "Prior",
    "check_name",
    "embedded_models",
    "graph_file",
    "parse",
    "parse_version",
    "read",
    "sha256",
]

MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = 2 << 30  # what one protobuf message, and so one ONNX file, can hold


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A verified folder: its manifest, its digest, and by file name the bytes of its graphs, which the digests vouch
    for."""

    path: Path
    manifest: Manifest
    digest: str
    graphs: Mapping[str, bytes]

    def graph(self, graph: str, precision: str = FP32) -> bytes:
        """The ONNX file of `encoder`, `decoder`, `prior` or `density`. Raises `KeyError` if there is none."""
        return self.graphs[graph_file(graph, precision)]


def read(folder: Path) -> ModelFolder:
    """Read and verify the model folder at `<name>/<version>/`.

    Raises `ManifestError` if a file is missing, too large, outside the folder (a symbolic link), or not what the
    manifest's digest says, or if the folder's names and the manifest disagree.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - the names as given, with `..` gone but links not followed
    version = parse_version(folder.name)
    manifest_bytes = _read_inside(folder, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    try:
        manifest = parse(manifest_bytes)
    except ManifestError as error:
        raise ManifestError(f"{folder}: {error}") from error
    want(manifest.version == version, f"{folder}: version", manifest.version, f"{version}, as the folder is named")
    parent = folder.parent.name
    want(manifest.name == parent, f"{folder}: name", manifest.name, f"{parent}, as the folder above is named")
    graphs = {}
    for name, digest in manifest.files.items():
        data = _read_inside(folder, name, MAX_FILE_BYTES)
        want(sha256(data) == digest, f"{folder / name}: SHA-256", sha256(data), f"{digest}, as the manifest says")
        if name.endswith(".onnx"):
            graphs[name] = data
    return ModelFolder(folder, manifest, sha256(manifest_bytes), graphs)


def _read_inside(folder: Path, name: str, max_bytes: int) -> bytes:
    path = folder / name
    try:
        real = path.resolve(strict=True)
        want(real.is_relative_to(folder.resolve()), str(path), "a link outside", "a file inside the model folder")
        want(real.is_file(), str(path), "not a regular file", "a file")
        want(
            real.stat().st_size <= max_bytes,
            str(path),
            f"{real.stat().st_size} bytes",
            f"at most {max_bytes}; export a smaller model",
        )
        return real.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links, before Python 3.13
        raise ManifestError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def embedded_models() -> Path:
    """The model repository that comes with Latentry: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "models"
    return installed if installed.is_dir() else package.parent / "models"
