"""mosec: float32 latents in, uint8 pixels out, over HTTP/1.1; batches of up to 64, gathered for up to 1 ms."""

import os

import numpy as np
import onnxruntime as ort
from mosec import Server, Worker


class Decoder(Worker):
    """The model's one process."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["DECODER"], options, providers=["CPUExecutionProvider"])

    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.float32)

    def forward(self, data: list) -> list:
        return list(self.session.run(["images"], {"latents": np.stack(data)})[0])

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decoder, num=1, max_batch_size=64, max_wait_time=1)
    server.run()
