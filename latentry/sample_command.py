"""The command `latentry sample`: new images."""

from __future__ import annotations

import argparse

from latentry.call import add_class, add_server, classes_of, describe, run
from latentry.client import Client
from latentry.output import add_out, notes, write_pictures
from latentry.progress import collect
from latentry.words import PRIORS, TRUNCATIONS


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry sample`."""
    describe(
        parser,
        "Draw new images. Image k of a seed is always the same.",
        "latentry sample --count 64 --seed 7 --out samples.png",
        "latentry sample --seed 7 --truncation 1 --out typical.png",
        "latentry sample --class Sneaker --model conditional",
        "latentry sample --count 4 --out - | display",
    )
    add = parser.add_argument
    add("--count", type=int, default=64, help="how many (default: %(default)s)")
    add("--seed", type=int, help="0 to 2^64 - 1 (default: the server draws one and it is printed)")
    add("--first-index", type=int, default=0, help="k of the first image (default: %(default)s)")
    add("--temperature", type=float, default=1.0, help="scales the noise, 0 to 10 (default: %(default)s)")
    add("--truncation", type=float, metavar="T", help="keep the noise within -T to T: more typical, less varied")
    add("--truncation-mode", choices=list(TRUNCATIONS), default="resample", help="(default: %(default)s)")
    priors = list(PRIORS)
    add("--prior", choices=priors, help="N(0, I), or the model's own (default: what it was trained with)")
    add_class(parser)
    add_out(parser, "samples.png")
    add_server(parser)


def run_sample(args: argparse.Namespace) -> int:
    """New images to pictures."""

    def call(client: Client) -> None:
        parts = client.stream_sample(
            args.count,
            classes=classes_of(args, client.info()),
            seed=args.seed,
            first_index=args.first_index,
            temperature=args.temperature,
            truncation=args.truncation,
            truncation_mode=args.truncation_mode,
            prior=args.prior,
        )
        pictures = collect(parts, args.count)
        print(f"seed {pictures.seed}", file=notes(args))
        write_pictures(args, pictures)

    return run(args, call)
