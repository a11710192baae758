"""`python -m training train|evaluate|export`: the same as the `latentry` command's subcommands."""

from __future__ import annotations

import argparse
import sys

from training import cli


def main() -> int:
    """Parse the command line and run one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training")
    commands = parser.add_subparsers(required=True)
    for name, add_arguments, run in (
        ("train", cli.add_train_arguments, cli.run_train),
        ("evaluate", cli.add_evaluate_arguments, cli.run_evaluate),
        ("export", cli.add_export_arguments, cli.run_export),
    ):
        command = commands.add_parser(name)
        add_arguments(command)
        command.set_defaults(run_command=run)
    args = parser.parse_args()
    return int(args.run_command(args))


if __name__ == "__main__":
    sys.exit(main())
