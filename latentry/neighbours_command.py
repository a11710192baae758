"""The command `latentry neighbours`: what lies around an image."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from latentry.call import add_class, add_resize, add_server, classes_of, describe, read_inputs, run
from latentry.client import Client
from latentry.output import add_frame_ms, add_out, notes, write_pictures


def add_neighbours_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry neighbours`."""
    describe(
        parser,
        "Decode what lies around an image (or the one latent of an .npz or .npy file): a grid on a plane through it,\n"
        "or a random walk from it.",
        "latentry neighbours boot.png --grid 5x7 --spacing 1 --seed 3 --out around.png",
        "latentry neighbours boot.png --walk 48 --seed 3 --out wander.gif",
    )
    add = parser.add_argument
    add("base", type=Path, help="an image, or an .npz or .npy with one latent")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--grid", metavar="ROWSxCOLUMNS", help="(default: 5x5)")
    layout.add_argument("--walk", type=int, metavar="N", help="so many images, the base the first of them")
    add("--spacing", type=float, help="of the grid's points, in latent space (default: 0.5)")
    add("--step", type=float, help="length of a step of the walk, in latent space (default: 0.5)")
    add("--seed", type=int, help="of the directions (default: the server draws one and it is printed)")
    add_class(parser)
    add_resize(parser)
    add_out(parser, "neighbours.png")
    add_frame_ms(parser)
    add_server(parser)


def run_neighbours(args: argparse.Namespace) -> int:
    """A grid or a walk to pictures."""

    def call(client: Client) -> None:
        grid = None if args.walk is not None else _grid(args.grid or "5x5")
        pictures = client.neighbours(
            read_inputs("base", [args.base]),
            grid=grid,
            spacing=args.spacing,
            walk=args.walk,
            step=args.step,
            seed=args.seed,
            classes=classes_of(args, client.info()),
            resize=args.resize,
        )
        print(f"seed {pictures.seed}", file=notes(args))
        write_pictures(args, pictures, grid and grid[1])

    return run(args, call)


def _grid(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)
    if sides is None:
        raise ValueError(f"--grid: got {text}, wanted ROWSxCOLUMNS such as 5x7")
    return int(sides[1]), int(sides[2])
