"""PyTriton: Triton's front end and batcher before a function in Python; batches of up to 256, gathered for 1 ms."""

import os
import sys

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["DECODER"], options, providers=["CPUExecutionProvider"])


@batch
def decode(latents: np.ndarray) -> list:
    """Rows in, images out."""
    return session.run(["images"], {"latents": latents})


if __name__ == "__main__":
    port = int(sys.argv[1])
    config = TritonConfig(http_port=port + 1, grpc_port=port, metrics_port=port + 2, log_verbose=0)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="bench_decoder",
            infer_func=decode,
            inputs=[Tensor(name="latents", dtype=np.float32, shape=(32,))],
            outputs=[Tensor(name="images", dtype=np.uint8, shape=(28, 28, 1))],
            config=ModelConfig(max_batch_size=256, batcher=DynamicBatcher(max_queue_delay_microseconds=1000)),
        )
        triton.serve()
