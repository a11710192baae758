"""A linear VAE as other people's exporters might write it: any layout, type, range and kind of posterior.

Its numbers can be worked out by hand: with f the image as the encoder takes it, in one row of numbers,
mean = f @ w, logvar = f @ v, and the decoder's last function is taken of z @ u.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "uint8": TensorProto.UINT8,
}
SPREADS = {"mean-logvar": "logvar", "mean-std": "std", "mean-variance": "variance", "mean-logstd": "log_std"}


@dataclass(frozen=True)
class ForeignModel:
    """How it is written. `batch` is the size that its ports are fixed to, or a name for any."""

    layout: str = "nchw"
    dtype: str = "float32"
    range: str = "0..1"
    posterior: str = "mean-logvar"
    shape: tuple[int, int, int] = (8, 6, 1)
    z: int = 3
    batch: int | str = "n"
    split: bool = False  # mean and spread in one output
    long_latents: bool = False  # [N, Z, 1, 1]

    @property
    def item(self) -> tuple[int, ...]:
        h, w, c = self.shape
        return {"nchw": (c, h, w), "nhwc": (h, w, c)}.get(self.layout, (h * w * c,))

    @property
    def weights(self) -> tuple[Array, Array, Array]:
        rng = np.random.default_rng(7)
        pixels = int(np.prod(self.shape))
        scale = 0.1 / (255 if self.range == "0..255" else 1)
        w, v = (rng.normal(0, scale, (pixels, self.z)).astype(np.float32) for _ in range(2))
        return w, v, rng.normal(0, 1, (self.z, pixels)).astype(np.float32)

    def foreign(self, images: Array) -> Array:
        """uint8 [N, H, W, C] -> what the encoder takes, one row of numbers for each."""
        x = images.astype(np.float64)
        if self.range == "0..1":
            x /= 255
        elif self.range == "-1..1":
            x = x / 127.5 - 1
        if self.layout in ("nchw", "flat-chw"):
            x = np.moveaxis(x, 3, 1)
        return x.astype(self.dtype).reshape(len(x), -1).astype(np.float64)

    def encode(self, images: Array) -> tuple[Array, Array]:
        w, v, _ = self.weights
        f = self.foreign(images)
        return f @ w, (np.full((len(f), self.z), -10.0) if self.posterior == "point" else f @ v)

    def decode(self, latents: Array) -> Array:
        """[N, Z] -> the mean of p(x|z) [N, H, W, C]."""
        y = latents.astype(np.float64) @ self.weights[2]
        mean = (np.tanh(y) + 1) / 2 if self.range == "-1..1" else 1 / (1 + np.exp(-y))
        h, w, c = self.shape
        if self.layout in ("nchw", "flat-chw"):
            return np.moveaxis(mean.reshape(-1, c, h, w), 1, 3)
        return mean.reshape(-1, h, w, c)

    def encoder(self) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Cast", ["picture"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "w"], ["mean"]),
        ]
        names = ["mean"]
        if self.posterior != "point":
            nodes += [helper.make_node("MatMul", ["flat", "v"], ["raw"]), *self._spread()]
            names.append(SPREADS[self.posterior])
        if self.split:
            nodes.append(helper.make_node("Concat", names, ["stats"], axis=1))
            names = ["stats"]
        width = self.z * (2 if self.split else 1)
        inputs = [helper.make_tensor_value_info("picture", KINDS[self.dtype], [self.batch, *self.item])]
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.batch, width]) for name in names]
        w, v, _ = self.weights
        return model(nodes, inputs, outputs, {"w": w, "v": v, "two": np.float32(2)})

    def _spread(self) -> list[onnx.NodeProto]:
        half = helper.make_node("Div", ["raw", "two"], ["half"])
        return {
            "mean-logvar": [helper.make_node("Identity", ["raw"], ["logvar"])],
            "mean-std": [half, helper.make_node("Exp", ["half"], ["std"])],
            "mean-variance": [helper.make_node("Exp", ["raw"], ["variance"])],
            "mean-logstd": [helper.make_node("Div", ["raw", "two"], ["log_std"])],
        }[self.posterior]

    def decoder(self) -> onnx.ModelProto:
        takes = "float32" if self.dtype == "uint8" else self.dtype
        item = (self.z, 1, 1) if self.long_latents else (self.z,)
        nodes = [
            helper.make_node("Cast", ["code"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "u"], ["raw"]),
            helper.make_node("Tanh" if self.range == "-1..1" else "Sigmoid", ["raw"], ["unit"]),
        ]
        made = "unit"
        if self.range == "0..255":
            nodes.append(helper.make_node("Mul", ["unit", "levels"], ["levelled"]))
            made = "levelled"
        if self.dtype == "uint8":
            nodes.append(helper.make_node("Round", [made], ["rounded"]))
            made = "rounded"
        nodes += [
            helper.make_node("Cast", [made], ["cast"], to=KINDS[self.dtype]),
            helper.make_node("Reshape", ["cast", "shape"], ["drawn"], name="into shape"),
        ]
        first = -1 if isinstance(self.batch, str) else self.batch  # as exporters of a fixed batch write it
        constants = {
            "u": self.weights[2],
            "levels": np.float32(255),
            "shape": np.array([first, *self.item], np.int64),
        }
        inputs = [helper.make_tensor_value_info("code", KINDS[takes], [self.batch, *item])]
        outputs = [helper.make_tensor_value_info("drawn", KINDS[self.dtype], [self.batch, *self.item])]
        return model(nodes, inputs, outputs, constants)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Both files, as `theirs-enc.onnx` and `theirs-dec.onnx`."""
        paths = folder / "theirs-enc.onnx", folder / "theirs-dec.onnx"
        for path, proto in zip(paths, (self.encoder(), self.decoder()), strict=True):
            path.write_bytes(proto.SerializeToString())
        return paths


def model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any], opset: int = 17
) -> onnx.ModelProto:
    """A graph whose constants that no node takes are left out."""
    taken = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items() if name in taken]
    graph = helper.make_graph(nodes, "theirs", inputs, outputs, weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="theirs"
    )
