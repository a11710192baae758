"""Wrapped graphs keep the contract, whatever the given ones take and give: against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_model import SPREADS, ForeignModel
from foreign_model import model as written
from onnx import TensorProto, helper

from training.importing import foreign, plan, wrap
from training.importing.options import Options
from training.importing.parity import Pair
from training.importing.plan import Plan

LAYOUTS = ("nchw", "nhwc", "flat", "flat-chw")
POSTERIORS = (*SPREADS, "point")
NUMBERS = [(dtype, span) for dtype in ("float32", "float16", "float64") for span in ("0..1", "-1..1", "0..255")]
IMAGES = np.random.default_rng(3).integers(0, 256, (5, 8, 6, 3), np.uint8)
LATENTS = np.random.default_rng(4).standard_normal((5, 3), np.float32)


def wrapped(folder: Path, model: ForeignModel, **said: Any) -> tuple[Pair, Plan]:
    """The pair of graphs, wrapped with what was said of them."""
    encoder_path, decoder_path = model.write(folder)
    encoder, decoder = foreign.read(encoder_path, "encoder"), foreign.read(decoder_path, "decoder")
    settled = plan.settle(encoder, decoder, Options(**said))
    files = [wrap.encoder(encoder, settled, {})[0], wrap.decoder(decoder, settled, {})[0]]
    for file in files:
        onnx.checker.check_model(file, full_check=True)
    return Pair(*files), settled


def check(folder: Path, model: ForeignModel, **said: Any) -> None:
    """Wrap the model, and compare."""
    pair, _ = wrapped(folder, model, **said)
    images, dtype = IMAGES[..., : model.shape[2]], model.dtype
    for got, wanted in zip(pair.encode(images), model.encode(images), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-3 if dtype == "float16" else 1e-5)
    drawn, mean = pair.decode(LATENTS)
    wanted = model.decode(LATENTS.astype(np.float16) if dtype == "float16" else LATENTS)
    if dtype == "uint8":
        wanted = np.rint(wanted * 255) / 255
    assert (drawn.dtype, mean.dtype) == (np.uint8, np.float32)
    np.testing.assert_allclose(mean, wanted, rtol=0, atol=1e-3 if dtype == "float16" else 1e-6)
    assert np.abs(drawn - np.rint(wanted * 255)).max() <= 1


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_type_range_and_posterior_gives_what_the_model_means(
    tmp_path: Path, layout: str, posterior: str
) -> None:
    for dtype, span in [*NUMBERS, ("uint8", "0..255")]:
        model = ForeignModel(layout, dtype, span, posterior, (8, 6, 3))
        said: dict[str, Any] = {"range": span} if span == "0..255" else {}
        if "flat" in layout:  # the others are told by the shapes
            said |= {"image_shape": model.shape, "layout": layout}
        check(tmp_path, model, **said)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grey_images_have_one_layout_fewer_to_choose_from(tmp_path: Path, layout: str) -> None:
    check(tmp_path, ForeignModel(layout), image_shape=(8, 6, 1))


@pytest.mark.parametrize("posterior", list(SPREADS))
def test_one_output_is_split_into_mean_and_spread(tmp_path: Path, posterior: str) -> None:
    model = ForeignModel(posterior=posterior, split=True)
    pair, settled = wrapped(tmp_path, model, posterior=posterior)
    images = IMAGES[..., :1]
    for got, wanted in zip(pair.encode(images), model.encode(images), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    assert "the first half of stats is the mean, the second its spread, along axis 1" in settled.guesses


def test_latents_may_have_axes_of_one(tmp_path: Path) -> None:
    model = ForeignModel(long_latents=True)
    pair, settled = wrapped(tmp_path, model)
    assert settled.latents == (3, 1, 1)
    np.testing.assert_allclose(pair.decode(LATENTS)[1], model.decode(LATENTS), rtol=0, atol=1e-6)


def test_means_and_deviations_of_channels_are_taken_off(tmp_path: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = ForeignModel(shape=(8, 6, 3))
    pair, _ = wrapped(tmp_path, model, range="mean-std", decoder_range="0..1", mean=mean, std=std)
    x = (IMAGES / 255 - np.array(mean)) / np.array(std)
    rows = np.moveaxis(x, 3, 1).reshape(len(x), -1)
    np.testing.assert_allclose(pair.encode(IMAGES)[0], rows @ model.weights[0], rtol=0, atol=1e-5)


def test_encoder_and_decoder_may_differ_in_layout_and_range(tmp_path: Path) -> None:
    ours, other = ForeignModel("nchw", range="-1..1", shape=(8, 6, 3)), ForeignModel("nhwc", shape=(8, 6, 3))
    encoder_path, decoder_path = tmp_path / "e.onnx", tmp_path / "d.onnx"
    onnx.save(ours.encoder(), encoder_path)
    onnx.save(other.decoder(), decoder_path)
    encoder, decoder = foreign.read(encoder_path, "encoder"), foreign.read(decoder_path, "decoder")
    settled = plan.settle(encoder, decoder, Options(range="-1..1", decoder_range="0..1"))
    pair = Pair(wrap.encoder(encoder, settled, {})[0], wrap.decoder(decoder, settled, {})[0])
    np.testing.assert_allclose(pair.encode(IMAGES)[0], ours.encode(IMAGES)[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(pair.decode(LATENTS)[1], other.decode(LATENTS), rtol=0, atol=1e-6)


def test_a_deviation_of_nothing_has_a_finite_logarithm(tmp_path: Path) -> None:
    model = ForeignModel(posterior="mean-std")
    proto = model.encoder()
    next(node for node in proto.graph.node if node.op_type == "Exp").op_type = "Relu"  # gives zeros, as softplus may
    encoder_path, decoder_path = model.write(tmp_path)
    onnx.save(proto, encoder_path)
    encoder, decoder = foreign.read(encoder_path, "encoder"), foreign.read(decoder_path, "decoder")
    settled = plan.settle(encoder, decoder, Options())
    pair = Pair(wrap.encoder(encoder, settled, {})[0], wrap.decoder(decoder, settled, {})[0])
    logvar = pair.encode(IMAGES[..., :1])[1]
    assert np.isfinite(logvar).all()
    assert logvar.min() < -50


def test_latents_with_places_and_open_sides_are_laid_in_a_row(tmp_path: Path) -> None:
    """As the autoencoders of latent diffusion: moments [N, 2C, H/2, W/2] in one output, no side but C told."""
    rng = np.random.default_rng(6)
    w, u = rng.normal(0, 0.5, (8, 3, 1, 1)).astype(np.float32), rng.normal(0, 1, (3, 4, 1, 1)).astype(np.float32)
    port, node = helper.make_tensor_value_info, helper.make_node
    encoder = written(
        [node("Conv", ["sample", "w"], ["latent_parameters"], strides=[2, 2])],
        [port("sample", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [port("latent_parameters", TensorProto.FLOAT, ["batch", 8, "h", "w"])],
        {"w": w},
    )
    decoder = written(
        [node("Conv", ["latent_sample", "u"], ["raw"]), node("Tanh", ["raw"], ["small"]),
         node("Resize", ["small", "", "scales"], ["sample"], mode="nearest")],
        [port("latent_sample", TensorProto.FLOAT, ["batch", 4, "h", "w"])],
        [port("sample", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        {"u": u, "scales": np.array([1, 1, 2, 2], np.float32)},
    )  # fmt: skip
    paths = tmp_path / "e.onnx", tmp_path / "d.onnx"
    onnx.save(encoder, paths[0])
    onnx.save(decoder, paths[1])
    given = foreign.read(paths[0], "encoder"), foreign.read(paths[1], "decoder")
    said = Options(image_shape=(8, 6, 3), posterior="mean-logvar", range="-1..1", decoder_range="-1..1")
    settled = plan.settle(*given, said)
    pair = Pair(wrap.encoder(given[0], settled, {})[0], wrap.decoder(given[1], settled, {})[0])
    x = np.moveaxis(IMAGES / 127.5 - 1, 3, 1)
    moments = np.einsum("oc,nchw->nohw", w[:, :, 0, 0], x[:, :, ::2, ::2])
    for got, wanted in zip(pair.encode(IMAGES), (moments[:, :4], moments[:, 4:]), strict=True):
        np.testing.assert_allclose(got, wanted.reshape(5, 48), rtol=0, atol=1e-5)
    latents = rng.standard_normal((5, 48), np.float32)
    small = np.tanh(np.einsum("oc,nchw->nohw", u[:, :, 0, 0], latents.reshape(5, 4, 4, 3)))
    wanted = (np.moveaxis(small.repeat(2, 2).repeat(2, 3), 1, 3) + 1) / 2
    np.testing.assert_allclose(pair.decode(latents)[1], wanted, rtol=0, atol=1e-5)
