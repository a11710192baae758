"""What one Sample draws: the addresses of its noise, and what is made of it. Knows neither requests nor graphs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.latents import noise

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draw:
    """`count` images of `seed`, from index `first` on. The standard normal numbers are kept within `bound`, if there
    is one, by cutting them there (`clamp`) or as if drawn again, and scaled by `temperature`. `fitted`: they go through
    the model's own prior. `classes` int64 [count] are those of a conditional model.
    """

    seed: int
    first: int
    count: int
    temperature: float
    bound: float | None
    clamp: bool
    fitted: bool
    classes: Int64s | None

    def noise(self, at: int, count: int, dim: int, selectors: int) -> Float32s:
        """The noise of the images `at` to `at + count` of this draw, float32 [count, dim]; the first `selectors` of its
        columns choose among a prior's components, and are left as they come."""
        first = self.first + at
        if self.bound is None:
            made = noise.standard_normals(self.seed, first, count, dim)
        else:
            made = noise.truncated_normals(self.seed, first, count, dim, self.bound, self.clamp)
        scaled: Float32s = np.float32(self.temperature) * made
        if selectors and (self.bound is not None or self.temperature != 1.0):
            scaled[:, :selectors] = noise.standard_normals(self.seed, first, count, dim)[:, :selectors]
        return scaled

    def classes_of(self, at: int, count: int) -> Int64s | None:
        """The classes of those images."""
        return None if self.classes is None else self.classes[at : at + count]


def of_posterior(mean: Float32s, logvar: Float32s, seed: int, first: int, temperature: float) -> Float32s:
    """A draw from each q(z|x), [N, Z]: item k is made of the noise of `seed` at `first + k`."""
    drawn: Float32s = mean + np.float32(temperature) * np.exp(0.5 * logvar) * noise.standard_normals(
        seed, first, *mean.shape
    )
    return drawn
