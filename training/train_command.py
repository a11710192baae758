"""The subcommand `train`: its flags, and the exit status of what it runs.

torch is imported only when a command runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from training import config_file, launch, run
from training.config import ESTIMATORS, KINDS, LIKELIHOODS, PRIOR_FITS, Config
from training.errors import ConfigError
from training.outcome import outcome

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
    parser.add_argument("--out", metavar="RUN", type=_folder, help="the run's folder (default: runs/PRESET)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN from its last checkpoint")
    parser.add_argument(
        "--preset", metavar="NAME", help=f"a config that comes along: {', '.join(config_file.presets())}"
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="a config of your own, in TOML, as RUN/config.toml is"
    )
    groups = {section.name: parser.add_argument_group(f"[{section.name}]") for section in fields(Config)}
    for flag, (section, _, kind, metavar, text) in _FLAGS.items():
        if kind is _true:
            groups[section].add_argument(flag, action="store_const", const=True, help=text)
        else:
            groups[section].add_argument(flag, type=kind, metavar=metavar, help=text)


def run_train(args: argparse.Namespace) -> int:
    """`latentry train`: fit a model, or go on with one."""
    out = args.out or Path("runs") / (args.preset or "images")
    return launch.within(lambda: outcome(lambda: _train(args, out), lambda: _how_to_go_on(out)))


def _how_to_go_on(out: Path) -> str:
    if not run.has_begun(out):
        return "Stopped before the first step; there is nothing to resume."
    return f"Stopped. To go on: latentry train --out {out} --resume"


def _train(args: argparse.Namespace, out: Path) -> int:
    config = _resumed(args, out) if args.resume else _new(args)
    if (
        config.data.path
        and Path(config.data.path).is_dir()
        and out.resolve().is_relative_to(Path(config.data.path).resolve())
    ):
        raise ConfigError(f"--out: got {out}, which is among the images of {config.data.path}; wanted it elsewhere")
    config = replace(config, run=launch.placed(config.run))
    if launch.needed(config.run):
        return launch.launch([sys.executable, "-m", "latentry", *sys.argv[1:]], config.run)
    from training.fit import fit

    fit(config, out, resume=args.resume)
    if launch.is_first():
        print(f"Trained. Next: latentry evaluate {out}; latentry export {out} --to models/NAME/1", file=sys.stderr)
    return 0


def _new(args: argparse.Namespace) -> Config:
    if args.preset and args.config:
        raise ConfigError(f"got --preset {args.preset} and --config {args.config}, wanted one of the two")
    config = config_file.read(args.config) if args.config else config_file.read_preset(args.preset or "images")
    paths = {key: _absolute(path, f"data.{key}") for key in ("path", "cache") if (path := getattr(config.data, key))}
    return config_file.override(config_file.override(config, {"data": paths}), _overrides(args))


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
        overrides["data"]["path"] = _absolute(args.data, "--data")
    for flag, (section, key, *_) in _FLAGS.items():
        value = getattr(args, flag.removeprefix("--").replace("-", "_"))
        if value is not None:
            overrides.setdefault(section, {})[key] = _absolute(value, flag) if flag == "--cache" else value
    return overrides


def _absolute(path: str, flag: str) -> str:
    """The whole path, so that a run resumes from any folder."""
    if not path or not path.isprintable():
        raise ConfigError(f"{flag}: got {path!r}, wanted a path of printable characters")
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - `~nosuch` stays as it is


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("got nothing, wanted a folder")
    return Path(text)


def _true(_: str) -> bool:
    """Of a flag that takes no value."""
    return True


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
    "--validation": ("data", "validation", int, "N", "set N training images aside, to choose by"),
    "--cache": (
        "data",
        "cache",
        str,
        "DIR",
        "keep decoded pixels on the disk there, for sets larger than memory",
    ),
    "--model": ("model", "kind", str, "KIND", ", ".join(KINDS)),
    "--latent-dim": ("model", "latent_dim", int, "N", "numbers that an image is encoded to"),
    "--conditional": ("model", "conditional", _true, None, "give the model each image's class, to draw a wanted one"),
    "--likelihood": ("objective", "likelihood", str, "NAME", ", ".join(LIKELIHOODS)),
    "--variance": ("objective", "variance", float, "C", "of gaussian-fixed"),
    "--beta": ("objective", "beta", float, "B", "weight of the KL; 1 is the ELBO proper"),
    "--beta-cycles": ("objective", "beta_cycles", int, "N", "let beta rise N times instead of once"),
    "--free-bits": ("objective", "free_bits", float, "NATS", "of each latent that cost nothing"),
    "--estimator": ("objective", "estimator", str, "NAME", ", ".join(ESTIMATORS)),
    "--samples": ("objective", "samples", int, "K", "of the posterior for each image and step"),
    "--perceptual": ("objective", "perceptual", str, "NAME", "laplacian or ms-ssim: a distance that sees blur"),
    "--perceptual-weight": ("objective", "perceptual_weight", float, "W", "of that distance, in nats"),
    "--prior": ("objective", "prior", str, "NAME", "normal, or flow: learnt with the model"),
    "--fit-prior": ("prior", "fit", str, "NAME", "to what was encoded, once trained: " + ", ".join(PRIOR_FITS)),
    "--components": ("prior", "components", int, "N", "of the mixture that is fitted"),
    "--learning-rate": ("optimiser", "learning_rate", float, "RATE", "AdamW's highest learning rate"),
    "--epochs": ("run", "epochs", int, "N", "times that each image is seen"),
    "--batch-size": ("run", "batch_size", int, "N", "images in a step"),
    "--seed": ("run", "seed", int, "N", "of the weights, the order, the noise and the held-out share"),
    "--devices": ("run", "devices", int, "N", "processes on each machine that share each batch"),
    "--nodes": ("run", "nodes", int, "N", "machines; start each with torchrun"),
    "--snapshots": (
        "run",
        "snapshots",
        _true,
        None,
        "keep the weights of a few epochs, for `latentry draw` to animate",
    ),
    "--device": ("run", "device", str, "NAME", "auto, cpu or cuda"),
    "--precision": ("run", "precision", str, "NAME", "auto, fp32 or bf16; auto is bf16 where the hardware has it"),
}
