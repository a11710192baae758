"""The subcommand `draw`: its flags, and the pictures that it writes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latentry.manifest import MANIFEST_FILE
from training import run
from training.disk import write_atomically
from training.errors import ConfigError, RunError
from training.outcome import outcome

if TYPE_CHECKING:
    from training.drawing.catalogue import Picture
    from training.drawing.subject import Subject

NAMES = (
    "reconstructions, samples, prior-samples, interpolations, traversals, classes, style-transfer, scatter, manifold, "
    "manifold-animation, scatter-animation, curves"
)
_EPILOG = f"""\
examples:
  latentry draw runs/fashion                                  into runs/fashion/drawings
  latentry draw models/fashion/1 --data data/fashion-mnist    into drawings/fashion-1
  latentry draw runs/plane --only manifold,scatter

Pictures: {NAMES}.
scatter, manifold and their animations are of models with 2 latents; the animations need a run that was trained with
--snapshots; classes and style-transfer are of conditional models. What cannot be drawn is left out with
a word.
"""


def add_draw_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `latentry draw`."""
    parser.description = "Draw what a model has learnt."
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="RUN_OR_FOLDER", type=Path, help="a run's folder, or a model folder")
    parser.add_argument("--data", metavar="PATH", help="the images; a run knows its own")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="where to (default: RUN/drawings, drawings/NAME-VERSION)"
    )
    parser.add_argument("--only", metavar="NAME,...", help="only these pictures")


def run_draw(args: argparse.Namespace) -> int:
    """`latentry draw`: write pictures of a model; returns the exit status."""
    return outcome(lambda: _draw(args), lambda: "Stopped; the pictures that were named are whole.")


def _draw(args: argparse.Namespace) -> None:
    from training.drawing import catalogue  # slow to import

    names = [] if args.only is None else [name.strip() for name in args.only.split(",")]
    asked = catalogue.chosen(names) if names else catalogue.catalogue()
    if (
        (args.source / MANIFEST_FILE).is_file()
        and args.out
        and args.out.resolve().is_relative_to(args.source.resolve())
    ):
        raise ConfigError(f"--out: got {args.out}, inside the model folder {args.source}, wanted it elsewhere")
    subject = _open(args.source, args.data)
    out = args.out or _default_out(args.source, subject)
    drawable = [picture for picture in asked if not _left_out(picture, subject, by_name=bool(names))]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be made: {error.strerror}") from error
    for picture in drawable:
        write_atomically(out / picture.file, picture.draw(subject))
        print(out / picture.file, flush=True)


def _open(source: Path, data: str | None) -> Subject:
    """Raises `RunError` if `source` is neither."""
    if (source / MANIFEST_FILE).is_file():
        from training.drawing.from_folder import from_folder  # each loads its own runtime

        return from_folder(source, data)
    if (source / run.CONFIG).is_file():
        from training.drawing.from_run import from_run

        return from_run(source, data)
    raise RunError(f"{source}: got neither {run.CONFIG} nor {MANIFEST_FILE}, wanted a run's folder or a model folder")


def _default_out(source: Path, subject: Subject) -> Path:
    return Path("drawings") / subject.name if (source / MANIFEST_FILE).is_file() else source / "drawings"


def _left_out(picture: Picture, subject: Subject, *, by_name: bool) -> bool:
    """Says why a picture cannot be drawn; raises `ConfigError` if it was asked for by name."""
    lacks = picture.lacks(subject)
    if lacks and by_name:
        raise ConfigError(f"{picture.name}: {lacks}")
    if lacks:
        print(f"left out {picture.name}: {lacks}", file=sys.stderr)
    return bool(lacks)
