"""The subcommands that call a running server: arrays into .npz files, pictures into PNG grids."""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from latentry.client import Client, LatentryError
from latentry.connection import add_connection_arguments, credentials_of, token_of
from latentry.pictures import Pictures, grid

_SERVED = "\nNeeds a running server: `latentry serve`."


def add_models_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry models`."""
    parser.description = "List the models of a running server, with their shapes and figures." + _SERVED
    _add_server(parser)


def add_encode_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry encode`."""
    parser.description = (
        "Encode images to the mean and logvar of q(z|x), written as arrays [N, Z] to an .npz file.\n\n"
        "  latentry encode photos/*.jpg --resize crop --out latents.npz" + _SERVED
    )
    parser.add_argument("images", nargs="+", type=Path, help="PNG, JPEG or WebP files")
    parser.add_argument("--seed", type=int, help="also draw latents with this seed")
    _add_resize(parser)
    _add_out(parser, "latents.npz", ".npz")
    _add_server(parser)


def add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry decode`."""
    parser.description = (
        "Decode latents [N, Z] from an .npz file (its `latents`, else its `mean`) or a .npy file.\n\n"
        "  latentry decode latents.npz --out decoded.png" + _SERVED
    )
    parser.add_argument("latents", type=Path, help=".npz or .npy file")
    _add_out(parser, "decoded.png", ".png (a grid) or .npz (arrays)")
    _add_server(parser)


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry sample`."""
    parser.description = (
        "Draw new images. Image k of a seed is always the same.\n\n"
        "  latentry sample --count 64 --seed 7 --out samples.png" + _SERVED
    )
    parser.add_argument("--count", type=int, default=64, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="0 to 2^64 - 1 (default: the server draws one and it is printed)")
    parser.add_argument("--first-index", type=int, default=0, help="k of the first image (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="spread of the latents (default: %(default)s)")
    _add_out(parser, "samples.png", ".png (a grid) or .npz (arrays)")
    _add_server(parser)


def add_interpolate_arguments(parser: argparse.ArgumentParser) -> None:
    """`latentry interpolate`."""
    parser.description = (
        "Walk from image to image (or from latent to latent of one .npz or .npy file) through latent space.\n\n"
        "  latentry interpolate boot.png bag.png --steps 10 --out walk.png" + _SERVED
    )
    parser.add_argument("key_frames", nargs="+", type=Path, help="two or more images, or one .npz or .npy of latents")
    parser.add_argument("--steps", type=int, default=8, help="images from each to the next (default: %(default)s)")
    parser.add_argument("--path", choices=["linear", "spherical"], default="linear", help="(default: %(default)s)")
    _add_resize(parser)
    _add_out(parser, "interpolation.png", ".png (a strip) or .npz (arrays)")
    _add_server(parser)


def run_models(args: argparse.Namespace) -> int:
    """Print a table of models."""

    def call(client: Client) -> None:
        for m in client.models():
            shape, figures = m.image_shape, ", ".join(f"{k} {v:.6g}" for k, v in sorted(m.evaluation.items()))
            print(f"{m.model.name} {m.model.version}  {shape.height}x{shape.width}x{shape.channels}", end="  ")
            print(f"{m.latent_dim} latents  {m.likelihood.name}  {m.provider} {m.precision}  {m.model.digest[:12]}")
            print(f"    at most {m.limits.max_items} items and {m.limits.max_message_bytes} bytes a call")
            if figures:
                print(f"    {figures}")
            if m.version_labels:
                print(f"    called {', '.join(m.version_labels)}")
            for refused in m.refused_versions:
                print(f"    version {refused.version} is refused: {refused.reason}")

    return _run(args, call)


def run_encode(args: argparse.Namespace) -> int:
    """Images to an .npz of mean, logvar and perhaps latents."""

    def call(client: Client) -> None:
        posterior = client.encode(args.images, seed=args.seed, resize=args.resize)
        arrays = {"mean": posterior.mean, "logvar": posterior.logvar}
        if posterior.latents is not None:
            arrays["latents"] = posterior.latents
        _write(args.out, arrays=arrays)

    return _run(args, call)


def run_decode(args: argparse.Namespace) -> int:
    """Latents to a grid or an .npz."""
    return _run(args, lambda client: _write_pictures(args.out, client.decode(_read_latents(args.latents)), None))


def run_sample(args: argparse.Namespace) -> int:
    """New images to a grid or an .npz."""

    def call(client: Client) -> None:
        pictures = client.sample(args.count, seed=args.seed, first_index=args.first_index, temperature=args.temperature)
        print(f"seed {pictures.seed}")
        _write_pictures(args.out, pictures, None)

    return _run(args, call)


def run_interpolate(args: argparse.Namespace) -> int:
    """A walk to a strip or an .npz."""

    def call(client: Client) -> None:
        keys: Any = args.key_frames
        if any(file.suffix in (".npz", ".npy") for file in keys):
            if len(keys) > 1:
                raise ValueError(f"key frames: got {len(keys)} files, wanted images, or one .npz or .npy alone")
            keys = _read_latents(keys[0])
        pictures = client.interpolate(keys, steps=args.steps, path=args.path, resize=args.resize)
        _write_pictures(args.out, pictures, len(pictures.images))

    return _run(args, call)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", help="name of a model (default: the server's default)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, help="of the model (default: the newest)")
    which.add_argument("--label", help="of a version, such as stable")
    add_connection_arguments(parser)


def _add_out(parser: argparse.ArgumentParser, default: str, kinds: str) -> None:
    parser.set_defaults(kinds=kinds)
    parser.add_argument("--out", type=Path, default=Path(default), help=f"{kinds} (default: %(default)s)")


def _add_resize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resize", choices=["crop", "stretch"], help="fit images that are not of the model's size")


def _run(args: argparse.Namespace, call: Callable[[Client], None]) -> int:
    try:
        _check_out(args)
        with Client(
            args.server,
            model=args.model,
            version=args.version,
            label=args.label,
            token=token_of(args),
            tls=credentials_of(args) or False,
            timeout_s=args.timeout_s,
        ) as client:
            call(client)
    except (LatentryError, ValueError, OSError) as error:
        unreachable = isinstance(error, LatentryError) and error.code.name == "UNAVAILABLE"
        asked = f"is `latentry serve` running at {args.server}, and are --tls or --tls-ca as it wants them?"
        hint = f" ({asked})" if unreachable else ""
        print(f"latentry: {error}{hint}", file=sys.stderr)
        return 1
    return 0


def _check_out(args: argparse.Namespace) -> None:
    """Before any work is done for a file that cannot be written."""
    if "out" not in args:
        return
    endings = (".npz",) if args.kinds == ".npz" else (".png", ".npz")
    if args.out.suffix not in endings:
        raise ValueError(f"--out: got {args.out}, wanted a name that ends in {' or '.join(endings)}")
    if not args.out.parent.is_dir():
        raise ValueError(f"--out: got {args.out}, whose folder does not exist")


def _read_latents(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"latents": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: got no whole .npz or .npy file, wanted one with latents") from error
    for name in ("latents", "mean"):
        if name in arrays:
            if arrays[name].dtype.kind not in "fiu":
                raise ValueError(f"{path}: got {name} of type {arrays[name].dtype}, wanted numbers")
            return np.asarray(arrays[name])
    raise ValueError(f"{path}: got arrays {', '.join(arrays) or 'none'}, wanted `latents` or `mean`")


def _write_pictures(out: Path, pictures: Pictures, columns: int | None) -> None:
    if out.suffix == ".npz":
        seed = {} if pictures.seed is None else {"seed": np.uint64(pictures.seed)}
        _write(out, arrays={"images": pictures.images, "latents": pictures.latents, **seed})
    else:
        sheet = grid(pictures.images, columns, scale=max(1, 64 // pictures.images.shape[1]))
        _write(out, save=lambda file: sheet.save(file, "PNG"))


def _write(
    out: Path, *, arrays: Mapping[str, Any] | None = None, save: Callable[[IO[bytes]], None] | None = None
) -> None:
    """Write beside `out`, then rename: it is whole or as it was."""
    with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
        try:
            save(file) if save is not None else np.savez_compressed(file, **(arrays or {}))
            file.flush()
            Path(file.name).chmod(0o644)
            Path(file.name).replace(out)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    print(f"wrote {out}")
