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
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentry.printable import plain

FORMAT = 1
MANIFEST_FILE = "manifest.json"
ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
PRIOR_FILE = "prior.onnx"
FLOW = "flow"
DENSITY_FILE = "density.onnx"
CARD_FILE = "README.md"
PREVIEW_FILE = "preview.png"
FP32 = "fp32"
PRECISIONS = (FP32, "fp16", "bf16", "int8")

MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = 2 << 30  # what one protobuf message, and so one ONNX file, can hold
MAX_PROVENANCE_BYTES = 256 << 10  # it goes into a message
MAX_DEPTH = 32  # levels of nested values: all that is done with them afterwards needs some stack for each
MAX_SIDE = 4096
MAX_LATENT_DIM = 65536
MAX_CLASSES = 65536

_LONGEST = 4000  # characters of a message: names of the manifest are as long as they like
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ManifestError(ValueError):
    """A model folder that cannot be used; the message names the file, what was found and what was wanted, on one line
    that is fit to be printed wherever its parts are from."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message, _LONGEST))


@dataclass(frozen=True, slots=True)
class Likelihood:
    """p(x|z): its name and its numbers, for example `gaussian` with `sigma`."""

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AggregatePosterior:
    """Moments of the encoded means over the training set, one figure per latent; live traffic is held against them."""

    mean: tuple[float, ...]
    variance: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Prior:
    """The density in `prior.onnx`: `kind` is `flow` (learnt with the model), `mixture` or `second-stage` (fitted
    afterwards). It makes latents of `noise_dim` standard normal numbers for each image. `held_out_log_density` is what
    it gives latents of images that it was not fitted to, `normal_log_density` what N(0, I) gives them, both in nats."""

    kind: str
    noise_dim: int
    held_out_log_density: float
    normal_log_density: float

    @property
    def learnt(self) -> bool:
        """Whether the model was trained with it, so that N(0, I) is no prior of the model's at all."""
        return self.kind == FLOW


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `manifest.json` says.

    `image_shape` is (H, W, C) with C 1 or 3. `files` maps each file's name to its SHA-256. `evaluation` holds figures
    in nats unless their names say otherwise. `provenance` says where the model came from. `attributes` maps a name to
    a direction in latent space, one number per latent. `labels` names the classes of the data set, in order. The
    graphs of a conditional model also take the class, `labels` int64 [N], below `classes`; others have `classes` 0.
    `variants` maps each precision beside fp32 that encoder and decoder come in to how far these are from fp32, measured
    on held-out images.

    Raises `ManifestError` when a field does not make sense.
    """

    name: str
    version: int
    image_shape: tuple[int, int, int]
    latent_dim: int
    likelihood: Likelihood
    files: Mapping[str, str]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    aggregate_posterior: AggregatePosterior | None = None
    attributes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    classes: int = 0
    prior: Prior | None = None
    variants: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        _want(self.version >= 1, "version", self.version, "a positive integer")
        height, width, channels = self.image_shape
        shape_ok = 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and channels in (1, 3)
        _want(shape_ok, "image_shape", list(self.image_shape), f"[H, W, C], sides up to {MAX_SIDE}, C 1 or 3")
        _want(1 <= self.latent_dim <= MAX_LATENT_DIM, "latent_dim", self.latent_dim, f"1 to {MAX_LATENT_DIM}")
        for required in (ENCODER_FILE, DECODER_FILE):
            _want(required in self.files, "files", sorted(self.files), f"{required} among them")
        for name, digest in self.files.items():
            _want(bool(_FILE_NAME.fullmatch(name)), "files", name, "a plain file name")
            _want(bool(_SHA256.fullmatch(digest)), f"files.{name}", digest, "a SHA-256 in lower-case hexadecimal")
        provenance_bytes = len(json.dumps(self.provenance))
        _want(provenance_bytes <= MAX_PROVENANCE_BYTES, "provenance", f"{provenance_bytes} bytes", "256 KiB at most")
        if self.aggregate_posterior is not None:
            self._check_latent_vector("aggregate_posterior.mean", self.aggregate_posterior.mean)
            variance = self.aggregate_posterior.variance
            self._check_latent_vector("aggregate_posterior.variance", variance)
            negative = next((each for each in variance if not each >= 0), None)  # or not a number
            _want(negative is None, "aggregate_posterior.variance", negative, "0 or more")
        _want(0 <= self.classes <= MAX_CLASSES, "classes", self.classes, f"0 to {MAX_CLASSES}")
        if self.prior is not None:
            _want(
                PRIOR_FILE in self.files, "files", sorted(self.files), f"{PRIOR_FILE} among them, as there is a prior"
            )
            kinds = (FLOW, "mixture", "second-stage")
            _want(self.prior.kind in kinds, "prior.kind", self.prior.kind, " or ".join(kinds))
            dim, most = self.prior.noise_dim, 2 * self.latent_dim + 1
            _want(1 <= dim <= most, "prior.noise_dim", dim, f"1 to {most}, for {self.latent_dim} latents")
        for precision in self.variants:
            _want(precision in PRECISIONS[1:], "variants", precision, " or ".join(PRECISIONS[1:]))
            for part in ("encoder", "decoder"):
                file = graph_file(part, precision)
                _want(
                    file in self.files, "files", sorted(self.files), f"{file} among them, as variants has {precision}"
                )
        for name, direction in self.attributes.items():
            self._check_latent_vector(f"attributes.{name}", direction)

    def _check_latent_vector(self, where: str, vector: tuple[float, ...]) -> None:
        _want(len(vector) == self.latent_dim, where, f"{len(vector)} numbers", f"{self.latent_dim}, one per latent")

    @property
    def precisions(self) -> tuple[str, ...]:
        """What encoder and decoder come in, fp32 first."""
        return tuple(precision for precision in PRECISIONS if precision == FP32 or precision in self.variants)

    def graph_metadata(self, graph: str, precision: str = FP32) -> dict[str, str]:
        """The key facts that the graph (`encoder`, `decoder`, `prior` or `density`) repeats in its `metadata_props`.

        Export writes them and loading compares them, so that a lone .onnx file explains itself and cannot be
        mistaken for another model's.
        """
        height, width, channels = self.image_shape
        conditional = {"latentry.classes": str(self.classes)} if self.classes else {}
        variant = {"latentry.precision": precision} if precision != FP32 else {}
        return {
            **conditional,
            **variant,
            "latentry.format": str(FORMAT),
            "latentry.graph": graph,
            "latentry.image_shape": f"{height},{width},{channels}",
            "latentry.latent_dim": str(self.latent_dim),
            "latentry.likelihood": self.likelihood.name,
        }

    def to_json(self) -> str:
        """The text of `manifest.json`, the same for equal manifests."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True, allow_nan=False) + "\n"


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


