"""The subcommand `export`: its flags, and the exit status of what it runs.

torch is imported only when the command runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from latentry import manifest as manifests
from latentry.manifest import Manifest, ManifestError, ModelFolder
from training.errors import ConfigError
from training.outcome import outcome

_EXPORT_EPILOG = """\
examples:
  latentry export runs/fashion --to models/fashion/1
  latentry export runs/fashion --to models/fashion/2 --precision int8 --precision fp16
  latentry export models/fashion/1 --to triton/fashion/1 --format triton

Writes encoder.onnx, decoder.onnx, manifest.json, a model card and a preview, once ONNX Runtime agrees with torch on
held-out images; otherwise nothing. Each --precision adds the two graphs again: int8 is for CPUs (decoders about twice
as fast, calibrated on training images), fp16 for GPUs, bf16 halves the files. Each is measured against fp32 and refused
if it is too far from it; `latentry serve --precision` chooses.

--format triton writes a repository for NVIDIA's Triton Inference Server instead: triton/fashion_encoder/1, ...
"""
_MAX_BATCH_SIZE = 64


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `latentry export`."""
    parser.description = "Export a trained model as a model folder that `latentry serve` serves, or for Triton."
    parser.epilog = _EXPORT_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        help="the folder that `latentry train --out` wrote; for Triton also a model folder",
    )
    parser.add_argument("--data", metavar="PATH", help="where the run's images are now, if they have moved")
    parser.add_argument("--to", metavar="NAME/VERSION", type=Path, required=True, help="as in models/fashion/1")
    parser.add_argument("--replace", action="store_true", help="replace the version if it exists")
    parser.add_argument(
        "--precision",
        action="append",
        choices=manifests.PRECISIONS,
        default=[],
        help="add a precision to fp32, which is always there; may be given several times. For Triton: the one to write",
    )
    parser.add_argument("--format", choices=("folder", "triton"), default="folder", help="default: folder")
    parser.add_argument(
        "--max-batch-size",
        metavar="N",
        type=int,
        help=f"for Triton: the most images of one batch (default: {_MAX_BATCH_SIZE})",
    )


def run_export(args: argparse.Namespace) -> int:
    """`latentry export`: write a model folder, or a Triton repository."""
    return outcome(lambda: _export(args), lambda: "Stopped; nothing was published.")


def _export(args: argparse.Namespace) -> None:
    if args.format == "triton":
        _to_triton(args)
        return
    if args.max_batch_size is not None:
        raise ConfigError("--max-batch-size: wanted only with --format triton")
    if _is_model_folder(args.run):
        raise ConfigError(f"{args.run}: got a model folder, wanted a run (or --format triton)")
    from training.export import export

    manifest = export(args.run, args.to, overwrite=args.replace, data_path=args.data, precisions=_others(args))
    print(f"Wrote {args.to}: {manifest.name} version {manifest.version}")
    _print_measured(manifest)


def _print_measured(manifest: Manifest) -> None:
    print("ONNX Runtime against torch, largest differences:")
    for name, value in manifest.evaluation.items():
        if name.startswith("parity_"):
            print(f"  {name.removeprefix('parity_'):<18}{value:.2g}")
    for precision, figures in manifest.variants.items():
        lost, alike = figures["psnr_db_lost"], figures["psnr_db"]
        print(f"{precision} against fp32: reconstructions lose {lost:.3f} dB; decoded images alike to {alike:.1f} dB")


def _to_triton(args: argparse.Namespace) -> None:
    from training import triton_repository

    to = args.to.absolute()
    precisions = args.precision or [manifests.FP32]
    if len(precisions) > 1:
        raise ConfigError(f"--precision: got {' and '.join(precisions)}, wanted one for Triton")
    try:
        name, version = manifests.check_name(to.parent.name), manifests.parse_version(to.name)
    except ManifestError as error:
        raise ConfigError(f"--to: wanted a path that ends in NAME/VERSION: {error}") from error
    models = triton_repository.export(
        _folder(args, name, version),
        to.parent.parent,
        precision=precisions[0],
        max_batch_size=_MAX_BATCH_SIZE if args.max_batch_size is None else args.max_batch_size,
        overwrite=args.replace,
    )
    print(f"Wrote to {args.to.parent.parent}, for tritonserver --model-repository: {', '.join(models)}")


def _folder(args: argparse.Namespace, name: str, version: int) -> ModelFolder:
    """What is to be exported: a model folder as it is, under another name perhaps, or one made of a run in memory."""
    if _is_model_folder(args.run):
        if args.data is not None:
            raise ConfigError("--data: wanted only for a run; a model folder's graphs are written as they are")
        folder = manifests.read(args.run)
        return replace(folder, manifest=replace(folder.manifest, name=name, version=version))
    from training import export, trained

    manifest, files = export.build(trained.load(args.run, args.data), name, version, _others(args))
    graphs = {file: data for file, data in files.items() if file.endswith(".onnx")}
    return ModelFolder(args.to, manifest, manifests.sha256(files[manifests.MANIFEST_FILE]), graphs)


def _is_model_folder(path: Path) -> bool:
    return (path / manifests.MANIFEST_FILE).is_file()


def _others(args: argparse.Namespace) -> list[str]:
    """The precisions beside fp32, each once."""
    return [precision for precision in manifests.PRECISIONS[1:] if precision in args.precision]
