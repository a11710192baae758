"""A model folder and its images, encoded: what the attributes are estimated from and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from training.attributes import picture_probe
from training.attributes.study import Attribute, Encoded, Judge, Labels, Latents, Parts, Pixels, fit_probe, study
from training.attributes.table import Presence
from training.data import Dataset
from training.evaluation.graphs import Graphs
from training.images import Images

_SEED = 0
_CHOOSE = 0.2  # of the images to train on, to choose by where none were set aside


class Subject:
    """`dataset` as `graphs` encode it; `presence` of its parts in order: train, validation if there is one, test."""

    def __init__(self, graphs: Graphs, dataset: Dataset, presence: Sequence[Presence]) -> None:
        self.names = presence[0].names
        self._graphs, self._pixels = graphs, dataset.train.pixels
        train = self._encoded(dataset.train, presence[0])
        if dataset.validation is None:
            order = np.random.default_rng(_SEED).permutation(len(dataset.train))
            aside = round(len(order) * _CHOOSE)
            self._rows, choosing = np.sort(order[aside:]), np.sort(order[:aside])
            fit, choose = train.take(self._rows), train.take(choosing)
        else:
            self._rows = np.arange(len(dataset.train))
            fit, choose = train, self._encoded(dataset.validation, presence[1])
        test = self._encoded(dataset.test, presence[-1])
        self._parts = Parts(fit, choose, test, dataset.test.pixels, self._decode)

    def study(self, name: str, *, linear_only: bool = False) -> Attribute:
        """Direction and figures of the attribute. Raises `DataError` if too few images have it or are without it."""
        column = self.names.index(name)
        linear = fit_probe(name, column, self._parts)
        judges: dict[str, Judge] = {
            "linear": lambda pixels, labels: linear.says(self._encode(pixels, labels)),
        }
        if not linear_only:
            has = self._parts.fit.has[:, column]
            known = has >= 0
            picture = picture_probe.fit(self._pixels, self._rows[known], has[known] == 1, _SEED)
            judges["picture"] = lambda pixels, labels: picture.says(pixels)
        return study(name, column, self._parts, judges)

    def _encoded(self, images: Images, presence: Presence) -> Encoded:
        labels = images.labels if self._graphs.conditional else None
        return Encoded(self._encode(images.pixels, labels), presence.has, labels)

    def _encode(self, pixels: Pixels, labels: Labels) -> Latents:
        return self._graphs.encode(pixels, labels)[0].numpy()

    def _decode(self, latents: Latents, labels: Labels) -> Pixels:
        return self._graphs.images(torch.from_numpy(latents), labels)


def divided(presence: Presence, sizes: Sequence[int]) -> list[Presence]:
    """`presence` in stretches of so many images."""
    ends = list(accumulate(sizes))
    parts: list[NDArray[np.int8]] = np.split(presence.has, ends[:-1])
    return [Presence(presence.names, part) for part in parts]
