"""The linear model of tests/linear_model.py with classes: class k adds k / 10 to each mean of q(z|x) and to each logit
of the image, so that every number can be worked out by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import linear_model
import numpy as np
import onnx
from linear_model import LinearModel
from onnx import TensorProto, helper, numpy_helper

from latentry.manifest import DECODER_FILE, ENCODER_FILE

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ConditionalModel:
    """The linear model beneath, whose folder this one is in."""

    linear: LinearModel
    classes: int

    def encode(self, images: Array, classes: Array) -> tuple[Array, Array]:
        mean, logvar = self.linear.encode(images)
        return mean + shifts(classes), logvar

    def decode(self, latents: Array, classes: Array) -> Array:
        logits = latents @ self.linear.u + shifts(classes)
        mean: Array = 1 / (1 + np.exp(-logits))
        return mean.reshape(-1, *self.linear.shape)


def shifts(classes: Array) -> Array:
    """float32 [N, 1]"""
    return classes.astype(np.float32)[:, None] / np.float32(10)


def write(repository: Path, classes: int, known: int | None = None) -> ConditionalModel:
    """Write `repository/linear/1`: its manifest speaks of so many classes, its graphs know as many, or `known`."""
    model = linear_model.write(repository)
    about = replace(linear_model.manifest("linear", 1, model.shape, model.w.shape[1]), classes=classes)
    linear_model.save(model.folder, graphs(model, known or classes), about)
    return ConditionalModel(model, classes)


def graphs(model: LinearModel, known: int) -> dict[str, onnx.ModelProto]:
    """Encoder and decoder by file name, which fail for a class that is not below `known`."""
    both = {ENCODER_FILE: linear_model.encoder(model.shape, model.w, model.v),
            DECODER_FILE: linear_model.decoder(model.shape, model.u)}  # fmt: skip
    for graph, (made, last) in zip(both.values(), (("mean", 3), ("logits", 0)), strict=True):
        graph.graph.input.append(helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]))
        graph.graph.node[last].output[0] = "before"
        graph.graph.node.insert(last + 1, helper.make_node("Gather", ["table", "labels"], ["shift"]))
        graph.graph.node.insert(last + 2, helper.make_node("Add", ["before", "shift"], [made]))
        graph.graph.initializer.append(numpy_helper.from_array(shifts(np.arange(known)), "table"))
    return both