def graph_file(graph: str, precision: str = FP32) -> str:
    """The name of a graph's file. Priors and densities come in fp32 alone, so that equal seeds give equal latents."""
    return f"{graph}.onnx" if precision == FP32 or graph in ("prior", "density") else f"{graph}.{precision}.onnx"


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def check_name(name: str) -> str:
    """Return `name` if a model may be called so, else raise `ManifestError`."""
    _want(bool(_NAME.fullmatch(name)), "name", name, "1 to 64 of a-z 0-9 . _ -, the first a letter or digit")
    return name


def parse_version(text: str) -> int:
    """The version that a folder's name says; raises `ManifestError` unless it is a plain positive integer."""
    _want(bool(_VERSION.fullmatch(text)), "version", text, "a folder named with a positive integer such as 1")
    return int(text)


def parse(text: str | bytes) -> Manifest:
    """Read the text of a `manifest.json`; raises `ManifestError` with the first field that is wrong."""
    try:
        raw = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        json.dumps(raw, ensure_ascii=False).encode()  # refuses halves of surrogate pairs, which no message can carry
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{MANIFEST_FILE}: not JSON: {error}") from error
    _want(isinstance(raw, dict), MANIFEST_FILE, type(raw).__name__, "a JSON object")
    _want(not _is_deeper(raw, MAX_DEPTH), MANIFEST_FILE, "deeper nesting", f"at most {MAX_DEPTH} levels of values")
    _want(raw.get("format") == FORMAT, "format", raw.get("format"), f"{FORMAT}, the format that this release reads")
    likelihood = _get(raw, "likelihood", dict)
    posterior = _get(raw, "aggregate_posterior", dict, optional=True)
    attributes = _get(raw, "attributes", dict, optional=True) or {}
    prior = _get(raw, "prior", dict, optional=True)
    variants = _get(raw, "variants", dict, optional=True) or {}
    shape = _get(raw, "image_shape", list)
    _want(len(shape) == 3 and all(type(side) is int for side in shape), "image_shape", shape, "three integers H, W, C")
    labels = _get(raw, "labels", list, optional=True) or []
    _want(all(isinstance(label, str) for label in labels), "labels", labels, "strings")
    return Manifest(
        name=_get(raw, "name", str),
        version=_get(raw, "version", int),
        image_shape=(shape[0], shape[1], shape[2]),
        latent_dim=_get(raw, "latent_dim", int),
        likelihood=Likelihood(_get(likelihood, "name", str), _numbers_by_name(likelihood, "parameters")),
        files=_strings_by_name(raw, "files"),
        provenance=_get(raw, "provenance", dict, optional=True) or {},
        evaluation=_numbers_by_name(raw, "evaluation"),
        aggregate_posterior=None
        if posterior is None
        else AggregatePosterior(_vector(posterior, "mean"), _vector(posterior, "variance")),
        attributes={name: _vector(attributes, name) for name in attributes},
        labels=tuple(labels),
        classes=_get(raw, "classes", int, optional=True) or 0,
        prior=None if prior is None else _prior(prior),
        variants={precision: _numbers_by_name(variants, precision) for precision in variants},
    )


