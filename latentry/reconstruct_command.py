"""The command `latentry reconstruct`: which images a model knows least well, and what it makes of them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from latentry import fitting, pixels
from latentry.call import add_class, add_resize, add_server, classes_of, describe, run
from latentry.client import Client
from latentry.output import add_out, ending_of, notes, write_pictures
from latentry.pictures import Array, Reconstruction

_ACROSS = 8  # images in a row of the picture


def add_reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry reconstruct`."""
    describe(
        parser,
        "Encode images, decode them again, and print how far each came back from where it was, worst first: by the\n"
        "ELBO in nats, or by the mean squared error if the model cannot tell the ELBO.",
        "latentry reconstruct photos/*.jpg --resize crop",
        "latentry reconstruct photos/*.jpg --resize crop --out seen.png      # originals above what came back",
        "latentry reconstruct *.png --out scores.npz",
    )
    parser.add_argument("images", nargs="+", type=Path, help="PNG, JPEG or WebP files")
    parser.add_argument("--seed", type=int, help="decode a draw of q(z|x) instead of its mean")
    add_class(parser)
    add_resize(parser)
    add_out(parser, None, "originals above reconstructions")
    add_server(parser)


def run_reconstruct(args: argparse.Namespace) -> int:
    """A table of scores, and perhaps pictures."""

    def call(client: Client) -> None:
        classes = classes_of(args, client.info())
        seen = client.reconstruct(
            args.images, classes=classes, seed=args.seed, resize=args.resize, scores_only=args.out is None
        )
        order = np.argsort(seen.squared_error if seen.elbo is None else -seen.elbo, kind="stable")[::-1]
        rows = [_row(seen, at, str(args.images[at])) for at in order]
        print("\n".join([f"{'squared error':>13}  {'KL':>9}  {'ELBO':>10}  image", *rows]), file=notes(args))
        if args.out is not None and ending_of(args) == ".npz":
            write_pictures(args, seen)
        elif args.out is not None:
            files = [args.images[at] for at in order]
            both = _pairs(_originals(files, seen.images.shape[1:], args.resize), seen.images[order])
            write_pictures(args, replace(seen, images=both), min(_ACROSS, len(seen.images)))

    return run(args, call)


def _row(seen: Reconstruction, at: int, name: str) -> str:
    kl, elbo = ("-" if scores is None else f"{scores[at]:.2f}" for scores in (seen.kl, seen.elbo))
    return f"{seen.squared_error[at]:13.5f}  {kl:>9}  {elbo:>10}  {name}"


def _originals(files: list[Path], shape: tuple[int, ...], resize: str | None) -> Array:
    """The images as the server read them, of `shape` (height, width, channels)."""
    height, width, channels = shape
    read = (fitting.as_read(file.read_bytes(), (height, width, channels), resize) for file in files)
    return np.stack([pixels.to_array(image) for image in read])


def _pairs(above: Array, below: Array) -> Array:
    """Rows of the one in turn with rows of the other; the last two are filled up with white."""
    across = min(_ACROSS, len(above))
    blank = np.full((-len(above) % across, *above.shape[1:]), 255, above.dtype)
    rows = [np.concatenate([images, blank]).reshape(-1, across, *above.shape[1:]) for images in (above, below)]
    return np.stack(rows, axis=1).reshape(-1, *above.shape[1:])
