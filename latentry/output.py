"""Where a command's result goes: a file that is whole or not there, or standard output, which then has nothing else."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from latentry import animation, whole_file
from latentry.pictures import ANIMATED, ENDINGS, Pictures

_STDOUT = Path("-")
_HEIGHT = 64  # pixels that a small image is enlarged to, so that it can be seen
_ANIMATED_HEIGHT = 256  # the same of an animation, which is one image large


def add_out(parser: argparse.ArgumentParser, default: str | None, kind: str = "a grid") -> None:
    """`--out` and `--format` for pictures, of which .png holds such a `kind`."""
    shown = f" (default: {default})" if default else ""
    kinds = f".png ({kind}), .gif, .webp (animations) or .npz (arrays); - for standard output"
    parser.add_argument("--out", type=Path, metavar="FILE", default=default and Path(default), help=f"{kinds}{shown}")
    formats = [ending[1:] for ending in ENDINGS]
    parser.add_argument("--format", choices=formats, help="of what --out - writes (default: png)")
    parser.set_defaults(endings=ENDINGS)


def add_frame_ms(parser: argparse.ArgumentParser) -> None:
    """How long an animation shows each image."""
    default = animation.DEFAULT_FRAME_MS
    parser.add_argument("--frame-ms", type=int, help=f"each image of an animation is shown (default: {default})")


def add_arrays_out(parser: argparse.ArgumentParser, default: str) -> None:
    """`--out` for arrays."""
    parser.add_argument("--out", type=Path, metavar="FILE", default=Path(default), help=".npz (default: %(default)s)")
    parser.set_defaults(endings=(".npz",), format=None)


def check_out(args: argparse.Namespace) -> None:
    """Before any work is done for what cannot be written; raises `ValueError`."""
    out: Path | None = getattr(args, "out", None)
    if out is None:
        return
    if getattr(args, "frame_ms", None) is not None and ending_of(args) not in ANIMATED:
        raise ValueError(f"--frame-ms: got {args.frame_ms} for {ending_of(args)}, wanted it for .gif and .webp only")
    if out == _STDOUT and len(args.endings) > 1:
        if sys.stdout.isatty() or getattr(sys.stdout, "name", "") == os.devnull:
            got = "a terminal" if sys.stdout.isatty() else "no standard output"
            raise ValueError(f"--out: got - and {got}, wanted a pipe, as in `--out - | display`, or a file's name")
        return
    if args.format is not None:
        raise ValueError(f"--format: got {args.format} for {out}, wanted it with --out - only; a name's ending says it")
    if out.suffix.lower() not in args.endings:
        raise ValueError(f"--out: got {out}, wanted a name that ends in {' or '.join(args.endings)}")
    if out.is_dir():
        raise ValueError(f"--out: got {out}, which is a folder, wanted a file's name")
    if not out.parent.is_dir():
        raise ValueError(f"--out: got {out}, whose folder does not exist")


def notes(args: argparse.Namespace) -> TextIO:
    """Where to say what a person may want to know: not among what is piped."""
    return sys.stderr if getattr(args, "out", None) == _STDOUT else sys.stdout


def ending_of(args: argparse.Namespace) -> str:
    """The ending that says what is written, such as ".png"."""
    return f".{args.format or 'png'}" if args.out == _STDOUT else args.out.suffix.lower()


def write_pictures(args: argparse.Namespace, pictures: Pictures, columns: int | None = None) -> None:
    """Write them to `--out`, small ones enlarged; in rows of `columns` if it is a grid."""
    ending = ending_of(args)
    height = _ANIMATED_HEIGHT if ending in ANIMATED else _HEIGHT
    scale = 1 if ending == ".npz" else max(1, height // pictures.images.shape[1])
    across = columns if ending == ".png" else None
    _write(args, pictures.to_bytes(ending, columns=across, scale=scale, frame_ms=getattr(args, "frame_ms", None)))


def write_arrays(args: argparse.Namespace, arrays: Mapping[str, Any]) -> None:
    """Write them to `--out`, an .npz."""
    whole_file.write(args.out, lambda file: np.savez_compressed(file, **arrays))
    sys.stdout.write(f"wrote {args.out}\n")


def _write(args: argparse.Namespace, data: bytes) -> None:
    if args.out == _STDOUT:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        whole_file.write(args.out, lambda file: file.write(data))
        sys.stdout.write(f"wrote {args.out}\n")
