"""The subcommand `attributes`: its flags, and the exit status of what it runs.

torch is imported only when the command runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latentry import manifest as manifests
from latentry.manifest import Manifest
from training.attributes import table
from training.errors import ConfigError
from training.outcome import outcome

if TYPE_CHECKING:
    from training.attributes.study import Attribute
    from training.data import Dataset

_FEW = 0.5  # of edits
_EPILOG = """\
examples:
  latentry attributes models/faces/1 --data faces.zip --table attributes.csv --names eyeglasses,smiling
  latentry attributes models/fashion/1 --data ~/fashion-mnist              each class against all others
  latentry attributes models/fashion/1 --data ~/fashion-mnist --classes 'shaft=Ankle boot:Sneaker'

Finds directions in latent space that add an attribute, tests them on images that the model was not trained on, and
writes both into the model folder. A table is CSV: a header, the file's name first, then a column for each attribute
with a probability, or 0 and 1. Of images of classes that --classes does not name nobody knows.
"""


def add_attributes_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `latentry attributes`."""
    parser.description = "Find directions that add attributes, such as eyeglasses, and write them into a model folder."
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL_FOLDER", type=Path, help="NAME/VERSION, as exported")
    parser.add_argument("--data", metavar="PATH", required=True, help="the images that the model was trained on")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--table", metavar="CSV", type=Path, help="who has what; without it the classes are attributes")
    source.add_argument(
        "--classes",
        metavar="NAME=A,B:C",
        action="append",
        help="classes A and B have it and C has not; once for each attribute",
    )
    parser.add_argument("--names", metavar="A,B", help="only these attributes")
    parser.add_argument("--yes", metavar="P", type=float, default=0.9, help="a probability above this is a yes (0.9)")
    parser.add_argument("--no", metavar="P", type=float, default=0.05, help="one below this is a no (0.05)")
    parser.add_argument(
        "--max-missing", metavar="SHARE", type=float, default=0.05, help="share of rows without a file (0.05)"
    )
    parser.add_argument(
        "--linear-only", action="store_true", help="judge by latents alone; no network that looks at the pixels"
    )
    parser.add_argument("--dry-run", action="store_true", help="print, and leave the folder as it is")


def run_attributes(args: argparse.Namespace) -> int:
    """`latentry attributes`: estimate, test, print, and write all of it at the end."""
    return outcome(lambda: _attributes(args), lambda: "Stopped; nothing was written.")


def _attributes(args: argparse.Namespace) -> None:
    if not 0 <= args.no <= args.yes <= 1:
        raise ConfigError(f"--no and --yes: got {args.no:g} and {args.yes:g}, wanted 0 <= no <= yes <= 1")
    if not 0 <= args.max_missing <= 1:
        raise ConfigError(f"--max-missing: got {args.max_missing:g}, wanted a share, 0 to 1")
    folder = manifests.read(args.model)
    from training.attributes import record
    from training.attributes.subject import Subject
    from training.evaluation.graphs import Graphs

    dataset = _images(folder.manifest, args.data)
    graphs = Graphs(folder.manifest, folder.graphs, "auto")
    subject = Subject(graphs, dataset, _presence(args, dataset, folder.manifest))
    found = []
    for name in _names(args) or subject.names:
        found.append(subject.study(name, linear_only=args.linear_only))
        _print(found[-1])
    if not args.dry_run:
        record.record(folder, found)
        print(f"Wrote {len(found)} attributes into {args.model}")


def _images(manifest: Manifest, path: str) -> Dataset:
    """The images, split as when the model was trained."""
    from training import data
    from training.evaluation import held_out

    dataset = held_out.load(manifest, Path(path))
    if dataset.image_shape != tuple(manifest.image_shape):
        shapes = f"got images of shape {list(dataset.image_shape)}, wanted {list(manifest.image_shape)}"
        raise ConfigError(f"--data: {shapes}, as the model takes")
    if manifest.classes:
        data.require_labels(dataset)
    if warning := held_out.others(manifest, dataset):
        print(f"latentry: warning: {warning}", file=sys.stderr)
    return dataset


def _presence(args: argparse.Namespace, dataset: Dataset, manifest: Manifest) -> list[table.Presence]:
    """Who has what, for the images to train on, those set aside, and the test images."""
    from training.attributes.subject import divided

    parts = [part for part in (dataset.train, dataset.validation, dataset.test) if part is not None]
    if args.table is None and manifest.classes:
        raise ConfigError(f"--table: got none; the classes are no attributes of {manifest.name}, which is told them")
    if args.table is None:
        whole = table.of_classes(
            [part.labels for part in parts if part.labels is not None], dataset.labels or manifest.labels
        )
        whole = table.contrasts(whole, args.classes) if args.classes else whole
    else:
        names = [name for part in parts for name in part.names]
        whole, line = table.presence(table.read(args.table), names, args.yes, args.no, args.max_missing)
        if line:
            print(f"latentry: warning: {line}", file=sys.stderr)
    whole.chosen(_names(args))  # a name that is not there is told at once
    return divided(whole, [len(part) for part in parts])


def _names(args: argparse.Namespace) -> list[str]:
    names = [name.strip() for name in (args.names or "").split(",")]
    return list(dict.fromkeys(filter(None, names)))


def _print(attribute: Attribute) -> None:
    print(f"{attribute.name}: difference of {attribute.way}, amount {attribute.amount:g}")
    for name, value in attribute.figures.items():
        print(f"  {name:<28}{value:>10.3f}" if value % 1 else f"  {name:<28}{value:>10.0f}")
    *_, added = (value for name, value in attribute.figures.items() if name.endswith("_added"))
    if added < _FEW:
        print(f"latentry: warning: {attribute.name}: seen in {added:.0%} of edits only: hardly added", file=sys.stderr)
