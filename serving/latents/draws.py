"""What one Sample draws: the addresses of its noise, and what is made of it. Knows neither requests nor graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.latents import noise

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """`count` vectors of the noise of `seed`, from index `first` on."""

    seed: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Draw:
    """The images of `spans`, in order. The standard normal numbers are kept within `bound`, if there is one, by cutting
    them there (`clamp`) or as if drawn again, and scaled by `temperature`. `fitted`: they go through the model's own
    prior. `classes` int64 [count] are those of a conditional model.
    """

    spans: Sequence[Span]
    temperature: float
    bound: float | None
    clamp: bool
    fitted: bool
    classes: Int64s | None

    @property
    def count(self) -> int:
        """Images in all."""
        return sum(span.count for span in self.spans)

    @property
    def seed(self) -> int:
        """That of the first image."""
        return self.spans[0].seed

    @property
    def first(self) -> int:
        """The index of the first image in its seed's sequence."""
        return self.spans[0].first

    def noise(self, at: int, count: int, dim: int, selectors: int) -> Float32s:
        """The noise of the images `at` to `at + count` of this draw, float32 [count, dim]; the first `selectors` of its
        columns choose among a prior's components, and are left as they come."""
        u = _uniforms(_part(self.spans, at, count), dim)
        made = noise.standard(u) if self.bound is None else noise.truncated(u, self.bound, self.clamp)
        scaled: Float32s = np.float32(self.temperature) * made
        if selectors and (self.bound is not None or self.temperature != 1.0):
            scaled[:, :selectors] = noise.standard(u[:, :selectors])
        return scaled

    def classes_of(self, at: int, count: int) -> Int64s | None:
        """The classes of those images."""
        return None if self.classes is None else self.classes[at : at + count]


def of_posterior(mean: Float32s, logvar: Float32s, spans: Sequence[Span], temperature: float) -> Float32s:
    """A draw from each q(z|x), [N, Z]: item k is made of vector k of the noise of `spans`, which have N in all."""
    made = noise.standard(_uniforms(spans, mean.shape[1]))
    drawn: Float32s = mean + np.float32(temperature) * np.exp(0.5 * logvar) * made
    return drawn


def _uniforms(spans: Sequence[Span], dim: int) -> Float64s:
    """What the noise of the spans is made of, one after the other."""
    each = [noise.uniforms(span.seed, span.first, span.count, dim) for span in spans]
    return each[0] if len(each) == 1 else np.concatenate(each)


def _part(spans: Sequence[Span], at: int, count: int) -> list[Span]:
    """The vectors `at` to `at + count` of all."""
    part = []
    for span in spans:
        start, stop = max(at, 0), min(at + count, span.count)
        if start < stop:
            part.append(Span(span.seed, span.first + start, stop - start))
        at -= span.count
    return part
