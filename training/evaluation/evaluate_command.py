"""The subcommand `evaluate`: its flags, and the exit status of what it runs.

torch is imported only when the command runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentry import manifest as manifests
from latentry.manifest import Manifest
from training import binarise, npz, run
from training.disk import write_atomically
from training.errors import ConfigError, RunError
from training.outcome import outcome

if TYPE_CHECKING:
    from training.evaluation.held_out import Parts
    from training.evaluation.report import Report

    _Subject = tuple[Manifest, Mapping[str, bytes], Parts, dict[str, Any]]

_PARTS = ("test", "validation", "train")
_K, _K_IMAGES = 100, 1000  # of a model folder's bound, where neither is asked for: a minute or so on two cores
_MOST_K = 10_000_000
_EPILOG = """\
examples:
  latentry evaluate models/fashion/1 --data ~/fashion-mnist
  latentry evaluate models/mnist-binary/1 --data ~/mnist --k 5000 --k-images 1000 --record
  latentry evaluate runs/fashion                                  a run, before it is exported; the quick figures

Measures from the ONNX graphs, on images that the model was not trained on: the ELBO and the importance-weighted bound
of log p(x), the latents, reconstructions, samples, linear models with as many latents, and images a second.
"""


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `latentry evaluate`."""
    parser.description = "Measure a model from its graphs, on images that it was not trained on."
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL_FOLDER|RUN", type=Path, help="NAME/VERSION as exported, or a run")
    parser.add_argument("--data", metavar="PATH", help="the images, as for train; a run knows where its own were")
    parser.add_argument("--part", choices=_PARTS, default="test", help="of the images (test); choose on validation")
    parser.add_argument("--images", metavar="N", type=int, help="only the first N images of the part")
    parser.add_argument("--k", metavar="K", type=int, help=f"samples an image of the bound of log p(x) ({_K})")
    parser.add_argument(
        "--k-images",
        metavar="N",
        type=int,
        help=f"the bound on the first N images (all; without --k {_K_IMAGES})",
    )
    parser.add_argument(
        "--binarize",
        choices=binarise.WAYS,
        help="how grey images become binary: one fixed draw (dynamic, for a bernoulli model), or at half grey",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the samples (0); the same give the same")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the graphs run (auto)")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help="no classifier, linear models and speed; bound if --k")
    depth.add_argument("--full", action="store_true", help="for a run: all that a model folder is measured for")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures to this file")
    parser.add_argument("--record", action="store_true", help="also write them into the folder's manifest and card")
    parser.add_argument(
        "--save-images", metavar="NPZ", type=Path, help="also write the images, as they are, to this file"
    )


def run_evaluate(args: argparse.Namespace) -> int:
    """`latentry evaluate`: measure, print, and write what was asked for, all of it at the end."""
    return outcome(lambda: _evaluate(args), lambda: "Stopped; nothing was written.")


def _check(args: argparse.Namespace) -> None:
    for flag, most in (("k", _MOST_K), ("k_images", sys.maxsize), ("images", sys.maxsize)):
        value = getattr(args, flag)
        if value is not None and not 1 <= value <= most:
            raise ConfigError(f"--{flag.replace('_', '-')}: got {value}, wanted a whole number from 1")
    for flag in ("json", "save_images"):  # not to be told after an hour
        path = getattr(args, flag)
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"--{flag.replace('_', '-')}: got {path}, wanted a file in a folder that is there")
    if not 0 <= args.seed < 2**32:
        raise ConfigError(f"--seed: got {args.seed}, wanted 0 to {2**32 - 1}")
    if _is_model(args.model):
        if args.data is None:
            raise ConfigError("--data: got nothing, wanted the images to measure the model on")
    elif not (args.model / run.CONFIG).is_file():
        raise RunError(
            f"{args.model} holds no run: it has no {run.CONFIG}; nor a model: it has no {manifests.MANIFEST_FILE}"
        )
    elif args.record:
        raise ConfigError(f"--record: got the run {args.model}, wanted a model folder: export it first")


def _is_model(path: Path) -> bool:
    return (path / manifests.MANIFEST_FILE).is_file()


def _evaluate(args: argparse.Namespace) -> None:
    _check(args)
    manifest, graphs, parts, about = (_of_folder if _is_model(args.model) else _of_run)(args)
    # figures in a card are taken for those of all test images, so that only these may stand there
    if args.record and (parts.warning or _differs(args)):
        why = parts.warning or ", ".join(_differs(args))
        raise ConfigError(f"--record: got {why}; wanted all test images that the model was published with")
    if args.record:
        from training.evaluation.record import files_in

        files_in(args.model)  # what cannot be published anew is told at once
    if parts.warning:
        print(f"latentry: warning: {parts.warning}", file=sys.stderr)
    _write(args, manifest, _measured(args, manifest, graphs, parts, about), parts)


def _differs(args: argparse.Namespace) -> list[str]:
    """The flags with which figures are not of what those of a card are."""
    usual = {"images": (None,), "part": ("test",), "binarize": (None, "dynamic"), "seed": (0,)}
    return [f"--{name} {getattr(args, name)}" for name, values in usual.items() if getattr(args, name) not in values]


def _of_folder(args: argparse.Namespace) -> _Subject:
    """A model folder, and the images as they were split when it was trained."""
    from training.evaluation import held_out

    folder = manifests.read(args.model)
    about = {"model": f"{folder.manifest.name}/{folder.manifest.version}", "digest": folder.digest}
    parts = held_out.find(folder.manifest, Path(args.data).expanduser(), args.part)
    return folder.manifest, folder.graphs, parts, about


def _of_run(args: argparse.Namespace) -> _Subject:
    """The graphs of a run's newest checkpoint, made in memory."""
    from training import trained
    from training.evaluation import from_run, held_out

    source = trained.load(args.model, args.data)
    manifest, files = from_run.in_memory(source)
    about = {"model": str(args.model), "step": source.step}
    return manifest, files, held_out.of_dataset(source.dataset, args.part), about


def _measured(
    args: argparse.Namespace, manifest: Manifest, files: Mapping[str, bytes], parts: Parts, about: dict[str, Any]
) -> Report:
    from training.evaluation.graphs import Graphs
    from training.evaluation.measure import Options, Subject, measure
    from training.evaluation.report import Report

    quick = args.quick or not (_is_model(args.model) or args.full)
    k, k_images = args.k or (0 if quick and args.k_images is None else _K), args.k_images
    if args.k is None and k_images is None:
        k_images = _K_IMAGES
    options = Options(k, k_images, args.images, args.binarize, args.seed, quick)
    subject = Subject(Graphs(manifest, files, args.device), parts, options)
    about |= {
        "data": f"{parts.name}, {args.part}",
        "images": len(subject.scored),
        "binarize": subject.how or "none",
        "seed": args.seed,
    }
    return Report(about, list(measure(subject)))


def _write(args: argparse.Namespace, manifest: Manifest, report: Report, parts: Parts) -> None:
    print(report.to_text())
    if args.record:
        from training.evaluation.record import record

        record(args.model, manifest, report.about, report.figures())
    if not _is_model(args.model):
        write_atomically(args.model / run.EVALUATION, (report.to_flat_json() + "\n").encode())
    if args.json:
        write_atomically(args.json, (report.to_json() + "\n").encode())
    if args.save_images:
        npz.write(args.save_images, parts.scored.part(0, report.about["images"]))
