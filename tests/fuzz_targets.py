"""What strangers' bytes reach first, each as a function that atheris can drive: the codec and the manifest reader.

    python tests/fuzz_targets.py TARGET[,TARGET ...] [-runs=N] [-max_total_time=SECONDS] [any other flag of libFuzzer]

A target may return or meet the one documented refusal; whatever else it raises is a finding. Without atheris the
targets are plain functions of bytes, which is how tests call them with what was found.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

_MEASURED = ["serving.api.codec", "latentry.manifest", "latentry.pixels", "PIL"]  # where new branches are looked for


def _instrumented() -> contextlib.AbstractContextManager[Any]:
    if __name__ != "__main__":
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=_MEASURED)


with _instrumented():
    import numpy as np
    from google.protobuf.message import DecodeError
    from PIL import Image

    from latentry import manifest
    from latentry.v1 import vae_pb2 as pb
    from serving.api import codec
    from serving.errors import InvalidArgument

GREY, COLOUR = (12, 10, 1), (6, 8, 3)
_ITEMS = 8
_LATENT_DIM = 5
_GRAPHS = {manifest.ENCODER_FILE: b"an encoder", manifest.DECODER_FILE: b"a decoder"}


# ---- targets ----


def tensor(data: bytes) -> None:
    """`codec.read_tensor`: the array has the shape that was declared, or the message is refused."""
    message = _parsed(pb.Tensor, data)
    if message is not None:
        with contextlib.suppress(InvalidArgument):
            array = codec.read_tensor(message, "tensor", "any")
            assert array.shape == tuple(message.shape)
            assert array.tobytes() == message.data


def latents(data: bytes) -> None:
    """`codec.read_latents`: at most so many, finite, of the model's width, or refused."""
    message = _parsed(pb.Tensor, data)
    if message is not None:
        with contextlib.suppress(InvalidArgument):
            z = codec.read_latents(message, _LATENT_DIM, _ITEMS)
            assert z.dtype == np.float32
            assert np.isfinite(z).all()
            assert 1 <= len(z) <= _ITEMS
            assert z.shape[1:] == (_LATENT_DIM,)


def images(data: bytes) -> None:
    """`codec.read_images`: uint8 images of the model's shape, or refused. The first byte says which and how resized."""
    message = _parsed(pb.Images, data[1:])
    if message is not None:
        how = data[0] if data else 0
        shape, resize = (GREY, COLOUR)[how & 1], how >> 1 & 3
        with contextlib.suppress(InvalidArgument):
            pixels = codec.read_images(message, shape, _ITEMS, resize)
            assert pixels.dtype == np.uint8
            assert 1 <= len(pixels) <= _ITEMS
            assert pixels.shape[1:] == shape


def parse(data: bytes) -> None:
    """`manifest.parse`: a manifest whose own text says the same, or refused."""
    with contextlib.suppress(manifest.ManifestError):
        about = manifest.parse(data)
        assert manifest.parse(about.to_json()) == about


def folder(data: bytes) -> None:
    """`manifest.read`: only bytes that the manifest vouches for, or refused. The first byte spoils the folder."""
    with tempfile.TemporaryDirectory() as place, contextlib.suppress(manifest.ManifestError):
        path = Path(place, "linear", "1")
        path.mkdir(parents=True)
        for name, graph in _GRAPHS.items():
            (path / name).write_bytes(graph)
        (path / manifest.MANIFEST_FILE).write_bytes(data[1:])
        _spoil(path, data[0] if data else 0)
        whole = manifest.read(path)
        assert (whole.manifest.name, whole.manifest.version) == ("linear", 1)
        assert whole.graphs == _GRAPHS


TARGETS: dict[str, Callable[[bytes], None]] = {each.__name__: each for each in (tensor, latents, images, parse, folder)}


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:  # the interceptor's business
        return None


def _spoil(path: Path, how: int) -> None:
    encoder = path / manifest.ENCODER_FILE
    if how == 1:
        encoder.unlink()
    elif how == 2:
        encoder.rename(path.parent.parent / "outside")
        encoder.symlink_to("../../outside")
    elif how == 3:
        encoder.unlink()
        encoder.symlink_to(encoder.name)
    elif how == 4:
        encoder.unlink()
        encoder.mkdir()


# ---- seeds ----


def seeds(target: str) -> list[bytes]:
    """Real messages and manifests for a target to begin with."""
    if target == "parse":
        return [text.encode() for text in _manifests()]
    if target == "folder":
        return [bytes([how]) + text.encode() for text in _manifests() for how in range(5)]
    if target == "images":
        return [bytes([how]) + each.SerializeToString() for each in _images() for how in range(6)]
    return [each.SerializeToString() for each in _tensors()]


def _tensors() -> Iterator[pb.Tensor]:
    yield codec.write_tensor(np.linspace(-3, 3, 10, dtype=np.float32).reshape(2, _LATENT_DIM))
    yield codec.write_tensor(np.array([[np.nan] * _LATENT_DIM], np.float32))
    yield pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[2**62, 2**62], data=b"1234")
    for shape in (GREY, COLOUR):
        yield codec.write_tensor(np.zeros((2, *shape), np.uint8))
        yield codec.write_tensor(np.full((1, *shape), 0.5, np.float32))


