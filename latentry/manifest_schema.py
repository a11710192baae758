"""What `manifest.json` says: its fields, and which values of them make sense. Knows nothing of folders.

Others import it from `latentry.manifest`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from latentry.attributes import Attribute, figure_names, measured
from latentry.manifest_error import want

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

MAX_PROVENANCE_BYTES = 256 << 10  # it goes into a message
MAX_SIDE = 4096
MAX_LATENT_DIM = 65536
MAX_CLASSES = 65536

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


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
        want(self.version >= 1, "version", self.version, "a positive integer")
        height, width, channels = self.image_shape
        shape_ok = 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and channels in (1, 3)
        want(shape_ok, "image_shape", list(self.image_shape), f"[H, W, C], sides up to {MAX_SIDE}, C 1 or 3")
        want(1 <= self.latent_dim <= MAX_LATENT_DIM, "latent_dim", self.latent_dim, f"1 to {MAX_LATENT_DIM}")
        want(0 <= self.classes <= MAX_CLASSES, "classes", self.classes, f"0 to {MAX_CLASSES}")
        self._check_files()
        provenance_bytes = len(json.dumps(self.provenance))
        want(provenance_bytes <= MAX_PROVENANCE_BYTES, "provenance", f"{provenance_bytes} bytes", "256 KiB at most")
        self._check_posterior()
        self._check_prior()
        self._check_variants()
        for name, direction in self.attributes.items():
            self._check_latent_vector(f"attributes.{name}", direction)
            self._check_amounts(name)

    def _check_files(self) -> None:
        for name, digest in self.files.items():
            want(bool(_FILE_NAME.fullmatch(name)), "files", name, "a plain file name")
            want(bool(_SHA256.fullmatch(digest)), f"files.{name}", digest, "a SHA-256 in lower-case hexadecimal")
        for required in (ENCODER_FILE, DECODER_FILE):
            self._check_file(required)

    def _check_file(self, name: str, why: str = "") -> None:
        want(name in self.files, "files", sorted(self.files), f"{name} among them{why}")

    def _check_posterior(self) -> None:
        if self.aggregate_posterior is None:
            return
        self._check_latent_vector("aggregate_posterior.mean", self.aggregate_posterior.mean)
        variance = self.aggregate_posterior.variance
        self._check_latent_vector("aggregate_posterior.variance", variance)
        negative = next((each for each in variance if not each >= 0), None)  # or not a number
        want(negative is None, "aggregate_posterior.variance", negative, "0 or more")

    def _check_prior(self) -> None:
        if self.prior is None:
            return
        self._check_file(PRIOR_FILE, ", as there is a prior")
        kinds = (FLOW, "mixture", "second-stage")
        want(self.prior.kind in kinds, "prior.kind", self.prior.kind, " or ".join(kinds))
        dim, most = self.prior.noise_dim, 2 * self.latent_dim + 1
        want(1 <= dim <= most, "prior.noise_dim", dim, f"1 to {most}, for {self.latent_dim} latents")

    def _check_variants(self) -> None:
        for precision in self.variants:
            want(precision in PRECISIONS[1:], "variants", precision, " or ".join(PRECISIONS[1:]))
            for part in ("encoder", "decoder"):
                self._check_file(graph_file(part, precision), f", as variants has {precision}")

    def _check_latent_vector(self, where: str, vector: tuple[float, ...]) -> None:
        want(len(vector) == self.latent_dim, where, f"{len(vector)} numbers", f"{self.latent_dim}, one per latent")

    def _check_amounts(self, name: str) -> None:
        amount_name, limit_name = figure_names(name)
        amount = self.evaluation.get(amount_name, 1.0)
        want(amount > 0, f"evaluation.{amount_name}", amount, "more than 0")
        limit = self.evaluation.get(limit_name, amount)
        ok = limit >= 0 and math.isfinite(limit / amount)
        want(ok, f"evaluation.{limit_name}", limit, f"0 to a finite multiple of the amount, {amount}")

    def attribute(self, name: str) -> Attribute:
        """The attribute with how far an edit by it goes. Raises `KeyError` if the model has none of this name."""
        return measured(name, self.attributes[name], self.evaluation)

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


def graph_file(graph: str, precision: str = FP32) -> str:
    """The name of a graph's file. Priors and densities come in fp32 alone, so that equal seeds give equal latents."""
    return f"{graph}.onnx" if precision == FP32 or graph in ("prior", "density") else f"{graph}.{precision}.onnx"


def check_name(name: str) -> str:
    """Return `name` if a model may be called so, else raise `ManifestError`."""
    want(bool(_NAME.fullmatch(name)), "name", name, "1 to 64 of a-z 0-9 . _ -, the first a letter or digit")
    return name


def parse_version(text: str) -> int:
    """The version that a folder's name says; raises `ManifestError` unless it is a plain positive integer."""
    want(bool(_VERSION.fullmatch(text)), "version", text, "a folder named with a positive integer such as 1")
    return int(text)
