"""The command `latentry models`: what a running server serves."""

from __future__ import annotations

import argparse

from latentry.call import describe, run
from latentry.client import Client
from latentry.connection import add_connection_arguments
from latentry.v1 import vae_pb2 as pb


def add_models_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry models`."""
    describe(
        parser,
        "List the models of a running server, with their shapes, attributes and figures.",
        "latentry models",
        "latentry models --server example.org:50051 --tls",
    )
    add_connection_arguments(parser)
    parser.set_defaults(model="", version=None, label=None)  # all of them are listed


def run_models(args: argparse.Namespace) -> int:
    """Print a table of models."""

    def call(client: Client) -> None:
        for model in client.models():
            _print(model)

    return run(args, call)


def _print(model: pb.ModelInfo) -> None:
    ref, shape, limits = model.model, model.image_shape, model.limits
    print(f"{ref.name} {ref.version}  {shape.height}x{shape.width}x{shape.channels}", end="  ")
    print(f"{model.latent_dim} latents  {model.likelihood.name}  {model.provider} {model.precision}  {ref.digest[:12]}")
    print(f"    at most {limits.max_items} items and {limits.max_message_bytes} bytes a call", end="")
    print(f", {limits.max_stream_items} images a stream")
    if model.prior:
        print(f"    prior of its own: {model.prior}")
    if model.classes:
        print(f"    conditional, {model.classes} classes: {', '.join(model.class_labels) or 'without names'}")
    if model.attributes:
        print(f"    attributes: {', '.join(f'{each.name} (to {each.limit:.3g})' for each in model.attributes)}")
    figures = {name: value for name, value in model.evaluation.items() if not name.startswith("attribute_")}
    if figures:
        print(f"    {', '.join(f'{name} {value:.6g}' for name, value in sorted(figures.items()))}")
    if model.version_labels:
        print(f"    called {', '.join(model.version_labels)}")
    for refused in model.refused_versions:
        print(f"    version {refused.version} is refused: {refused.reason}")
