"""The subcommand `export`: its flags, and the exit status of what it runs.

torch is imported only when the command runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.outcome import outcome

_EXPORT_EPILOG = """\
example:
  latentry export runs/fashion --to models/fashion/1

Writes encoder.onnx, decoder.onnx, manifest.json, a model card and a preview, once ONNX Runtime agrees with torch on
held-out images; otherwise nothing.
"""


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `latentry export`."""
    parser.description = "Export a trained model as a model folder that `latentry serve` serves."
    parser.epilog = _EXPORT_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder that `latentry train --out` wrote")
    parser.add_argument("--data", metavar="PATH", help="where the run's images are now, if they have moved")
    parser.add_argument("--to", metavar="NAME/VERSION", type=Path, required=True, help="as in models/fashion/1")
    parser.add_argument("--replace", action="store_true", help="replace the version if it exists")


def run_export(args: argparse.Namespace) -> int:
    """`latentry export`: write a model folder."""
    return outcome(lambda: _export(args), lambda: "Stopped; nothing was published.")


def _export(args: argparse.Namespace) -> None:
    from training.export import export

    manifest = export(args.run, args.to, overwrite=args.replace, data_path=args.data)
    print(f"Wrote {args.to}: {manifest.name} version {manifest.version}")
    print("ONNX Runtime against torch, largest differences:")
    for name, value in manifest.evaluation.items():
        if name.startswith("parity_"):
            print(f"  {name.removeprefix('parity_'):<18}{value:.2g}")
