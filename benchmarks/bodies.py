"""The requests that servers are timed with, as bytes. Every one asks for the same images of the same latents."""

from __future__ import annotations

import struct

import numpy as np

from latentry.v1 import vae_pb2 as pb
from serving.inference import grpc_service_pb2 as oip

SERVICE = "/latentry.v1.VaeService/"
ECHO = "/bench.Echo/"
OIP = "/inference.GRPCInferenceService/ModelInfer"


def latents(count: int, latent_dim: int = 32) -> bytes:
    """Draws of N(0, I) as float32, always the same."""
    return np.random.default_rng(0).standard_normal((count, latent_dim), np.float32).tobytes()


def decode(count: int, latent_dim: int = 32, *, floats: bool = False) -> bytes:
    """A Decode request."""
    z = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[count, latent_dim], data=latents(count, latent_dim))
    output = pb.ImageOutput(format=pb.IMAGE_FORMAT_RAW_FLOAT32) if floats else None
    return pb.DecodeRequest(latents=z, output=output).SerializeToString()


def encode(count: int, shape: tuple[int, int, int]) -> bytes:
    """An Encode request with images of floats."""
    images = np.random.default_rng(0).random((count, *shape), np.float32)
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=images.shape, data=images.tobytes())
    return pb.EncodeRequest(images=pb.Images(tensor=tensor)).SerializeToString()


def oip_decode(latent: bytes | None = None, model: str = "bench") -> bytes:
    """Decode of one latent in the Open Inference Protocol."""
    tensor = oip.ModelInferRequest.InferInputTensor(name="latents", datatype="FP32", shape=[1, 32])
    output = oip.ModelInferRequest.InferRequestedOutputTensor(name="images")
    return oip.ModelInferRequest(
        model_name=f"{model}_decoder",
        inputs=[tensor],
        outputs=[output],
        raw_input_contents=[latents(1) if latent is None else latent],
    ).SerializeToString()


def frame(message: bytes) -> bytes:
    """As gRPC sends it."""
    return b"\0" + struct.pack(">I", len(message)) + message
