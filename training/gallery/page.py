"""docs/gallery.md: the template `page.md` with the measured figures in it. No figure of the page is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from training.errors import RunError
from training.gallery.workshop import Number

NUMBERS = "numbers.json"
_TEMPLATE = Path(__file__).parent / "page.md"
_DIGITS = 6  # significant ones that are kept


def to_json(numbers: Mapping[str, Number]) -> str:
    """The text of numbers.json."""
    kept = {key: value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}") for key, value in numbers.items()}
    return json.dumps(kept, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_numbers(folder: Path) -> dict[str, Number]:
    """The figures of the last time; none if there was none. Raises `RunError` if the file is damaged."""
    path = folder / NUMBERS
    try:
        found: dict[str, Number] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    return found


def render(numbers: Mapping[str, Number]) -> str:
    """The page with these figures. Raises `RunError` naming a figure that the page wants and that is not there."""
    try:
        return _TEMPLATE.read_text(encoding="utf-8").format_map(numbers)
    except KeyError as error:
        raise RunError(f"gallery: no figure {error.args[0]}: run the gallery once with all its chapters") from error
