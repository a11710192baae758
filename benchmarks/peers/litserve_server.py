"""LitServe: latents as JSON in, uint8 pixels out, over HTTP/1.1; batches of up to 64, gathered for up to 1 ms."""

import os
import sys

import litserve
import numpy as np
import onnxruntime as ort
from fastapi import Response


class Decoder(litserve.LitAPI):
    """The model's one worker."""

    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["DECODER"], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict) -> np.ndarray:
        return np.asarray(request["z"], np.float32)

    def batch(self, inputs: list) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(["images"], {"latents": x})[0]

    def unbatch(self, output: np.ndarray) -> list:
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(Decoder(max_batch_size=64, batch_timeout=0.001), accelerator="cpu")
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="error")
