"""What calls return: arrays, with the way to Pillow images, grids, animations and files. Knows nothing of gRPC."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from latentry import animation as animations
from latentry import whole_file
from latentry.pixels import to_pillow
from latentry.provenance import ModelRef, Provenance

Array = npt.NDArray[Any]
Float32s = npt.NDArray[np.float32]

ENDINGS = (".png", ".gif", ".webp", ".npz")  # of the files that pictures are saved to
ANIMATED = (".gif", ".webp")  # those of them that move


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """q(z|x) of N images: `mean` and `logvar` float32 [N, Z], and `latents` [N, Z], a draw, if a seed was given."""

    mean: Float32s
    logvar: Float32s
    latents: Float32s | None
    seed: int | None
    model: ModelRef
    provenance: Provenance


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Images [N, H, W, C], uint8 or float32 in [0, 1], the `latents` [N, Z] they were decoded from, and the seed."""

    images: Array
    latents: Float32s
    seed: int | None
    model: ModelRef
    provenance: Provenance

    def pillow(self) -> list[Image.Image]:
        """The images as Pillow images, mode L or RGB."""
        return [to_pillow(image) for image in _to_uint8(self.images)]

    def grid(self, columns: int | None = None, *, scale: int = 1) -> Image.Image:
        """The images as one, row by row; see `grid`."""
        return grid(self.images, columns, scale=scale)

    def animation(
        self, kind: Literal["gif", "webp"] = "gif", *, frame_ms: int = animations.DEFAULT_FRAME_MS, scale: int = 1
    ) -> bytes:
        """The images as the frames of one file that repeats for ever, each shown for `frame_ms`, 20 to 10000.

            Path("walk.gif").write_bytes(client.interpolate(["a.png", "b.png"], steps=24).animation(scale=4))

        `scale` enlarges each pixel to a square of that side. Raises `ValueError` for another kind or time.
        """
        return animations.write(_enlarged(self.images, scale), kind, frame_ms)

    def save(
        self,
        path: Path | str,
        *,
        columns: int | None = None,
        scale: int = 1,
        frame_ms: int | None = None,
    ) -> None:
        """Write what the name's ending says, whole or not at all.

        .png is a grid of `columns`, .gif and .webp are animations of `frame_ms` an image (default: 80), .npz has the
        arrays as they are. Raises `ValueError` for another ending, and for what a file of this ending has none of.
        """
        path = Path(path)
        data = self.to_bytes(path.suffix.lower(), columns=columns, scale=scale, frame_ms=frame_ms)
        whole_file.write(path, lambda file: file.write(data))

    def to_bytes(self, ending: str, *, columns: int | None, scale: int, frame_ms: int | None) -> bytes:
        """What `save` writes into a file of this ending, such as ".png"."""
        if columns is not None and ending != ".png":
            raise ValueError(f"columns: got {columns} for {ending}, wanted it for .png only, a grid")
        if frame_ms is not None and ending not in ANIMATED:
            raise ValueError(f"frame_ms: got {frame_ms} for {ending}, wanted it for {' and '.join(ANIMATED)} only")
        if scale != 1 and ending == ".npz":
            raise ValueError(f"scale: got {scale} for .npz, wanted it for pictures only")
        if ending in ANIMATED:
            shown = animations.DEFAULT_FRAME_MS if frame_ms is None else frame_ms
            return self.animation("gif" if ending == ".gif" else "webp", frame_ms=shown, scale=scale)
        buffer = io.BytesIO()
        if ending == ".png":
            self.grid(columns, scale=scale).save(buffer, "PNG")
        elif ending == ".npz":
            arrays: dict[str, Any] = self.arrays()
            np.savez_compressed(buffer, **arrays)
        else:
            raise ValueError(f"ending: got {ending!r}, wanted one of {', '.join(ENDINGS)}")
        return buffer.getvalue()

    def arrays(self) -> dict[str, Array]:
        """What `save` writes into an .npz file."""
        seed = {} if self.seed is None else {"seed": np.array(self.seed, np.uint64)}
        return {"images": self.images, "latents": self.latents, **seed}


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction(Pictures):
    """What came back of N images, and how far from where it was: anomaly scores, float32 [N] each.

    `squared_error` is the mean over pixel values in [0, 1]; `kl` and `elbo` are in nats. Both are None if the density
    of the model's prior is not known, `elbo` also if log p(x|z) is not. Without images (`scores_only`) there are 0 of
    them.
    """

    squared_error: Float32s
    kl: Float32s | None
    elbo: Float32s | None

    def arrays(self) -> dict[str, Array]:
        """What `save` writes into an .npz file."""
        scores = {"squared_error": self.squared_error, "kl": self.kl, "elbo": self.elbo}
        # Not `super()`, which knows the class that `slots` replaced.
        return {**Pictures.arrays(self), **{name: score for name, score in scores.items() if score is not None}}


@dataclass(frozen=True, slots=True, eq=False)
class Edited(Pictures):
    """Images after an edit; `attributes` are the amounts that were applied, cut to the model's limits."""

    attributes: Mapping[str, float]


def grid(images: Array, columns: int | None = None, *, gap: int = 2, scale: int = 1) -> Image.Image:
    """Lay images [N, H, W, C] out in rows of `columns` (default: about square), `gap` white pixels between them.

    `scale` enlarges each pixel to a square of that side. Raises `ValueError` if there are none.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"columns: got {columns}, wanted 1 or more")
    pixels = _enlarged(images, scale)
    if not len(pixels):
        raise ValueError("images: got none, wanted one or more")
    n, height, width, channels = pixels.shape
    across = min(columns or math.ceil(math.sqrt(n)), n)
    down = -(-n // across)
    sheet = np.full((down * (height + gap) - gap, across * (width + gap) - gap, channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // across * (height + gap), i % across * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return to_pillow(sheet)


def _enlarged(images: Array, scale: int) -> npt.NDArray[np.uint8]:
    if scale < 1:
        raise ValueError(f"scale: got {scale}, wanted 1 or more")
    return _to_uint8(images).repeat(scale, axis=1).repeat(scale, axis=2)


def _to_uint8(images: Array) -> npt.NDArray[np.uint8]:
    if images.dtype == np.uint8:
        return images
    rounded: npt.NDArray[np.uint8] = np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    return rounded
