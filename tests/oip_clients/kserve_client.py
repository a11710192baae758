"""KServe's own gRPC client, called as its users call it: `python kserve_client.py PORT FOLDER`.

Needs kserve, which brings some 450 MB of dependencies with it. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput


async def ask(port: str, folder: str) -> None:
    """Asks for health, an encoding with raw and one with typed contents, and images."""
    pixels = np.load(Path(folder, "pixels.npy"))
    async with InferenceGRPCClient(f"localhost:{port}") as client:
        told = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("plain_encoder"),
        }
        for binary in (False, True):
            given = InferInput("images", list(pixels.shape), "UINT8")
            given.set_data_from_numpy(pixels, binary_data=binary)
            request = InferRequest("plain_encoder", [given], request_id="k", model_version="1")
            reply = await client.infer(request)
            told[f"mean_{binary}"] = reply.get_output_by_name("mean").as_numpy().tolist()
        given = InferInput("latents", [2, 5], "FP32")
        given.set_data_from_numpy(np.zeros((2, 5), np.float32), binary_data=True)
        wanted = [RequestedOutput("images", {"format": "png"})]
        reply = await client.infer(InferRequest("plain_decoder", [given], model_version="1", request_outputs=wanted))
        told["images"] = [bytes(each)[:4].hex() for each in reply.get_output_by_name("images").as_numpy().ravel()]
        asked = {"seed": 7, "temperature": "0.5", "count": 2}
        count = InferInput("count", [1], "INT64")
        count.set_data_from_numpy(np.array([2]), binary_data=True)
        del asked["count"]
        reply = await client.infer(InferRequest("plain_sample", [count], model_version="1", parameters=asked))
        told["latents"] = reply.get_output_by_name("latents").as_numpy().tolist()
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(ask(*sys.argv[1:]))
