"""The gate before an imported model is published: the wrapped graphs against the graphs as they were given.

Images go through both, in batches of several sizes: through the given graphs by way of numpy, in the batch size that
they are fixed to if they are, which shows whether a wrapped graph treats each image by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.manifest import DECODER_FILE, ENCODER_FILE
from training import differences
from training.errors import ExportError
from training.importing.foreign import Foreign
from training.importing.images import NUMPY
from training.importing.plan import Plan
from training.importing.runtime import Array, NodeFailed, Session

BATCHES = (1, 2, 7, 33)
ENCODER_TOLERANCE, HALF_ENCODER_TOLERANCE = 1e-4, 2e-2  # of |difference| / (1 + |value|), for mean and logvar
DECODER_TOLERANCE, HALF_DECODER_TOLERANCE = 2e-5, 1e-2  # of the mean of p(x|z), which lies in [0, 1]
LEVEL_TOLERANCE, HALF_LEVEL_TOLERANCE = 1, 3  # of 255, where the mean falls on the edge between two levels
_CLIPPED = 0.02  # of the decoder's numbers may lie this far outside [0, 1] before someone is told
_SEED = 5


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest differences over all batches. `notes` are for whoever runs this to read."""

    encoder: float
    decoder: float
    levels: int
    notes: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """As the manifest's evaluation names them."""
        return {
            "parity_encoder_relative": self.encoder,
            "parity_decoder_mean": self.decoder,
            "parity_decoder_levels": float(self.levels),
        }


class Pair:
    """The wrapped graphs, as a server would run them."""

    def __init__(self, encoder: bytes, decoder: bytes) -> None:
        self._encoder, self._decoder = Session(encoder, ENCODER_FILE), Session(decoder, DECODER_FILE)

    def encode(self, images: NDArray[np.uint8]) -> list[Array]:
        """uint8 (N, H, W, C) -> mean and logvar, each float32 (N, Z)."""
        return self._encoder.run(images, ["mean", "logvar"])

    def decode(self, latents: NDArray[np.float32]) -> list[Array]:
        """float32 (N, Z) -> images uint8 (N, H, W, C), and their mean float32 in [0, 1]."""
        return self._decoder.run(latents, ["images", "mean"])


class Originals:
    """The graphs as they were given, by way of numpy."""

    def __init__(self, encoder: Foreign, decoder: Foreign, plan: Plan) -> None:
        self._plan, self._batches = plan, (encoder.batch, decoder.batch)
        self._files = encoder.file, decoder.file
        self._kind = NUMPY[decoder.port.kind]
        self._encoder = Session(encoder.as_given, encoder.file)
        self._decoder = Session(decoder.as_given, decoder.file)
        self.furthest = 0.0  # outside [0, 1], of all that was decoded

    def encode(self, images: NDArray[np.uint8]) -> list[Array]:
        """uint8 (N, H, W, C) -> mean and logvar, each (N, Z)."""
        plan = self._plan
        given = plan.encoder.given(images)
        outputs = _in_batches(self._encoder, given, self._batches[0], plan.posterior.outputs)
        _check_finite(self._files[0], outputs, "these images")
        return list(plan.posterior.moments(outputs))

    def decode(self, latents: NDArray[np.float32]) -> list[Array]:
        """(N, Z) -> images and their mean, each (N, H, W, C)."""
        plan = self._plan
        given = latents.reshape(len(latents), *plan.latents).astype(self._kind)
        (output,) = _in_batches(self._decoder, given, self._batches[1], [plan.decoder.name])
        _check_finite(self._files[1], [output], "the encoder's means or for draws of N(0, I)")
        mean = plan.decoder.means(output)
        self.furthest = max(self.furthest, float(-mean.min()), float(mean.max()) - 1)
        mean = np.clip(mean, 0, 1)
        return [np.rint(mean * 255), mean]


