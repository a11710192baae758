"""Stubs of the Open Inference Protocol, made from protos/inference by `make protos`.

The protos keep the file names of Triton's own, so that this package and Triton's client can be loaded in one process.
"""
