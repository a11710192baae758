"""A graph alone is enough: its notes are true, and what docs/model-folder.md shows runs in three languages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT
from numpy.typing import NDArray
from PIL import Image
from training_fixtures import fashion_images

from latentry import graph_notes, manifest
from latentry.manifest import AggregatePosterior, Likelihood, Manifest, Prior
from training import config_file, graphs, model
from training import likelihood as likelihoods
from training.config import LIKELIHOODS

PAGE = (ROOT / "docs" / "model-folder.md").read_text()
EXAMPLES = ROOT / "docs" / "examples"
BOOT = EXAMPLES / "boot.pgm"
FASHION = manifest.embedded_models() / "fashion" / "1"
NODE = "1.30.0"  # of onnxruntime-node and onnxruntime-web
LATENT_TOLERANCE = 1e-4
LEVEL_TOLERANCE = 1  # of 255
_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int64)": "int64"}

Pixels = NDArray[np.uint8]
Latents = NDArray[np.float64]


def session(graph: bytes | Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def port_notes(notes: Mapping[str, str], prefix: str) -> dict[str, str]:
    """`uint8 [N, 28, 28, 1]`, by the input's or output's name."""
    of = {key.removeprefix(prefix): text for key, text in notes.items() if key.startswith(prefix)}
    return {name: re.split(r"[:,](?![^\[]*\])", text)[0] for name, text in of.items()}


def ports(values: Sequence[Any]) -> dict[str, str]:
    """The same of a session's inputs or outputs."""
    shapes = {value.name: ", ".join(["N", *map(str, value.shape[1:])]) for value in values}
    return {value.name: f"{_TYPES[value.type]} [{shapes[value.name]}]" for value in values}


def assert_true_of(notes: Mapping[str, str], graph: onnxruntime.InferenceSession) -> None:
    """Each input and output has a note that begins with its type and shape, and nothing else has one."""
    assert port_notes(notes, graph_notes.INPUT) == ports(graph.get_inputs())
    assert port_notes(notes, graph_notes.OUTPUT) == ports(graph.get_outputs())


@pytest.mark.parametrize(
    "path", sorted(manifest.embedded_models().glob("*/1/*.onnx")), ids=lambda path: f"{path.parts[-3]}-{path.stem}"
)
def test_the_notes_name_every_input_and_output_of_the_shipped_graphs(path: Path) -> None:
    about = manifest.read(path.parent).manifest
    graph, _, precision = path.stem.partition(".")
    notes = graph_notes.metadata(about, graph, precision or "fp32")
    assert session(path).get_modelmeta().custom_metadata_map == notes
    assert_true_of(notes, session(path))


@pytest.fixture(scope="module")
def conditional() -> tuple[Manifest, dict[str, bytes]]:
    """A conditional model whose decoder also gives `parameters`: what is said of it, and its described graphs."""
    config = config_file.override(
        config_file.read_preset("tiny"),
        {"model": {"kind": "dense", "conditional": True}, "objective": {"likelihood": "gaussian-predicted"}},
    )
    built = model.build(config.model, config.objective, (28, 28, 1), 3)
    about = replace(
        made_up(classes=3, labels=("boot", "bag", "coat")),
        latent_dim=config.model.latent_dim,
        likelihood=Likelihood("gaussian-predicted"),
    )
    encoder, decoder = graphs.wrapped(built.eval())
    files = {
        "encoder": graphs.export_encoder(encoder, about.image_shape, {}),
        "decoder": graphs.export_decoder(decoder, about.latent_dim, {}),
    }
    return about, {graph: described(data, graph_notes.metadata(about, graph)) for graph, data in files.items()}


def made_up(**changes: Any) -> Manifest:
    """A manifest of 28x28 grey images, 4 latents."""
    files = dict.fromkeys(("encoder.onnx", "decoder.onnx", "prior.onnx"), "0" * 64)
    return Manifest(
        **{
            "name": "small",
            "version": 7,
            "image_shape": (28, 28, 1),
            "latent_dim": 4,
            "likelihood": Likelihood("gaussian", {"sigma": 0.125}),
            "files": files,
            **changes,
        }
    )


