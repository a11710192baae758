"""Fits, evaluates, draws and exports VAEs. Uses torch; knows nothing of gRPC."""