def _images() -> Iterator[pb.Images]:
    for each in _tensors():
        yield pb.Images(tensor=each)
    for mode in ("L", "RGB", "RGBA", "P", "LA", "I;16", "1"):
        yield pb.Images(encoded=pb.EncodedImages(images=[_file(mode, "PNG")]))
    for kind in ("JPEG", "WEBP"):
        yield pb.Images(encoded=pb.EncodedImages(images=[_file("RGB", kind)] * 2))
    animation = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(animation, "PNG", save_all=True, append_images=frames[1:])
    yield pb.Images(encoded=pb.EncodedImages(images=[animation.getvalue()]))


def _file(mode: str, kind: str) -> bytes:
    image = Image.new(mode, (10, 12))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turned
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def _manifests() -> Iterator[str]:
    files = {name: manifest.sha256(graph) for name, graph in _GRAPHS.items()}
    likelihood = manifest.Likelihood("gaussian", {"sigma": 0.1})
    yield manifest.Manifest("linear", 1, GREY, 2, likelihood, files).to_json()
    yield manifest.Manifest(
        "linear",
        1,
        COLOUR,
        2,
        likelihood,
        files,
        provenance={"data": {"name": "digits", "count": 60000, "split": ["train", None, True]}},
        evaluation={"elbo": -1.5},
        aggregate_posterior=manifest.AggregatePosterior((0.0, 0.1), (1.0, 0.9)),
        attributes={"smile": (1.0, -1.0)},
        labels=("zero", "one"),
    ).to_json()


# ---- atheris ----

_ODD = [
    None,
    True,
    0,
    -1,
    1,
    2**63,
    10**400,
    1e308,
    0.5,
    "",
    "x" * 70,
    "\ud800",
    "\0",
    "..",
    [],
    [0],
    [[]],
    {},
    {"": 0},
]
_ODD_SIDES = [0, 1, 2, 5, 10, 12, -1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)]


def _mutate_json(data: bytes, max_size: int, seed: int) -> bytes:
    """Put something odd in one place of a JSON text, which blind changes seldom do; every other time change blindly."""
    import atheris

    rng = random.Random(seed)  # noqa: S311 - no secrets here
    start = data.find(b"{")
    try:
        tree = json.loads(data[start:]) if rng.random() < 0.5 else None
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict) or not tree:
        return bytes(atheris.Mutate(data, max_size))
    at: Any = tree
    while True:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.3:
            break
        at = at[key]
    at[key] = rng.choice(_ODD)
    return (data[:start] + json.dumps(tree).encode())[:max_size]


def _mutate_tensor(data: bytes, max_size: int, seed: int) -> bytes:
    """Change one field of a tensor, or all bytes to what the shape asks for; every fourth time change blindly."""
    import atheris

    rng = random.Random(seed)  # noqa: S311 - no secrets here
    message = _parsed(pb.Tensor, data)
    what = rng.randrange(4)
    if message is None or what == 0:
        return bytes(atheris.Mutate(data, max_size))
    if what == 1:
        message.dtype = rng.randrange(4)
        message.shape[:] = [rng.choice(_ODD_SIDES) for _ in range(rng.randrange(10))]
    elif what == 2:
        message.data = bytes(atheris.Mutate(message.data, max_size))
    else:
        message.shape[:] = [rng.randrange(1, 13) for _ in range(rng.randrange(5))]
        wanted = int(np.prod(message.shape)) * (4 if message.dtype == pb.DATA_TYPE_FLOAT32 else 1)
        message.data = rng.randbytes(wanted) if wanted < max_size else b""
    return bytes(message.SerializeToString())[:max_size]


_MUTATORS = {"parse": _mutate_json, "folder": _mutate_json, "tensor": _mutate_tensor, "latents": _mutate_tensor}


def main() -> None:
    """Fuzz the targets that the command line names, one after another, each in a process of its own: libFuzzer ends
    the one that it runs in. All of them begin where this one is, which has spent seconds on instrumenting the code.
    """
    names, flags = sys.argv[1:2], sys.argv[2:]
    names = names and names[0].split(",")
    if not names or not {*names} <= TARGETS.keys():
        sys.exit(f"{__doc__}\nTARGET is one of {', '.join(TARGETS)}.")
    for name in names:
        child = os.fork()
        if not child:
            _fuzz(name, flags)
        if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"{name}: exit status {status}")


def _fuzz(name: str, flags: list[str]) -> NoReturn:
    import atheris

    mutator = {"custom_mutator": _MUTATORS[name]} if name in _MUTATORS else {}
    with tempfile.TemporaryDirectory() as corpus:
        for i, seed in enumerate(seeds(name)):
            Path(corpus, str(i)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *flags, "-timeout=20", "-rss_limit_mb=2048", corpus], TARGETS[name], **mutator)
        atheris.Fuzz()
    raise AssertionError("libFuzzer has come back")


if __name__ == "__main__":
    main()
