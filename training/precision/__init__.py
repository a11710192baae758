"""Encoder and decoder in other precisions than fp32, each measured against fp32 before it may be published.

fp32   torch's modules, exported; the others are measured against it
fp16   torch's modules in half precision, exported anew (`training.graphs`); pixels and likelihoods in float32
bf16   weights stored as bfloat16, arithmetic in float32: half the file, and no overflow
int8   weights and activations in 8 bits, by ONNX Runtime's static quantisation, calibrated on training images
"""
