"""Make a model folder of foreign graphs, and a request for it, so that servers can be timed on the same network.

    python -m benchmarks.prepare HOME

HOME holds encoder.onnx (x float [n,1,28,28] -> h [n,64]) and decoder.onnx (z float [n,32] -> x [n,1,28,28]), as the
benchmark of servers makes them for all its peers. This writes HOME/models/bench/1, the same graphs inside our
contract, and one gRPC frame each with a request to decode one latent: HOME/latentry.bin, and HOME/latentry-oip.bin in
the Open Inference Protocol.
"""

from __future__ import annotations

import argparse
import shutil
import struct
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper

from benchmarks.bodies import frame, oip_decode
from latentry.manifest import DECODER_FILE, ENCODER_FILE, MANIFEST_FILE, Likelihood, Manifest, sha256
from latentry.v1 import vae_pb2 as pb

SHAPE = (28, 28, 1)
LATENT_DIM = 32
LATENT = [round(0.1 * i, 3) for i in range(LATENT_DIM)]  # what the other servers are sent


def main() -> None:
    """Write the folder and the request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    home: Path = parser.parse_args().home
    about = Manifest("bench", 1, SHAPE, LATENT_DIM, Likelihood("bernoulli"), dict.fromkeys(_FILES, "0" * 64))
    folder = home / "models" / "bench" / "1"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    digests = {}
    for name, wrap in _FILES.items():
        graph = wrap(onnx.load(home / name))
        helper.set_model_props(graph, about.graph_metadata(name.removesuffix(".onnx")))
        onnx.checker.check_model(graph, full_check=True)
        (folder / name).write_bytes(graph.SerializeToString())
        digests[name] = sha256((folder / name).read_bytes())
    about = Manifest("bench", 1, SHAPE, LATENT_DIM, Likelihood("bernoulli"), digests)
    (folder / MANIFEST_FILE).write_text(about.to_json())
    latents = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[1, LATENT_DIM], data=struct.pack("<32f", *LATENT))
    (home / "latentry.bin").write_bytes(frame(pb.DecodeRequest(latents=latents).SerializeToString()))
    (home / "latentry-oip.bin").write_bytes(frame(oip_decode(latents.data)))


def _wrap_encoder(graph: ModelProto) -> ModelProto:
    """images uint8 NHWC -> [graph] -> mean, logvar."""
    before = _graph(
        graph,
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["floats", "levels"], ["unit"]),
            helper.make_node("Transpose", ["unit"], ["nchw"], perm=[0, 3, 1, 2]),
        ],
        {"images": (TensorProto.UINT8, SHAPE)},
        {"nchw": (TensorProto.FLOAT, (1, 28, 28))},
        levels=np.float32(255),
    )
    after = _graph(
        graph,
        [helper.make_node("Split", ["both"], ["mean", "logvar"], axis=1)],
        {"both": (TensorProto.FLOAT, (2 * LATENT_DIM,))},
        {"mean": (TensorProto.FLOAT, (LATENT_DIM,)), "logvar": (TensorProto.FLOAT, (LATENT_DIM,))},
    )
    inner = compose.add_prefix(graph, "inner/")
    whole = compose.merge_models(before, inner, [("nchw", "inner/x")])
    return compose.merge_models(whole, after, [("inner/h", "both")])


def _wrap_decoder(graph: ModelProto) -> ModelProto:
    """latents -> [graph] -> mean NHWC, and images, the same rounded to uint8."""
    after = _graph(
        graph,
        [
            helper.make_node("Transpose", ["nchw"], ["mean"], perm=[0, 2, 3, 1]),
            helper.make_node("Mul", ["mean", "levels"], ["scaled"]),
            helper.make_node("Round", ["scaled"], ["rounded"]),
            helper.make_node("Cast", ["rounded"], ["images"], to=TensorProto.UINT8),
        ],
        {"nchw": (TensorProto.FLOAT, (1, 28, 28))},
        {"images": (TensorProto.UINT8, SHAPE), "mean": (TensorProto.FLOAT, SHAPE)},
        levels=np.float32(255),
    )
    inner = compose.add_prefix(graph, "inner/")
    inner.graph.input[0].name = "latents"
    for node in inner.graph.node:
        node.input[:] = ["latents" if name == "inner/z" else name for name in node.input]
    return compose.merge_models(inner, after, [("inner/x", "nchw")])


_Ports = dict[str, tuple[int, tuple[int, ...]]]
_FILES = {ENCODER_FILE: _wrap_encoder, DECODER_FILE: _wrap_decoder}


def _graph(
    like: ModelProto, nodes: list[NodeProto], inputs: _Ports, outputs: _Ports, **constants: object
) -> ModelProto:
    def ports(named: _Ports) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, ["n", *item]) for name, (kind, item) in named.items()]

    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "wrap", ports(inputs), ports(outputs), weights)
    return helper.make_model(graph, opset_imports=like.opset_import, ir_version=like.ir_version)


if __name__ == "__main__":
    main()
