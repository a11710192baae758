"""What lies around one latent: a grid on a plane through it, a random walk from it. Pure numpy; knows no requests.

Directions that a seed draws are made of its noise, the same that Sample decodes: a grid's of the vectors 0 and 1, the
step to a walk's item k of vector k. They, and the results, have the same bits on every machine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.latents.elementary import Float64s, dot
from serving.latents.noise import standard_normals

Float32s = npt.NDArray[np.float32]

_PARALLEL = 1e-6  # sine of the angle that float32 numbers cannot tell from none


class NoPlane(ValueError):
    """There is no plane for a grid: `field` of the grid, what was `got`, what is `wanted`."""

    def __init__(self, field: str, got: str, wanted: str) -> None:
        super().__init__(f"{field}: got {got}, wanted {wanted}")
        self.field, self.got, self.wanted = field, got, wanted


def grid(
    base: Float32s, rows: int, columns: int, spacing: float, seed: int, directions: Float32s | None = None
) -> Float32s:
    """Points around `base` [Z], row by row: float32 [rows * columns, Z].

    Neighbours are `spacing` apart, columns along the first of `directions` [2, Z] and rows along the second, after both
    were made orthogonal (the first keeps its way) and of length 1; None: `seed` draws them. `base` is in the middle: a
    point of it, unchanged, if rows and columns are odd. Raises `NoPlane` if a direction is zero or both are parallel,
    or if a single latent, which only has a line, is to have more than one row and more than one column.
    """
    if len(base) == 1 and rows > 1 and columns > 1:
        raise NoPlane("rows", f"{rows} rows of {columns} for one latent", "1 row or 1 column")
    if directions is None:
        down, along = _orthonormal(standard_normals(seed, 0, 2, len(base)), 0.0)
    else:
        down, along = _orthonormal(directions, _PARALLEL)
    y = (np.arange(rows) - (rows - 1) / 2.0)[:, None, None] * spacing
    x = (np.arange(columns) - (columns - 1) / 2.0)[None, :, None] * spacing
    points = (base.astype(np.float64) + (y * down + x * along)).astype(np.float32)
    if rows % 2 and columns % 2:
        points[rows // 2, columns // 2] = base
    return points.reshape(rows * columns, len(base))


def random_walk(base: Float32s, count: int, step: float, seed: int) -> Float32s:
    """`count` points, float32 [count, Z]: `base` [Z] unchanged, then each a `step` from the one before, in a direction
    that is as likely as any other. A longer walk begins with the shorter one.
    """
    ways = standard_normals(seed, 1, count - 1, len(base)).astype(np.float64)
    lengths = np.sqrt(dot(ways, ways))[:, None]
    ways *= step / np.maximum(lengths, np.finfo(np.float64).tiny)  # one number may be drawn 0: such a step is none
    walk = np.cumsum(np.concatenate([base[None].astype(np.float64), ways]), axis=0)
    return walk.astype(np.float32)


def _orthonormal(directions: Float32s, parallel: float) -> tuple[Float64s, Float64s]:
    """Gram and Schmidt's. A second direction that is parallel to the first by its sine raises `NoPlane`."""
    first, second = directions.astype(np.float64)
    wanted = "two directions that are neither zero nor parallel"
    lengths = np.sqrt(dot(first, first)), np.sqrt(dot(second, second))
    for name, length in zip(("first", "second"), lengths, strict=True):
        if length == 0.0:
            raise NoPlane("directions", f"a {name} direction of zero", wanted)
    first, second = first / lengths[0], second / lengths[1]
    if len(first) == 1:  # nothing is orthogonal to it; one of the two is not used
        return first, second
    for _ in range(2):  # the second time takes away what rounding left
        second = second - dot(second, first) * first
        sine = np.sqrt(dot(second, second))
        if sine <= parallel:
            raise NoPlane("directions", "parallel directions", wanted)
        second = second / sine
    return first, second
