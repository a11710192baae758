"""The command `latentry decode`: latents to images."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentry.call import add_class, add_server, classes_of, describe, read_latents, run
from latentry.client import Client
from latentry.output import add_out, write_pictures


def add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry decode`."""
    describe(
        parser,
        "Decode latents [N, Z] from an .npz file (its `latents`, else its `mean`) or a .npy file.",
        "latentry decode latents.npz --out decoded.png",
    )
    parser.add_argument("latents", type=Path, help=".npz or .npy file")
    add_class(parser)
    add_out(parser, "decoded.png")
    add_server(parser)


def run_decode(args: argparse.Namespace) -> int:
    """Latents to pictures."""

    def call(client: Client) -> None:
        classes = classes_of(args, client.info())
        write_pictures(args, client.decode(read_latents(args.latents), classes=classes))

    return run(args, call)
