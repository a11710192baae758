"""MLServer: the Open Inference Protocol over gRPC, with its adaptive batching."""

import os

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Decoder(MLModel):
    """A custom runtime."""

    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["DECODER"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        latents = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        (images,) = self.session.run(["images"], {"latents": latents})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("images", images)])
