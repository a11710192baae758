"""Runs are measured as their exported models would be: every kind of graph gives what torch says of its model."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import fashion_images, fashion_labels, small_run, small_set

from training import config_file, data, model, trained
from training.config import Config, ModelConfig, ObjectiveConfig
from training.errors import DataError, RunError
from training.evaluate import evaluate as evaluate_in_torch
from training.evaluation import bound, evaluate_command, from_run
from training.evaluation.bound import Scored
from training.evaluation.densities import log_prob_of
from training.evaluation.graphs import Graphs
from training.evaluation.held_out import Parts, checked, of_dataset
from training.evaluation.measure import Options, Subject
from training.images import Images
from training.trained import Trained


def evaluate(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    evaluate_command.add_evaluate_arguments(parser)
    return evaluate_command.run_evaluate(parser.parse_args([str(argument) for argument in arguments]))


class TestRun:
    def test_its_quick_figures_are_those_of_torch_and_its_held_out_images_can_be_saved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert evaluate(small_run(), "--save-images", tmp_path / "held_out.npz") == 0
        with np.load(tmp_path / "held_out.npz") as arrays:
            assert arrays["images"].shape == (30, 28, 28, 1)
            assert arrays["labels"].shape == (30,)
        kept = json.loads((small_run() / "evaluation.json").read_text())
        source = trained.load(small_run())
        expected = evaluate_in_torch(source.model, source.dataset.test)
        assert kept["step"] == 16
        assert kept["images"] == expected.images == 30
        assert kept["psnr_db"] == pytest.approx(expected.psnr_db, abs=1e-3)
        assert kept["kl"] == pytest.approx(expected.kl, rel=1e-3)
        assert kept["active_units"] == expected.active_units
        drawn = []
        for seed in range(20):  # one draw of z for each image: the ELBO depends on the noise, by so much
            monkeypatch.setattr("training.evaluate._SEED", seed)
            drawn.append(evaluate_in_torch(source.model, source.dataset.test).elbo)
        assert abs(kept["elbo"] - np.mean(drawn)) < 4 * np.std(drawn)
        assert not [name for name in kept if name.startswith(("bound", "pca", "frechet"))]

    def test_figures_cannot_be_recorded_in_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert evaluate(small_run(), "--record") == 2
        assert "wanted a model folder: export it first" in capsys.readouterr().err

    def test_a_folder_without_either_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert evaluate(tmp_path) == 2
        assert "holds no run: it has no config.toml" in capsys.readouterr().err


def untrained(folder: Path, kind: ModelConfig, objective: ObjectiveConfig) -> Trained:
    torch.manual_seed(0)
    dataset = data.load(config_file.from_dict({"data": {"path": str(small_set(folder, 60))}}).data, 0)
    vae = model.build(kind, objective, dataset.image_shape, 10).requires_grad_(False).eval()
    return Trained(replace(Config(), model=kind, objective=objective), dataset, vae, 0)


DENSE = ModelConfig(kind="dense", latent_dim=3, hidden=(16,))


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        (replace(DENSE, conditional=True), ObjectiveConfig(likelihood="bernoulli")),
        (DENSE, ObjectiveConfig(likelihood="gaussian-predicted", prior="flow")),
        (DENSE, ObjectiveConfig(likelihood="discretised-logistic")),
    ],
    ids=["conditional bernoulli", "predicted variance, flow prior", "discretised logistic"],
)
def test_log_weights_of_graphs_are_those_of_torch(
    tmp_path: Path, kind: ModelConfig, objective: ObjectiveConfig
) -> None:
    source = untrained(tmp_path, kind, objective)
    if source.model.prior is not None:
        for coupling in source.model.prior.couplings:
            torch.nn.init.normal_(coupling.net[-1].weight, std=0.2)  # away from N(0, I)
    subject = Subject(Graphs(*from_run.in_memory(source), "cpu"), of_dataset(source.dataset, "test"), Options(k=4))
    scored, k = subject.scored, 4
    bounds = bound.importance_weighted(subject.graphs, subject.log_prob, scored, k, subject.priors, 0, lambda _: None)
    (name,) = bounds
    assert name == ("flow" if source.model.prior is not None else "N(0, I)")
    for index in range(len(scored)):
        noise = torch.from_numpy(bound._stream(0, index).standard_normal((k, 3), np.float32))
        expected = in_torch(source, scored, index, noise)
        assert bounds[name].values[index] == pytest.approx(expected, abs=0.01)


def in_torch(source: Trained, scored: Scored, index: int, noise: torch.Tensor) -> float:
    """The bound from the modules, one image at a time."""
    x = torch.from_numpy(scored.observed[index : index + 1]).permute(0, 3, 1, 2) / 255
    label = None if scored.labels is None else torch.from_numpy(scored.labels[index : index + 1])
    mean, logvar = source.model.encoder(x, label)
    z = mean + (0.5 * logvar).exp() * noise
    output = source.model.decoder(z, None if label is None else label.expand(len(z)))
    log_p = source.model.likelihood.log_prob(x.expand(len(z), -1, -1, -1), output) + source.model.log_prior(z)
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    return (torch.logsumexp(log_p - q.log_prob(z).sum(1), 0) - math.log(len(z))).item()


def test_a_conditional_model_needs_labels_that_it_knows(tmp_path: Path) -> None:
    source = untrained(tmp_path, replace(DENSE, conditional=True), ObjectiveConfig())
    manifest, _ = from_run.in_memory(source)
    pixels = fashion_images()[:5, ..., np.newaxis]
    labels = fashion_labels()[:5].astype(np.int64)
    checked(manifest, Parts("good", Images(pixels, labels), None))
    with pytest.raises(DataError, match="got no labels, wanted the class of each image"):
        checked(manifest, Parts("bare", Images(pixels), None))
    with pytest.raises(DataError, match="got class 19, wanted classes below 10"):
        checked(manifest, Parts("other", Images(pixels, labels + 10), None))


def test_an_encoder_that_gives_nan_is_named(tmp_path: Path) -> None:
    source = untrained(tmp_path, DENSE, ObjectiveConfig())
    for parameter in source.model.encoder.parameters():
        parameter.data.fill_(np.nan)
    about, files = from_run.in_memory(source)
    with pytest.raises(RunError, match="the encoder's output: got NaN or infinity, wanted finite numbers"):
        Graphs(about, files, "cpu").encode(fashion_images()[:5, ..., np.newaxis])


def test_bernoulli_from_the_graphs_mean_is_bernoulli_from_logits(tmp_path: Path) -> None:
    source = untrained(tmp_path, DENSE, ObjectiveConfig(likelihood="bernoulli"))
    about, files = from_run.in_memory(source)
    z = torch.randn(20, 3)
    x = (torch.rand(20, 1, 28, 28, 1) < 0.3).float()
    decoded = Graphs(about, files, "cpu").decode(z).view(20, 1, 28, 28, 1)
    expected = source.model.likelihood.log_prob(x[:, 0].permute(0, 3, 1, 2), source.model.decoder(z))
    torch.testing.assert_close(log_prob_of(about.likelihood, 1, 0)(x, decoded)[:, 0], expected, atol=1e-2, rtol=1e-5)
