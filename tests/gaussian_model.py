"""A linear-Gaussian model as ONNX, written by hand: all of its densities are known in closed form.

p(z) = N(0, I), p(x|z) = N(b + z u, sigma² I), so that p(x) = N(b, uᵀu + sigma² I). The encoder's q(z|x) is near the
true posterior and not equal to it: its mean is shifted and its covariance diagonal.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from latentry.manifest import DECODER_FILE, ENCODER_FILE, MANIFEST_FILE, Likelihood, Manifest, sha256
from training.evaluation.bound import Scored
from training.evaluation.densities import log_prob_of
from training.evaluation.graphs import Graphs

SHAPE = (8, 9, 1)
Z = 3
SIGMA = 0.1
_D = 72
_METADATA = {"latentry.test": "1"}

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class GaussianModel:
    """Its weights, and its graphs."""

    b: Array
    u: Array
    w: Array
    shift: float
    logvar: Array
    files: dict[str, bytes]
    manifest: Manifest

    def graphs(self) -> Graphs:
        return Graphs(self.manifest, self.files, "cpu")

    def images(self, n: int, seed: int = 0) -> Array:
        """Draws of p(x), rounded to grey levels: uint8 (N, H, W, C)."""
        rng = np.random.default_rng(seed)
        x = self.b + rng.standard_normal((n, Z)) @ self.u + SIGMA * rng.standard_normal((n, _D))
        return np.clip(np.rint(x * 255), 0, 255).astype(np.uint8).reshape(n, *SHAPE)

    def scored(self, images: Array) -> Scored:
        return Scored(images, *self.graphs().encode(images))

    def log_p(self, images: Array, prior_variance: float = 1.0) -> Array:
        """log p(x) (N,) in closed form, with p(z) = N(0, prior_variance I)."""
        covariance = prior_variance * self.u.T @ self.u + SIGMA**2 * np.eye(_D)
        density = torch.distributions.MultivariateNormal(torch.from_numpy(self.b), torch.from_numpy(covariance))
        return density.log_prob(torch.from_numpy(images.reshape(len(images), -1) / 255.0)).numpy()

    def posterior(self, images: Array) -> tuple[Array, Array]:
        """Mean and variance of q(z|x), (N, Z)."""
        x = images.reshape(len(images), -1) / 255.0
        return (x - self.b) @ self.w + self.shift, np.broadcast_to(np.exp(self.logvar), (len(images), Z))


def make(seed: int = 0) -> GaussianModel:
    rng = np.random.default_rng(seed)
    u = rng.normal(0, 0.03, (Z, _D))
    b = rng.uniform(0.4, 0.6, _D)
    covariance = np.linalg.inv(np.eye(Z) + u @ u.T / SIGMA**2)
    w = u.T @ covariance / SIGMA**2
    logvar = np.log(1.3 * np.diag(covariance))
    shift = 0.1
    files = {ENCODER_FILE: _encoder(b, w, shift, logvar), DECODER_FILE: _decoder(b, u)}
    about = Manifest("linear", 1, SHAPE, Z, Likelihood("gaussian", {"sigma": SIGMA}), dict.fromkeys(files, "0" * 64))
    files = described(files, about)
    digests = {name: sha256(data) for name, data in files.items()}
    return GaussianModel(b, u, w, shift, logvar, files, replace(about, files=digests))


def described(files: dict[str, bytes], about: Manifest) -> dict[str, bytes]:
    """The graphs, saying of themselves what the manifest says."""
    named = {}
    for name, data in files.items():
        proto = onnx.load_from_string(data)
        helper.set_model_props(proto, about.graph_metadata(name.removesuffix(".onnx")))
        named[name] = proto.SerializeToString()
    return named


def write(repository: Path, model: GaussianModel, **changes: Any) -> Path:
    """The model as a folder, with `changes` to its manifest."""
    folder = repository / "linear" / "1"
    folder.mkdir(parents=True)
    manifest = replace(model.manifest, **changes)
    files = described(model.files, manifest)
    if "files" not in changes:
        manifest = replace(manifest, files={name: sha256(data) for name, data in files.items()})
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST_FILE).write_text(manifest.to_json())
    return folder


LOG_PROB = log_prob_of(Likelihood("gaussian", {"sigma": SIGMA}), 1, 0)


def _encoder(b: Array, w: Array, shift: float, logvar: Array) -> bytes:
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("Flatten", ["unit"], ["flat"], axis=1),
        helper.make_node("Sub", ["flat", "b"], ["centred"]),
        helper.make_node("MatMul", ["centred", "w"], ["product"]),
        helper.make_node("Add", ["product", "shift"], ["mean"]),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "constant"], ["logvar"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *SHAPE])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", Z]) for name in ("mean", "logvar")]
    constants = {"scale": 255.0, "b": b, "w": w, "shift": shift, "zero": 0.0, "constant": logvar}
    return _model(nodes, inputs, outputs, constants)


def _decoder(b: Array, u: Array) -> bytes:
    nodes = [
        helper.make_node("MatMul", ["latents", "u"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["mean"]),
        helper.make_node("Clip", ["mean", "zero", "one"], ["unit"]),
        helper.make_node("Mul", ["unit", "scale"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["images"], to=TensorProto.UINT8),
    ]
    inputs = [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["N", Z])]
    outputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *SHAPE]),
        helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["N", *SHAPE]),
    ]
    constants = {"u": u, "b": b, "zero": 0.0, "one": 1.0, "scale": 255.0, "shape": np.array([-1, *SHAPE])}
    return _model(nodes, inputs, outputs, constants)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]) -> bytes:
    weights = []
    for name, value in constants.items():
        array = np.asarray(value)
        weights.append(numpy_helper.from_array(array.astype(np.int64 if name == "shape" else np.float32), name))
    graph = helper.make_graph(nodes, "linear-gaussian", inputs, outputs, weights)
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return made.SerializeToString()


os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
