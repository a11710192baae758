"""Adding and taking off glasses with one direction of latent space, on faces that are not part of the project.

The chart of figures may be kept; pictures of faces are written beside the runs only, never beside the page.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from latentry import manifest as manifests
from latentry.manifest import ModelFolder
from training.attributes import picture_probe, table
from training.attributes.picture_probe import PictureProbe
from training.attributes.subject import divided
from training.disk import write_atomically
from training.drawing.canvas import PALETTE, labelled, new_figure, one_axes, png
from training.errors import DataError
from training.evaluation import held_out
from training.evaluation.graphs import Graphs
from training.evaluation.held_out import Parts
from training.gallery.workshop import Chapter

_ATTRIBUTE = "eyeglasses"
_YES_ABOVE, _NO_BELOW = 0.9, 0.05  # the attributes are a classifier's probabilities
_MAX_MISSING = 0.5  # of the rows: images that were set aside are in neither part
_STEPS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
_SEED = 0
_SHOWN = 8

Pixels = NDArray[np.uint8]
Latents = NDArray[np.float32]


def glasses(about: ModelFolder, parts: Parts, attributes: Path, pictures_in: Path) -> Chapter:
    """Walk along the direction that `latentry attributes` found for a model, on held-out faces: what `read` gives, and
    their table."""
    vector = np.array(about.manifest.attributes[_ATTRIBUTE], np.float32)
    graphs = Graphs(about.manifest, about.graphs, "auto")
    assert parts.train is not None  # noqa: S101 - pictures have no test set alone
    whole, _ = table.presence(
        table.read(attributes),
        parts.train.names + parts.scored.names,
        _YES_ABOVE,
        _NO_BELOW,
        _MAX_MISSING,
    )
    sizes = [len(parts.train), len(parts.scored)]
    train, test = (part.has[:, 0] for part in divided(whole.chosen([_ATTRIBUTE]), sizes))
    known = np.flatnonzero(train >= 0)
    judge = picture_probe.fit(parts.train.pixels, known, train[known] == 1, _SEED)
    having, without = (parts.scored.pixels[test == value] for value in (1, 0))
    return _measured(graphs, vector, judge, having, without, pictures_in)


def read(faces: Path, model: Path) -> tuple[ModelFolder, Parts]:
    """The model folder `model`, and the faces that it was trained on.

    Raises `DataError` if it has no direction for glasses, or if these are other faces.
    """
    about = manifests.read(model)
    if _ATTRIBUTE not in about.manifest.attributes:
        raise DataError(f"{model}: got no attribute {_ATTRIBUTE}, wanted it: run latentry attributes first")
    parts = held_out.find(about.manifest, faces, "test")
    if parts.warning:  # faces that are held out here may have been trained on
        raise DataError(parts.warning)
    return about, parts


def _measured(
    graphs: Graphs, vector: Latents, judge: PictureProbe, having: Pixels, without: Pixels, pictures_in: Path
) -> Chapter:
    """What the judge, which looks at pixels and knows no latents, says of held-out faces and of edited ones."""
    added, removed = [], []
    with_z, without_z = (graphs.encode(pixels)[0].numpy() for pixels in (having, without))
    for step in _STEPS:
        added.append(float(judge.says(_decoded(graphs, without_z + step * vector)).mean()))
        removed.append(float((~judge.says(_decoded(graphs, with_z - step * vector))).mean()))
    numbers: dict[str, float] = {
        "faces_held_out_yes": len(having),
        "faces_held_out_no": len(without),
        "faces_judge_yes": float(judge.says(having).mean()),
        "faces_judge_no": float((~judge.says(without)).mean()),
        "faces_judge_right": float(np.concatenate([judge.says(having), ~judge.says(without)]).mean()),
    }
    numbers |= {f"faces_added_{step:.0f}": share for step, share in zip(_STEPS, added, strict=True)}
    numbers |= {f"faces_removed_{step:.0f}": share for step, share in zip(_STEPS, removed, strict=True)}
    walks = (without_z[:_SHOWN, None] + np.array(_STEPS, np.float32)[:, None] * vector).reshape(-1, len(vector))
    sheet = labelled(_decoded(graphs, walks), len(_STEPS), column_names=[f"+{step:g}" for step in _STEPS])
    pictures_in.mkdir(parents=True, exist_ok=True)
    write_atomically(pictures_in / "faces-with-glasses.png", png(sheet))
    return Chapter(numbers, {"glasses.png": _chart(added, removed)})


def _decoded(graphs: Graphs, latents: Latents) -> Pixels:
    return graphs.images(torch.from_numpy(latents.astype(np.float32)))


def _chart(added: list[float], removed: list[float]) -> bytes:
    figure = new_figure(5.2, 3.6)
    axes = one_axes(figure)
    axes.plot(_STEPS, [100 * share for share in added], "o-", color=PALETTE[0], label="added: the judge sees glasses")
    axes.plot(_STEPS, [100 * share for share in removed], "s--", color=PALETTE[6], label="taken off: it sees none")
    axes.set(xlabel="steps along the direction", ylabel="% of held-out faces", ylim=(-3, 103))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return png(figure)
