"""Calls through the stubs that MLServer's package carries, with typed contents: `python mlserver_stubs.py PORT FOLDER`.

Prints JSON. MLServer itself is not imported, which would need all of its dependencies: only its generated modules are.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import grpc
import numpy as np


def main(port: str, folder: str) -> None:
    """Asks for health, a description, an encoding, and an error."""
    spec = importlib.util.find_spec("mlserver")
    assert spec
    assert spec.submodule_search_locations
    bare = types.ModuleType("stubs")
    bare.__path__ = [str(Path(spec.submodule_search_locations[0], "grpc"))]
    sys.modules["stubs"] = bare
    oip, calls = (importlib.import_module(f"stubs.{name}") for name in ("dataplane_pb2", "dataplane_pb2_grpc"))
    pixels = np.load(Path(folder, "pixels.npy"))
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        stub = calls.GRPCInferenceServiceStub(channel)
        request = oip.ModelInferRequest(model_name="plain_encoder", model_version="1", id="m")
        given = request.inputs.add(name="images", datatype="UINT8", shape=pixels.shape)
        given.parameters["content_type"].string_param = "np"
        given.contents.uint_contents.extend(pixels.ravel().tolist())
        reply = stub.ModelInfer(request)
        sampled = oip.ModelInferRequest(model_name="plain_sample", model_version="1")
        sampled.parameters["seed"].int64_param = 7
        sampled.parameters["temperature"].string_param = "0.5"  # its schema has no floating-point parameters
        drawn = stub.ModelInfer(sampled)
        told = {
            "live": stub.ServerLive(oip.ServerLiveRequest()).live,
            "ready": stub.ModelReady(oip.ModelReadyRequest(name="plain_encoder")).ready,
            "inputs": [
                list(t.shape) for t in stub.ModelMetadata(oip.ModelMetadataRequest(name="plain_encoder")).inputs
            ],
            "id": reply.id,
            "outputs": [output.name for output in reply.outputs],
            "mean": np.frombuffer(reply.raw_output_contents[0], "<f4").tolist(),
            "latents": np.frombuffer(drawn.raw_output_contents[1], "<f4").tolist(),
            "seed": drawn.parameters["seed"].int64_param,
            "digest": reply.parameters["digest"].string_param,
        }
        given.contents.uint_contents.append(256)
        try:
            stub.ModelInfer(request)
        except grpc.RpcError as error:
            told["refused"] = [error.code().name, error.details()]
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
