"""The models of the protocol that one loaded model appears as: their names, inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from latentry.printable import plain
from serving import likelihoods
from serving.catalog import Catalog
from serving.errors import InvalidArgument, ModelNotFound
from serving.model import DENSITY, Model

ENCODER, DECODER, SAMPLE = "encoder", "decoder", "sample"
INTERPOLATE, RECONSTRUCT, EDIT = "interpolate", "reconstruct", "edit"
_LONGEST = 64


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output. `dims` are behind the batch axis of a face that has one; -1 is any number."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Face:
    """One call of a loaded model. The tensors of a `batched` one have N rows each; of another, each its own number."""

    kind: str
    model: Model
    batched: bool
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def name(self) -> str:
        """As the protocol knows it."""
        return f"{self.model.manifest.name}_{self.kind}"

    @property
    def version(self) -> str:
        """As the protocol knows it."""
        return str(self.model.manifest.version)


def _encoder(model: Model) -> Face:
    outputs = (_latents(model, "mean"), _latents(model, "logvar"))
    return Face(ENCODER, model, True, (_images(model), *_classes(model, (1,))), outputs)


def _decoder(model: Model) -> Face:
    outputs = (_images(model), Port("mean", "FP32", model.manifest.image_shape))
    return Face(DECODER, model, True, (_latents(model), *_classes(model, (1,))), outputs)


def _sample(model: Model) -> Face:
    inputs = (Port("count", "INT64", (1,), True), Port("seed", "INT64", (1,), True), *_classes(model, (-1,)))
    return Face(SAMPLE, model, False, inputs, (_images(model, any_number=True), _latents(model, any_number=True)))


def _interpolate(model: Model) -> Face:
    keys = (_latents(model, any_number=True, optional=True), _images(model, any_number=True, optional=True))
    outputs = (_images(model, any_number=True), _latents(model, any_number=True))
    return Face(INTERPOLATE, model, False, (*keys, *_classes(model, (1,))), outputs)


def _reconstruct(model: Model) -> Face:
    scores = ["squared_error"]
    if not model.fitted_by_default or DENSITY in model.batchers:  # p(z) is N(0, I), or its density is here
        scores.append("kl")
        if likelihoods.outputs(model.manifest.likelihood, model.has_parameters):
            scores.append("elbo")
    outputs = (_images(model), _latents(model), *(Port(name, "FP32", (1,)) for name in scores))
    return Face(RECONSTRUCT, model, True, (_images(model), *_classes(model, (1,))), outputs)


def _edit(model: Model) -> Face:
    base = (_latents(model, optional=True), _images(model, optional=True))
    return Face(EDIT, model, True, (*base, *_classes(model, (1,))), (_images(model), _latents(model)))


_FACES: Mapping[str, Callable[[Model], Face]] = {
    ENCODER: _encoder,
    DECODER: _decoder,
    SAMPLE: _sample,
    INTERPOLATE: _interpolate,
    RECONSTRUCT: _reconstruct,
    EDIT: _edit,
}


def kinds(model: Model) -> list[str]:
    """The calls that a model can answer; without attributes there is nothing to edit."""
    return [kind for kind in _FACES if kind != EDIT or model.manifest.attributes]


def faces(catalog: Catalog) -> list[Face]:
    """Every face of every loaded version."""
    return [_FACES[kind](model) for model in catalog.all() for kind in kinds(model)]


def names(catalog: Catalog) -> list[str]:
    """What a request may name, one entry for each model: `fashion_encoder|decoder|sample`."""
    found: dict[str, set[str]] = {}
    for model in catalog.all():
        found.setdefault(model.manifest.name, set()).update(kinds(model))
    return [f"{own}_{'|'.join(kind for kind in _FACES if kind in there)}" for own, there in found.items()]


def split(name: str) -> tuple[str, str]:
    """The model's own name and the call, if the protocol's `name` is such; empty if it is not."""
    own, _, kind = name.rpartition("_")
    return (own, kind) if kind in _FACES else ("", "")


def find(catalog: Catalog, name: str, version: str) -> Face:
    """The face that a request means; an empty version is the newest one that works. Raises `ModelNotFound`, or
    `InvalidArgument` for a version that is neither a number nor a label of the model."""
    own, kind = split(name)
    versions = catalog.versions(own) if own else {}
    there = [number for number, model in sorted(versions.items()) if kind in kinds(model)]
    if there:
        wanted = _version(catalog, own, version)
        model = catalog.get(own, wanted) if wanted is None or wanted in versions else None
        if model is not None and kind in kinds(model):
            return _FACES[kind](model)
    revision = f"version {plain(version, _LONGEST)}" if version else ""
    raise ModelNotFound(name, revision, [f"{name} version {number}" for number in there] or names(catalog))


def _version(catalog: Catalog, own: str, version: str) -> int | None:
    if not version:
        return None
    if version.isascii() and version.isdigit() and len(version) <= 18:
        return int(version)
    if version in catalog.labels(own):
        return catalog.labels(own)[version]
    labels = "".join(f" or {label}" for label in sorted(catalog.labels(own)))
    raise InvalidArgument("model_version", repr(plain(version, _LONGEST)), f"a whole number{labels}, or nothing")


def _images(model: Model, *, any_number: bool = False, optional: bool = False) -> Port:
    shape = model.manifest.image_shape
    return Port("images", "UINT8", (-1, *shape) if any_number else shape, optional)


def _latents(model: Model, name: str = "latents", *, any_number: bool = False, optional: bool = False) -> Port:
    dim = model.manifest.latent_dim
    return Port(name, "FP32", (-1, dim) if any_number else (dim,), optional)


def _classes(model: Model, dims: tuple[int, ...]) -> tuple[Port, ...]:
    return (Port("classes", "INT64", dims, True),) if model.manifest.classes else ()
