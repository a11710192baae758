"""The cache of decoded pixels: the same images as without it, whole or absent, and never all of them in memory."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_fixtures import ONE_THREAD, fashion_images, outside_data, small_set, tiny

from training import data, pictures, pixel_cache
from training.config import DataConfig
from training.errors import DataError
from training.fit import fit
from training.images import Images


def load(path: Path, cache: Path | None = None, **config: object) -> data.Dataset:
    return data.load(DataConfig(path=str(path), cache=str(cache or ""), **config), 3)  # type: ignore[arg-type]


def write_images(folder: Path, n: int = 40) -> Path:
    for index, image in enumerate(fashion_images()[:n]):
        path = folder / ("boot" if index % 3 else "bag") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def the_folder(cache: Path) -> Path:
    """The one cache there is."""
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def assert_alike(got: Images | None, wanted: Images | None) -> None:
    if wanted is None or got is None:
        assert got is wanted
        return
    assert np.array_equal(got.pixels, wanted.pixels)
    assert (got.names, got.class_names, got.unreadable) == (wanted.names, wanted.class_names, wanted.unreadable)
    assert (got.labels is None) == (wanted.labels is None)
    if got.labels is not None and wanted.labels is not None:
        assert got.labels.dtype == wanted.labels.dtype
        assert got.labels.tolist() == wanted.labels.tolist()


def assert_same_dataset(got: data.Dataset, wanted: data.Dataset) -> None:
    assert_alike(got.train, wanted.train)
    assert_alike(got.validation, wanted.validation)
    assert_alike(got.test, wanted.test)
    assert (got.digest, got.split, got.labels) == (wanted.digest, wanted.split, wanted.labels)


def received(connection: Connection) -> object:
    assert connection.poll(30)
    return connection.recv()


class TestAlike:
    """With the cache and without it: the same images in the same order."""

    def test_pictures(self, tmp_path: Path) -> None:
        source = write_images(tmp_path / "images")
        (source / "bag" / "009.png").write_bytes(b"no picture")
        png = source / "boot" / "010.png"
        png.write_bytes(png.read_bytes()[:200])  # its header is whole, so that it is found out while decoding
        config = {"max_bad_share": 0.1, "validation": 4, "image_size": (20, 24), "channels": 3}
        wanted = load(source, **config)
        assert len(wanted.unreadable) == 2
        for _ in ("written", "read again"):
            assert_same_dataset(load(source, tmp_path / "cache", **config), wanted)

    @pytest.mark.parametrize("size", [None, (12, 12)], ids=["as they are", "resized"])
    def test_idx(self, tmp_path: Path, size: tuple[int, int] | None) -> None:
        source = tmp_path / "idx"
        source.mkdir()
        header = bytes([0, 0, 8, 3]) + np.array([300, 28, 28], ">u4").tobytes()
        (source / "t10k-images-idx3-ubyte").write_bytes(header + fashion_images()[:300].tobytes())
        labels = bytes([0, 0, 8, 1]) + np.array([300], ">u4").tobytes() + bytes(range(10)) * 30
        (source / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
        for _ in ("written", "read again"):
            assert_same_dataset(load(source, tmp_path / "cache", image_size=size), load(source, image_size=size))

    def test_idx_with_test_images_of_its_own(self, tmp_path: Path) -> None:
        mnist = outside_data("mnist")
        assert_same_dataset(load(mnist, tmp_path, validation=10_000), load(mnist, validation=10_000))

    def test_npz(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", images=fashion_images()[:50], labels=np.arange(50) % 7)
        assert_same_dataset(load(tmp_path / "a.npz", tmp_path / "cache"), load(tmp_path / "a.npz"))

    def test_a_set_of_many_chunks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pixel_cache, "_CHUNK_BYTES", 5 * 28 * 28)
        source = write_images(tmp_path / "images")
        assert_same_dataset(load(source, tmp_path / "cache", holdout=0.4), load(source, holdout=0.4))


@pytest.mark.usefixtures("undrawn")
def test_a_run_gives_the_same_numbers_bit_for_bit(tmp_path: Path) -> None:
    source = small_set(tmp_path)
    logs = []
    for cache in ("", str(tmp_path / "cache")):
        config = tiny(source, epochs=1)
        out = tmp_path / f"run{len(logs)}"
        fit(replace(config, data=replace(config.data, cache=cache)), out, resume=False)
        events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        logs.append([{name: value for name, value in event.items() if name != "images_per_s"} for event in events])
    assert len(logs[0]) > 5
    assert logs[0] == logs[1]


class TestUse:
    def test_the_pictures_are_decoded_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write_images(tmp_path / "images")
        load(source, tmp_path / "cache")
        monkeypatch.setattr(pictures, "read", None)
        load(source, tmp_path / "cache")

    def test_the_files_hold_the_pixels_and_nothing_else(self, tmp_path: Path) -> None:
        dataset = load(write_images(tmp_path / "images"), tmp_path / "cache")
        folder = the_folder(tmp_path / "cache")
        assert (folder / "train.pixels").read_bytes() == dataset.train.pixels.tobytes()
        assert (folder / "test.pixels").read_bytes() == dataset.test.pixels.tobytes()
        assert sorted(path.name for path in folder.iterdir()) == ["about.json", "test.pixels", "train.pixels"]

    def test_pixels_cannot_be_changed_by_accident(self, tmp_path: Path) -> None:
        dataset = load(write_images(tmp_path / "images"), tmp_path / "cache")
        with pytest.raises(ValueError, match="read-only"):
            dataset.train.pixels[0] = 0

    @pytest.mark.parametrize(
        "change",
        [
            lambda source: Image.fromarray(fashion_images()[99]).save(source / "boot" / "001.png"),
            lambda source: (source / "boot" / "001.png").unlink(),
            lambda source: Image.fromarray(fashion_images()[99]).save(source / "boot" / "new.png"),
        ],
        ids=["changed", "removed", "added"],
    )
    def test_another_source_is_another_cache(self, tmp_path: Path, change: Callable[[Path], object]) -> None:
        source = write_images(tmp_path / "images")
        before = load(source, tmp_path / "cache").digest
        change(source)
        after = load(source, tmp_path / "cache")
        assert before != after.digest == load(source).digest

    def test_another_size_or_split_is_another_cache(self, tmp_path: Path) -> None:
        source = write_images(tmp_path / "images")
        load(source, tmp_path / "cache")
        for config in ({"image_size": (16, 16)}, {"channels": 3}, {"holdout": 0.5}):
            assert_same_dataset(load(source, tmp_path / "cache", **config), load(source, **config))


class TestDamage:
    @pytest.mark.parametrize("name", ["train.pixels", "test.pixels", "about.json"])
    @pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "longer", "gone"])
    def test_a_damaged_cache_is_made_anew_and_said(self, tmp_path: Path, name: str, how: str) -> None:
        source = write_images(tmp_path / "images")
        wanted = load(source, tmp_path / "cache")
        path = the_folder(tmp_path / "cache") / name
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.unlink()
        if how != "gone":
            written = {"flipped": raw, "cut": raw[:-1], "emptied": b"", "longer": bytes(raw) + b"\0"}[how]
            path.write_bytes(written)
        again = load(source, tmp_path / "cache")
        assert_same_dataset(again, wanted)
        assert (name == "about.json" and how == "gone") or any("written anew" in line for line in again.warnings)
        assert load(source, tmp_path / "cache").warnings == load(source).warnings

    def test_killed_in_mid_write_leaves_nothing_that_is_believed(self, tmp_path: Path) -> None:
        source = write_images(tmp_path / "images")
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_stop_in_mid_write, args=(source, tmp_path / "cache", theirs))
        process.start()
        assert received(ours) == "writing"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert [path.name[-8:] for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [".partial"]
        assert_same_dataset(load(source, tmp_path / "cache"), load(source))
        assert not list((tmp_path / "cache").glob(".*.partial"))

    def test_ctrl_c_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        source = write_images(tmp_path / "images")
        monkeypatch.setattr(pixel_cache, "_split", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(source, tmp_path / "cache")
        assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


class TestDisk:
    def test_too_little_room_is_said_before_anything_is_decoded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = namedtuple("usage", "total used free")
        source = write_images(tmp_path / "images")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 1000))
        monkeypatch.setattr(pictures, "_decode_all", None)
        with pytest.raises(DataError, match=r"cache: got 1000 bytes free in .*, wanted 31360 for .*\[40, 28, 28, 1\]"):
            load(source, tmp_path / "cache")

    def test_a_cache_among_the_images_is_refused(self, tmp_path: Path) -> None:
        source = write_images(tmp_path / "images")
        with pytest.raises(DataError, match="which is among the images"):
            load(source, source / "cache")

    def test_a_disk_that_says_no_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file where the folder should be")
        with pytest.raises(DataError, match=r"cache.* cannot be used"):
            load(write_images(tmp_path / "images"), tmp_path / "cache")


def test_of_two_processes_one_writes_and_the_other_waits(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    slow = context.Process(target=_stop_in_mid_write, args=(source, tmp_path / "cache", theirs))
    slow.start()
    assert received(ours) == "writing"
    quick = context.Process(target=_load_without_reading, args=(source, tmp_path / "cache", theirs))
    quick.start()
    time.sleep(0.3)
    assert not ours.poll()  # it waits
    ours.send("go on")
    assert received(ours) == received(ours) == load(source).digest
    slow.join()
    quick.join()


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """96 MB of pixels within 24 MB: without the cache there is no memory for them, with it there is."""
    pixels = np.random.default_rng(0).integers(0, 256, (500, 256, 250, 3), np.uint8)
    header = bytes([0, 0, 8, 3]) + np.array([1500, 256, 250], ">u4").tobytes()
    source = tmp_path / "idx"
    source.mkdir()
    with (source / "train-images-idx3-ubyte").open("wb") as file:
        file.write(header)
        file.write(pixels.data)
    del pixels
    command = [sys.executable, "-c", _WITHIN_24_MB, str(source)]
    plain = subprocess.run([*command, ""], env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert "MemoryError" in plain.stderr
    for _ in ("written", "read again"):
        cached = subprocess.run(
            [*command, str(tmp_path / "cache")], env=ONE_THREAD, capture_output=True, text=True, check=False
        )
        assert cached.returncode == 0, cached.stderr
        assert json.loads(cached.stdout) == [1350, 150, 1500]


_WITHIN_24_MB = """
import json, resource, sys
import numpy as np
from training import data
from training.config import DataConfig

# memory of the process's own, which a mapped file is not: that can be given back at any time
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (24 << 20),) * 2)
dataset = data.load(DataConfig(path=sys.argv[1], cache=sys.argv[2], validation=100), 0)
seen = 0
for part in (dataset.train, dataset.validation, dataset.test):
    for chosen in np.array_split(np.random.default_rng(0).permutation(len(part)), 50):
        seen += len(part.pixels[chosen].copy())
print(json.dumps([len(dataset.train) + 100, len(dataset.test), seen]))
"""


def _stop_in_mid_write(source: Path, cache: Path, connection: Connection) -> None:
    whole = pixel_cache._split

    def stopped(*args: object) -> object:
        connection.send("writing")
        connection.recv()
        return whole(*args)  # type: ignore[arg-type]

    pixel_cache._split = stopped  # type: ignore[assignment]
    connection.send(load(source, cache).digest)


def _load_without_reading(source: Path, cache: Path, connection: Connection) -> None:
    pictures.read = None  # type: ignore[assignment]
    connection.send(load(source, cache).digest)
