"""The command `latentry verify`: every check of a model folder that can be made here, in a table.

`serving` and `training` are imported only when the command runs, and torch only for --run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from latentry.manifest import DECODER_FILE, ENCODER_FILE, ModelFolder
from latentry.printable import plain
from latentry.verification import Check, of_files, read, without_failed

_EPILOG = """\
examples:
  latentry verify models/fashion/1
  latentry verify models/fashion/1 --run runs/fashion --data data/fashion-mnist

All that a server checks when it loads a folder, on the CPU and for every precision, and more: that two runs give the
same bits, and that the precisions are as close to fp32 as the manifest says. --run also holds the graphs against torch
on held-out images. The graphs are run: verify a folder that you trust no further than you would serve it.
Exit status 0: nothing failed. 1: something did. 2: the flags make no sense.
"""
_CHECK = len("repeatable")  # the longest name of a check


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `latentry verify`."""
    parser.description = "Check whether a model folder is whole, and whether its graphs do what its manifest says."
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a model folder: NAME/VERSION")
    parser.add_argument("--run", metavar="RUN", type=Path, help="the run that it was exported from; needs torch")
    parser.add_argument("--data", metavar="PATH", help="where the run's images are now, if they have moved")


def run_verify(args: argparse.Namespace) -> int:
    """Make the checks and print them; 0 if none failed."""
    if args.data is not None and args.run is None:
        return _fail("--data: got it without --run, whose images it says the place of")
    for flag, folder in (("FOLDER", args.folder), ("--run", args.run)):
        if folder is not None and not folder.is_dir():
            return _fail(f"{flag}: got {folder}, wanted a folder")
    failed = _print(_checks(args.folder, args.run, args.data), _width(args.folder, args.run))
    print(f"\n{plain(str(args.folder))}: {f'{failed} checks failed' if failed else 'nothing failed'}")
    return 1 if failed else 0


def _checks(path: Path, run: Path | None, data: str | None) -> Iterator[Check]:
    from serving.verification import of_graphs

    files, folder = read(path)
    yield from files
    if folder is None:
        yield Check("graphs", str(path), "skipped", "without a manifest nothing says what they should be")
        return
    judged = []
    for check in of_files(folder):
        judged.append(check)
        yield check
    sound = without_failed(folder, judged)
    yield from of_graphs(sound)
    yield from _parity(sound, run, data)


def _parity(folder: ModelFolder, run: Path | None, data: str | None) -> Iterator[Check]:
    if run is None:
        yield Check("parity", "torch", "skipped", "no --run to compare with")
        return
    try:
        from training.verification import of_parity
    except ModuleNotFoundError as error:
        yield Check("parity", "torch", "skipped", f"{error.name} is not installed: pip install 'latentry[training]'")
        return
    yield from of_parity(folder, run, data)


def _width(folder: Path, run: Path | None) -> int:
    """That of the second column, known before the first row: what is checked is a folder, one file or two."""
    return max(len(plain(str(each))) for each in (folder, run or "", f"{ENCODER_FILE}, {DECODER_FILE}"))


def _print(checks: Iterable[Check], width: int) -> int:
    """A table, row by row as checks are made: one that takes long is known by what is missing. How many failed."""
    failed = 0
    for row in checks:
        said = f"{row.verdict}: {row.note}" if row.note else row.verdict
        print(f"{row.check:<{_CHECK}}  {plain(row.what):<{width}}  {plain(said)}", flush=True)
        failed += row.verdict == "FAILED"
    return failed


def _fail(line: str) -> int:
    print(f"latentry verify: {plain(line)}", file=sys.stderr)
    return 2
