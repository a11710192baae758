"""The subcommand `import`: its flags, and the exit status of what it runs.

onnx and onnxruntime are imported only when the command runs, so that --help answers at once; torch never.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import ExportError
from training.importing import options
from training.outcome import outcome

if TYPE_CHECKING:
    from training.importing.options import Options

_EPILOG = """\
examples:
  latentry import --encoder enc.onnx --decoder dec.onnx --to models/mine/1 --data ~/images
  latentry import --encoder enc.onnx --decoder dec.onnx --to models/pythae/1 --posterior mean-logvar \\
      --mean-output 11 --spread-output 12
  latentry import --encoder enc.onnx --decoder dec.onnx --to models/keras/1 --layout nhwc --range=-1..1

Puts nodes around both graphs, so that they take and give what every model folder does, and holds them against the
graphs as they were given. What the graphs tell by their names, shapes and types need not be said; what is guessed is
printed. Nothing is written if something is refused. docs/import.md has more.
"""


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `latentry import`."""
    parser.description = "Make a model folder from someone else's encoder and decoder in ONNX."
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--encoder", metavar="ONNX", type=Path, required=True, help="images to posterior")
    parser.add_argument("--decoder", metavar="ONNX", type=Path, required=True, help="latents to images")
    parser.add_argument("--to", metavar="NAME/VERSION", type=Path, required=True, help="as in models/mine/1")
    parser.add_argument("--replace", action="store_true", help="replace the version if it exists")
    parser.add_argument("--data", metavar="PATH", help="images to check and measure it on, as for train")
    parser.add_argument("--likelihood", metavar="NAME[:PARAMETER=NUMBER]", default=options.UNKNOWN,
                        help="of p(x|z): bernoulli, gaussian:sigma=S, gaussian-fixed:variance=V, laplace:scale=B; "
                             "without it no ELBO can be measured")  # fmt: skip
    _add_image_arguments(parser.add_argument_group("images"))
    _add_output_arguments(parser.add_argument_group("outputs"))


def _add_image_arguments(group: argparse._ArgumentGroup) -> None:
    layouts = "flat is H*W*C numbers in the order of nhwc, flat-chw in that of nchw"
    group.add_argument("--image-shape", metavar="H,W,C", help="where the graphs leave it open: 28,28,1")
    group.add_argument("--layout", choices=options.LAYOUTS, help=f"of the encoder's input; {layouts}")
    group.add_argument("--decoder-layout", choices=options.LAYOUTS, help="of the decoder's output, if another")
    group.add_argument("--range", choices=options.RANGES, help="of what the encoder takes; write --range=-1..1")
    group.add_argument("--decoder-range", choices=options.RANGES, help="of what the decoder gives, if another")
    group.add_argument("--mean", metavar="M[,M,M]", help="for mean-std: the encoder takes (x - mean) / std, x in 0..1")
    group.add_argument("--std", metavar="S[,S,S]", help="for mean-std")


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--posterior", choices=options.POSTERIORS, help="what the encoder gives; point: no spread")
    group.add_argument("--mean-output", metavar="OUTPUT", help="of the encoder: the mean, or mean and spread in one")
    group.add_argument("--spread-output", metavar="OUTPUT", help="of the encoder: log-variance, deviation, variance")
    group.add_argument("--image-output", metavar="OUTPUT", help="of the decoder, if it gives more than images")
    group.add_argument("--decoder-output", choices=options.DECODER_OUTPUTS, help="logits get a sigmoid; else mean")


def run_import(args: argparse.Namespace) -> int:
    """`latentry import`: write a model folder."""
    return outcome(lambda: _import(args), lambda: "Stopped; nothing was published.")


def _options(args: argparse.Namespace) -> Options:
    return options.Options(
        **{name: getattr(args, name) for name in options.PLAIN},
        mean=options.parse_numbers("--mean", args.mean) if args.mean else (),
        std=options.parse_numbers("--std", args.std) if args.std else (),
        image_shape=options.parse_image_shape(args.image_shape) if args.image_shape else None,
        likelihood=options.parse_likelihood(args.likelihood),
    )


def _import(args: argparse.Namespace) -> None:
    said = _options(args)
    from training.importing import folder

    try:
        imported = folder.publish(
            args.encoder, args.decoder, args.to, said, data_path=args.data or "", overwrite=args.replace
        )
    except MemoryError as error:
        raise ExportError("not enough memory to compare the graphs on 33 images; nothing was published") from error
    for guess in imported.guesses:
        print(f"guessed: {guess}")
    for output in imported.left_out:
        print(f"left out: {output}")
    for note in imported.notes:
        print(f"note: {note}")
    manifest = imported.manifest
    print(f"Wrote {args.to}: {manifest.name} version {manifest.version}")
    print("Wrapped graphs against the given ones, largest differences:")
    for name, value in manifest.evaluation.items():
        if name.startswith("parity_"):
            print(f"  {name.removeprefix('parity_'):<18}{value:.2g}")
    if "psnr_db" in manifest.evaluation:
        print(f"Reconstructions: {manifest.evaluation['psnr_db']:.1f} dB")
