"""What graphs do not tell is asked for by its flag and its choices; what they tell is guessed aloud."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from foreign_model import ForeignModel

from latentry.manifest import Likelihood
from training.errors import ConfigError, ExportError
from training.importing import foreign, options, plan, posterior
from training.importing.options import Options
from training.importing.plan import Plan


def settle(place: Path, model: ForeignModel, rename: dict[str, str] | None = None, **said: Any) -> Plan:
    """The plan for a model whose graphs have some of their names changed."""
    encoder, decoder = model.encoder(), model.decoder()
    for proto in (encoder, decoder):
        for node in proto.graph.node:
            node.output[:] = [(rename or {}).get(name, name) for name in node.output]
            node.input[:] = [(rename or {}).get(name, name) for name in node.input]
        for port in proto.graph.output:
            port.name = (rename or {}).get(port.name, port.name)
    paths = place / "e.onnx", place / "d.onnx"
    onnx.save(encoder, paths[0])
    onnx.save(decoder, paths[1])
    return plan.settle(foreign.read(paths[0], "encoder"), foreign.read(paths[1], "decoder"), Options(**said))


def test_every_guess_is_said(tmp_path: Path) -> None:
    assert settle(tmp_path, ForeignModel()).guesses == (
        "image shape 8,6,1 (H,W,C), from picture float32 [N, 1, 8, 6]",
        "layout nchw, from picture float32 [N, 1, 8, 6] of e.onnx",
        "posterior mean-logvar of mean and logvar, from their names",
        "decoder's range 0..1, from the function that drawn comes out of",
        "encoder's range 0..1, as the decoder's",
        "layout nchw, from drawn float32 [N, 1, 8, 6] of d.onnx",
    )


def test_what_is_said_is_not_guessed(tmp_path: Path) -> None:
    said = {"posterior": "mean-logvar", "mean_output": "mean", "spread_output": "logvar", "range": "0..1"}
    settled = settle(tmp_path, ForeignModel(), layout="nchw", image_shape=(8, 6, 1), decoder_range="0..1", **said)
    assert settled.guesses == ()


def test_levels_for_the_encoder_do_not_speak_for_a_decoder_with_a_sigmoid(tmp_path: Path) -> None:
    settled = settle(tmp_path, ForeignModel(), range="0..255")
    assert (settled.encoder.range.name, settled.decoder.range.name) == ("0..255", "0..1")
    assert "decoder's range 0..1, from the function that drawn comes out of" in settled.guesses


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("mu", "log_var"), "mean-logvar"),
        (("z_mean", "z_log_var"), "mean-logvar"),
        (("z_mean:0", "z_log_var:0"), "mean-logvar"),
        (("embedding", "log_covariance"), "mean-logvar"),
        (("mu", "logSigma2"), "mean-logvar"),
        (("loc", "scale"), "mean-std"),
        (("mean", "stddev"), "mean-std"),
        (("mu", "sigma"), "mean-std"),
        (("mu", "log_sigma"), "mean-logstd"),
        (("latent/mean", "latent/log_std"), "mean-logstd"),
        (("Mu", "variance"), "mean-variance"),
        (("mu", "sigma_sq"), "mean-variance"),
    ],
)
def test_names_tell_the_kind_of_posterior(tmp_path: Path, names: tuple[str, str], kind: str) -> None:
    found = settle(tmp_path, ForeignModel(), dict(zip(("mean", "logvar"), names, strict=True))).posterior
    assert (found.kind, found.mean, found.spread) == (kind, *names)


@pytest.mark.parametrize(
    ("model", "said", "asks"),
    [
        (ForeignModel("flat"), {}, r"--image-shape: .*picture float32 \[N, 48\]\): wanted H,W,C such as 28,28,1"),
        (ForeignModel("flat", shape=(8, 6, 3)), {"image_shape": (8, 6, 3)}, "--layout: .*wanted flat or flat-chw"),
        (ForeignModel(shape=(8, 3, 3)), {}, "--image-shape: the graphs do not tell it"),
        (ForeignModel(shape=(3, 3, 3)), {"image_shape": (3, 3, 3)}, "--layout: .*: wanted nchw or nhwc"),
        (ForeignModel(range="0..255"), {}, "--decoder-range or --decoder-output: .* logits, or --decoder-range 0..1, "),
        (ForeignModel(), {"range": "-1..1"}, "--decoder-range: --range says -1..1, but d.onnx ends in .* 0..1"),
        (ForeignModel(range="-1..1"), {"decoder_output": "logits"}, "--decoder-output: got logits, but .* wanted mean"),
        (ForeignModel(dtype="uint8", range="0..255"), {"range": "0..1"}, "--range: got 0..1.* wanted 0..255"),
        (ForeignModel(split=True), {}, r"--posterior: stats \[6\] holds twice .* mean-logvar or mean-std or mean-var"),
        (
            ForeignModel(),
            {"range": "0..1", "mean": (0.5,), "std": (0.5,)},
            "--mean, --std: got them, but --range says 0..1: wanted neither, or --range mean-std",
        ),
        (
            ForeignModel(dtype="uint8", range="0..255"),
            {"mean": (0.5,), "std": (0.5,)},
            "--mean, --std: got them, but e.onnx takes picture uint8 .*: wanted neither",
        ),
        (ForeignModel(), {"decoder_range": "-1..1"}, "--decoder-range: got -1..1, but d.onnx ends in .* wanted 0..1"),
        (
            ForeignModel(),
            {"posterior": "point", "mean_output": "mean", "spread_output": "logvar"},
            "--spread-output: got logvar for --posterior point, which has no spread",
        ),
        (ForeignModel(), {"mean_output": "middle"}, r"--mean-output: got middle, .* mean \[3\], logvar \[3\]"),
        (ForeignModel(), {"layout": "nhwc"}, "--layout: got nhwc, but e.onnx has picture"),
        (ForeignModel(), {"image_shape": (9, 9, 1)}, r"--layout: e.onnx has picture .* for images of \[9, 9, 1\]"),
        (ForeignModel(), {"image_output": "sketch"}, r"--image-output: d.onnx gives drawn \[1, 8, 6\] .* drawn"),
        (ForeignModel(), {"range": "mean-std"}, "got mean-std, wanted --mean and --std|--range says mean-std"),
        (
            ForeignModel(),
            {"range": "mean-std", "decoder_range": "0..1", "mean": (0.0,) * 3, "std": (1.0,) * 3},
            "--mean, --std: wanted one number each, or one for each of 1 channels",
        ),
    ],
)
def test_what_is_left_open_is_asked_for(tmp_path: Path, model: ForeignModel, said: dict[str, Any], asks: str) -> None:
    with pytest.raises(ConfigError, match=asks):
        settle(tmp_path, model, **said)


@pytest.mark.parametrize("posterior", [None, "mean-std"])
def test_names_that_say_nothing_are_no_ground_to_guess_on(tmp_path: Path, posterior: str | None) -> None:
    with pytest.raises(ConfigError, match=re.escape("--mean-output, --spread-output: the names") + r".*11 \[3\], 12"):
        settle(tmp_path, ForeignModel(), {"mean": "11", "logvar": "12"}, posterior=posterior)


@pytest.mark.parametrize(
    ("item", "latents", "axis"),
    [
        ((6,), (3,), 0),
        ((6, 1, 1), (3, 1, 1), 0),
        ((6, 1, 1), (3,), 0),
        ((8, 4, 4), (4, None, None), 0),
        ((4, 4, 8), (4, 4, 4), 2),
        ((8, 4, 4), (64,), None),  # along any of the three
        ((8, 4, 4), (4, 4, 8), None),  # as many numbers: no halves at all
    ],
)
def test_halves_are_found_along_the_axis_that_is_twice_as_long(
    item: tuple[int, ...], latents: tuple[int | None, ...], axis: int | None
) -> None:
    said = Options(posterior="mean-logvar", mean_output="stats")
    if axis is None:
        with pytest.raises(ConfigError, match=r"--mean-output|--posterior"):
            posterior.find(said, {"stats": item}, latents, [])
        return
    found = posterior.find(said, {"stats": item}, latents, [])
    assert (found.axis, found.item) == (axis, tuple(s // 2 if i == axis else s for i, s in enumerate(item)))


@pytest.mark.parametrize(
    ("item", "latents", "fits"),
    [
        ((2, 3, 3), (2, 3, 3), True),
        ((2, 3, 3), (2, None, None), True),
        ((18,), (2, 3, 3), True),
        ((2, 3, 3), (18, 1, 1), True),
        ((2, 3, 3), (3, 3, 2), False),
        ((2, 2, 1), (1, 2, 2), False),
        ((2, 9), (2, 3, 3), False),
    ],
)
def test_latents_on_other_axes_are_never_taken_for_the_same(
    item: tuple[int, ...], latents: tuple[int | None, ...], fits: bool
) -> None:
    outputs = {"mu": item, "logvar": item}
    if fits:
        assert posterior.find(Options(), outputs, latents, []).item == item
        return
    with pytest.raises(ConfigError, match=re.escape(f"--mean-output: mu {list(item)} does not fit") + ".* other axes"):
        posterior.find(Options(), outputs, latents, [])


@pytest.mark.parametrize(
    ("outputs", "others"),
    [
        ({"mu": (4,), "log_var": (1,)}, {}),
        ({"mu": (4,), "scale_tril": (4, 4)}, {}),
        ({"mu": (4,)}, {"logvar": "[1, 4]"}),
        ({"z": (4,), "moments": (8,)}, {}),
        ({"z": (4,)}, {"features": "a sequence"}),
        ({"mu": (4,), "prior_logvar": (4,)}, {}),
        ({"z_mean": (4,), "log_z_var": (4,)}, {}),
    ],
)
def test_a_point_or_a_pair_is_not_guessed_past_other_outputs(outputs: Any, others: dict[str, str]) -> None:
    named = ".*".join(re.escape(name) for name in [*outputs, *others])
    with pytest.raises(ConfigError, match=rf"--posterior, --mean-output, .*{named}.* or point"):
        posterior.find(Options(), outputs, (4,), [], others)
    first = next(iter(outputs))
    assert posterior.find(Options(posterior="point", mean_output=first), outputs, (4,), [], others).kind == "point"


def test_a_spread_beside_halves_is_not_passed_over() -> None:
    said = Options(posterior="mean-logvar", mean_output="moments", spread_output="lv")
    with pytest.raises(ConfigError, match=r"--spread-output: got lv, but moments \[8\] holds mean and spread"):
        posterior.find(said, {"moments": (8,), "lv": (4,)}, (4,), [])


def test_a_spread_that_is_not_one_for_each_latent_of_each_image_is_named() -> None:
    said = Options(posterior="mean-logvar", mean_output="mu", spread_output="log_var")
    with pytest.raises(ConfigError, match=r"--spread-output: log_var \[1\] does not fit the decoder's latents \[4\]"):
        posterior.find(said, {"mu": (4,), "log_var": (1,)}, (4,), [])
    with pytest.raises(ConfigError, match=r"--spread-output: log_var is \[1, 4\], without a row for each image"):
        posterior.find(said, {"mu": (4,)}, (4,), [], {"log_var": "[1, 4]"})


@pytest.mark.parametrize("operator", ["Div", "Mul", "Sub", "Add"])
def test_an_encoder_that_scales_for_itself_is_asked_about(tmp_path: Path, operator: str) -> None:
    encoder_path, decoder_path = ForeignModel().write(tmp_path)
    proto = onnx.load(encoder_path)
    cast, flatten = proto.graph.node[:2]
    flatten.input[0] = "scaled"
    proto.graph.node.insert(1, onnx.helper.make_node(operator, [cast.output[0], "by"], ["scaled"], name="rescale"))
    proto.graph.initializer.append(onnx.helper.make_tensor("by", 1, [], [255.0]))
    onnx.save(proto, encoder_path)
    given = foreign.read(encoder_path, "encoder"), foreign.read(decoder_path, "decoder")
    with pytest.raises(ConfigError, match=rf"--range: .*in {operator} \(node rescale\): wanted 0..1 or .*mean-std"):
        plan.settle(*given, Options())
    assert plan.settle(*given, Options(range="0..255")).encoder.range.name == "0..255"


def test_a_decoder_of_another_model_is_refused(tmp_path: Path) -> None:
    onnx.save(ForeignModel().encoder(), tmp_path / "e.onnx")
    onnx.save(ForeignModel(z=4).decoder(), tmp_path / "d.onnx")
    encoder, decoder = (foreign.read(tmp_path / f"{part[0]}.onnx", part) for part in ("encoder", "decoder"))
    with pytest.raises((ConfigError, ExportError), match=r"mean \[3\]|latents of \[3\]"):
        plan.settle(encoder, decoder, Options())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("unknown", Likelihood("unknown")),
        ("bernoulli", Likelihood("bernoulli")),
        ("gaussian:sigma=0.1", Likelihood("gaussian", {"sigma": 0.1})),
        ("laplace:scale=0.5", Likelihood("laplace", {"scale": 0.5})),
        ("gaussian-fixed:variance=1", Likelihood("gaussian-fixed", {"variance": 1.0})),
    ],
)
def test_a_likelihood_is_read(text: str, wanted: Likelihood) -> None:
    assert options.parse_likelihood(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["normal", "gaussian", "gaussian:sigma=0", "gaussian:sigma=x", "gaussian:scale=1", "bernoulli:p=1", "unknown:a=1",
     "continuous-bernoulli", "gaussian-predicted"],
)  # fmt: skip
def test_a_likelihood_that_no_evaluation_could_go_by_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--likelihood: got .* wanted"):
        options.parse_likelihood(text)


@pytest.mark.parametrize("text", ["28,28", "28,28,2", "0,28,1", "28x28x1", "-1,28,1", "28,28,1,1"])
def test_an_image_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--image-shape: got .* wanted H,W,C"):
        options.parse_image_shape(text)


@pytest.mark.parametrize(("flag", "text"), [("--mean", "a"), ("--mean", "1,2"), ("--std", "0"), ("--std", "nan")])
def test_numbers_that_are_none_are_refused(flag: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag}: got"):
        options.parse_numbers(flag, text)
