"""What the subcommands that call a server have in common: the server and the model that are meant, how images are read,
and what is said of errors."""

from __future__ import annotations

import argparse
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latentry.client import Client
from latentry.connection import add_connection_arguments, credentials_of, token_of
from latentry.output import check_out
from latentry.printable import plain
from latentry.target import LatentryError
from latentry.v1 import vae_pb2 as pb

_ARRAYS = (".npz", ".npy")


def describe(parser: argparse.ArgumentParser, what: str, *examples: str) -> None:
    """The text of `--help`: what a command does, and how it is typed."""
    lines = "\n".join(f"  {example}" for example in examples)
    parser.description = f"{what}\n\n{lines}\n\nNeeds a running server: `latentry serve`."


def add_server(parser: argparse.ArgumentParser) -> None:
    """The server and the model."""
    parser.add_argument("--model", default="", help="name of a model (default: the server's default)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, help="of the model (default: the newest)")
    which.add_argument("--label", help="of a version, such as stable")
    add_connection_arguments(parser)


def add_resize(parser: argparse.ArgumentParser) -> None:
    """What becomes of images of another size."""
    parser.add_argument("--resize", choices=["crop", "stretch"], help="fit images that are not of the model's size")


def add_class(parser: argparse.ArgumentParser) -> None:
    """The classes that a conditional model wants."""
    add = parser.add_argument
    add("--class", dest="classes", metavar="CLASS", action="append", help="name or number; once, or for each in order")


def classes_of(args: argparse.Namespace, info: pb.ModelInfo) -> list[str] | list[int] | None:
    """What `--class` says: names if the model has all of them, else numbers. Raises `ValueError` for others."""
    given: list[str] | None = args.classes
    names = list(info.class_labels)
    if not given or not info.classes or set(given) <= set(names):
        return given
    for each in given:
        if each not in names and not (each.isdecimal() and int(each) < info.classes):
            known = f"one of {plain(', '.join(names))}, or " if names else ""
            nameless = "" if names else f": {info.model.name} has no names of classes"
            raise ValueError(f"--class: got {plain(each)}, wanted {known}0 to {info.classes - 1}{nameless}")
    return [names.index(each) if each in names else int(each) for each in given]


def run(args: argparse.Namespace, call: Callable[[Client], None]) -> int:
    """Make the call; returns the exit status, having said in one line what went wrong."""
    try:
        check_out(args)
        with Client(
            args.server,
            model=args.model,
            version=args.version,
            label=args.label,
            token=token_of(args),
            tls=credentials_of(args) or False,
            timeout_s=args.timeout_s,
        ) as client:
            call(client)
    except BrokenPipeError:  # an `OSError`, but no fault: see `cli.main`
        raise
    except (LatentryError, ValueError, OSError) as error:
        unreachable = isinstance(error, LatentryError) and error.code.name == "UNAVAILABLE"
        asked = f"is `latentry serve` running at {args.server}, and are --tls or --tls-ca as it wants them?"
        hint = f" ({asked})" if unreachable else ""
        print(f"latentry: {error}{hint}", file=sys.stderr)
        return 1
    return 0


def read_inputs(what: str, files: Sequence[Path]) -> Any:
    """Images by their paths, or the latents in one .npz or .npy; `what` they are called in errors."""
    if not any(file.suffix in _ARRAYS for file in files):
        return list(files)
    if len(files) > 1:
        raise ValueError(f"{what}: got {len(files)} files, wanted images, or one .npz or .npy alone")
    return read_latents(files[0])


def read_latents(path: Path) -> npt.NDArray[Any]:
    """The array `latents`, else `mean`, of an .npz, or the one of an .npy, of which one latent may be all. Raises
    `OSError` or `ValueError`."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"latents": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: got no whole .npz or .npy file, wanted one with latents") from error
    for name in ("latents", "mean"):
        if name in arrays:
            if arrays[name].dtype.kind not in "fiu":
                raise ValueError(f"{path}: got {name} of type {arrays[name].dtype}, wanted numbers")
            return np.atleast_2d(arrays[name])
    raise ValueError(f"{path}: got arrays {', '.join(arrays) or 'none'}, wanted `latents` or `mean`")
