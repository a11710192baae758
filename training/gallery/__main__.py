"""`python -m training.gallery`: train the small models of the gallery, and make its pictures, figures and page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from latentry.manifest import ManifestError
from training.disk import write_atomically
from training.errors import RunError, TrainingError
from training.gallery import blur, classes, faces, gaps, kl, noise, overfit, page, ring, sizes, subspaces
from training.gallery.judge import Judge
from training.gallery.workshop import Chapter, Workshop
from training.progress import say

EXIT_FAILED = 2
EXIT_INTERRUPTED = 130

Faces = tuple[Path, Path]
"""A folder with images.zip and attributes.csv, and the model folder that was trained on them."""


def main(argv: list[str] | None = None) -> int:
    """Make the gallery; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.gallery", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/fashion-mnist"), help="the images (data/fashion-mnist)")
    parser.add_argument("--faces", type=Path, help="a folder with images.zip and attributes.csv, for the part on faces")
    parser.add_argument("--faces-model", type=Path, help="the model folder of these, with its attributes")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"), help="the pictures (docs/gallery)")
    parser.add_argument("--work", type=Path, default=Path("out/gallery"), help="the runs, kept (out/gallery)")
    parser.add_argument("--share", type=float, default=1.0, help="of the epochs, to try it out (1)")
    args = parser.parse_args(argv)
    if (args.faces is None) != (args.faces_model is None):
        parser.error("--faces, --faces-model: got one of them, wanted both or neither")
    given = None if args.faces is None else (args.faces, args.faces_model)
    try:
        make(given, args.out, Workshop(args.data, args.work, args.share))
    except (TrainingError, ManifestError) as error:
        sys.stderr.write(f"gallery: error: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. The same command goes on where it was.\n")
        return EXIT_INTERRUPTED
    return 0


def make(given: Faces | None, out: Path, workshop: Workshop) -> None:
    """Write the pictures and numbers.json into `out`, and the page beside it. What a chapter shows is written as soon
    as it is made. Without faces the figures of that part stay as they were."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be made: {error.strerror}") from error
    numbers = page.read_numbers(out)
    for name, make_chapter in chapters(workshop, given):
        say(f"gallery: {name}")
        chapter = make_chapter()
        for file, contents in chapter.pictures.items():
            write_atomically(out / file, contents)
        numbers |= chapter.numbers
        write_atomically(out / page.NUMBERS, page.to_json(numbers).encode())
    text = page.render(page.read_numbers(out))
    write_atomically(out.with_suffix(".md"), text.encode())


def chapters(workshop: Workshop, given: Faces | None) -> list[tuple[str, Callable[[], Chapter]]]:
    """The parts of the page, in an order in which the quick ones come first."""
    judge: list[Judge] = []

    def judged(make_chapter: Callable[[Workshop, Judge], Chapter]) -> Chapter:
        if not judge:
            judge.append(Judge(workshop.dataset.train))
        return make_chapter(workshop, judge[0])

    found: list[tuple[str, Callable[[], Chapter]]] = [
        ("a ring", ring.ring),
        ("five points", subspaces.five_points),
        ("two estimates of a gradient", kl.gradients),
        ("images on a line", lambda: overfit.line_of_images(workshop)),
        ("what the KL does", lambda: kl.three_panels(workshop)),
        ("two latent planes", lambda: gaps.planes(workshop)),
        ("gaps", lambda: judged(gaps.gaps)),
        ("sizes", lambda: sizes.sizes(workshop)),
        ("a plane and its making", lambda: sizes.plane(workshop)),
        ("PCA", lambda: subspaces.on_images(workshop)),
        ("denoising", lambda: noise.denoising(workshop)),
        ("blur", lambda: blur.blur(workshop)),
        ("likelihoods", lambda: blur.likelihoods(workshop)),
        ("classes", lambda: judged(classes.conditional)),
    ]
    if given is not None:
        folder, model = given
        read = faces.read(folder / "images.zip", model)  # now: not to fail after all the other chapters
        found.append(("faces", lambda: faces.glasses(*read, folder / "attributes.csv", workshop.folder)))
    return found


if __name__ == "__main__":
    sys.exit(main())
