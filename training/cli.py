"""The subcommands `train`, `evaluate` and `export`: their flags, and the exit status of what they run.

torch is imported only when a command runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training import config_file, run
from training.config import Config
from training.disk import write_atomically
from training.errors import ConfigError, RunError, TrainingError

EXIT_FAILED = 2
EXIT_INTERRUPTED = 130

_TRAIN_EPILOG = """\
examples:
  latentry train --preset fashion --data data/fashion-mnist --out runs/fashion
  latentry train --data ~/photos --image-size 64 --out runs/photos      your own images
  latentry train --out runs/photos --resume                             go on after a stop
  tensorboard --logdir runs                                             watch

An image set is an IDX folder (MNIST's and Fashion-MNIST's own files), a folder of images with or without a
subfolder for each class, a .zip of images, or a .npz with `images` and perhaps `labels`.
"""


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `latentry train`."""
    parser.description = "Train a VAE on a set of images."
    parser.epilog = _TRAIN_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", metavar="PATH", help="the images")
    parser.add_argument("--out", metavar="RUN", type=Path, help="the run's folder (default: runs/PRESET)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN from its last checkpoint")
    parser.add_argument(
        "--preset", metavar="NAME", help=f"a config that comes along: {', '.join(config_file.presets())}"
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="a config of your own, in TOML, as RUN/config.toml is"
    )
    for flag, (_, _, kind, metavar, text) in _FLAGS.items():
        parser.add_argument(flag, type=kind, metavar=metavar, help=text)


def run_train(args: argparse.Namespace) -> int:
    """`latentry train`: fit a model, or go on with one."""
    out = args.out or Path("runs") / (args.preset or "images")
    return _outcome(lambda: _train(args, out), lambda: _how_to_go_on(out))


def _how_to_go_on(out: Path) -> str:
    if not run.has_begun(out):
        return "Stopped before the first step; there is nothing to resume."
    return f"Stopped. To go on: latentry train --out {out} --resume"


_EVALUATE_EPILOG = """\
example:
  latentry evaluate runs/fashion

Prints the figures on the held-out images, at beta = 1, and writes them to RUN/evaluation.json.
"""

