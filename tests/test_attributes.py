"""Attribute vectors: who has what, the directions against closed forms, and that edits are judged by what is drawn."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from training_fixtures import fashion_images, fashion_labels, outside_data

from latentry import manifest as manifests
from latentry.attributes import Attribute
from latentry.manifest import Likelihood, Manifest
from training.attributes import directions, picture_probe, study, table
from training.attributes.attributes_command import add_attributes_arguments
from training.attributes.record import with_attributes, with_section
from training.attributes.study import Encoded, Parts
from training.errors import DataError

NORMAL = np.random.default_rng(7)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


class TestTable:
    def test_between_yes_and_no_nobody_knows(self, tmp_path: Path) -> None:
        read = table.read(write(tmp_path / "a.csv", "file,glasses,hat\na.jpg,0.95,0.01\nb.jpg,0.9,0.05\nc.jpg,0,1\n"))
        presence, line = table.presence(read, ["x/c.jpg", "b.jpg", "a.jpg", "d.jpg"], 0.9, 0.05, 0)
        assert presence.names == ("glasses", "hat")
        assert presence.has.tolist() == [[0, 1], [-1, -1], [1, 0], [-1, -1]]
        assert line == ""

    def test_a_short_name_that_two_images_share_means_neither(self, tmp_path: Path) -> None:
        read = table.read(write(tmp_path / "a.csv", "file,hat\na.jpg,1\nx/b.jpg,1\nb.jpg,1\n"))
        presence, line = table.presence(read, ["a.jpg", "x/b.jpg", "y/b.jpg"], 0.9, 0.05, 0.5)
        assert presence.has[:, 0].tolist() == [1, 1, -1]
        assert "1 of 3 files are not among the images: b.jpg" in line

    @pytest.mark.parametrize(("share", "images"), [(0.3, ["a.jpg"]), (1.0, ["z.jpg"])], ids=["too many", "all"])
    def test_files_that_are_not_there_are_named(self, tmp_path: Path, share: float, images: list[str]) -> None:
        read = table.read(write(tmp_path / "a.csv", "file,hat\na.jpg,1\nb.jpg,1\n"))
        with pytest.raises(DataError, match=r"of 2 files are not among the images: .*b.jpg"):
            table.presence(read, images, 0.9, 0.05, share)

    def test_an_unknown_attribute_is_named_with_the_nearest(self, tmp_path: Path) -> None:
        read = table.read(write(tmp_path / "a.csv", "file,eyeglasses,hat\na.jpg,1,0\n"))
        presence, _ = table.presence(read, ["a.jpg"], 0.9, 0.05, 0)
        with pytest.raises(DataError, match=r"attribute: got eyeglases; did you mean eyeglasses\?"):
            presence.chosen(["eyeglases"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "got 0 columns and 0 rows"),
            ("file,hat\n", "got 2 columns and 0 rows"),
            ("file,hat\na.jpg,1,2\n", "line 2: got 3 columns, wanted 2"),
            ("file,hat\na.jpg,yes\n", "line 2: could not convert"),
            ("file,hat\na.jpg,0\nb.jpg,nan\n", "line 3: got nan, wanted a probability"),
            ("file,hat\na.jpg,1.5\n", "line 2: got 1.5, wanted a probability"),
            ("file,hat,hat\na.jpg,1,1\n", "got the attribute hat 2 times"),
            ("file,hat\na.jpg,1\na.jpg,0\n", "got the file a.jpg 2 times"),
        ],
    )
    def test_what_is_no_table_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            table.read(write(tmp_path / "a.csv", text))

    def test_a_table_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a.csv: cannot be read as CSV: .*No such file"):
            table.read(tmp_path / "a.csv")

    def test_classes_are_attributes(self) -> None:
        presence = table.of_classes([np.array([0, 2]), np.array([1])], ["bag", "boot", "coat"])
        assert presence.names == ("bag", "boot", "coat")
        assert presence.has.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
        with pytest.raises(DataError, match="got images without labels, wanted --table FILE"):
            table.of_classes([], [])

    def test_some_classes_have_it_others_have_not_and_of_the_rest_nobody_knows(self) -> None:
        classes = table.of_classes([np.array([0, 1, 2, 3])], ["shirt", "coat", "boot", "dress"])
        presence = table.contrasts(classes, ["sleeves = coat, shirt : dress", "shaft=boot:shirt"])
        assert presence.names == ("sleeves", "shaft")
        assert presence.has.T.tolist() == [[1, 1, -1, 0], [0, -1, 1, -1]]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["shaft"], "--classes: got shaft, wanted NAME=WITH,...:WITHOUT,... such as"),
            (["shaft=boot"], "--classes: got shaft=boot, wanted"),
            (["shaft=boot:"], "--classes: got shaft=boot:, wanted"),
            (["=boot:coat"], "--classes: got =boot:coat, wanted"),
            (["shaft=boot,:coat"], "--classes: got shaft=boot,:coat, wanted"),
            (["shaft=boots:coat"], "attribute: got boots; did you mean boot?"),
            (["shaft=boot:coat,boot"], "--classes: got the class boot 2 times"),
            (["a b=boot:coat", "A-B=coat:boot"], "as the manifest's figures spell it, attribute_a_b 2 times"),
        ],
    )
    def test_classes_that_do_not_say_who_has_it_are_refused(self, given: list[str], message: str) -> None:
        classes = table.of_classes([np.array([0, 1])], ["boot", "coat"])
        with pytest.raises(DataError, match=re.escape(message)):
            table.contrasts(classes, given)

    def test_every_row_of_the_faces_table_has_its_face(self) -> None:
        import zipfile

        read = table.read(outside_data("lfw64") / "attributes.csv")
        with zipfile.ZipFile(outside_data("lfw64") / "images.zip") as archive:
            presence, line = table.presence(read, archive.namelist(), 0.9, 0.05, 0)
        assert line == ""
        glasses = presence.has[:, presence.names.index("eyeglasses")]
        assert ((glasses == 1).sum(), (glasses == 0).sum()) == (1864, 10379)


class TestDirections:
    def test_they_find_what_the_latents_were_made_from(self) -> None:
        """Age moves latent 0, glasses latent 1, and glasses come with age: the means mix the two, the rest does not."""
        old = NORMAL.random(20_000) < 0.5
        glasses = NORMAL.random(20_000) < np.where(old, 0.8, 0.2)
        z = NORMAL.standard_normal((20_000, 3)).astype(np.float32) * 0.5
        z[:, 0] += 2 * old
        z[:, 1] += 3 * glasses
        has = np.column_stack([glasses, old]).astype(np.int8)
        found = directions.candidates(z, has, 0)
        assert found["means"] == pytest.approx([1.2, 3, 0], abs=0.05)
        assert found["adjusted"] == pytest.approx([0, 3, 0], abs=0.05)

    def test_adjusted_is_least_squares(self) -> None:
        z, has = NORMAL.standard_normal((300, 5)), NORMAL.integers(0, 2, (300, 3)).astype(np.int8)
        wanted = LinearRegression().fit(has, z).coef_[:, 1]
        assert directions.adjusted(z, has, 1) == pytest.approx(wanted)

    def test_the_discriminant_is_fishers_and_spans_the_gap(self) -> None:
        mixing = np.array([[2.0, 0.0], [1.9, 0.3]])
        has = np.arange(40_000) % 2 == 0
        z = NORMAL.standard_normal((40_000, 2)) @ mixing.T + np.outer(has, [1.0, 0.0])
        found = directions.discriminant(z, has)
        fisher = np.linalg.solve(mixing @ mixing.T, [1.0, 0.0])
        assert found / np.linalg.norm(found) == pytest.approx(fisher / np.linalg.norm(fisher), abs=0.02)
        assert fisher @ found == pytest.approx(fisher @ [1.0, 0.0], rel=0.05)


def linear_world(n: int, seed: int) -> tuple[Encoded, np.ndarray]:
    """A model whose pixels are its latents, latent 0 telling of the attribute."""
    drawn = np.random.default_rng(seed)
    has = drawn.integers(0, 2, n)
    latents = drawn.standard_normal((n, 4)).astype(np.float32)
    latents[:, 0] += 6 * has
    return Encoded(latents, has[:, np.newaxis].astype(np.int8)), to_pixels(latents)


def to_pixels(latents: np.ndarray, _: object = None) -> np.ndarray:
    return np.clip(np.rint(latents * 10 + 100), 0, 255).astype(np.uint8).reshape(len(latents), 2, 2, 1)


class TestStudy:
    def parts(self, decode: Callable[..., np.ndarray] = to_pixels) -> Parts:
        test, pixels = linear_world(300, 2)
        return Parts(linear_world(1000, 0)[0], linear_world(200, 1)[0], test, pixels, decode)

    def test_an_attribute_is_found_added_and_removed(self) -> None:
        found = study.study("x", 0, self.parts(), {"truth": lambda pixels, _: pixels[:, 0, 0, 0] > 130})
        assert found.way == "means"
        assert found.direction == pytest.approx([6, 0, 0, 0], abs=0.3)
        assert found.amount == 0.75  # half-way lies the judge's own border
        truth = self.parts().test.has[:, 0] == 1
        right = (self.parts().test_pixels[:, 0, 0, 0] > 130) == truth
        assert found.figures["truth_accuracy"] == right.mean()
        moved = self.parts().test.latents[:, 0] + np.where(truth, -1, 1) * 0.75 * found.direction[0]
        assert found.figures["truth_added"] == pytest.approx((moved[~truth] > 3.05).mean(), abs=0.01)
        assert found.figures["truth_removed"] == pytest.approx((moved[truth] <= 3.05).mean(), abs=0.01)

    def test_what_is_not_drawn_is_not_counted(self) -> None:
        """A decoder that draws nothing of an edit: whatever the latents say, nothing was added."""

        def deaf(latents: np.ndarray, _: object = None) -> np.ndarray:
            return np.full((len(latents), 2, 2, 1), 100, np.uint8)

        judge = {"truth": lambda pixels, _: pixels[:, 0, 0, 0] > 130}
        figures = study.study("x", 0, self.parts(deaf), judge).figures
        assert (figures["truth_added"], figures["truth_removed"]) == (0, 1)
        assert figures["truth_accuracy"] > 0.99

    def test_the_limit_is_where_edits_leave_the_latents_region(self) -> None:
        """In one dimension the region is known: all but a twentieth of a normal lies within 1.96 deviations."""
        drawn = np.random.default_rng(0)
        z = drawn.standard_normal((100_000, 1)).astype(np.float32)
        fit = Encoded(z, drawn.integers(0, 2, (len(z), 1)).astype(np.int8))
        # nine of ten of z + amount stay below 1.96 up to amount 1.96 - 1.28
        assert study.limit(fit, 0, np.array([1.0])) == pytest.approx(1.96 - 1.28, abs=0.06)

    def test_the_amount_that_was_tested_is_within_the_limit(self) -> None:
        far = {"far": lambda pixels, _: pixels[:, 0, 0, 0] > 250}  # latents of 15, where no image is
        parts = self.parts()
        found = study.study("x", 0, parts, far)
        assert study.limit(parts.fit, 0, found.direction) < found.amount
        assert found.figures["amount_limit"] == found.amount

    @pytest.mark.parametrize(("part", "least"), [("fit", 20), ("choose", 5), ("test", 5)])
    def test_too_few_images_are_refused(self, part: str, least: int) -> None:
        parts = self.parts()
        has = getattr(parts, part).has
        has[np.flatnonzero(has[:, 0] == 1)[least - 1 :]] = -1
        with pytest.raises(DataError, match=f"x: got {least - 1} images with it to {part}, wanted at least {least}"):
            study.fit_probe("x", 0, parts)

    def test_the_linear_probe_sees_a_linear_attribute(self) -> None:
        parts = self.parts()
        linear = study.fit_probe("x", 0, parts)
        assert linear.accuracy(parts.test.latents, parts.test.has[:, 0] == 1) > 0.99


def test_the_picture_probe_tells_boots_from_trousers() -> None:
    labels = fashion_labels()
    of_two = np.flatnonzero((labels == 1) | (labels == 9))
    chosen, unseen = of_two[:600], of_two[600:1200]
    images = fashion_images()[..., np.newaxis]
    before = picture_probe.fit(images, chosen, labels[chosen] == 9, seed=0)
    assert ((before.says(images[unseen])) == (labels[unseen] == 9)).mean() > 0.98


def test_the_cards_section_is_replaced_not_repeated() -> None:
    figures = {"amount": 1.5, "amount_limit": 3.0, "linear_accuracy": 0.97, "linear_added": 0.9, "linear_removed": 0.8}
    evaluation = {f"attribute_hat_{name}": value for name, value in figures.items()}
    manifest = manifest_with({"hat": (1.0, 0.0)}, evaluation)
    card = with_section("# faces\n\n## Use\n\nso\n", manifest).decode()
    assert "| hat | 1.5 | 2 | linear | 97.0% | 90.0% | 80.0% |" in card
    assert card.index("## Attributes") < card.index("## Use")
    assert with_section(card, manifest).decode() == card


def manifest_with(attributes: dict[str, tuple[float, ...]], evaluation: dict[str, float]) -> Manifest:
    files = {"encoder.onnx": "0" * 64, "decoder.onnx": "0" * 64}
    return Manifest(
        "faces", 1, (8, 8, 3), 2, Likelihood("gaussian"), files, attributes=attributes, evaluation=evaluation
    )


def test_a_second_time_replaces_an_attribute_and_its_figures_alone() -> None:
    """`high` is estimated again: the figures of `high shaft` begin like its own and stay, those of `High` go."""
    before = manifest_with(
        {"High": (1.0, 0.0), "high shaft": (0.0, 1.0)},
        {"elbo": 1, "attribute_high_amount": 9, "attribute_high_picture_added": 0, "attribute_high_shaft_amount": 2},
    )
    again = study.Attribute("high", "means", np.array([3.0, 4.0]), 0.5, {"amount": 0.5, "amount_limit": 2.0})
    after = with_attributes(before, [again])
    assert after.attributes == {"high": (3.0, 4.0), "high shaft": (0.0, 1.0)}
    kept = {"elbo": 1, "attribute_high_shaft_amount": 2}
    assert after.evaluation == {**kept, "attribute_high_amount": 0.5, "attribute_high_amount_limit": 2.0}
    assert after.attribute("high") == Attribute((3.0, 4.0), 0.5, 4.0)


def test_the_flags_have_their_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_attributes_arguments(parser)
    args = parser.parse_args(["models/faces/1", "--data", "faces.zip"])
    assert (args.yes, args.no, args.max_missing, args.table, args.names) == (0.9, 0.05, 0.05, None, None)


class TestCommand:
    """The shipped Fashion-MNIST model, with its classes as attributes."""

    def test_directions_and_figures_are_in_the_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from training.attributes.attributes_command import run_attributes

        shipped = Path(__file__).resolve().parent.parent / "models" / "fashion" / "1"
        folder = shutil.copytree(shipped, tmp_path / "fashion" / "1")
        few = np.concatenate([np.flatnonzero(fashion_labels() == label)[:90] for label in (1, 7, 9)])
        np.savez(tmp_path / "a.npz", images=fashion_images()[few], labels=fashion_labels()[few])
        before = manifests.read(folder).manifest
        parser = argparse.ArgumentParser()
        add_attributes_arguments(parser)
        command = [
            str(folder),
            "--data",
            str(tmp_path / "a.npz"),
            "--classes",
            "legs=Trouser:Sneaker,Ankle boot",
            "--linear-only",
        ]
        assert run_attributes(parser.parse_args(command)) == 0, capsys.readouterr().err
        after = manifests.read(folder).manifest  # whole: every digest holds
        assert set(after.attributes) == {*before.attributes, "legs"}
        assert after.evaluation["attribute_legs_linear_accuracy"] > 0.9
        assert after.evaluation["attribute_legs_linear_added"] > 0.7
        assert after.evaluation.items() >= before.evaluation.items()
        assert "these are other images or labels than fashion was trained on" in capsys.readouterr().err

    def test_an_error_is_one_line_and_leaves_the_folder(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from training.attributes.attributes_command import run_attributes

        parser = argparse.ArgumentParser()
        add_attributes_arguments(parser)
        assert run_attributes(parser.parse_args([str(tmp_path / "x" / "1"), "--data", "none"])) == 2
        error = capsys.readouterr().err
        assert error.startswith("latentry: error: ")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,glasses\n\n\n", "got 2 columns and 2 rows"),
        ("file,Eye glasses,eye-glasses\na.jpg,1,0\n", "as the manifest's figures spell it"),
        ("file,a|b\na.jpg,1\n", "wanted printable characters"),
        ("file," + ",".join(f"a{i}" for i in range(2000)) + "\n", "got 2000 attributes, wanted at most 1000"),
    ],
)
def test_tables_that_would_mislead_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "table.csv").write_text(text + ("b.jpg" + ",1" * 2000 if "a1999" in text else ""))
    with pytest.raises(DataError, match=said):
        table.read(tmp_path / "table.csv")


def test_two_rows_for_one_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("file,glasses\nx.jpg,0\na/x.jpg,1\n")
    with pytest.raises(DataError, match="two rows or more for the image a/x"):
        table.presence(table.read(tmp_path / "table.csv"), ["a/x.jpg"], 0.9, 0.05, 0.5)
