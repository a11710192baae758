"""Two processes train as one: the same curve, the same numbers after any stop, and nobody waits for who is gone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from training_fixtures import ONE_THREAD, fashion_images, small_set, tiny

from training import batches, checkpoint, data, fit, launch, objective, processes, run, state
from training.config import Config
from training.errors import ConfigError, RunError

EPOCHS = 6
BATCH = 32
STEPS = 48  # of 270 images; enough to be stopped among them on a busy machine
FLAGS = ["--preset", "tiny", "--device", "cpu", "--epochs", str(EPOCHS), "--batch-size", str(BATCH), "--model", "dense"]


def config_of(images: Path) -> Config:
    config = tiny(images, epochs=EPOCHS, batch_size=BATCH)
    return replace(config, model=replace(config.model, kind="dense"))


def start(images: Path, out: Path, *flags: str, torchrun: bool = False) -> subprocess.Popen[str]:
    by_torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if torchrun else []
    command = [sys.executable, *by_torchrun, "-m", "latentry", "train", *FLAGS, "--data", str(images)]
    command += ["--out", str(out), *([] if torchrun else ["--devices", "2"]), *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ONE_THREAD)


def ended(process: subprocess.Popen[str], within_s: float = 150) -> str:
    """What it said, once it has ended."""
    try:
        return process.communicate(timeout=within_s)[1]
    finally:
        process.kill()


def events(folder: Path, kind: str = "step") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / run.LOG).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines if line["event"] == kind]


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    log = folder / run.LOG
    while not log.exists() or f'"step": {step},' not in log.read_text():
        assert process.poll() is None, f"ended before step {step}"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """Those of its processes that train, in the order of their ranks."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sorted(map(int, found), key=lambda each: rank(each))