def described(data: bytes, metadata: Mapping[str, str]) -> bytes:
    proto = onnx.load_from_string(data)
    graph_notes.describe(proto, metadata)
    return proto.SerializeToString(deterministic=True)


class TestDescribed:
    """On graphs of our exporter, with labels and with `parameters`."""

    @pytest.mark.parametrize("graph", ["encoder", "decoder"])
    def test_the_notes_are_true_of_labels_and_parameters(
        self, conditional: tuple[Manifest, dict[str, bytes]], graph: str
    ) -> None:
        about, files = conditional
        notes = graph_notes.notes(about, graph)
        assert_true_of(notes, session(files[graph]))
        assert notes["latentry.input.labels"].endswith("from 0 to 2 (0 boot, 1 bag, 2 coat)")

    def test_whoever_opens_the_file_reads_them(self, conditional: tuple[Manifest, dict[str, bytes]]) -> None:
        about, files = conditional
        told = session(files["decoder"]).get_modelmeta()
        notes = graph_notes.notes(about, "decoder")
        assert told.custom_metadata_map == {**about.graph_metadata("decoder"), **notes}
        assert told.description.startswith("The decoder of small, version 7: images of 28 rows and 28 columns, grey;")
        assert told.version == 7
        proto = onnx.load_from_string(files["decoder"])
        onnx.checker.check_model(proto, full_check=True)
        beside = {port.name: port.doc_string for port in [*proto.graph.input, *proto.graph.output]}
        assert beside["images"] == "uint8 [N, 28, 28, 1]: mean in levels from 0 to 255, as the encoder takes them"
        assert all(beside.values())

    def test_describing_again_replaces_and_gives_the_same_bytes(
        self, conditional: tuple[Manifest, dict[str, bytes]]
    ) -> None:
        about, files = conditional
        assert described(files["encoder"], graph_notes.metadata(about, "encoder")) == files["encoder"]
        other = session(described(files["encoder"], {"latentry.graph": "x"})).get_modelmeta()
        assert (other.custom_metadata_map, other.description) == ({"latentry.graph": "x"}, "")


class TestNotes:
    def test_every_likelihood_has_its_note(self) -> None:
        for name in LIKELIHOODS:
            made = likelihoods.build(name)
            notes = graph_notes.notes(made_up(likelihood=Likelihood(name)), "decoder")
            assert "p(x|z)" not in notes["latentry.output.mean"], "its own note, not the one for likelihoods of others"
            assert ("latentry.output.parameters" in notes) == made.needs_parameters
            if made.needs_parameters:
                shape = port_notes(notes, graph_notes.OUTPUT)["parameters"]
                assert shape == f"float32 [N, 28, 28, {made.outputs_per_channel}]"

    def test_numbers_of_the_likelihood_are_given_in_full(self) -> None:
        notes = graph_notes.notes(made_up(likelihood=Likelihood("gaussian", {"sigma": 0.07911605252469606})), "encoder")
        assert notes["latentry.likelihood_parameters"] == "sigma=0.07911605252469606"

    def test_an_encoder_that_gives_points_says_so(self) -> None:
        assert graph_notes.POINT_KINDS == model._POINTS
        notes = graph_notes.notes(made_up(provenance={"config": {"model": {"kind": "denoising"}}}), "encoder")
        assert "take mean as" in notes["latentry.use"]
        assert "noise" not in notes["latentry.use"]

    @pytest.mark.parametrize(
        ("kind", "wanted"),
        [("flow", "standard normal latents do not fit"), ("mixture", "nearer to the data, latents that prior.onnx")],
    )
    def test_a_decoder_says_which_latents_are_the_model_s(self, kind: str, wanted: str) -> None:
        about = made_up(prior=Prior(kind, 4, -1.0, -2.0))
        assert wanted in graph_notes.notes(about, "decoder")["latentry.use"]
        assert "feed standard normal latents." in graph_notes.notes(made_up(), "decoder")["latentry.use"]

    def test_ten_thousand_class_names_are_left_to_the_manifest(self) -> None:
        about = made_up(classes=10_000, labels=tuple(f"class {number}" for number in range(10_000)))
        assert graph_notes.notes(about, "encoder")["latentry.input.labels"].endswith("(manifest.json names them)")

    @pytest.mark.parametrize("provenance", [{}, {"config": 5, "data": []}, {"config": {"model": "x"}, "data": {}}])
    def test_a_model_of_any_origin_has_notes(self, provenance: dict[str, Any]) -> None:
        for graph in ("encoder", "decoder"):
            notes = graph_notes.notes(made_up(provenance=provenance, likelihood=Likelihood("other")), graph)
            assert "latentry.data" not in notes
            assert all(notes.values())

    def test_only_what_is_known_before_the_graphs_are_made_is_read(self) -> None:
        """So that the notes of the finished manifest are those in the graphs."""
        after = made_up(
            files=dict.fromkeys(("encoder.onnx", "decoder.onnx"), "1" * 64),
            evaluation={"elbo": 1.0},
            aggregate_posterior=AggregatePosterior((0.0,) * 4, (1.0,) * 4),
            attributes={"dark": (1.0,) * 4},
        )
        assert graph_notes.notes(after, "decoder") == graph_notes.notes(made_up(), "decoder")


