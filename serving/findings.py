"""What `latentry doctor` says: one line for each thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`ok`; a `warning`, with which serving works; or a `problem`, with which it does not."""

    verdict: Verdict
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<8} {self.what}: {' '.join(self.text.split())}"


def ok(what: str, text: str) -> Finding:
    """All is well with `what`."""
    return Finding("ok", what, text)


def warning(what: str, text: str) -> Finding:
    """Serving works, and `text` is worth knowing."""
    return Finding("warning", what, text)


def problem(what: str, text: str) -> Finding:
    """Serving does not work before `text` is mended."""
    return Finding("problem", what, text)
