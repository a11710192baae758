"""What goes into a graph and what comes out of it: as its manifest says, or it is refused. Knows no ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from latentry.manifest import FP32, Manifest
from latentry.printable import plain
from serving.bad_graph import BadGraph
from serving.likelihoods import PARAMETERS_PER_CHANNEL

Ports = Mapping[str, tuple[type[np.generic], tuple[int, ...]]]  # of a graph, by name: type and shape of one item
Found = Mapping[str, tuple["type[np.generic] | None", tuple[Any, ...]]]  # the same as a graph has it, batch first

LABELS = "labels"  # an input of a conditional model's graphs: the class of each row
PARAMETERS = "parameters"  # an output of some decoders: what the manifest does not tell the shape of
_PRECISION = "latentry.precision"  # in a graph's metadata; one that does not say is fp32
_LONGEST_NAME = 200  # characters of what a graph says that it repeats


def check(
    about: Manifest, kind: str, precision: str, inputs: Found, outputs: Found, metadata: Mapping[str, str]
) -> None:
    """Raises `BadGraph` if what a graph has, and says of itself, is not what the manifest says."""
    wanted_inputs, wanted_outputs = wanted(about, kind)
    _compare("input", inputs, wanted_inputs)
    offered = dict(outputs)
    if kind == "decoder" and PARAMETERS in offered:
        _check_parameters(about, *offered.pop(PARAMETERS))
    _compare("output", offered, wanted_outputs)
    said = {_PRECISION: FP32, **metadata}
    for key, value in {_PRECISION: FP32, **about.graph_metadata(kind, precision)}.items():
        if said.get(key) != value:
            got = plain(str(said.get(key)), _LONGEST_NAME)
            raise BadGraph(f"metadata {key}: got {got}, the manifest says {value}")


def wanted(about: Manifest, kind: str) -> tuple[Ports, Ports]:
    """The inputs and the outputs that the manifest says the graph has, `parameters` aside."""
    height, width, channels = about.image_shape
    images, latents = (np.uint8, (height, width, channels)), (np.float32, (about.latent_dim,))
    labels: Ports = {LABELS: (np.int64, ())} if about.classes else {}
    noise = (np.float32, (0 if about.prior is None else about.prior.noise_dim,))
    ports: Mapping[str, tuple[Ports, Ports]] = {
        "encoder": ({"images": images, **labels}, {"mean": latents, "logvar": latents}),
        "decoder": ({"latents": latents, **labels}, {"images": images, "mean": (np.float32, images[1])}),
        "prior": ({"noise": noise}, {"latents": latents}),
        "density": ({"latents": latents}, {"log_prob": (np.float32, ())}),
    }
    return ports[kind]


def _compare(side: str, got: Mapping[str, Any], wanted: Ports) -> None:
    if set(got) != set(wanted):
        there = plain(", ".join(got) or "none", _LONGEST_NAME)
        raise BadGraph(f"{side}s: got {there}, wanted {', '.join(wanted)}")
    for name, (dtype, item) in wanted.items():
        got_dtype, got_shape = got[name]
        if got_dtype is not dtype:
            raise BadGraph(f"{side} {name}: got {np.dtype(got_dtype) if got_dtype else 'another type'}, "
                           f"wanted {np.dtype(dtype)}")  # fmt: skip
        if not got_shape or isinstance(got_shape[0], int):
            raise BadGraph(f"{side} {name}: got shape {list(got_shape)}, wanted a free batch dimension first")
        if tuple(got_shape[1:]) != item:
            raise BadGraph(f"{side} {name}: got items of {list(got_shape[1:])}, the manifest says {list(item)}")


def _check_parameters(about: Manifest, dtype: type[np.generic] | None, shape: tuple[Any, ...]) -> None:
    """Raises `BadGraph` unless the decoder gives so many numbers for each value of a pixel."""
    height, width, channels = about.image_shape
    free, *item = shape or (1,)
    numbers = item[2] if len(item) == 3 and isinstance(item[2], int) else 0
    known = PARAMETERS_PER_CHANNEL.get(about.likelihood.name)
    right = numbers % channels == 0 if known is None else numbers == known * channels
    fits = item[:2] == [height, width] and numbers > 0 and right
    if dtype is not np.float32 or isinstance(free, int) or not fits:
        got = f"{np.dtype(dtype) if dtype else 'another type'} {list(shape)}"
        many = f"a multiple of {channels}" if known is None else known * channels
        wanted = f"float32 [N, {height}, {width}, {many}]"
        raise BadGraph(f"output {PARAMETERS}: got {got}, wanted {wanted}")
