"""The command `latentry interpolate`: a walk from image to image."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentry.call import add_class, add_resize, add_server, classes_of, describe, read_inputs, run
from latentry.client import Client
from latentry.output import add_frame_ms, add_out, ending_of, write_pictures
from latentry.progress import collect
from latentry.words import EASINGS, PATHS


def add_interpolate_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry interpolate`."""
    describe(
        parser,
        "Walk from image to image (or from latent to latent of one .npz or .npy file) through latent space.",
        "latentry interpolate boot.png bag.png --out walk.gif",
        "latentry interpolate boot.png bag.png coat.png --loop --easing in-out --steps 24 --out round.webp",
        "latentry interpolate latents.npz --path catmull-rom --steps 10 --out strip.png",
        "latentry interpolate a.jpg b.jpg --resize crop --out - --format gif >walk.gif",
    )
    add = parser.add_argument
    add("key_frames", nargs="+", type=Path, help="two or more images, or one .npz or .npy of latents")
    add("--steps", type=int, help="images from each to the next, both included (default: 8; of animations 24)")
    add("--path", choices=list(PATHS), default="linear", help="(default: %(default)s)")
    add("--easing", choices=list(EASINGS), default="none", help="of each leg (default: %(default)s)")
    add("--loop", action="store_true", help="go on from the last key frame to the first")
    add("--no-ends", action="store_true", help="leave out the first and the last key frame")
    add_class(parser)
    add_resize(parser)
    add_out(parser, "interpolation.png", "a strip")
    add_frame_ms(parser)
    add_server(parser)


def run_interpolate(args: argparse.Namespace) -> int:
    """A walk to a strip, an animation or arrays."""

    def call(client: Client) -> None:
        keys = read_inputs("key frames", args.key_frames)
        steps = args.steps
        if steps is None:
            steps = 24 if ending_of(args) in (".gif", ".webp") else 8
        parts = client.stream_interpolate(
            keys,
            classes=classes_of(args, client.info()),
            steps=steps,
            path=args.path,
            easing=args.easing,
            loop=args.loop,
            ends=not args.no_ends,
            resize=args.resize,
        )
        pictures = collect(parts, (len(keys) - (not args.loop)) * (steps - 1))
        write_pictures(args, pictures, len(pictures.images))

    return run(args, call)
