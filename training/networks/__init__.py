"""The encoders and decoders. Each is exported as it is, so none draws random numbers, save dropout in training.

encoder   x (N, C, H, W) in [0, 1] [, labels int64 (N,)]  -> mean, logvar of q(z|x), each (N, Z)
decoder   z (N, Z) [, labels int64 (N,)]                  -> output (N, C * outputs_per_channel, H, W), unbounded

The first C channels of the output are of the mean of p(x|z), and start at the data's mean once `decoder.centre` has
been called; the channels after them, where the likelihood wants two, are the log-variances, and start at a constant.
"""

from __future__ import annotations

from training.networks.conv import ConvDecoder, ConvEncoder, residual_encoder
from training.networks.dense import DenseDecoder, DenseEncoder
from training.networks.linear import LinearDecoder, LinearEncoder
from training.networks.plain import PlainDecoder, plain_encoder

Encoder = ConvEncoder | DenseEncoder | LinearEncoder
Decoder = ConvDecoder | PlainDecoder | DenseDecoder | LinearDecoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "DenseDecoder",
    "DenseEncoder",
    "Encoder",
    "LinearDecoder",
    "LinearEncoder",
    "PlainDecoder",
    "plain_encoder",
    "residual_encoder",
]