def rank(pid: int) -> int:
    found = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
    assert found is not None
    return int(found[1])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def by_two(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, undisturbed."""
    folder = tmp_path_factory.mktemp("by_two") / "run"
    process = start(images, folder)
    said = ended(process)
    assert process.returncode == 0, said
    assert said.count(f"epoch {EPOCHS}/{EPOCHS}") == said.count("Trained.") == 1
    return folder


class TestTwo:
    @pytest.mark.usefixtures("undrawn")
    def test_learn_what_one_learns_but_for_the_noise(
        self, images: Path, by_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fit.fit(config_of(images), tmp_path / "one", resume=False)
        seeded = processes.reseed
        monkeypatch.setattr(processes, "reseed", lambda generator, seed, *rest: seeded(generator, seed + 1, *rest))
        fit.fit(config_of(images), tmp_path / "other", resume=False)
        one, other, two = (
            np.array([event["elbo"] for event in events(folder)])
            for folder in (tmp_path / "one", tmp_path / "other", by_two)
        )
        assert len(one) == len(other) == len(two) == STEPS
        noise = np.abs(one - other).mean()
        assert noise > 0
        assert np.abs(one - two).mean() < 3 * noise + 1
        assert two[-1] > two[0] + 50

    def test_step_by_the_mean_of_their_gradients(self, images: Path, by_two: Path) -> None:
        config = config_of(images)
        dataset = data.load(config.data, 0)
        training = state.initial(config, dataset)
        for step, event in enumerate(events(by_two)[:3]):
            order = batches.epoch_order(len(dataset.train), config.run.seed, 0)[step * BATCH : (step + 1) * BATCH]
            training.optimiser.zero_grad()
            elbos = []
            for number in (0, 1):
                place = cast(Fabric, SimpleNamespace(global_rank=number, world_size=2))
                processes.reseed(training.generator, config.run.seed, step, place)
                chosen = processes.share_of(order, place)
                x = batches.to_tensor(dataset.train.pixels[chosen], torch.device("cpu"))
                passed = training.model(x, training.generator, None, 1)
                result = objective.loss(config.objective, training.model, x, *passed, event["beta"])
                (result.loss / 2).backward()
                elbos.append(result.figures["elbo"].item())
            squares = [p.grad.square().sum() for p in training.model.parameters() if p.grad is not None]
            assert event["elbo"] == pytest.approx(np.mean(elbos), rel=1e-4)
            assert event["gradient_norm"] == pytest.approx(torch.stack(squares).sum().sqrt().item(), rel=1e-3)
            torch.nn.utils.clip_grad_norm_(training.model.parameters(), config.optimiser.clip_norm)
            for group in training.optimiser.param_groups:
                group["lr"] = event["learning_rate"]
            training.optimiser.step()

    def test_stopped_in_any_way_go_on_with_the_numbers_of_the_undisturbed(
        self, images: Path, by_two: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        process = start(images, folder)
        wait_for_step(process, folder, 3)
        workers = children(process.pid)
        assert len(workers) == 2
        process.send_signal(signal.SIGINT)
        assert f"Stopped. To go on: latentry train --out {folder} --resume" in ended(process, 40)
        assert process.returncode == 130
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)

        process = start(images, folder, "--resume")
        wait_for_step(process, folder, 20)
        os.kill(children(process.pid)[1], signal.SIGKILL)
        said = ended(process, 40)
        assert "process 1 of 2 was ended by SIGKILL, and the others with it" in said
        assert "Traceback" not in said
        assert process.returncode == 2

        process = start(images, folder, "--resume", torchrun=True)
        said = ended(process)
        assert process.returncode == 0, said
        assert events(folder) == events(by_two)
        assert events(folder, "epoch") == events(by_two, "epoch")
        got, wanted = (checkpoint.load(each / run.CHECKPOINTS, pytest.fail) for each in (folder, by_two))
        for part in ("model", "average"):
            for name, tensor in wanted[part].items():
                assert torch.equal(got[part][name], tensor), name

    def test_end_when_their_launcher_is_killed(self, images: Path, tmp_path: Path) -> None:
        process = start(images, tmp_path / "run", "--epochs", "100000")
        wait_for_step(process, tmp_path / "run", 1)
        workers = children(process.pid)
        process.kill()
        process.communicate()
        until = time.monotonic() + 20
        while any(_runs(pid) for pid in workers):
            assert time.monotonic() < until, "trains on without its launcher"
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


class TestRefusals:
    def test_a_batch_that_cannot_be_shared_equally(self) -> None:
        with pytest.raises(ConfigError, match=r"run\.batch_size: got 128, wanted a multiple of 3"):
            replace(Config(), run=replace(Config().run, devices=3))

    def test_processes_that_nobody_started(self, images: Path, tmp_path: Path) -> None:
        config = config_of(images)
        config = replace(config, run=replace(config.run, devices=2))
        with pytest.raises(ConfigError, match="got 2 processes, wanted `latentry train` or torchrun"):
            fit.fit(config, tmp_path / "run", resume=False)
        assert not (tmp_path / "run").exists()

    def test_machines_that_do_not_know_each_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nodes = replace(Config().run, nodes=2)
        with pytest.raises(ConfigError, match="MASTER_ADDR, MASTER_PORT, NODE_RANK set on each machine, or torchrun"):
            launch.launch(["true"], nodes)
        for name, value in (("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1"), ("NODE_RANK", "2")):
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match="NODE_RANK: got 2, wanted 0 to 1"):
            launch.launch(["true"], nodes)

    def test_other_processes_than_torchrun_has_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "a"}
        for name, value in {**started, "MASTER_PORT": 1}.items():
            monkeypatch.setenv(name, str(value))
        placed = launch.placed(Config().run)
        assert (placed.devices, placed.nodes) == (2, 2)
        assert not launch.is_first()
        with pytest.raises(ConfigError, match="got 4, 1, wanted 2, 2: 4 processes were started"):
            launch.placed(replace(Config().run, devices=4))

    def test_a_run_folder_in_which_another_training_writes(self, images: Path, tmp_path: Path) -> None:
        with run.writing(tmp_path / "run", pytest.fail):
            with pytest.raises(RunError, match=f"run: another training .process {os.getpid()} on .* is writing here"):
                fit.fit(config_of(images), tmp_path / "run", resume=False)
            assert not (tmp_path / "run" / run.CONFIG).exists()


class TestLauncher:
    def run(self, script: str, devices: int = 2, *arguments: str) -> int:
        settings = replace(Config().run, batch_size=devices, devices=devices)
        return launch.launch([sys.executable, "-c", script, *arguments], settings)

    def test_gives_each_its_place(self, tmp_path: Path) -> None:
        names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR"
        script = "import os, pathlib, sys; place = ' '.join(map(os.environ.get, sys.argv[1].split())); "
        script += f"pathlib.Path(r'{tmp_path}', os.environ['RANK']).write_text(place)"
        assert self.run(script, 2, names) == 0
        assert [(tmp_path / each).read_text() for each in "01"] == ["0 0 2 2 0 127.0.0.1", "1 1 2 2 0 127.0.0.1"]

    def test_shows_what_the_one_that_failed_said_and_ends_the_others(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(launch, "_GRACE_S", 0.5)
        script = "import os, sys, time; os.environ['RANK'] == '1' and sys.exit('broken: 1'); time.sleep(60)"
        began = time.monotonic()
        assert self.run(script) == 1
        assert time.monotonic() - began < 25
        assert capfd.readouterr().err == "broken: 1\n"

    def test_tells_the_cause_from_those_that_only_saw_it(self, capfd: pytest.CaptureFixture[str]) -> None:
        cause = "time.sleep(1); sys.exit('the cause')"
        alone = f"print('alone', file=sys.stderr); sys.exit({launch.EXIT_ALONE})"
        script = f"import os, sys, time\nif os.environ['RANK'] == '2': {cause}\nelif os.environ['RANK'] == '1': {alone}"
        assert self.run(script, devices=3) == 1
        assert capfd.readouterr().err == "the cause\n"

    def test_says_nothing_of_others_that_end_well(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert (
            self.run("import sys; print('noise', file=sys.stderr) if __import__('os').environ['RANK'] == '1' else 0")
            == 0
        )
        assert capfd.readouterr().err == ""


def test_noise_follows_seed_step_and_process() -> None:
    def noise(seed: int, step: int, number: int) -> list[float]:
        generator = torch.Generator()
        processes.reseed(generator, seed, step, cast(Fabric, SimpleNamespace(global_rank=number)))
        return cast(list[float], torch.randn(3, generator=generator).tolist())

    assert noise(1, 2, 3) == noise(1, 2, 3)
    assert len({tuple(noise(*each)) for each in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)]}) == 5


def test_shares_make_the_batch() -> None:
    chosen = np.random.default_rng(0).permutation(len(fashion_images()))[:60]
    shares = [processes.share_of(chosen, cast(Fabric, SimpleNamespace(global_rank=r, world_size=3))) for r in range(3)]
    assert [len(share) for share in shares] == [20, 20, 20]
    assert sorted(np.concatenate(shares)) == sorted(chosen)
