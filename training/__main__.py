"""`python -m training train|evaluate|export`: the same as the `latentry` command's subcommands."""

from __future__ import annotations

import argparse
import sys

from training import cli


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training")
    commands = parser.add_subparsers(dest="command", required=True)
    cli.add_train_arguments(commands.add_parser("train"))
    args = parser.parse_args()
    return cli.run_train(args)


if __name__ == "__main__":
    sys.exit(main())