_EXPORT_EPILOG = """\
example:
  latentry export runs/fashion --to models/fashion/1

Writes encoder.onnx, decoder.onnx, manifest.json, a model card and a preview, once ONNX Runtime agrees with torch on
held-out images; otherwise nothing.
"""


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `latentry evaluate`."""
    parser.description = "Score a trained model on images that it was not trained on."
    parser.epilog = _EVALUATE_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_run_arguments(parser)
    parser.add_argument("--save-images", metavar="NPZ", type=Path, help="also write the held-out images to this file")


def run_evaluate(args: argparse.Namespace) -> int:
    """`latentry evaluate`: print a model's figures and keep them in RUN/evaluation.json."""
    return _outcome(lambda: _evaluate(args), lambda: "Stopped; nothing was written.")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `latentry export`."""
    parser.description = "Export a trained model as a model folder that `latentry serve` serves."
    parser.epilog = _EXPORT_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_run_arguments(parser)
    parser.add_argument("--to", metavar="NAME/VERSION", type=Path, required=True, help="as in models/fashion/1")
    parser.add_argument("--replace", action="store_true", help="replace the version if it exists")


def run_export(args: argparse.Namespace) -> int:
    """`latentry export`: write a model folder."""
    return _outcome(lambda: _export(args), lambda: "Stopped; nothing was published.")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder that `latentry train --out` wrote")
    parser.add_argument("--data", metavar="PATH", help="where the run's images are now, if they have moved")


def _evaluate(args: argparse.Namespace) -> None:
    from training import npz, trained
    from training.evaluate import evaluate

    model = trained.load(args.run, args.data)
    figures = asdict(evaluate(model.model, model.dataset.test.pixels))
    if not all(math.isfinite(value) for value in figures.values()):
        raise RunError(f"the model's figures are not finite: {figures}")
    text = json.dumps({"step": model.step, **figures}, indent=2) + "\n"
    write_atomically(args.run / run.EVALUATION, text.encode())
    if args.save_images:
        npz.write(args.save_images, model.dataset.test)
    for name, value in figures.items():
        print(f"{name:<16}{value:>12,.2f}" if isinstance(value, float) else f"{name:<16}{value:>12,}")


def _export(args: argparse.Namespace) -> None:
    from training.export import export

    manifest = export(args.run, args.to, overwrite=args.replace, data_path=args.data)
    print(f"Wrote {args.to}: {manifest.name} version {manifest.version}")
    print("ONNX Runtime against torch, largest differences:")
    for name, value in manifest.evaluation.items():
        if name.startswith("parity_"):
            print(f"  {name.removeprefix('parity_'):<18}{value:.2g}")


def _train(args: argparse.Namespace, out: Path) -> None:
    config = _resumed(args, out) if args.resume else _new(args)
    if (
        config.data.path
        and Path(config.data.path).is_dir()
        and out.resolve().is_relative_to(Path(config.data.path).resolve())
    ):
        raise ConfigError(f"--out: got {out}, which is among the images of {config.data.path}; wanted it elsewhere")
    from training.fit import fit

    fit(config, out, resume=args.resume)
    print(f"Trained. Next: latentry evaluate {out}; latentry export {out} --to models/NAME/1", file=sys.stderr)


def _new(args: argparse.Namespace) -> Config:
    if args.preset and args.config:
        raise ConfigError(f"got --preset {args.preset} and --config {args.config}, wanted one of the two")
    config = config_file.read(args.config) if args.config else config_file.read_preset(args.preset or "images")
    return config_file.override(config, _overrides(args))


def _resumed(args: argparse.Namespace, out: Path) -> Config:
    overrides = _overrides(args)
    if args.preset or args.config:  # the command that began the run, with --resume added
        overrides = config_file.to_dict(_new(args))
        if not overrides["data"].get("path"):
            overrides["data"].pop("path", None)
    return run.resumed_config(out, overrides)


def _overrides(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    overrides: dict[str, dict[str, Any]] = {"data": {}}
    if args.data is not None:
        overrides["data"]["path"] = _absolute(args.data)
    for flag, (section, key, *_) in _FLAGS.items():
        value = getattr(args, flag.removeprefix("--").replace("-", "_"))
        if value is not None:
            overrides.setdefault(section, {})[key] = value
    return overrides


def _absolute(path: str) -> str:
    """The whole path, so that a run resumes from any folder."""
    if not path or not path.isprintable():
        raise ConfigError(f"--data: got {path!r}, wanted a path of printable characters")
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - `~nosuch` stays as it is


def _outcome(command: Callable[[], None], interrupted: Callable[[], str]) -> int:
    """Run `command`; expected failures and Ctrl-C become one line on stderr and an exit status."""
    try:
        command()
    except TrainingError as error:
        print(f"latentry: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"\n{interrupted()}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _size(text: str) -> tuple[int, int]:
    """`64` or `64x48` (HxW)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"got {text}, wanted N or HxW, as 64 or 64x48")
    return int(sides[0]), int(sides[-1])


# flag: section and key of the config that it overrides, type, metavar, help
_FLAGS: dict[str, tuple[str, str, Callable[[str], Any], str | None, str]] = {
    "--image-size": ("data", "image_size", _size, "HxW", "resize and crop all images to this size (64, or 64x48)"),
    "--channels": ("data", "channels", int, "1|3", "make all images grey (1) or RGB (3); default: as the files are"),
    "--max-bad-share": ("data", "max_bad_share", float, "SHARE", "share of unreadable files to put up with (0.05)"),
    "--model": ("model", "kind", str, "KIND", "conv or dense"),
    "--latent-dim": ("model", "latent_dim", int, "N", "numbers that an image is encoded to"),
    "--likelihood": ("objective", "likelihood", str, "NAME", "gaussian (grey or RGB) or bernoulli (black and white)"),
    "--beta": ("objective", "beta", float, "B", "weight of the KL; 1 is the ELBO proper"),
    "--learning-rate": ("optimiser", "learning_rate", float, "RATE", "AdamW's highest learning rate"),
    "--epochs": ("run", "epochs", int, "N", "times that each image is seen"),
    "--batch-size": ("run", "batch_size", int, "N", "images in a step"),
    "--seed": ("run", "seed", int, "N", "of the weights, the order, the noise and the held-out share"),
    "--device": ("run", "device", str, "NAME", "auto, cpu or cuda"),
    "--precision": ("run", "precision", str, "NAME", "auto, fp32 or bf16; auto is bf16 where the hardware has it"),
}
