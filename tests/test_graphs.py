"""The graphs of every kind of model, and of priors: the contract's names and shapes, torch's numbers, no chance."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from training_fixtures import fashion_images

from training import graphs, likelihood, model, parity
from training.config import KINDS, LIKELIHOODS, ModelConfig, ObjectiveConfig
from training.errors import ExportError
from training.flow import Flow
from training.model import VAE
from training.pca import fit_pca

SHAPE = (9, 13, 3)
SMALL = ModelConfig(latent_dim=5, width=4, max_width=8, head=16, hidden=(16, 12))
METADATA = {"latentry.graph": "test"}


@functools.cache
def real_pixels(n: int = 40) -> NDArray[np.uint8]:
    """(N, 9, 13, 3): real images, cut, in three channels that differ."""
    grey = fashion_images()[:n, 8:17, 8:21, np.newaxis]
    return np.concatenate([grey, grey[::-1], 255 - grey], axis=3)


def build(kind: str, likelihood: str = "gaussian", classes: int = 0) -> VAE:
    """As after some training: BatchNorm's statistics are not those of its beginning."""
    if kind == "pca":
        return fit_pca(real_pixels(), 5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = replace(SMALL, kind=kind, conditional=classes > 0)
        vae = model.build(config, ObjectiveConfig(likelihood=likelihood), SHAPE, classes)
    x = torch.from_numpy(real_pixels()).permute(0, 3, 1, 2) / 255
    labels = torch.arange(len(x)) % classes if classes else None
    with torch.no_grad():
        vae(x, torch.Generator().manual_seed(0), labels)
    return vae.eval()


@functools.cache
def export(kind: str, likelihood: str = "gaussian", classes: int = 0) -> tuple[bytes, bytes]:
    """The encoder's file and the decoder's."""
    encoder, decoder = graphs.wrapped(build(kind, likelihood, classes))
    return graphs.export_encoder(encoder, SHAPE, METADATA), graphs.export_decoder(decoder, 5, METADATA)


def sides(data: bytes) -> tuple[dict[str, tuple[str, list[object]]], dict[str, tuple[str, list[object]]]]:
    """Names, types and shapes of a graph's inputs and of its outputs."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    inputs, outputs = (
        {value.name: (value.type, value.shape) for value in values}
        for values in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs


def bent_flow(latent_dim: int, seed: int = 0) -> Flow:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = Flow(latent_dim, 2, 16)
        for coupling in flow.couplings:
            nn.init.normal_(coupling.net[-1].weight, std=0.3)
    return flow


# An export takes a second, so each network is here once; dense alone is left to tests/test_export.py.
@pytest.mark.parametrize(
    ("kind", "likelihood", "classes"),
    [
        ("conv", "gaussian-predicted", 4),
        ("plain", "gaussian", 0),
        ("dense-norm", "gaussian-predicted", 4),
        ("autoencoder", "gaussian", 0),
        ("pca", "gaussian", 0),
    ],
)
def test_every_model_passes_the_gate(kind: str, likelihood: str, classes: int) -> None:
    vae = build(kind, likelihood, classes)
    encoder, decoder = export(kind, likelihood, classes)
    parity.check_graph(encoder, "encoder.onnx")
    parity.check_graph(decoder, "decoder.onnx")
    measured = parity.measure(encoder, decoder, *graphs.wrapped(vae), real_pixels())
    assert measured.encoder <= parity.ENCODER_TOLERANCE
    assert (measured.parameters is None) != vae.likelihood.needs_parameters
    assert ("parity_decoder_parameters" in measured.figures()) == vae.likelihood.needs_parameters


def test_no_other_kind_has_other_networks() -> None:
    for kind, twin in (("denoising", "autoencoder"), ("linear", "pca")):
        for part in ("encoder", "decoder"):
            assert str(getattr(build(kind), part)) == str(getattr(build(twin), part))
    assert set(KINDS) == {"conv", "plain", "dense", "dense-norm", "autoencoder", "pca", "denoising", "linear"}


class AllMeans(nn.Module):
    """The means of all likelihoods at once, of one output."""

    def __init__(self) -> None:
        super().__init__()
        links = [(name, "sigmoid") for name in LIKELIHOODS] + [("gaussian", "identity")]
        self.likelihoods = nn.ModuleList(likelihood.build(name, link=link) for name, link in links)

    def forward(self, noise: Tensor) -> Tensor:
        """(N, 4) -> (N, L, 2, 1, 2): two channels, the second of which only some read."""
        output = 3 * noise.reshape(-1, 2, 1, 2)
        return torch.stack([each.mean(output).expand(-1, 2, 1, 2) for each in self.likelihoods], 1)


def test_the_mean_of_every_likelihood_is_the_same_in_onnx() -> None:
    means = AllMeans().eval()
    data = graphs.export_prior(means, 4, METADATA)
    parity.check_graph(data, "means")
    assert parity.measure_prior(data, None, means, None, 4).latents < parity.DECODER_TOLERANCE


def test_a_plain_models_graphs_are_those_of_the_contract() -> None:
    encoder, decoder = export("plain")
    assert sides(encoder) == (
        {"images": ("tensor(uint8)", ["batch", *SHAPE])},
        {"mean": ("tensor(float)", ["batch", 5]), "logvar": ("tensor(float)", ["batch", 5])},
    )
    assert sides(decoder) == (
        {"latents": ("tensor(float)", ["batch", 5])},
        {"images": ("tensor(uint8)", ["batch", *SHAPE]), "mean": ("tensor(float)", ["batch", *SHAPE])},
    )


@pytest.mark.parametrize("kind", ["conv", "dense-norm"])
def test_a_conditional_models_graphs_want_labels_and_a_predicted_variance_is_given(kind: str) -> None:
    encoder, decoder = export(kind, "gaussian-predicted", 4)
    labels = ("tensor(int64)", ["batch"])
    assert sides(encoder)[0] == {"images": ("tensor(uint8)", ["batch", *SHAPE]), "labels": labels}
    inputs, outputs = sides(decoder)
    assert inputs == {"latents": ("tensor(float)", ["batch", 5]), "labels": labels}
    assert outputs["parameters"] == ("tensor(float)", ["batch", 9, 13, 6])


def test_parameters_are_the_decoders_output_with_channels_last() -> None:
    vae, z, labels = build("dense-norm", "gaussian-predicted", 4), torch.randn(3, 5), torch.tensor([2, 0, 3])
    session = onnxruntime.InferenceSession(export("dense-norm", "gaussian-predicted", 4)[1])
    (parameters,) = session.run(["parameters"], {"latents": z.numpy(), "labels": labels.numpy()})
    output = torch.from_numpy(parameters).permute(0, 3, 1, 2)
    x = torch.rand(3, 3, 9, 13)
    with torch.no_grad():
        torch.testing.assert_close(*(vae.likelihood.log_prob(x, each) for each in (output, vae.decoder(z, labels))))


def test_the_label_changes_what_is_drawn() -> None:
    session = onnxruntime.InferenceSession(export("dense-norm", "gaussian-predicted", 4)[1])
    latents = np.zeros((4, 5), np.float32)
    (mean,) = session.run(["mean"], {"latents": latents, "labels": np.arange(4)})
    assert all(not np.array_equal(mean[0], other) for other in mean[1:])


@functools.cache
def flow_files() -> tuple[bytes, bytes]:
    prior, density = graphs.wrapped_flow(bent_flow(6))
    return graphs.export_prior(prior, 6, METADATA), graphs.export_density(density, 6, METADATA)


def test_a_flow_is_exported_as_prior_and_density() -> None:
    for data in flow_files():
        parity.check_graph(data, "prior")
    latents = ("tensor(float)", ["batch", 6])
    assert sides(flow_files()[0]) == ({"noise": latents}, {"latents": latents})
    assert sides(flow_files()[1]) == ({"latents": latents}, {"log_prob": ("tensor(float)", ["batch"])})
    measured = parity.measure_prior(*flow_files(), *graphs.wrapped_flow(bent_flow(6)), 6)
    assert measured.figures() == {
        "parity_prior_relative": measured.latents,
        "parity_density_relative": measured.density,
    }
    assert measured.latents <= parity.PRIOR_TOLERANCE


class Doubling(nn.Module):
    """A prior of more noise than latents, whose density is unknown."""

    def forward(self, noise: Tensor) -> Tensor:
        return noise[:, :3] + 2 * noise[:, 3:]


@functools.cache
def doubling_file() -> bytes:
    return graphs.export_prior(Doubling(), 6, METADATA)


def test_any_module_can_be_a_prior_of_any_noise() -> None:
    latents = ("tensor(float)", ["batch", 3])
    assert sides(doubling_file()) == ({"noise": ("tensor(float)", ["batch", 6])}, {"latents": latents})
    measured = parity.measure_prior(doubling_file(), None, Doubling(), None, 6)
    assert measured.figures() == {"parity_prior_relative": measured.latents}


class OfTwo(nn.Module):
    """A module that counts its rows while it is traced."""

    def forward(self, noise: Tensor) -> Tensor:
        return noise + torch.zeros(len(noise), 1)


def test_a_batch_size_that_became_a_constant_is_refused() -> None:
    with pytest.raises(ExportError, match="noise: the batch size became a constant: got 2, wanted any"):
        graphs.export_prior(OfTwo(), 6, METADATA)


class TestWhatDisagrees:
    def test_another_prior_is_refused(self) -> None:
        other, density = graphs.wrapped_flow(bent_flow(6, seed=1))
        with pytest.raises(ExportError, match=r"prior: relative difference of the latents: got [0-9.]+, wanted"):
            parity.measure_prior(*flow_files(), other, density, 6)

    def test_another_density_is_refused(self) -> None:
        prior, _ = graphs.wrapped_flow(bent_flow(6))
        _, other = graphs.wrapped_flow(bent_flow(6, seed=1))
        with pytest.raises(ExportError, match=r"density: relative difference of log p\(z\): got [0-9.]+, wanted"):
            parity.measure_prior(*flow_files(), prior, other, 6)

    def test_half_a_density_is_refused(self) -> None:
        with pytest.raises(ExportError, match="got a density in only one of ONNX and torch"):
            parity.measure_prior(b"", b"", Doubling(), None, 6)

    def test_other_parameters_are_refused(self) -> None:
        name, other = ("dense-norm", "gaussian-predicted", 4), build("dense-norm", "gaussian-predicted", 4)
        nn.init.constant_(other.decoder.layers[-1].bias[3 * 9 * 13 :], 1.0)  # of the variances alone
        with pytest.raises(ExportError, match=r"decoder: relative difference of the parameters: got [0-9.]+, wanted"):
            parity.measure(*export(*name), *graphs.wrapped(other), real_pixels())

    def test_other_shapes_are_refused(self) -> None:
        with pytest.raises(ExportError, match=r"shapes of the outputs: got \[\(1, 3\)\], wanted \[\(1, 6\)\]"):
            parity.measure_prior(doubling_file(), None, nn.Identity(), None, 6)


def test_graphs_carry_their_metadata_and_nothing_of_this_machine() -> None:
    for data in export("plain"):
        proto = onnx.load_from_string(data)
        assert {each.key: each.value for each in proto.metadata_props} == METADATA
        assert proto.opset_import[0].version == graphs.OPSET
        assert b"site-packages" not in data
        assert b"training/" not in data