def blocks(language: str) -> list[str]:
    """The page's code blocks in a language."""
    return [block for of, block in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M) if of == language]


class TestPage:
    def test_it_shows_the_programs_that_are_tested(self) -> None:
        shown = {"python": ["about_graph.py", "lone_graph.py"], "cpp": ["lone_graph.cpp"], "js": ["lone_graph.mjs"]}
        for language, files in shown.items():
            assert blocks(language) == [(EXAMPLES / file).read_text() for file in files]

    def test_it_has_every_field_of_the_manifest(self) -> None:
        table = PAGE[PAGE.index("## The manifest") : PAGE.index("## The same in three")]
        said = set(re.findall(r"`(\w+)`", table))
        for kind in (Manifest, Likelihood, AggregatePosterior, Prior):
            assert {field.name for field in fields(kind)} <= said
        assert "format" in said
        rows = re.findall(r"^\| (`.*?) \|", table, re.M)[1:]
        assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} <= {
            *(field.name for field in fields(Manifest)),
            "format",
        }

    def test_it_has_every_key_of_a_graph_s_metadata_and_no_other(self) -> None:
        section = PAGE[PAGE.index("## A graph alone") : PAGE.index("## The manifest")]
        rows = dict(re.findall(r"^\| (`.*?) \|.*\| (yes|no) \|$", section, re.M))
        said = {name: compared for row, compared in rows.items() for name in re.findall(r"`([\w.]+)`", row)}
        about = made_up(
            classes=2,
            prior=Prior("flow", 4, 0.0, 0.0),
            provenance={"data": {"name": "set"}},
            variants={"int8": {}},
            files=dict.fromkeys(
                ("encoder.onnx", "decoder.onnx", "prior.onnx", "encoder.int8.onnx", "decoder.int8.onnx"), "0" * 64
            ),
        )
        wanted = dict.fromkeys(about.graph_metadata("encoder", "int8"), "yes")
        for graph in ("encoder", "decoder", "prior", "density"):
            wanted |= dict.fromkeys(graph_notes.notes(about, graph), "no")
        short = {re.sub(r"(put\.).*", r"\1NAME", key.removeprefix("latentry.")): value for key, value in wanted.items()}
        assert said == short

    def test_its_picture_is_the_first_test_image(self) -> None:
        with Image.open(BOOT) as boot:
            np.testing.assert_array_equal(np.asarray(boot), fashion_images()[0])


@pytest.fixture(scope="module")
def wanted() -> tuple[Pixels, NDArray[np.float32]]:
    """What the graphs of models/fashion/1 make of the first test image: the image decoded, and its latents."""
    image = fashion_images()[:1, ..., np.newaxis]
    (mean,) = session(FASHION / "encoder.onnx").run(["mean"], {"images": image})
    (again,) = session(FASHION / "decoder.onnx").run(["images"], {"latents": mean})
    assert np.square((again - image.astype(float)) / 255).mean() < 0.02, "it is the same boot, 17 dB at least"
    return again[0, ..., 0], mean[0]


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, FASHION, BOOT, folder / "again.pgm"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


