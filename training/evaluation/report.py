"""Figures in sections, as a table for people and as JSON for programs. Knows nothing of where they come from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ERROR = "_standard_error"


@dataclass(frozen=True, slots=True)
class Section:
    """`figures` by name; `NAME_standard_error` belongs to `NAME`. `lists` are figures for each latent, only in the
    JSON. `notes` are sentences that come below the figures."""

    title: str
    figures: Mapping[str, float] = field(default_factory=dict)
    lists: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """`about` says what was scored on what, by name."""

    about: Mapping[str, Any]
    sections: Sequence[Section]

    def figures(self) -> dict[str, float]:
        """All figures of all sections that are finite numbers."""
        found = {name: value for section in self.sections for name, value in section.figures.items()}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def to_json(self) -> str:
        """The figures in full, with the lists."""
        lists = {name: list(values) for section in self.sections for name, values in section.lists.items()}
        return json.dumps({"about": self.about, "figures": self.figures(), "lists": lists}, indent=2, allow_nan=False)

    def to_flat_json(self) -> str:
        """What was scored and its figures on one level, as a run keeps them."""
        return json.dumps({**self.about, **self.figures()}, indent=2, allow_nan=False)

    def to_text(self) -> str:
        """A table of a section each."""
        lines = [f"{name:<12}{value}" for name, value in self.about.items()]
        for section in self.sections:
            lines += ["", section.title, *rows(section.figures), *(f"  {note}" for note in section.notes)]
        return "\n".join(lines)


def rows(figures: Mapping[str, float]) -> Iterator[str]:
    """One line for each figure that is no standard error."""
    for name, value in figures.items():
        if not name.endswith(ERROR):
            yield f"  {name:<36}{number(value):>14}{_plus_minus(figures.get(name + ERROR))}"


def number(value: float) -> str:
    """Two decimals, four digits of small numbers, none of whole ones."""
    if not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.4g}"


def _plus_minus(error: float | None) -> str:
    return "" if error is None or not math.isfinite(error) else f" ± {error:.2g}"
