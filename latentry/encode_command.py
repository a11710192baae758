"""The command `latentry encode`: images to latents."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentry.call import add_class, add_resize, add_server, classes_of, describe, run
from latentry.client import Client
from latentry.output import add_arrays_out, write_arrays


def add_encode_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry encode`."""
    describe(
        parser,
        "Encode images to the mean and logvar of q(z|x), written as arrays [N, Z] to an .npz file.",
        "latentry encode photos/*.jpg --resize crop --out latents.npz",
        "latentry encode photos/*.jpg --resize crop --seed 7      # a draw of q(z|x) too",
    )
    parser.add_argument("images", nargs="+", type=Path, help="PNG, JPEG or WebP files")
    parser.add_argument("--seed", type=int, help="also draw latents with this seed")
    add_class(parser)
    add_resize(parser)
    add_arrays_out(parser, "latents.npz")
    add_server(parser)


def run_encode(args: argparse.Namespace) -> int:
    """Images to an .npz of mean, logvar and perhaps latents."""

    def call(client: Client) -> None:
        classes = classes_of(args, client.info())
        posterior = client.encode(args.images, classes=classes, seed=args.seed, resize=args.resize)
        arrays = {"mean": posterior.mean, "logvar": posterior.logvar, "latents": posterior.latents}
        write_arrays(args, {name: array for name, array in arrays.items() if array is not None})

    return run(args, call)
