"""The README's five commands, from photographs to an animated walk between two of them, as they are typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from server_process import free_ports

PHOTOS = 16
# What somebody who types does by themselves: the server is up before the next line is complete.
_WAIT = "until latentry health --server localhost:$LATENTRY_PORT; do sleep 0.2; done 2>/dev/null"


def commands() -> list[str]:
    """The lines of the block that ends in a GIF, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M)
    (block,) = [each for each in blocks if each.startswith("make install")]
    return [line.partition("#")[0].strip() for line in block.splitlines()]


@pytest.fixture
def my_photos(tmp_path: Path, fashion_images: np.ndarray[Any, Any]) -> Path:
    """A folder of faces, JPEG, if there are any; else of clothes, which are JPEG too then."""
    folder = tmp_path / "my_photos"
    folder.mkdir()
    faces = Path(os.environ.get("LATENTRY_DATA", "")) / "lfw64" / "images.zip"
    if "LATENTRY_DATA" in os.environ:
        with zipfile.ZipFile(faces) as file:
            for name in [name for name in file.namelist() if name.endswith(".jpg")][:PHOTOS]:
                (folder / Path(name).name).write_bytes(file.read(name))
    else:
        for at, image in enumerate(fashion_images[:PHOTOS]):
            Image.fromarray(image[:, :, 0]).resize((64, 64)).save(folder / f"{at}.jpg")
    one, other, *_ = sorted(folder.iterdir())
    one.rename(folder / "one.jpg")
    other.rename(folder / "other.jpg")
    return folder


def test_five_commands_lead_from_photographs_to_a_walk_between_two_of_them(tmp_path: Path, my_photos: Path) -> None:
    install, train, export, serve, interpolate = commands()
    assert install == "make install && . .venv/bin/activate"
    assert re.search(r"^install:", (ROOT / "Makefile").read_text(), re.M)
    port, metrics_port = free_ports(2)
    where = {"LATENTRY_PORT": str(port), "LATENTRY_METRICS_PORT": str(metrics_port)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    typed: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, **where, "PATH": path}}
    for line in (train, export):
        subprocess.run(["/bin/bash", "-c", line], check=True, timeout=200, **typed)
    assert serve.endswith(" &")
    log = tmp_path / "serve.log"
    with log.open("wb") as file:
        server = subprocess.Popen(["/bin/bash", "-c", f"exec {serve.removesuffix('&')}"], stderr=file, **typed)
    try:
        subprocess.run(["/bin/bash", "-c", _WAIT], check=True, timeout=60, **typed)
        line = f"{interpolate} --server localhost:{port}"
        subprocess.run(["/bin/bash", "-c", line], check=True, timeout=60, **typed)
    finally:
        server.terminate()
        assert server.wait(30) == 0, log.read_text()
    with Image.open(tmp_path / "walk.gif") as walk:
        assert walk.n_frames == 24
        frames = []
        for at in range(24):
            walk.seek(at)
            frames.append(np.asarray(walk.convert("RGB")).astype(float))
    assert np.abs(frames[0] - frames[-1]).mean() > 1, "it goes somewhere"
