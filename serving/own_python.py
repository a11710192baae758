"""Another Python that runs this same code: our packages by the files that they are here, and the rest from where this
process has it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np

import latentry
import serving

_BOOT = """\
import sys
latentry, serving, module, count = sys.argv[1:5]
arguments, sys.path[:] = sys.argv[5:5 + int(count)], sys.argv[5 + int(count):]
from importlib import import_module, util
for name, file in (("latentry", latentry), ("serving", serving)):
    spec = util.spec_from_file_location(name, file)
    sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
sys.exit(import_module(module).main(*arguments))
"""


def command(module: str, *arguments: str) -> list[str]:
    """What starts a Python that calls `main(*arguments)` of a module of ours, and exits with what that returns."""
    packages = [str(Path(str(package.__file__)).absolute()) for package in (latentry, serving)]
    return [sys.executable, "-c", _BOOT, *packages, module, str(len(arguments)), *arguments, *_import_path()]


async def end_of(process: subprocess.Popen[bytes]) -> int:
    """Wait for it, for milliseconds once its pipes are closed or it was killed; returns its exit status."""
    while (status := process.poll()) is None:  # noqa: ASYNC110 - nothing tells of it on every system
        await asyncio.sleep(0.005)
    return status


def _import_path() -> list[str]:
    """Where this process imports from, less the working directory, unless the libraries are there.

    `python -m` puts it first; what somebody leaves there later would be run in the library's place.
    """
    libraries = Path(np.__file__).resolve().parent.parent
    paths = [Path(each) for each in sys.path if Path(each).is_absolute()]
    return [str(each) for each in paths if not _is_here(each) or each.resolve() == libraries]


def _is_here(path: Path) -> bool:
    with contextlib.suppress(OSError):  # neither need exist
        return path.samefile(".")
    return False
