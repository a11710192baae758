"""The command `latentry edit`: images with more or less of something."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentry.call import add_class, add_resize, add_server, classes_of, describe, read_inputs, run
from latentry.client import Client
from latentry.output import add_out, notes, write_pictures


def add_edit_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry edit`."""
    describe(
        parser,
        "Move images (or the latents of one .npz or .npy file) along named attributes of the model, or along the\n"
        "difference between examples, and decode them.",
        "latentry edit --list                                                  # attributes and their limits",
        "latentry edit me.jpg --attribute eyeglasses=1 --resize crop --out edited.png",
        "latentry edit boot.png --minus sandal.png --plus bag.png              # boot - sandal + bag",
    )
    add = parser.add_argument
    add("images", nargs="*", type=Path, help="what is edited")
    add("--list", action="store_true", help="print the model's attributes instead")
    add(
        "--attribute",
        dest="attributes",
        metavar="NAME=AMOUNT",
        action="append",
        default=[],
        help="1 adds it, -1 removes it; several times for several",
    )
    add("--plus", nargs="+", type=Path, metavar="FILE", help="examples of what is to be added")
    add("--minus", nargs="+", type=Path, metavar="FILE", help="examples of what is to be taken away")
    add("--amount", type=float, help="of the difference of the two (default: 1)")
    add_class(parser)
    add_resize(parser)
    add_out(parser, "edited.png")
    add_server(parser)


def run_edit(args: argparse.Namespace) -> int:
    """Edited images to pictures, or the list of attributes."""

    def call(client: Client) -> None:
        _check(args)
        edited = client.edit(
            read_inputs("images", args.images),
            attributes=_amounts(args.attributes),
            plus=args.plus and read_inputs("--plus", args.plus),
            minus=args.minus and read_inputs("--minus", args.minus),
            amount=args.amount,
            classes=classes_of(args, client.info()),
            resize=args.resize,
        )
        for name, amount in edited.attributes.items():
            print(f"{name} {amount:+g}", file=notes(args))
        write_pictures(args, edited)

    if args.list:
        args.out = None  # nothing is written, so that nothing has to be writable
        return run(args, lambda client: _list(args, client))
    return run(args, call)


def _check(args: argparse.Namespace) -> None:
    if not args.images:
        raise ValueError("images: got none, wanted one or more, before --plus and --minus, or --list")
    if not (args.attributes or args.plus or args.minus or args.amount is not None):
        raise ValueError("edit: got nothing to do, wanted --attribute, or --plus and --minus")


def _list(args: argparse.Namespace, client: Client) -> None:
    if args.images or args.attributes or args.plus or args.minus or args.amount is not None or args.classes:
        raise ValueError("--list: got it with something to edit, wanted one or the other")
    info = client.info()
    if not info.attributes:
        print(f"{info.model.name} {info.model.version} has no attributes; `latentry attributes` adds some")
    for each in info.attributes:
        print(f"{each.name}  {-each.limit:.3g} to {each.limit:.3g}")


def _amounts(given: list[str]) -> dict[str, float]:
    """What `--attribute NAME=AMOUNT` says, each name once."""
    amounts: dict[str, float] = {}
    for text in given:
        name, _, amount = text.rpartition("=")
        try:
            value = float(amount)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"--attribute: got {text}, wanted NAME=AMOUNT such as eyeglasses=1")
        if name in amounts:
            raise ValueError(f"--attribute: got {name} twice, wanted each once")
        amounts[name] = value
    return amounts
