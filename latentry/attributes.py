"""A named direction in latent space, and how far along it an edit goes. Knows neither manifests nor models.

The manifest has the direction among its `attributes` and what was measured of it among its `evaluation` figures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attribute:
    """`amount` times `direction`, one number per latent, is an edit by 1: it adds the attribute. `limit` is the largest
    edit either way, in the same unit: beyond it latents are farther out than those of images are."""

    direction: tuple[float, ...]
    amount: float
    limit: float


def stem(name: str) -> str:
    """An attribute's name as those of its figures begin: `attribute_high_shaft` for `high shaft`."""
    return "attribute_" + re.sub(r"\W+", "_", name.lower()).strip("_")


def figure_names(name: str) -> tuple[str, str]:
    """What the attribute's amount is called among the evaluation figures, and what its limit is, which is in lengths of
    the direction there, as the amount is."""
    return f"{stem(name)}_amount", f"{stem(name)}_amount_limit"


def measured(name: str, direction: tuple[float, ...], evaluation: Mapping[str, float]) -> Attribute:
    """The attribute with its amount and limit as measured, or both 1 if they were not. The amount must not be 0."""
    amount_name, limit_name = figure_names(name)
    amount = evaluation.get(amount_name, 1.0)
    return Attribute(direction, amount, evaluation.get(limit_name, amount) / amount)
