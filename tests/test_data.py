"""Reading image sets: every source gives the same pixels, and what cannot be used is refused by name."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_fixtures import FASHION, fashion_images, fashion_labels, outside_data

from training import data
from training.config import DataConfig
from training.errors import DataError


def load(path: Path, seed: int = 0, **config: object) -> data.Dataset:
    return data.load(DataConfig(path=str(path), **config), seed)  # type: ignore[arg-type]


def every_image(dataset: data.Dataset) -> set[bytes]:
    return {image.tobytes() for part in (dataset.train, dataset.test) for image in part.pixels}


def beside_another(folder: Path, name: str, **config: object) -> np.ndarray:
    """The pixels of the picture `name`, in a set with one that differs."""
    with Image.open(folder / name) as image:
        Image.linear_gradient("L").resize(image.size).save(folder / "another.png")
    dataset = load(folder, **config)
    pixels_of = {
        n: image for part in (dataset.train, dataset.test) for n, image in zip(part.names, part.pixels, strict=True)
    }
    return pixels_of[name]


def write_images(folder: Path, n: int = 10, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(fashion_images()[:n]):
        Image.fromarray(image).save(folder / f"{index:03d}{suffix}")
    return folder


def write_idx(folder: Path, part: str, n: int) -> None:
    header = struct.pack(">IIII", 0x803, n, 28, 28)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(header + fashion_images()[:n].tobytes())


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


class TestIdx:
    def test_the_repositorys_images_are_split_9_to_1(self) -> None:
        dataset = load(FASHION)
        assert dataset.image_shape == (28, 28, 1)
        assert (len(dataset.train), len(dataset.test)) == (9000, 1000)
        assert every_image(dataset) == {image.tobytes() for image in fashion_images()}

    def test_labels_stay_with_their_images(self) -> None:
        label_of = {
            image.tobytes(): label for image, label in zip(fashion_images(), fashion_labels().tolist(), strict=True)
        }
        test = load(FASHION).test
        assert test.labels is not None
        assert [label_of[image.tobytes()] for image in test.pixels] == test.labels.tolist()

    def test_the_split_follows_from_the_seed(self) -> None:
        first, again, other = load(FASHION, 1), load(FASHION, 1), load(FASHION, 2)
        assert first.digest == again.digest != other.digest

    def test_unpacked_files_without_labels_give_the_same_pixels(self, tmp_path: Path) -> None:
        packed = (FASHION / "t10k-images-idx3-ubyte.gz").read_bytes()
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(gzip.decompress(packed))
        dataset = load(tmp_path)
        assert dataset.digest == load(FASHION).digest
        assert dataset.train.labels is None

    def test_a_source_with_both_parts_is_split_as_it_is(self, tmp_path: Path) -> None:
        for part, n in (("train", 40), ("t10k", 10)):
            write_idx(tmp_path, part, n)
        dataset = load(tmp_path)
        assert (len(dataset.train), len(dataset.test)) == (40, 10)
        assert dataset.split == "the source's own"
        assert dataset.train.pixels.flags.writeable  # torch warns otherwise

    def test_test_images_of_the_source_are_held_out(self) -> None:
        dataset = load(outside_data("mnist"))
        assert (len(dataset.train), len(dataset.test)) == (60000, 10000)
        header = struct.pack(">IIII", 0x803, 60000, 28, 28)
        file = hashlib.md5(header + dataset.train.pixels.tobytes(), usedforsecurity=False).hexdigest()
        assert file == "6bbc9ace898e44ae57da46a324031adb"

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda raw: gzip.compress(raw[:-1], 1), "cut short: got 7839999 bytes"),
            (lambda raw: gzip.compress(raw, 1)[:-100], "not a whole IDX file"),
            (
                lambda raw: gzip.compress(b"\0\0\x0d\3" + raw[4:], 1),
                r"got b'\\x00\\x00\\r\\x03', wanted the header of uint8 IDX",
            ),
            (lambda raw: raw, "not a whole IDX file"),
        ],
        ids=["short", "short gzip", "floats", "not gzip"],
    )
    def test_a_damaged_file_is_named(self, tmp_path: Path, damage: object, message: str) -> None:
        raw = gzip.decompress((FASHION / "t10k-images-idx3-ubyte.gz").read_bytes())
        (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(damage(raw))  # type: ignore[operator]
        with pytest.raises(DataError, match=f"t10k-images-idx3-ubyte.gz: {message}"):
            load(tmp_path)

    def test_labels_that_are_not_one_for_each_image_are_refused(self, tmp_path: Path) -> None:
        for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
            (tmp_path / name).write_bytes((FASHION / name).read_bytes())
        short = struct.pack(">II", 0x801, 5) + bytes(5)
        (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(short))
        with pytest.raises(DataError, match="got 5 labels, wanted 10000"):
            load(tmp_path)


class TestPictures:
    def test_a_folder_gives_the_pixels_of_its_files(self, tmp_path: Path) -> None:
        dataset = load(write_images(tmp_path))
        assert every_image(dataset) == {image.tobytes() for image in fashion_images()[:10]}
        assert (len(dataset.train), len(dataset.test)) == (9, 1)
        assert dataset.image_shape == (28, 28, 1)
        assert dataset.train.labels is None

    def test_folders_of_parts_are_no_classes(self, tmp_path: Path) -> None:
        for name in ("train/boot", "train/bag", "Test/boot"):
            write_images(tmp_path / name, n=3)
        with pytest.raises(DataError, match="got the folders Test, train, which are no classes: name one of them"):
            load(tmp_path)

    def test_subfolders_are_classes(self, tmp_path: Path) -> None:
        for index, name in enumerate(("shirt", "boot", "bag")):
            write_images(tmp_path / name, n=3 + index)
        dataset = load(tmp_path, holdout=0.2)
        assert dataset.labels == ("bag", "boot", "shirt")
        assert dataset.train.labels is not None
        assert dataset.test.labels is not None
        both = np.concatenate([dataset.train.labels, dataset.test.labels])
        assert np.bincount(both).tolist() == [5, 4, 3]

    def test_one_folder_around_all_of_an_archive_is_no_class(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for name in ("shirt", "boot"):
                for file in write_images(tmp_path / name, n=3).iterdir():
                    archive.write(file, f"photos/all/{name}/{file.name}")
        assert load(tmp_path / "images.zip").labels == ("boot", "shirt")

    def test_a_zip_gives_what_the_folder_gives(self, tmp_path: Path) -> None:
        folder = write_images(tmp_path / "folder")
        with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__MACOSX/._000.png", b"resource fork")
            for file in folder.iterdir():
                archive.write(file, f"things/{file.name}")
        assert load(tmp_path / "images.zip").digest == load(folder).digest

    def test_faces_from_a_zip(self) -> None:
        dataset = load(outside_data("lfw64/images.zip"))
        assert dataset.image_shape == (64, 64, 3)
        assert len(dataset.train) + len(dataset.test) == 13233
        assert dataset.unreadable == ()

    def test_mixed_sizes_are_refused_with_two_files_named(self, tmp_path: Path) -> None:
        write_images(tmp_path)
        Image.new("L", (40, 30)).save(tmp_path / "wide.png")
        with pytest.raises(DataError, match=r"000.png is 28x28 and wide.png is 30x40; --image-size HxW"):
            load(tmp_path)

    def test_mixed_sizes_are_made_equal_when_told(self, tmp_path: Path) -> None:
        write_images(tmp_path)
        Image.new("L", (40, 30)).save(tmp_path / "wide.png")
        assert load(tmp_path, image_size=(16, 24)).image_shape == (16, 24, 1)

    def test_resizing_covers_and_keeps_the_middle(self, tmp_path: Path) -> None:
        wide = np.zeros((20, 60), np.uint8)
        wide[:, 20:40] = 255
        Image.fromarray(wide).save(tmp_path / "a.png")
        assert (beside_another(tmp_path, "a.png", image_size=(10, 10)) > 240).all()

    def test_exif_orientation_is_honoured(self, tmp_path: Path) -> None:
        upright = np.zeros((40, 20), np.uint8)
        upright[:20] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # turn a quarter clockwise to show
        Image.fromarray(np.rot90(upright)).save(tmp_path / "a.jpg", quality=95, exif=exif)
        pixels = beside_another(tmp_path, "a.jpg", image_size=(40, 20))[..., 0].astype(int)
        assert np.abs(pixels - upright).mean() < 2

    def test_one_picture_in_colour_makes_the_set_rgb(self, tmp_path: Path) -> None:
        write_images(tmp_path)
        Image.new("RGB", (28, 28), "red").save(tmp_path / "red.png")
        assert load(tmp_path).image_shape == (28, 28, 3)
        assert load(tmp_path, channels=1).image_shape == (28, 28, 1)

    def test_what_is_transparent_is_white(self, tmp_path: Path) -> None:
        Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
        assert (beside_another(tmp_path, "a.png") == 255).all()

    def test_16_bit_grey_keeps_its_range(self, tmp_path: Path) -> None:
        deep = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
        Image.fromarray(deep).save(tmp_path / "a.png")
        assert beside_another(tmp_path, "a.png")[..., 0].tolist() == (deep >> 8).tolist()


class TestUnreadable:
    def test_few_are_left_out_and_named(self, tmp_path: Path) -> None:
        write_images(tmp_path, 30)
        (tmp_path / "007.png").write_bytes((tmp_path / "007.png").read_bytes()[:60])
        dataset = load(tmp_path)
        assert len(dataset.train) + len(dataset.test) == 29
        assert [line.split(":")[0] for line in dataset.unreadable] == ["007.png"]
        assert dataset.provenance()["unreadable_files"] == 1

    def test_more_than_the_share_stop_the_run(self, tmp_path: Path) -> None:
        write_images(tmp_path, 10)
        (tmp_path / "003.png").write_bytes(b"no picture")
        with pytest.raises(DataError, match=r"1 of 10 files cannot be read: 003.png: .*--max-bad-share is 0.05"):
            load(tmp_path)
        assert len(load(tmp_path, max_bad_share=0.1).unreadable) == 1

    def test_none_readable_stops_the_run_at_any_share(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"no picture")
        with pytest.raises(DataError, match="1 of 1 files cannot be read"):
            load(tmp_path, max_bad_share=1.0)

    def test_a_picture_of_floats_with_nan_is_left_out(self, tmp_path: Path) -> None:
        write_images(tmp_path, 30)
        floats = fashion_images()[0].astype(np.float32)
        Image.fromarray(floats).save(tmp_path / "whole.tiff")
        floats[3, 4] = np.nan
        Image.fromarray(floats).save(tmp_path / "nan.tiff")
        (reason,) = load(tmp_path).unreadable
        assert reason == "nan.tiff: got NaN or infinite values, wanted finite ones"

    def test_a_decompression_bomb_is_not_unpacked(self, tmp_path: Path) -> None:
        write_images(tmp_path, 30)
        header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)  # 3.6 GB from 50 bytes
        chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
        (reason,) = load(tmp_path).unreadable
        assert "bomb.png: Image size (3600000000 pixels) exceeds limit" in reason

    def test_a_damaged_zip_entry_is_left_out(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for picture in sorted(write_images(tmp_path / "folder", 30).iterdir()):
                archive.write(picture, picture.name)
        raw = bytearray(file.getvalue())
        raw[raw.index(b"IDAT") + 10] ^= 255
        (tmp_path / "images.zip").write_bytes(raw)
        (reason,) = load(tmp_path / "images.zip").unreadable
        assert "000.png: Bad CRC-32" in reason

    def test_a_zip_cut_short_is_refused(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            archive.write(write_images(tmp_path / "folder", 1) / "000.png")
        (tmp_path / "images.zip").write_bytes((tmp_path / "images.zip").read_bytes()[:-30])
        with pytest.raises(DataError, match=r"images.zip: cannot be read as .zip"):
            load(tmp_path / "images.zip")


class TestNpz:
    def test_floats_and_bytes_give_the_same_pixels(self, tmp_path: Path) -> None:
        images = fashion_images()[:20]
        whole = load(write_npz(tmp_path / "a.npz", images=images))
        floats = load(write_npz(tmp_path / "b.npz", images=(images / 255).astype(np.float32)[..., np.newaxis]))
        assert whole.digest == floats.digest
        assert whole.image_shape == (28, 28, 1)

    def test_images_that_are_all_the_same_are_refused(self, tmp_path: Path) -> None:
        images = np.repeat(fashion_images()[:1], 300, 0)
        with pytest.raises(DataError, match="images: all 300 are the same, wanted images that differ"):
            load(write_npz(tmp_path / "a.npz", images=images))
        images[-1, 3, 4] ^= 1
        assert len(load(write_npz(tmp_path / "b.npz", images=images)).train) == 270

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": np.full((3, 8, 8), np.nan)}, "got 192 NaN or infinite values"),
            ({"images": np.full((3, 8, 8), 1.5)}, r"got values 1.5 to 1.5, wanted floats in \[0, 1\]"),
            ({"images": np.zeros((3, 8, 8), np.int32)}, "got int32, wanted uint8 or floats"),
            ({"images": np.zeros((3, 8), np.uint8)}, r"got shape \(3, 8\)"),
            ({"images": np.zeros((0, 8, 8), np.uint8)}, r"got shape \(0, 8, 8, 1\)"),
            ({"x": np.zeros((3, 8, 8), np.uint8)}, r"got the arrays \['x'\], wanted one named images"),
            ({"images": np.zeros((3, 8, 8), np.uint8), "labels": np.zeros(2, np.int64)}, r"of shape \(3,\)"),
            ({"images": np.array([{}, {}], object)}, "cannot be read as .npz: Object arrays"),
        ],
        ids=["NaN", "range", "dtype", "dimensions", "none", "name", "labels", "pickle"],
    )
    def test_what_is_no_image_array_is_refused(
        self, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            load(write_npz(tmp_path / "a.npz", **arrays))

    def test_a_file_cut_short_is_refused(self, tmp_path: Path) -> None:
        path = write_npz(tmp_path / "a.npz", images=fashion_images()[:20])
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"cannot be read as .npz"):
            load(path)


class TestNames:
    def test_each_image_keeps_the_name_of_its_file(self, tmp_path: Path) -> None:
        for name in ("boot", "shirt"):
            write_images(tmp_path / name, 12)
        dataset = load(tmp_path, holdout=0.3, validation=5)
        assert dataset.validation is not None
        parts = (dataset.train, dataset.validation, dataset.test)
        assert sorted(name for part in parts for name in part.names) == sorted(
            f"{folder}/{index:03d}.png" for folder in ("boot", "shirt") for index in range(12)
        )
        for part in parts:
            for name, image in zip(part.names, part.pixels, strict=True):
                assert (image[..., 0] == fashion_images()[int(name[-7:-4])]).all()

    def test_other_sources_have_none(self) -> None:
        assert load(FASHION).train.names == ()


class TestValidation:
    def test_of_a_source_with_its_own_parts_it_is_the_last_images(self, tmp_path: Path) -> None:
        for part, n in (("train", 40), ("t10k", 10)):
            write_idx(tmp_path, part, n)
        whole, parted = load(tmp_path), load(tmp_path, validation=10)
        assert parted.validation is not None
        assert (parted.train.pixels == whole.train.pixels[:30]).all()
        assert (parted.validation.pixels == whole.train.pixels[30:]).all()
        assert (parted.test.pixels == whole.test.pixels).all()
        assert parted.digest == whole.digest
        assert parted.provenance()["validation_images"] == 10

    def test_of_others_it_is_drawn_so_that_no_class_goes_missing(self, tmp_path: Path) -> None:
        for index, name in enumerate("abcde"):
            write_images(tmp_path / "data" / name, n=30 + index)
        for cache in ("", str(tmp_path / "cache")):
            parted, whole = (load(tmp_path / "data", validation=n, cache=cache) for n in (40, 0))
            assert parted.validation is not None
            assert parted.held_out is parted.validation
            assert whole.held_out is whole.test
            assert len(parted.validation) == 40
            assert len(set(parted.validation.labels)) == len(set(parted.train.labels)) == 5  # type: ignore[arg-type]
            assert sorted(parted.train.names + parted.validation.names) == sorted(whole.train.names)
            assert parted.test.names == whole.test.names

    def test_nothing_would_be_left_to_train_on(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data.validation: got 9, wanted fewer than the 9 images to train on"):
            load(write_images(tmp_path), validation=9)


class TestLabels:
    def test_a_labelled_set_says_how_many_classes_it_has(self) -> None:
        assert data.require_labels(load(FASHION)) == 10

    def test_a_set_without_labels_cannot_train_a_conditional_model(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="got no labels for the train images, wanted a class for each"):
            data.require_labels(load(write_images(tmp_path)))

    def test_every_part_needs_them(self, tmp_path: Path) -> None:
        for part, n in (("train", 40), ("t10k", 10)):
            header = struct.pack(">IIII", 0x803, n, 28, 28)
            (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + fashion_images()[:n].tobytes())
        labels = struct.pack(">II", 0x801, 40) + fashion_labels()[:40].tobytes()
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
        with pytest.raises(DataError, match="got no labels for the test images"):
            data.require_labels(load(tmp_path))


class TestWarnings:
    def test_a_handful_of_images_is_said(self, tmp_path: Path) -> None:
        (line,) = load(write_images(tmp_path)).warnings
        assert line.startswith("9 images to train on are few")
        assert load(FASHION).warnings == ()


class TestRefusals:
    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no picture")
        with pytest.raises(DataError, match="no images found; wanted files that end in"):
            load(tmp_path)

    def test_one_image(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="images: got 1, wanted at least 2"):
            load(write_images(tmp_path, 1))

    def test_two_images_are_one_to_train_on_and_one_held_out(self, tmp_path: Path) -> None:
        dataset = load(write_images(tmp_path, 2))
        assert (len(dataset.train), len(dataset.test)) == (1, 1)

    def test_images_that_are_too_small(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"got 7x9 pixels, wanted sides of at least 8"):
            load(write_npz(tmp_path / "a.npz", images=np.zeros((5, 7, 9), np.uint8)))

    @pytest.mark.parametrize(("name", "message"), [("absent", "does not exist"), ("a.txt", "wanted an IDX folder")])
    def test_a_path_that_is_no_image_set(self, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / "a.txt").write_text("text")
        with pytest.raises(DataError, match=message):
            load(tmp_path / name)

    def test_no_path(self) -> None:
        with pytest.raises(DataError, match="wanted --data PATH"):
            data.load(DataConfig(), 0)

    def test_fewer_class_names_than_classes(self) -> None:
        with pytest.raises(DataError, match="got 2 names, wanted 10: the data has label 9"):
            load(FASHION, labels=("shirt", "boot"))


@pytest.mark.parametrize(
    "shape", [(0, 28, 28), (4, 0, 28), (2**32 - 1, 2**32 - 1, 2**32 - 1)], ids=["no image", "no row", "huge"]
)
def test_an_idx_header_that_cannot_be_is_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(100))
    with pytest.raises(DataError, match=r"train-images|cannot be read"):
        load(tmp_path)


def test_an_npy_file_called_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8), np.uint8))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "x.npz")


def test_sides_that_no_model_folder_can_hold_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", images=np.zeros((3, 8, 5000), np.uint8))
    with pytest.raises(DataError, match="wanted sides of at most 4096"):
        load(tmp_path / "wide.npz")