def measure(pair: Pair, originals: Originals, images: NDArray[np.uint8], files: Sequence[Foreign]) -> Parity:
    """Hold the wrapped graphs against the given ones on uint8 images (N, H, W, C), and the decoder also on draws of
    N(0, I).

    Raises `ExportError`, naming the file and if it can be the node, if a batch size fails, or with the figure that is
    outside its tolerance.
    """
    encoder, decoder = files
    normal = np.random.default_rng(_SEED)
    relative = difference = levels = 0.0
    for n in BATCHES:
        batch = np.resize(images, (n, *images.shape[1:]))
        got, wanted = _tried(encoder, pair.encode, batch), originals.encode(batch)
        relative = max(relative, *(_relative(a, b) for a, b in zip(got, wanted, strict=True)))
        _alike(encoder.file, got, pair.encode(batch))
        means = wanted[0].astype(np.float32)
        for latents in (means, normal.standard_normal(means.shape, np.float32)):
            got, wanted = _tried(decoder, pair.decode, latents), originals.decode(latents)
            levels = max(levels, _largest(got[0], wanted[0]))
            difference = max(difference, _largest(got[1], wanted[1]))
            _alike(decoder.file, got, pair.decode(latents))
    _check_tolerances(files, relative, difference, levels)
    _check_rows(encoder, pair.encode, np.resize(images, (7, *images.shape[1:])))
    _check_rows(decoder, pair.decode, normal.standard_normal((7, means.shape[1]), np.float32))
    notes: tuple[str, ...] = ()
    if originals.furthest > _CLIPPED:
        notes = (
            f"the decoder's numbers lie up to {originals.furthest:.2g} outside 0..1 and are cut off there: are "
            "--decoder-range and --decoder-output right?",
        )
    return Parity(relative, difference, int(levels), notes)


def _in_batches(session: Session, given: Array, size: int | None, outputs: Sequence[str]) -> list[Array]:
    """Run in batches of `size`, the last one padded; all at once if `size` is None."""
    if size is None:
        return session.run(given, outputs)
    padded = np.resize(given, (-(-len(given) // size) * size, *given.shape[1:]))
    parts = [session.run(padded[start : start + size], outputs) for start in range(0, len(given), size)]
    return [np.concatenate(each)[: len(given)] for each in zip(*parts, strict=True)]


def _check_finite(file: str, outputs: Sequence[Array], given: str) -> None:
    if not all(np.isfinite(output).all() for output in outputs):
        raise ExportError(f"{file}: gives NaN or infinity for {given}, as it was before it was wrapped: wanted numbers")


def _tried(foreign: Foreign, run: Callable[[Any], list[Array]], rows: Array) -> list[Array]:
    try:
        return run(rows)
    except NodeFailed as failed:
        name = failed.name.removeprefix("foreign/")  # as wrap calls it
        raise ExportError(
            f"{foreign.file}: {failed.operator} (node {name}) fails at a batch of {len(rows)}: the graph holds the "
            "batch size that it was exported with; export it again with a free one (dynamic_shapes or dynamic_axes of "
            f"torch.onnx.export): {failed}"
        ) from failed


def _alike(file: str, once: Sequence[Array], again: Sequence[Array]) -> None:
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(once, again, strict=True)):
        raise ExportError(f"{file}: the same input gives other numbers each time, wanted a deterministic graph")


def _check_tolerances(files: Sequence[Foreign], relative: float, difference: float, levels: float) -> None:
    half = any(foreign.half for foreign in files)
    tolerances = (
        ("encoder: relative difference of mean and logvar", relative, ENCODER_TOLERANCE, HALF_ENCODER_TOLERANCE),
        ("decoder: difference of the mean", difference, DECODER_TOLERANCE, HALF_DECODER_TOLERANCE),
        ("decoder: difference in levels of 255", levels, LEVEL_TOLERANCE, HALF_LEVEL_TOLERANCE),
    )
    for name, got, single, of_half in tolerances:
        wanted = of_half if half else single
        if not got <= wanted:
            raise ExportError(
                f"the wrapped graphs and {files[0].file}, {files[1].file} disagree: {name}: got {got:.3g}, wanted at "
                f"most {wanted:g}; if the batch size was fixed, export them with a free one"
            )


def _check_rows(foreign: Foreign, run: Callable[[Any], list[Array]], rows: Array) -> None:
    """Raises `ExportError` if a row's outputs depend on the other rows of its batch."""
    together, alone = run(rows), [run(row[None]) for row in rows]
    for index, output in enumerate(together):
        wanted = np.concatenate([each[index] for each in alone])
        got = _relative(output, wanted) if index or output.dtype != np.uint8 else 0.0
        most = HALF_ENCODER_TOLERANCE if foreign.half else ENCODER_TOLERANCE
        if not got <= most:
            raise ExportError(
                f"{foreign.file}: an image's numbers change by {got:.3g} with the other images of its batch, wanted at "
                f"most {most:g}: export it in evaluation mode (model.eval())"
            )


def _largest(got: Array, wanted: Array) -> float:
    _check_shapes(got, wanted)
    return differences.largest(got, wanted)


def _relative(got: Array, wanted: Array) -> float:
    _check_shapes(got, wanted)
    return differences.relative(got, wanted)


def _check_shapes(got: Array, wanted: Array) -> None:
    if got.shape != wanted.shape:
        raise ExportError(f"shapes of the outputs: got {got.shape}, wanted {wanted.shape}; export with a free batch")