def assert_same(
    done: subprocess.CompletedProcess[str], folder: Path, wanted: tuple[Pixels, NDArray[np.float32]]
) -> None:
    """The program printed the latents in its last line, and wrote the picture."""
    assert done.returncode == 0, done.stderr
    latents = np.array(done.stdout.splitlines()[-1].split(), float)
    np.testing.assert_allclose(latents, wanted[1], atol=LATENT_TOLERANCE, rtol=0)
    with Image.open(folder / "again.pgm") as again:
        levels = np.abs(np.asarray(again).astype(int) - wanted[0])
    assert levels.max() <= LEVEL_TOLERANCE


def test_python_needs_numpy_and_onnxruntime_alone(tmp_path: Path, wanted: tuple[Pixels, NDArray[np.float32]]) -> None:
    code = f"import runpy, sys; runpy.run_path({str(EXAMPLES / 'lone_graph.py')!r}, run_name='__main__')"
    loaded = "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    done = run([sys.executable, "-I", "-c", f"{code}; {loaded}"], tmp_path)
    assert_same(done, tmp_path, wanted)
    packages = set(done.stderr.split())
    assert {"numpy", "onnxruntime"} <= packages
    assert not packages & {"latentry", "training", "serving", "torch", "onnx", "grpc", "PIL"}


def test_a_graph_s_own_words_are_printed(conditional: tuple[Manifest, dict[str, bytes]], tmp_path: Path) -> None:
    about, files = conditional
    (tmp_path / "torn.onnx").write_bytes(files["decoder"])
    done = subprocess.run(
        [sys.executable, "-I", EXAMPLES / "about_graph.py", tmp_path / "torn.onnx"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        f"{key}: {text}" for key, text in sorted(graph_notes.metadata(about, "decoder").items())
    ]


@pytest.fixture(scope="module")
def node_modules() -> Iterator[Path]:
    """A folder in which node finds onnxruntime-node and onnxruntime-web; not pytest's own, which would keep it."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("no npm and node on this machine")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "package.json").write_text('{"private": true}')
        # The scripts would fetch CUDA's libraries from elsewhere; what runs on processors is in the package.
        packages = [f"onnxruntime-node@{NODE}", f"onnxruntime-web@{NODE}"]
        flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1"]
        done = subprocess.run(
            [npm, "install", *flags, *packages], cwd=folder, capture_output=True, text=True, check=False, timeout=200
        )
        if done.returncode != 0:
            pytest.skip(f"npm install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1:]}")
        yield Path(folder)


@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_javascript_makes_the_same_of_a_real_image(
    package: str, node_modules: Path, tmp_path: Path, wanted: tuple[Pixels, NDArray[np.float32]]
) -> None:
    code = (EXAMPLES / "lone_graph.mjs").read_text()
    assert '"onnxruntime-node"' in code
    program = node_modules / f"{package}.mjs"
    program.write_text(code.replace("onnxruntime-node", package))
    assert_same(run(["node", program], tmp_path), tmp_path, wanted)


def test_cpp_makes_the_same_of_a_real_image(tmp_path: Path, wanted: tuple[Pixels, NDArray[np.float32]]) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C++ compiler on this machine, or not Linux")
    include = "-isystem/usr/include/onnxruntime"  # and what CPLUS_INCLUDE_PATH names
    header = [compiler, include, "-fsyntax-only", "-include", "onnxruntime_cxx_api.h", "-x", "c++", "-std=c++17"]
    if subprocess.run([*header, os.devnull], capture_output=True, check=False).returncode != 0:
        pytest.skip("no ONNX Runtime headers: install libonnxruntime-dev, or say in CPLUS_INCLUDE_PATH where they are")
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not libraries:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} has no library of its own")
    (tmp_path / "libonnxruntime.so.1").symlink_to(libraries[0])
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        [
            compiler,
            "-std=c++17",
            *warnings,
            EXAMPLES / "lone_graph.cpp",
            include,
            libraries[0],
            "-o",
            tmp_path / "lone",
        ],
        check=True,
    )
    assert_same(run([tmp_path / "lone"], tmp_path, LD_LIBRARY_PATH=str(tmp_path)), tmp_path, wanted)
