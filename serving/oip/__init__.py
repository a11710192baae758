"""The Open Inference Protocol with Triton's extensions (`inference.GRPCInferenceService`), over our own API's calls.

    ModelInferRequest ─ tensors, parameters ─ questions ─ VaeServicer ─ answers ─ ModelInferResponse

Each loaded model appears as several models of the protocol, one a call (`faces`). What a request may ask is checked by
`VaeServicer` alone; here its form is.
"""
