"""Which images have which attributes: by a table of the files' names, or by their classes. Knows nothing of models.

A table is CSV: a header, the file's name first, then a column for each attribute with a probability, or 0 and 1.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from latentry.attributes import stem
from training.errors import DataError

_MAX_NAMED = 3
_MOST = 1000  # attributes


@dataclass(frozen=True, slots=True)
class Table:
    """`values` (rows, attributes) in [0, 1] of the files `files`; `path` is where they come from."""

    path: Path
    names: tuple[str, ...]
    files: tuple[str, ...]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Presence:
    """For each image and each attribute of `names`: 1 it has it, 0 it has not, -1 nobody knows; int8 (N, A)."""

    names: tuple[str, ...]
    has: NDArray[np.int8]

    def chosen(self, names: Sequence[str]) -> Presence:
        """Only the attributes `names`; raises `DataError` with the nearest name if there is none such."""
        for name in names:
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(self.names)}"
                raise DataError(f"attribute: got {name}{hint}")
        return Presence(tuple(names), self.has[:, [self.names.index(name) for name in names]])


def read(path: Path) -> Table:
    """The table in `path`. Raises `DataError` with the line that is no row of numbers in [0, 1]."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error
    numbered = [(line, row) for line, row in enumerate(rows, 2) if row]
    if len(header) < 2 or not numbered:
        raise DataError(f"{path}: got {len(header)} columns and {len(rows)} rows, wanted file names and attributes")
    names = tuple(name.strip() for name in header[1:])
    _check_names(path, names)
    values = np.array([_numbers(path, line, row, len(header)) for line, row in numbered])
    files = tuple(row[0] for _, row in numbered)
    _check_unique(path, "file", files)
    return Table(path, names, files, values)


def presence(table: Table, images: Sequence[str], yes: float, no: float, max_missing: float) -> tuple[Presence, str]:
    """What the table says of the images with these names: yes above `yes`, no below `no`, and nothing in between.

    A row names an image by its whole name or, if only one image is called so, by the name without its folders. Also
    returns a line about rows whose file is not there, "" if there are none. Raises `DataError` if no row's file is
    there, or if more than the share `max_missing` are not.
    """
    if not images:
        raise DataError(f"{table.path}: the images have no names to look up; wanted a folder or a .zip of pictures")
    index_of = _index(images)
    rows = [index_of.get(file) for file in table.files]
    missing = [file for file, index in zip(table.files, rows, strict=True) if index is None]
    line = f"{len(missing)} of {len(rows)} files are not among the images: {', '.join(missing[:_MAX_NAMED])}"
    line += ", ..." if len(missing) > _MAX_NAMED else ""
    if len(missing) > max_missing * len(rows) or len(missing) == len(rows):
        raise DataError(f"{table.path}: {line} (--max-missing is {max_missing:g})")
    twice = [file for file, times in Counter(row for row in rows if row is not None).items() if times > 1]
    if twice:
        raise DataError(f"{table.path}: got two rows or more for the image {images[twice[0]]}, wanted one")
    has = np.full((len(images), len(table.names)), -1, np.int8)
    for index, values in zip(rows, table.values, strict=True):
        if index is not None:
            has[index] = np.where(values > yes, 1, np.where(values < no, 0, -1))
    return Presence(table.names, has), f"{table.path}: {line}" if missing else ""


def of_classes(parts: Sequence[NDArray[np.int64]], names: Sequence[str]) -> Presence:
    """Each class as an attribute, which its images have and all others have not; `parts` are labels, one after the
    other. Without names a class is called by its number. Raises `DataError` if the images have no labels."""
    if not parts:
        raise DataError("attributes: got images without labels, wanted --table FILE, or images in a folder each class")
    labels = np.concatenate(parts)
    count = int(labels.max()) + 1
    if count > _MOST:
        raise DataError(f"attributes: got classes up to {count - 1}, wanted at most {_MOST} of them")
    called = tuple(names) if len(names) >= count else tuple(str(label) for label in range(count))
    return Presence(called, (labels[:, np.newaxis] == np.arange(len(called))).astype(np.int8))


def contrasts(classes: Presence, wanted: Sequence[str]) -> Presence:
    """Attributes that some classes have and others have not, each given as `sleeves=Pullover,Coat:T-shirt/top`; of
    images of any other class nobody knows. `classes` is what `of_classes` says. Raises `DataError` with the first that
    is not of this form, or names a class that there is not, or one twice."""
    split = [_contrast(text) for text in wanted]
    names = tuple(name for name, *_ in split)
    _check_names("--classes", names)
    has = np.full((len(classes.has), len(split)), -1, np.int8)
    for column, (_, with_it, without) in enumerate(split):
        _check_unique("--classes", "class", with_it + without)
        for value, those in ((1, with_it), (0, without)):
            has[classes.chosen(those).has.any(1), column] = value
    return Presence(names, has)


def _contrast(text: str) -> tuple[str, list[str], list[str]]:
    """Name, classes with it, classes without."""
    name, _, sides = text.partition("=")
    with_it, without = ([each.strip() for each in side.split(",")] for side in (sides.partition(":")[::2]))
    if not all([name.strip(), *with_it, *without]):
        raise DataError(f"--classes: got {text}, wanted NAME=WITH,...:WITHOUT,... such as shaft=Ankle boot:Sneaker")
    return name.strip(), with_it, without


def _check_names(where: object, names: Sequence[str]) -> None:
    if len(names) > _MOST:
        raise DataError(f"{where}: got {len(names)} attributes, wanted at most {_MOST}")
    for name in names:
        if not name or not name.isprintable() or "|" in name:
            raise DataError(f"{where}: got an attribute named {name!r}, wanted printable characters without |")
    _check_unique(where, "attribute", names)
    _check_unique(where, "attribute, as the manifest's figures spell it,", [stem(name) for name in names])


def _numbers(path: Path, line: int, row: list[str], columns: int) -> list[float]:
    if len(row) != columns:
        raise DataError(f"{path}: line {line}: got {len(row)} columns, wanted {columns}")
    try:
        values = [float(text) for text in row[1:]]
    except ValueError as error:
        raise DataError(f"{path}: line {line}: {error}") from error
    for value in values:
        if not 0 <= value <= 1 or math.isnan(value):
            raise DataError(f"{path}: line {line}: got {value:g}, wanted a probability, 0 to 1")
    return values


def _check_unique(where: object, what: str, names: Sequence[str]) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{where}: got the {what} {name} {count} times, wanted it once")


def _index(images: Sequence[str]) -> dict[str, int]:
    """Where the image of a name is: whole names, and those without folders that are there only once."""
    short = Counter(PurePosixPath(name).name for name in images)
    index_of = {PurePosixPath(name).name: index for index, name in enumerate(images)}
    index_of = {name: index for name, index in index_of.items() if short[name] == 1}
    return index_of | {name: index for index, name in enumerate(images)}
