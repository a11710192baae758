"""Figures of a model, measured from its exported graphs: `latentry evaluate`.

command -> held_out (which images) -> measure -> bound, latents, images, samples, baselines, throughput -> report
                                         graphs (ONNX Runtime), densities (log p(x|z))                  -> record
"""