def _prior(raw: Mapping[str, Any]) -> Prior:
    densities = []
    for key in ("held_out_log_density", "normal_log_density"):
        value = raw.get(key)
        _want(_is_number(value), f"prior.{key}", value, "a finite number")
        densities.append(float(value))  # type: ignore[arg-type]
    return Prior(_get(raw, "kind", str), _get(raw, "noise_dim", int), *densities)


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
    _want(manifest.version == version, f"{folder}: version", manifest.version, f"{version}, as the folder is named")
    parent = folder.parent.name
    _want(manifest.name == parent, f"{folder}: name", manifest.name, f"{parent}, as the folder above is named")
    graphs = {}
    for name, digest in manifest.files.items():
        data = _read_inside(folder, name, MAX_FILE_BYTES)
        _want(sha256(data) == digest, f"{folder / name}: SHA-256", sha256(data), f"{digest}, as the manifest says")
        if name.endswith(".onnx"):
            graphs[name] = data
    return ModelFolder(folder, manifest, sha256(manifest_bytes), graphs)


def _read_inside(folder: Path, name: str, max_bytes: int) -> bytes:
    path = folder / name
    try:
        real = path.resolve(strict=True)
        _want(real.is_relative_to(folder.resolve()), str(path), "a link outside", "a file inside the model folder")
        _want(real.is_file(), str(path), "not a regular file", "a file")
        _want(
            real.stat().st_size <= max_bytes,
            str(path),
            f"{real.stat().st_size} bytes",
            f"at most {max_bytes}; export a smaller model",
        )
        return real.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links, before Python 3.13
        raise ManifestError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _want(ok: bool, where: str, got: object, wanted: str) -> None:
    if not ok:
        raise ManifestError(f"{where}: got {str(got)[:200]}, wanted {wanted}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_constant(text)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _is_deeper(value: object, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper(child, levels - 1) for child in children)


def _get(raw: Mapping[str, Any], key: str, kind: type, *, optional: bool = False) -> Any:
    value = raw.get(key)
    if value is None and optional:
        return None
    ok = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    _want(ok, key, "nothing" if value is None else f"{type(value).__name__} {value!r}", f"a JSON {kind.__name__}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _numbers_by_name(raw: Mapping[str, Any], key: str) -> dict[str, float]:
    values: dict[str, float] = _get(raw, key, dict, optional=True) or {}
    for name, value in values.items():
        _want(_is_number(value), f"{key}.{name}", value, "a finite number")
    return values


def _strings_by_name(raw: Mapping[str, Any], key: str) -> dict[str, str]:
    values: dict[str, str] = _get(raw, key, dict)
    for name, value in values.items():
        _want(isinstance(value, str), f"{key}.{name}", value, "a string")
    return values


def _vector(raw: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = _get(raw, key, list)
    _want(all(_is_number(value) for value in values), key, values, "finite numbers")
    return tuple(float(value) for value in values)


def embedded_models() -> Path:
    """The model repository that comes with Latentry: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "models"
    return installed if installed.is_dir() else package.parent / "models"
