"""The subcommand `init`: a config to fill in, with the meaning of each key beside it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training import config_file
from training.config import Config
from training.config_text import commented
from training.disk import write_atomically
from training.errors import ConfigError, TrainingError

_EPILOG = """\
examples:
  latentry init                                   every key with its default, in config.toml
  latentry init --preset fashion --out mine.toml  a preset's values
  latentry train --config mine.toml --data PATH
"""


def add_init_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `latentry init`."""
    parser.description = "Write a config with every key, its value and what it means."
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = ", ".join(config_file.presets())
    parser.add_argument("--preset", metavar="NAME", help=f"start from a config that comes along: {names}")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("config.toml"), help="the file to write (config.toml)"
    )
    parser.add_argument("--replace", action="store_true", help="replace the file if it exists")


def run_init(args: argparse.Namespace) -> int:
    """`latentry init`: write a commented config; returns the exit status."""
    try:
        _init(args.preset, args.out, replace=args.replace)
    except TrainingError as error:
        print(f"latentry: error: {error}", file=sys.stderr)
        return 2
    return 0


def _init(preset: str | None, out: Path, *, replace: bool) -> None:
    config = config_file.read_preset(preset) if preset else Config()
    if out.is_dir():
        raise ConfigError(f"--out: got the folder {out}, wanted a file, as {out / 'config.toml'}")
    if out.exists() and not replace:
        raise ConfigError(f"--out: {out} exists already: choose another, or add --replace")
    write_atomically(out, commented(config).encode())
    print(f"Wrote {out}. Next: latentry train --config {out} --data PATH")
