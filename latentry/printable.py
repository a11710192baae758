"""Text from elsewhere, made fit for a line of a terminal or a log. Knows nothing of where it is from."""

from __future__ import annotations


def plain(text: str, most: int | None = None) -> str:
    r"""The text on one line that moves no cursor: what is not printable is escaped (`\n`, `\x1b`), and what is more
    than `most` characters is cut off. Text that is plain already stays as it is."""
    if most is not None and len(text) > most:
        text = f"{text[:most]}..."
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
