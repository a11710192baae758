"""What `latentry verify` finds: one row for each thing that was tried, and the checks that need neither graphs run nor
torch. A check that fails does not keep the others from being made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from latentry import manifest as manifests
from latentry import onnx_file
from latentry.manifest import ManifestError, ModelFolder
from latentry.printable import plain

Verdict = Literal["ok", "FAILED", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was tried, on what, and what came of it: a figure, the failure's reason, or why it was not tried."""

    check: str
    what: str
    verdict: Verdict
    note: str = ""


class Skipped(ValueError):
    """Raised by a check that cannot be made here; the message says why."""


def attempt(check: str, what: str, work: Callable[[], str | None], *expected: type[Exception]) -> Check:
    """Do the work: what it returns is the note; a `ValueError`, an `OSError` or one of the `expected` that it raises is
    the failure's reason, on one line."""
    failures: tuple[type[Exception], ...] = (ValueError, OSError, *expected)
    try:
        return Check(check, what, "ok", work() or "")
    except Skipped as error:
        return Check(check, what, "skipped", _line(error))
    except failures as error:
        return Check(check, what, "FAILED", _line(error) or type(error).__name__)


def read(folder: Path) -> tuple[list[Check], ModelFolder | None]:
    """The folder, read as loading reads it. One that loading refuses comes as what of it can be read all the same, so
    that its graphs can be looked at; None if not even its manifest can.
    """
    try:
        whole = manifests.read(folder)
        note = f"{len(whole.manifest.files)} files are what the manifest says; digest {whole.digest[:12]}"
        return [Check("files", str(folder), "ok", note)], whole
    except ManifestError as error:
        failed = Check("files", str(folder), "FAILED", _line(error))
    try:
        return [failed], _what_is_there(folder.absolute())
    except (ManifestError, OSError):
        return [failed], None


def of_files(folder: ModelFolder) -> Iterator[Check]:
    """Every graph of the manifest as `onnx_file` sees it."""
    for file in sorted(file for file in folder.manifest.files if file.endswith(".onnx")):
        if file in folder.graphs:
            yield attempt("ONNX", file, partial(onnx_file.check, folder.graphs[file], file))
        else:
            yield Check("ONNX", file, "skipped", "it cannot be read")


def without_failed(folder: ModelFolder, checks: Iterable[Check]) -> ModelFolder:
    """The folder without the graphs that `of_files` found unfit to be loaded."""
    failed = {each.what for each in checks if each.verdict == "FAILED"}
    return replace(folder, graphs={file: data for file, data in folder.graphs.items() if file not in failed})


def _line(error: Exception) -> str:
    return plain(" ".join(str(error).split()))


def _what_is_there(folder: Path) -> ModelFolder:
    """Whatever the digests say: the manifest, and the graphs that are plain files of a size that graphs may have."""
    text = _bytes(folder / manifests.MANIFEST_FILE, manifests.MAX_MANIFEST_BYTES)
    about = manifests.parse(text or b"")
    graphs = {}
    for file in about.files:
        data = _bytes(folder / file, manifests.MAX_FILE_BYTES) if file.endswith(".onnx") else None
        if data is not None:
            graphs[file] = data
    return ModelFolder(folder, about, manifests.sha256(text or b""), graphs)


def _bytes(path: Path, most: int) -> bytes | None:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > most:
        return None
    return path.read_bytes()
