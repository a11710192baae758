"""examples/node, run by a real Node against a real server: it gets what the Python client gets."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, running_service, settings_for
from npm_packages import EXAMPLE, node_modules
from PIL import Image

import latentry
from serving.server import Service

APP = "app-token-0123456789"
SEED = 2**64 - 1
LEVEL_TOLERANCE = 1  # of 255, for images that were decoded in other batches

Node = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """Runs a program beside latentry.mjs, in a copy of the example whose packages are installed.

    A program is a file of the example, or else the text of one.
    """
    packages = node_modules()
    executable = shutil.which("node") or "node"
    root = tmp_path_factory.mktemp("node")
    folder = root / "examples" / "node"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    (folder / "node_modules").symlink_to(packages)
    (root / "protos").symlink_to(ROOT / "protos")

    def run(program: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        if not program.endswith(".mjs"):
            (folder / "test.mjs").write_text(program)
            program = "test.mjs"
        return subprocess.run(
            [executable, folder / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, **environment},
            cwd=folder,
        )

    return run


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The models that come with the repository."""
    with running_service(settings_for(ROOT / "models", default_model="fashion")) as running:
        yield running


@pytest.fixture(scope="module")
def shown(
    node: Node,
    service: Service,
    fashion_images: np.ndarray[Any, np.dtype[np.uint8]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, str, Path]:
    """What the example says of a boot, what it complains of, and the folder that it fills."""
    folder = tmp_path_factory.mktemp("shown")
    Image.fromarray(fashion_images[0, ..., 0]).save(folder / "boot.png")
    done = node("sample.mjs", f"localhost:{service.port}", folder / "out", folder / "boot.png")
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, folder / "out"


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[latentry.Client]:
    with latentry.Client(f"localhost:{service.port}") as one:
        yield one


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def latents(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.fromfile(path, "<f4").reshape(-1, 32)


def test_a_seed_of_64_bits_gives_node_what_it_gives_python(
    shown: tuple[str, str, Path], client: latentry.Client
) -> None:
    said, _, folder = shown
    wanted = client.sample(4, seed=SEED)
    np.testing.assert_array_equal(latents(folder / "sample.f32"), wanted.latents)
    for k, image in enumerate(wanted.images):
        np.testing.assert_array_equal(pixels(folder / f"sample-{k}.png"), image[..., 0])
    assert f"seed {SEED}, CPUExecutionProvider" in said


def test_an_encoded_picture_is_the_one_that_python_encodes(
    shown: tuple[str, str, Path], client: latentry.Client
) -> None:
    folder = shown[2]
    mean = client.encode([folder.parent / "boot.png"]).mean
    np.testing.assert_array_equal(latents(folder / "encoded.f32"), mean)
    again = client.decode(mean).images[0, ..., 0]
    np.testing.assert_array_equal(pixels(folder / "reconstructed.png"), again)


def test_a_streamed_path_comes_whole_and_in_order(shown: tuple[str, str, Path], client: latentry.Client) -> None:
    said, _, folder = shown
    ends = np.stack([latents(folder / "encoded.f32")[0], latents(folder / "sample.f32")[-1]])
    wanted = client.interpolate(ends, steps=6, path="spherical").images[..., 0]
    frames = np.stack([pixels(folder / f"frame-{k}.png") for k in range(6)])
    assert np.abs(frames - wanted).max() <= LEVEL_TOLERANCE
    assert [line for line in said.splitlines() if "frames" in line] == ["frames 0 to 3 of 6", "frames 4 to 5 of 6"]


def test_the_animation_goes_there_and_back(shown: tuple[str, str, Path]) -> None:
    folder = shown[2]
    with Image.open(folder / "animation.gif") as animation:
        assert (animation.n_frames, animation.size, animation.info["duration"]) == (2 * (6 - 1), (28, 28), 100)
        first = np.asarray(animation.convert("L")).astype(int)
        animation.seek(5)
        middle = np.asarray(animation.convert("L")).astype(int)
    assert np.abs(first - pixels(folder / "frame-0.png")).max() <= LEVEL_TOLERANCE
    assert np.abs(middle - pixels(folder / "frame-5.png")).max() <= LEVEL_TOLERANCE


def test_an_edit_adds_what_it_says(shown: tuple[str, str, Path], client: latentry.Client) -> None:
    folder = shown[2]
    sampled = latents(folder / "sample.f32").astype(float)
    wanted = latents(folder / "encoded.f32")[0] + 0.5 * (sampled[-1] - sampled[0])
    edited = latents(folder / "edited.f32")
    np.testing.assert_allclose(edited[0], wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(pixels(folder / "edited.png"), client.decode(edited).images[0, ..., 0])


def test_a_refused_request_says_which_field_and_why(shown: tuple[str, str, Path]) -> None:
    first, second = shown[1].splitlines()
    assert first.startswith("INVALID_ARGUMENT: temperature: got 99")
    assert second == "  field " + first.removeprefix("INVALID_ARGUMENT: ")


ERRORS = """
import { Latentry } from "./latentry.mjs";
const client = await Latentry.connect(process.argv[2]);
const caught = (error) => error;
const firsts = [];
for await (const part of client.stream("StreamSample", "sample", { count: 5000, seed: 7 }, { chunk_items: 2 })) {
  firsts.push(part.first_index);
  if (firsts.length === 2) break;
}
const none = await client.call("GetModel", { model: { name: "none" } }).catch(caught);
const stream = client.stream("StreamSample", "sample", { count: 1, first_index: -1 });
const refused = await stream.next().catch(caught);
client.timeoutMs = 0;
const late = await client.call("Sample", { count: 1 }).catch(caught);
client.close();
const bare = await Latentry.connect("example.org:443", { token: "secret" }).catch(caught);
console.log(JSON.stringify({ firsts, none, refused, late, bare: bare.message }));
"""


def test_the_page_on_clients_makes_types_of_the_same_protos(node: Node) -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    (command,) = re.findall(r"`proto-loader-gen-types (.*?)`", page)
    made = node(GENERATE, *command.split())
    assert made.returncode == 0, made.stderr
    assert "'seed'?: (number | string | Long);" in made.stdout


GENERATE = """
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
const program = process.cwd() + "/node_modules/.bin/proto-loader-gen-types";
process.chdir("../.."); // where protos is
execFileSync(program, process.argv.slice(2));
console.log(readFileSync("types/latentry/v1/SampleRequest.ts", "utf8"));
"""


def test_errors_are_told_apart_and_a_reader_that_stops_ends_its_stream(node: Node, service: Service) -> None:
    done = node(ERRORS, f"localhost:{service.port}")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["firsts"] == ["0", "2"]
    assert (told["none"]["code"], told["none"]["about"]["model"]) == ("NOT_FOUND", "none")
    assert told["refused"]["code"] == "INVALID_ARGUMENT"
    (violation,) = told["refused"]["fields"]
    assert violation["field"].endswith("first_index")
    assert violation["description"].startswith("got -1, wanted")
    assert told["late"]["code"] == "DEADLINE_EXCEEDED"
    assert told["bare"] == "token: got no TLS, wanted it with a token"
    cancelled = {"rpc": "StreamSample", "model": "fashion", "version": "1", "code": "CANCELLED"}
    assert within(5, lambda: service.metrics.registry.get_sample_value("latentry_requests_total", cancelled) == 1)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    give_up = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < give_up:
        time.sleep(0.02)
    return met


def test_a_server_that_is_not_there_is_one_line_and_status_1(node: Node, free_port: int, tmp_path: Path) -> None:
    done = node("sample.mjs", f"localhost:{free_port}", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"UNAVAILABLE: .*ECONNREFUSED.*\n", done.stderr)


def test_a_token_opens_what_is_restricted(node: Node, linear_repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "identities.toml"
    digest = hashlib.sha256(APP.encode()).hexdigest()
    file.write_text(f'[[identity]]\nname = "app"\nroles = ["infer"]\ntoken_sha256 = "{digest}"\n')
    file.chmod(0o600)
    with running_service(settings_for(linear_repository, identities=file)) as restricted:
        target = f"localhost:{restricted.port}"
        without = node("sample.mjs", target, tmp_path)
        assert without.stderr.startswith("UNAUTHENTICATED: ")
        with_token = node("sample.mjs", target, tmp_path, LATENTRY_TOKEN=APP)
        assert with_token.returncode == 0, with_token.stderr
