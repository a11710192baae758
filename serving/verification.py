"""The checks of `latentry verify` that run graphs, on the CPU: those that loading makes, and some that take longer.

Each graph of a folder on its own, in every precision, also the one that is not served: the density of a prior that
was fitted afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from latentry import manifest as manifests
from latentry.manifest import FP32, Manifest, ModelFolder, graph_file
from latentry.verification import Check, Skipped, attempt
from serving import labelled
from serving.bad_graph import BadGraph, NoKernel
from serving.devices import CPU, Device
from serving.engine import Array, Graph, load_graph

_BATCHES = (1, 7)
_IMAGES = 32  # that variants are compared on
_SEED = 5
# The figures of the manifest are the largest differences on other images; the largest of these may be a little larger.
_SLACK = 2.0
# The largest of many values, of other images than the manifest's, each in steps of 1/256 of its range.
_MORE = {("int8", "encoder_relative"): 0.25}
_SLACK_DB = 6.0  # the same in dB
_ENOUGH_DB = 60.0  # a level more or less in one of fifteen values: which ones are rounded otherwise is chance


@dataclass(frozen=True, slots=True)
class _Part:
    """One file."""

    kind: str
    precision: str

    @property
    def what(self) -> str:
        return graph_file(self.kind, self.precision)


def of_graphs(folder: ModelFolder) -> Iterator[Check]:
    """Every check of every graph. A graph whose check of the file failed is better left out of `folder.graphs`."""
    loaded: dict[_Part, Graph] = {}
    for part in _parts(folder.manifest):
        yield attempt("loads", part.what, partial(_load, folder, part, loaded))
        for check, run in (("finite", _finite), ("rows apart", Graph.check_rows), ("repeatable", Graph.check_repeats)):
            work = partial(run, loaded[part]) if part in loaded else partial(_skip, "it is not loaded")
            yield attempt(check, part.what, work)
    yield from _variants(folder.manifest, loaded)


def _parts(about: Manifest) -> Iterator[_Part]:
    for precision in about.precisions:
        for kind in ("encoder", "decoder"):
            yield _Part(kind, precision)
    for kind, file in (("prior", manifests.PRIOR_FILE), ("density", manifests.DENSITY_FILE)):
        if file in about.files and about.prior is not None:
            yield _Part(kind, FP32)


def _load(folder: ModelFolder, part: _Part, loaded: dict[_Part, Graph]) -> str | None:
    if part.what not in folder.graphs:
        raise Skipped("its file is not one to load")
    try:
        loaded[part] = load_graph(folder, part.kind, Device(CPU), (), part.precision)
    except NoKernel as error:
        raise Skipped(f"the CPU cannot run {part.precision}: {error}") from error
    return "names, types, shapes and metadata are what the manifest says"


def _skip(why: str) -> None:
    raise Skipped(why)


def _finite(graph: Graph) -> str:
    for size in _BATCHES:
        graph.warm(size)
    return f"batches of {' and '.join(map(str, _BATCHES))}, of the declared shapes"


def _variants(about: Manifest, loaded: Mapping[_Part, Graph]) -> Iterator[Check]:
    for precision in about.precisions[1:]:
        parts = [_Part(kind, each) for each in (FP32, precision) for kind in ("encoder", "decoder")]
        graphs = [loaded[part] for part in parts if part in loaded]
        what = f"{precision} against {FP32}"
        if len(graphs) < len(parts):
            yield Check("as close", what, "skipped", "not all four graphs are loaded")
        else:
            yield attempt("as close", what, partial(_close, about, precision, *graphs))


def _close(
    about: Manifest, precision: str, encoder: Graph, decoder: Graph, other_encoder: Graph, other_decoder: Graph
) -> str:
    """Held against what the manifest says was measured on held-out images: here on images that the model draws."""
    names = frozenset({"images", "mean"})
    latents = labelled.spread(_latents(about), about.classes)
    whole, other = decoder.run(latents, names), other_decoder.run(latents, names)
    images = labelled.spread(_seen(about, whole), about.classes)
    posteriors = [graph.run(images, frozenset({"mean", "logvar"})) for graph in (encoder, other_encoder)]
    got = {
        "encoder_relative": max(_relative(posteriors[1][name], posteriors[0][name]) for name in ("mean", "logvar")),
        "decoder_mean": float(np.abs(other["mean"] - whole["mean"]).max()),
        "decoder_levels": float(np.abs(other["images"].astype(np.int16) - whole["images"]).max()),
    }
    psnr = _psnr(other["images"], whole["images"])
    measured = about.variants[precision]
    missing = sorted({*got, "psnr_db"} - set(measured))
    if missing:
        raise Skipped(f"the manifest does not say {', '.join(missing)}")
    for name, figure in got.items():
        most = _SLACK * measured[name] + _MORE.get((precision, name), 1 if name == "decoder_levels" else 0)
        if not figure <= most:
            raise BadGraph(
                f"{name}: got {figure:.3g}, wanted at most {most:.3g}: the manifest says {measured[name]:.3g}"
            )
    least = min(measured["psnr_db"] - _SLACK_DB, _ENOUGH_DB)
    if not psnr >= least:
        raise BadGraph(
            f"psnr_db: got {psnr:.1f}, wanted {least:.1f} or more: the manifest says {measured['psnr_db']:.1f}"
        )
    return f"{psnr:.1f} dB, {', '.join(f'{name} {figure:.2g}' for name, figure in got.items())}"


def _latents(about: Manifest) -> Array:
    """What the encoder makes of training images, as far as the manifest tells; float32 [n, Z]."""
    normal = np.random.default_rng(_SEED).standard_normal((_IMAGES, about.latent_dim))
    if about.aggregate_posterior is not None:
        deviation = np.sqrt(np.array(about.aggregate_posterior.variance))
        normal = np.array(about.aggregate_posterior.mean) + deviation * normal
    return normal.astype(np.float32)


def _seen(about: Manifest, decoded: Mapping[str, Array]) -> Array:
    """Images as the encoder was shown them in training: black and white, for a likelihood of such."""
    if about.likelihood.name != "bernoulli":
        return decoded["images"]
    return np.where(decoded["mean"] >= 0.5, np.uint8(255), np.uint8(0))


def _relative(got: Array, wanted: Array) -> float:
    return float((np.abs(got.astype(np.float64) - wanted) / (1 + np.abs(wanted))).max())


def _psnr(got: Array, wanted: Array) -> float:
    error = float(np.square((got.astype(np.float64) - wanted) / 255).mean())
    return float("inf") if error == 0 else -10 * np.log10(error)
