"""Serves model folders over gRPC with ONNX Runtime. Knows nothing of torch."""
