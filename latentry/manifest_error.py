"""What is raised for a model folder that cannot be used."""

from __future__ import annotations

from latentry.printable import plain

_LONGEST = 4000  # characters of a message: names of the manifest are as long as they like


class ManifestError(ValueError):
    """A model folder that cannot be used; the message names the file, what was found and what was wanted, on one line
    that is fit to be printed wherever its parts are from."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message, _LONGEST))


def want(ok: bool, where: str, got: object, wanted: str) -> None:
    """Raise `ManifestError` unless `ok`."""
    if not ok:
        raise ManifestError(f"{where}: got {str(got)[:200]}, wanted {wanted}")
