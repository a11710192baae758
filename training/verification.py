"""The checks of `latentry verify --run`: the graphs of a model folder against the run's own model, in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from latentry.manifest import DECODER_FILE, ENCODER_FILE, PRIOR_FILE, ModelFolder
from latentry.verification import Check, Skipped, attempt
from training import graphs, parity, prior_graphs, trained
from training.errors import TrainingError
from training.trained import Trained

_PAIR = f"{ENCODER_FILE}, {DECODER_FILE}"


def of_parity(folder: ModelFolder, run: Path, data_path: str | None) -> Iterator[Check]:
    """Encoder and decoder on held-out images of the run, and the prior, if there is one, on noise."""
    loaded: list[Trained] = []
    yield attempt("run", str(run), partial(_load, run, data_path, loaded), TrainingError)
    yield attempt("parity", _PAIR, partial(_pair, folder, loaded), TrainingError)
    if folder.manifest.prior is not None:
        yield attempt("parity", PRIOR_FILE, partial(_prior, folder, loaded), TrainingError)


def _load(run: Path, data_path: str | None, loaded: list[Trained]) -> str:
    source = trained.load(run, data_path)
    source.model.cpu()
    loaded.append(source)
    return f"{source.dataset.name}, step {source.step:,}"


def _pair(folder: ModelFolder, loaded: list[Trained]) -> str:
    source = _only(loaded)
    _want((ENCODER_FILE, DECODER_FILE), folder)
    encoder, decoder = graphs.wrapped(source.model)
    files = folder.graphs[ENCODER_FILE], folder.graphs[DECODER_FILE]
    return _figures(parity.measure(*files, encoder, decoder, source.dataset.test.pixels).figures())


def _prior(folder: ModelFolder, loaded: list[Trained]) -> str:
    source = _only(loaded)
    _want((PRIOR_FILE,), folder)
    if (density := prior_graphs.of(source)) is None:
        raise TrainingError("the run has no prior but N(0, I): it is not what this folder was exported from")
    return _figures(prior_graphs.measure(density, folder.graphs))


def _only(loaded: list[Trained]) -> Trained:
    if not loaded:
        raise Skipped("the run is not loaded")
    return loaded[0]


def _want(files: tuple[str, ...], folder: ModelFolder) -> None:
    absent = [file for file in files if file not in folder.graphs]
    if absent:
        raise Skipped(f"{', '.join(absent)}: not a file to load")


def _figures(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('parity_')} {value:.2g}" for name, value in figures.items())
