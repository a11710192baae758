"""Triton's own client, called as its users call it: `python triton_client.py PORT ADMIN_PORT FOLDER`.

Needs tritonclient[grpc]. Reads pixels.npy and image.png of the folder, writes what came back to replies.npz there, and
prints the rest as JSON.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64", "object": "BYTES"}


def given(name: str, array: Any) -> Any:
    made = triton.InferInput(name, list(array.shape), DATATYPES[str(array.dtype)])
    made.set_data_from_numpy(array)
    return made


def refusal(call: Any, *args: Any, **more: Any) -> list[str]:
    try:
        call(*args, **more)
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return []


def synchronous(client: Any, pixels: Any, image: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    told: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [client.is_model_ready(name, "1") for name in ("plain_encoder", "plain_edit", "nobody")],
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata("plain_encoder", as_json=True),
        "config": client.get_model_config("plain_encoder", as_json=True),
        "index": client.get_model_repository_index(as_json=True),
    }
    encoded = client.infer("plain_encoder", [given("images", pixels)], model_version="1", request_id="r1")
    files = client.infer("plain_encoder", [given("images", np.array([image], np.object_))], "1")
    wanted = [triton.InferRequestedOutput("images")]
    pngs = client.infer(
        "plain_decoder", [given("latents", encoded.as_numpy("mean"))], "1", wanted, parameters={"format": "png"}
    )
    sampled = client.infer("plain_sample", [], "1", parameters={"count": 3, "seed": 7, "temperature": 0.5})
    by_tensor = client.infer("plain_sample", [given("count", np.array([3])), given("seed", np.array([7]))], "1")
    later: queue.Queue[Any] = queue.Queue()
    client.async_infer(
        "plain_reconstruct", [given("images", pixels)], lambda result, error: later.put((result, error)), "1"
    )
    reconstructed, error = later.get(timeout=20)
    told["async_error"] = str(error or "")
    told["id"] = encoded.get_response().id
    told["seed"] = sampled.get_response().parameters["seed"].int64_param
    told["refused"] = refusal(client.infer, "plain_decoder", [given("latents", np.zeros((1, 4), np.float32))])
    told["not_here"] = refusal(client.get_system_shared_memory_status)
    told["statistics"] = client.get_inference_statistics("plain_encoder", "1", as_json=True)
    pictures = pngs.as_numpy("images")
    told["png"] = [pictures.shape[0], *(bytes(each)[:4].hex() for each in pictures)]
    replies = {
        "mean": encoded.as_numpy("mean"),
        "of_file": files.as_numpy("mean"),
        "png": np.frombuffer(bytes(pictures[0]), np.uint8),
        "sampled": sampled.as_numpy("images"),
        "by_tensor": by_tensor.as_numpy("latents"),
        "elbo": reconstructed.as_numpy("elbo"),
    }
    return told, replies


def streaming(client: Any) -> list[Any]:
    """Seeds that came back, and the words of the one that failed."""
    came: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: came.put((result, error)))
    for seed in (1, -1, 3):
        client.async_stream_infer("plain_sample", [], request_id=str(seed), parameters={"seed": seed})
    found = []
    for _ in range(3):
        result, error = came.get(timeout=20)
        found.append(error.message() if error else result.get_response().parameters["seed"].int64_param)
    client.stop_stream()
    return found


async def asynchronous(port: str, pixels: Any) -> Any:
    async with triton_aio.InferenceServerClient(f"localhost:{port}") as client:

        async def asked() -> Any:
            for n in (1, 2):
                yield {"model_name": "plain_encoder", "model_version": "1", "inputs": [given("images", pixels[:n])]}

        one = await client.infer("plain_encoder", [given("images", pixels)], "1")
        several = [
            result.as_numpy("mean").shape[0] async for result, error in client.stream_infer(asked()) if error is None
        ]
        return one.as_numpy("mean"), several


def administration(port: str, main: Any) -> list[Any]:
    """Whether version 2 is there, before, after unloading, and after loading."""
    there = [main.is_model_ready("moved_edit")]
    with triton.InferenceServerClient(f"localhost:{port}") as admin:
        admin.unload_model("moved_edit")
        there.append(main.is_model_ready("moved_edit"))
        admin.load_model("moved_edit")
        there.append(main.is_model_ready("moved_edit"))
    return [*there, refusal(main.load_model, "moved_edit"), refusal(main.unload_model, "moved_edit")]


def main(port: str, admin_port: str, folder: str) -> None:
    """Calls everything."""
    pixels, image = np.load(Path(folder, "pixels.npy")), Path(folder, "image.png").read_bytes()
    with triton.InferenceServerClient(f"localhost:{port}") as client:
        told, replies = synchronous(client, pixels, image)
        told["stream"] = streaming(client)
        told["administration"] = administration(admin_port, client)
    replies["of_aio"], told["aio_stream"] = asyncio.run(asynchronous(port, pixels))
    np.savez(Path(folder, "replies.npz"), **replies)
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
