"""Networks rewritten for inference give what they gave, and are what was promised: no norm left, no doubling first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from training import folding, model
from training.config import KINDS, ModelConfig, ObjectiveConfig
from training.folding import SubPixel
from training.model import VAE
from training.networks.conv import ConvDecoder, Upsample
from training.networks.dropout import Dropout

SMALL = ModelConfig(latent_dim=5, width=8, max_width=16, head=16, hidden=(32, 16))
LEARNT = [kind for kind in KINDS if kind != "pca"]  # whose networks are those of linear


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def used(kind: str, shape: tuple[int, int, int], classes: int = 0) -> VAE:
    """With statistics of norms that are not those of their beginning."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = replace(SMALL, kind=kind, conditional=classes > 0)
        vae = model.build(config, ObjectiveConfig(), shape, classes)
        for norm in vae.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(norm.running_mean, -1, 1)
                nn.init.uniform_(norm.running_var, 0.2, 3)
                nn.init.uniform_(norm.weight, 0.5, 2)
                nn.init.uniform_(norm.bias, -1, 1)
    return vae.eval()


@pytest.mark.parametrize("kind", LEARNT)
@pytest.mark.parametrize(
    "shape", [(16, 32, 3), (28, 28, 1), (9, 13, 3), (8, 64, 1)], ids=lambda s: "x".join(map(str, s))
)
def test_a_folded_network_gives_the_same(kind: str, shape: tuple[int, int, int]) -> None:
    classes = 0 if kind == "linear" else 3
    vae, labels = used(kind, shape, classes), torch.arange(6) % 3 if classes else None
    x, z = torch.sigmoid(normal(6, shape[2], *shape[:2])), normal(6, 5)
    with torch.no_grad():
        for got, wanted in zip(folding.folded(vae.encoder)(x, labels), vae.encoder(x, labels), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        wanted = vae.decoder(z, labels)
        torch.testing.assert_close(folding.folded(vae.decoder)(z, labels), wanted, rtol=1e-4, atol=1e-5)
        assert wanted.std() > 1e-3


@pytest.mark.parametrize("kind", LEARNT)
def test_no_norm_and_no_dropout_is_left(kind: str) -> None:
    vae = used(kind, (28, 28, 1))
    for part in (vae.encoder, vae.decoder):
        left = {type(module) for module in folding.folded(part).modules()}
        assert not left & {nn.BatchNorm1d, nn.BatchNorm2d, Dropout}
    if kind in ("conv", "dense-norm"):
        assert {type(module) for module in vae.decoder.modules()} & {nn.BatchNorm1d, nn.BatchNorm2d}


@pytest.mark.parametrize(
    ("kind", "shape", "subpixels", "doublings"),
    [
        ("conv", (32, 32, 1), 3, 0),
        ("conv", (28, 28, 1), 2, 1),  # 4 -> 7 is cropped before its convolution
        ("conv", (8, 64, 1), 1, 3),  # only one scale doubles both sides
        ("plain", (28, 28, 1), 3, 0),  # here the crop comes after
    ],
)
def test_doublings_become_subpixels_where_nothing_is_cropped_before(
    kind: str, shape: tuple[int, int, int], subpixels: int, doublings: int
) -> None:
    found = [type(module) for module in folding.folded(used(kind, shape).decoder).modules()]
    assert (found.count(SubPixel), found.count(Upsample)) == (subpixels, doublings)


def test_what_is_trained_stays_as_it_is() -> None:
    decoder = used("conv", (16, 16, 1)).decoder
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    folded = folding.folded(decoder)
    assert isinstance(decoder, ConvDecoder)
    assert isinstance(decoder.output, nn.Conv2d)
    assert decoder.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_a_subpixel_convolution_is_a_doubling_and_a_convolution() -> None:
    x, weight, bias = normal(2, 3, 5, 4), normal(7, 3, 3, 3, seed=1), normal(7, seed=2)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = functional.conv2d(doubled, weight, bias, padding=1)
    got = SubPixel(weight, bias, folding._TAPS, (10, 8))(x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_subpixel_convolution_is_a_transposed_one() -> None:
    x, weight = normal(2, 3, 5, 4), normal(3, 7, 4, 4, seed=1)
    wanted = functional.conv_transpose2d(x, weight, stride=2, padding=1)[:, :, :9, :7]
    got = SubPixel(weight.transpose(0, 1), None, folding._TRANSPOSED_TAPS, (9, 7))(x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
