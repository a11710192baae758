"""Adding and taking off glasses with one direction of latent space, on faces that are not part of the project.

The chart of figures may be kept; pictures of faces are written beside the runs only, never beside the page.
"""

from __future__ import annotations

import csv
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training import npz, pictures
from training.attributes import picture_probe
from training.attributes.picture_probe import PictureProbe
from training.disk import write_atomically
from training.drawing.canvas import PALETTE, labelled, new_figure, one_axes, png
from training.drawing.from_run import from_run
from training.drawing.subject import Subject, decode_all
from training.errors import DataError
from training.gallery.workshop import Changes, Chapter, Workshop
from training.images import Images

_ATTRIBUTE = "eyeglasses"
_YES_ABOVE, _NO_BELOW = 0.9, 0.05  # the attributes are a classifier's probabilities
UNKNOWN, NO, YES = 0, 1, 2  # the labels that the faces are given
_SIDE = 48
_EPOCHS = 20
_LATENTS = 64
_STEPS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
_SEED = 0
_SHOWN = 8

Latents = NDArray[np.float32]
_MODEL: Changes = {
    "model": {"kind": "conv", "latent_dim": _LATENTS, "max_width": 128},
    "optimiser": {"learning_rate": 1e-3, "ema_decay": 0.995},
}


def glasses(workshop: Workshop, folder: Path) -> Chapter:
    """Train on the faces in `folder` (images.zip and attributes.csv), find the direction, and measure it."""
    workshop.folder.mkdir(parents=True, exist_ok=True)
    packed = workshop.folder / "faces.npz"
    if not packed.exists():
        npz.write(packed, labelled_faces(folder))
    shop = replace(workshop, data_path=packed)
    shop.train("faces", _MODEL, _EPOCHS)
    subject = from_run(shop.folder / "faces")
    train = shop.dataset.train
    assert train.labels is not None  # noqa: S101 - packed with them
    known = np.flatnonzero(train.labels != UNKNOWN)
    judge = picture_probe.fit(train.pixels, known, train.labels[known] == YES, _SEED)
    return _measured(subject, direction(encode_all(subject, train.pixels), train.labels), judge, workshop.folder)


def labelled_faces(folder: Path) -> Images:
    """The faces at `_SIDE` pixels, each with one of the three labels. Raises `DataError` for other files."""
    archive, table = folder / "images.zip", folder / "attributes.csv"
    try:
        rows = {row["file"]: row for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())}
        share = {name: float(row[_ATTRIBUTE]) for name, row in rows.items()}
        with zipfile.ZipFile(archive) as opened:
            names = sorted(name for name in opened.namelist() if name.lower().endswith(pictures.SUFFIXES))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{folder}: wanted images.zip and attributes.csv with {_ATTRIBUTE}: {error}") from error
    images = pictures.read(archive, (_SIDE, _SIDE), 3, 0)
    return replace(images, labels=np.array([_label(share.get(name)) for name in names], np.int64), class_names=())


def _label(share: float | None) -> int:
    if share is None or _NO_BELOW <= share <= _YES_ABOVE:
        return UNKNOWN
    return YES if share > _YES_ABOVE else NO


def direction(latents: Latents, labels: NDArray[np.int64]) -> Latents:
    """From the mean of the latents (N, Z) labelled `NO` to the mean of those labelled `YES`: (Z,)."""
    difference: Latents = latents[labels == YES].mean(0) - latents[labels == NO].mean(0)
    return difference


def encode_all(subject: Subject, pixels: NDArray[np.uint8]) -> Latents:
    """The posterior means of any number of images."""
    return np.concatenate([subject.encode(part, None)[0] for part in np.array_split(pixels, -(-len(pixels) // 256))])


def _measured(subject: Subject, vector: Latents, judge: PictureProbe, folder: Path) -> Chapter:
    """What the judge, which looks at pixels and knows no latents, says of held-out faces and of edited ones."""
    assert subject.pixels is not None  # noqa: S101
    assert subject.labels is not None  # noqa: S101
    faces_with, faces_without = (subject.pixels[subject.labels == label] for label in (YES, NO))
    having, without = encode_all(subject, faces_with), encode_all(subject, faces_without)
    numbers: dict[str, float] = {
        "faces_held_out_yes": len(having),
        "faces_held_out_no": len(without),
        "faces_judge_yes": float(judge.says(faces_with).mean()),
        "faces_judge_no": float((~judge.says(faces_without)).mean()),
    }
    added = [float(judge.says(decode_all(subject, without + step * vector)).mean()) for step in _STEPS]
    removed = [float((~judge.says(decode_all(subject, having - step * vector))).mean()) for step in _STEPS]
    numbers |= {f"faces_added_{step:.0f}": share for step, share in zip(_STEPS, added, strict=True)}
    numbers |= {f"faces_removed_{step:.0f}": share for step, share in zip(_STEPS, removed, strict=True)}
    _draw_faces(subject, vector, without[:_SHOWN], folder / "faces-with-glasses.png")
    return Chapter(numbers, {"glasses.png": _chart(added, removed)})


def _draw_faces(subject: Subject, vector: Latents, latents: Latents, path: Path) -> None:
    steps = np.array(_STEPS, np.float32)[:, None]
    walks = (latents[:, None] + steps * vector).reshape(-1, subject.latent_dim)
    names = [f"+{step:g}" for step in _STEPS]
    write_atomically(path, png(labelled(decode_all(subject, walks), len(_STEPS), column_names=names)))


def _chart(added: list[float], removed: list[float]) -> bytes:
    figure = new_figure(5.2, 3.6)
    axes = one_axes(figure)
    axes.plot(_STEPS, [100 * share for share in added], "o-", color=PALETTE[0], label="added: the judge sees glasses")
    axes.plot(_STEPS, [100 * share for share in removed], "s--", color=PALETTE[6], label="taken off: it sees none")
    axes.set(xlabel="steps along the direction", ylabel="% of held-out faces", ylim=(-3, 103))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return png(figure)
