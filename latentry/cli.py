"""The command `latentry`. A subcommand's package is imported only when that subcommand is asked for."""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from latentry import __version__


@dataclass(frozen=True, slots=True)
class _Command:
    """A subcommand: the module that has `add_NAME_arguments(parser)` and `run_NAME(args)`, and the extra it needs."""

    module: str
    help: str
    extra: str = ""


_COMMANDS = {
    "init": _Command("training.init_command", "write a config with every key explained, to train from", "training"),
    "train": _Command("training.train_command", "fit a VAE, or a model to compare it with, to your images", "training"),
    "evaluate": _Command("training.evaluation.evaluate_command", "measure a model on held-out images", "training"),
    "draw": _Command("training.drawing.draw_command", "draw what a model has learnt", "training"),
    "attributes": _Command(
        "training.attributes.attributes_command", "find directions in latent space: glasses, a smile", "training"
    ),
    "export": _Command("training.export_command", "write a trained model as a model folder of ONNX graphs", "training"),
    "import": _Command(
        "training.import_command", "make a model folder of someone else's ONNX encoder and decoder", "training"
    ),
    "verify": _Command(
        "latentry.verify_command", "check that a model folder is whole and its graphs do as it says", "serving"
    ),
    "inspect": _Command("latentry.inspect_command", "say what a model folder or an ONNX file holds", "serving"),
    "serve": _Command("serving.cli", "serve model folders over gRPC", "serving"),
    "health": _Command("serving.health_command", "ask whether a server is ready, for health checks", "serving"),
    "doctor": _Command("serving.cli", "say what works on this machine, and what would mend the rest", "serving"),
    "token": _Command("serving.token_command", "make a token for a client, and the line that lets it in", "serving"),
    "admin": _Command("latentry.admin_command", "say or change what a running server serves"),
    "models": _Command("latentry.models_command", "list the models of a running server"),
    "encode": _Command("latentry.encode_command", "images to latents"),
    "decode": _Command("latentry.decode_command", "latents to images"),
    "sample": _Command("latentry.sample_command", "draw new images"),
    "interpolate": _Command("latentry.interpolate_command", "walk from image to image"),
    "reconstruct": _Command("latentry.reconstruct_command", "say which images a model knows least well"),
    "edit": _Command("latentry.edit_command", "give images more or less of something"),
    "neighbours": _Command("latentry.neighbours_command", "look around an image"),
    "demo": _Command("latentry.demo", "train, export, serve and call, on your images or ours", "training,serving"),
}

_EPILOG = """\
a first picture, in two terminals:
  latentry serve
  latentry sample --count 64 --out samples.png

`latentry COMMAND --help` explains each one.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else ""
    if name not in _COMMANDS:
        _overview().parse_args(argv or ["--help"])  # --help, --version, or an error that names the commands
        return 2
    command = _COMMANDS[name]
    # gRPC's core would write of handshakes past our logs and our one line of why; it reads this when imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _open_what_is_closed()
    try:
        gc.disable()  # what is imported stays: looking for garbage in it is a tenth of the time
        module = importlib.import_module(command.module)
        gc.enable()
        parser = argparse.ArgumentParser(
            f"latentry {name}", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        getattr(module, f"add_{name}_arguments")(parser)
        args, unknown = parser.parse_known_args(argv[1:])
        if unknown:
            parser.error(_say_what_is_near(unknown[0], parser))
        status: int = getattr(module, f"run_{name}")(args)
        return _flushed(status)
    except ModuleNotFoundError as error:
        _say_what_is_missing(name, command, error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read what is printed has had enough, as `head` has
        _write_no_more()
        return 141


def _open_what_is_closed() -> None:
    """A stream that the shell closed (`>&-`) is None in Python: what is printed there goes nowhere instead."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - as long as the process


def _flushed(status: int) -> int:
    """The exit status, once all that was printed is where it should be."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk
        print(f"latentry: standard output: {error.strerror}", file=sys.stderr)
        _write_no_more()
        return 1
    return status


def _write_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _overview() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "latentry",
        description="Train convolutional VAEs, export encoder and decoder as ONNX, serve them over gRPC.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"latentry {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, command in _COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser


def _say_what_is_near(unknown: str, parser: argparse.ArgumentParser) -> str:
    if not unknown.startswith("-"):
        return f"{unknown}: got one argument too many"
    flags = re.findall(r"--[a-z-]+", parser.format_help())
    near = difflib.get_close_matches(unknown.partition("=")[0], flags, 1)
    return f"{unknown}: no such flag" + (f"; did you mean {near[0]}?" if near else "")


def _say_what_is_missing(name: str, command: _Command, error: ModuleNotFoundError) -> NoReturn:
    if not command.extra:
        raise error
    needs = f"needs more than is installed: pip install 'latentry[{command.extra}]'"
    print(f"latentry {name}: {needs} (missing: {error.name})", file=sys.stderr)
    sys.exit(2)
