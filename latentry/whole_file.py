"""Files that are whole or not there: what a stopped program leaves behind is what was there before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write(path: Path, save: Callable[[IO[bytes]], object]) -> None:
    """Let `save` write a file beside `path`, then give it that name. Raises what `save` raises, and `OSError`."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            save(file)
            file.flush()
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
