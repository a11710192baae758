"""What a lone .onnx file says of itself in plain words: what to feed it, what comes out, what it was trained on.

Beside the key facts that loading compares (`Manifest.graph_metadata`) a graph's `metadata_props` hold these notes,
which nothing compares: they are for whoever opens the file with ONNX Runtime or Netron and has nothing else. They
follow from the manifest alone and name no date, so that two exports of a model are the same bytes. Loads no ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from latentry.manifest import FP32, Manifest

if TYPE_CHECKING:
    from onnx import ModelProto

ABOUT = "latentry.about"
USE = "latentry.use"
INPUT = "latentry.input."  # and the input's name
OUTPUT = "latentry.output."  # and the output's name
POINT_KINDS = ("autoencoder", "denoising", "linear")  # models whose encoder gives a point, no distribution

_MAX_CLASS_NAMES = 2000  # characters of all together

# What the decoder's `mean` is the mean of, for each likelihood; and what `parameters` are, where that is an output
_PIXEL = {
    "bernoulli": "the probability that the pixel is on",
    "continuous-bernoulli": "the mean of a continuous Bernoulli distribution (not its lambda)",
    "gaussian": "the mean of a normal distribution whose standard deviation is sigma",
    "gaussian-fixed": "the mean of a normal distribution of a fixed variance",
    "gaussian-predicted": "the mean of a normal distribution",
    "laplace": "the mean of a Laplace distribution",
    "discretised-logistic": "the mean of a logistic distribution over the 256 levels",
}
_PARAMETERS = {
    "continuous-bernoulli": (1, "the logits of each pixel's lambda"),
    "gaussian-predicted": (2, "the logits of the means, then as many log-variances, before their soft bounds"),
    "discretised-logistic": (1, "4 (location - 1/2) of each pixel's logistic distribution, on the scale of 0 to 1"),
}


def metadata(manifest: Manifest, graph: str, precision: str = FP32) -> dict[str, str]:
    """All that the graph's `metadata_props` hold: the key facts and the notes."""
    return {**manifest.graph_metadata(graph, precision), **notes(manifest, graph)}


def notes(manifest: Manifest, graph: str) -> dict[str, str]:
    """Notes on the graph (`encoder`, `decoder`, `prior` or `density`), in any precision, by their keys in
    `metadata_props`. Of the manifest only what is known before the graphs are made is read.

    Raises `KeyError` for the prior's graphs if the manifest names no prior.
    """
    inputs, outputs, use = _GRAPHS[graph](manifest)
    numbers = ", ".join(f"{name}={value!r}" for name, value in sorted(manifest.likelihood.parameters.items()))
    data = _data(manifest)
    return {
        "latentry.name": manifest.name,
        "latentry.version": str(manifest.version),
        ABOUT: f"The {graph} of {manifest.name}, version {manifest.version}: {_model(manifest)}.",
        USE: use,
        **{f"{INPUT}{name}": text for name, text in inputs.items()},
        **{f"{OUTPUT}{name}": text for name, text in outputs.items()},
        **({"latentry.likelihood_parameters": numbers} if numbers else {}),
        **({"latentry.data": data} if data else {}),
    }


def describe(proto: ModelProto, metadata: Mapping[str, str]) -> None:
    """Write `metadata`, key facts and notes together, into the graph's `metadata_props` in place of what is there.

    The notes also go where viewers show them: the model's description and version, a text for each input and output.
    """
    proto.ClearField("metadata_props")
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    proto.doc_string = " ".join(metadata[key] for key in (ABOUT, USE) if key in metadata)
    if "latentry.version" in metadata:
        proto.model_version = int(metadata["latentry.version"])
    for prefix, ports in ((INPUT, proto.graph.input), (OUTPUT, proto.graph.output)):
        for port in ports:
            port.doc_string = metadata.get(f"{prefix}{port.name}", "")


def gives_points(manifest: Manifest) -> bool:
    """Whether the model is an autoencoder, whose encoder knows no uncertainty: its logvar says nothing."""
    return _lookup(manifest.provenance, "config", "model", "kind") in POINT_KINDS


_Ports = dict[str, str]
_Notes = tuple[_Ports, _Ports, str]  # of the inputs, of the outputs, and how to use the graph


def _encoder(manifest: Manifest) -> _Notes:
    latents = f"float32 [N, {manifest.latent_dim}]"
    points = gives_points(manifest)
    outputs = {
        "mean": f"{latents}: the latents of each image" + ("" if points else ", the mean of q(z|x)"),
        "logvar": f"{latents}: "
        + ("the same everywhere and without a meaning" if points else "natural logarithm of the variances of q(z|x)"),
    }
    z = (
        "This model is no variational one, its encoder gives points: take mean as an image's latents. "
        if points
        else "Take mean as an image's latents, or draw z = mean + exp(logvar / 2) * noise with standard normal noise. "
    )
    feed = "Feed images as they are, scaling is inside. "
    decode = "decoder.onnx, given the same labels, makes" if manifest.classes else "decoder.onnx makes"
    return {"images": _images(manifest), **_labels(manifest)}, outputs, f"{feed}{z}{decode} images of latents."


def _decoder(manifest: Manifest) -> _Notes:
    height, width, channels = manifest.image_shape
    name = manifest.likelihood.name
    pixel = _PIXEL.get(name, "the mean of p(x|z)")
    outputs = {
        "images": f"uint8 [N, {height}, {width}, {channels}]: mean in levels from 0 to 255, as the encoder takes them",
        "mean": f"float32 [N, {height}, {width}, {channels}], from 0 (black) to 1: for each pixel {pixel}",
    }
    if name in _PARAMETERS:
        each, text = _PARAMETERS[name]
        outputs["parameters"] = f"float32 [N, {height}, {width}, {channels * each}]: {text}"
    latents = f"float32 [N, {manifest.latent_dim}], any N: mean of encoder.onnx, or {_draws(manifest)}"
    use = f"To have an image again, feed the mean that encoder.onnx gives for it. {_how_to_draw(manifest)}"
    return {"latents": latents, **_labels(manifest)}, outputs, use


def _prior(manifest: Manifest) -> _Notes:
    about = manifest.prior
    if about is None:
        raise KeyError("prior")
    made = "It was learnt with the model." if about.learnt else f"It is a {about.kind}, fitted after the training."
    return (
        {"noise": f"float32 [N, {about.noise_dim}], any N: standard normal numbers"},
        {"latents": f"float32 [N, {manifest.latent_dim}]: draws of p(z), for decoder.onnx"},
        f"For new images feed standard normal noise, then the latents to decoder.onnx. {made}",
    )


def _density(manifest: Manifest) -> _Notes:
    if manifest.prior is None:
        raise KeyError("density")
    return (
        {"latents": f"float32 [N, {manifest.latent_dim}], any N: of encoder.onnx or of prior.onnx"},
        {"log_prob": "float32 [N]: log p(z) in nats"},
        "It says how likely latents are under the density that prior.onnx draws from.",
    )


_GRAPHS: Mapping[str, Callable[[Manifest], _Notes]] = {
    "encoder": _encoder,
    "decoder": _decoder,
    "prior": _prior,
    "density": _density,
}


def _model(manifest: Manifest) -> str:
    height, width, channels = manifest.image_shape
    colour = "grey" if channels == 1 else "RGB"
    numbers = "".join(f", {name} {value:.4g}" for name, value in sorted(manifest.likelihood.parameters.items()))
    classes = f", {manifest.classes} classes" if manifest.classes else ""
    latents = f"{manifest.latent_dim} latents, likelihood {manifest.likelihood.name}{numbers}"
    return f"images of {height} rows and {width} columns, {colour}; {latents}{classes}"


def _images(manifest: Manifest) -> str:
    height, width, channels = manifest.image_shape
    pixel = (
        "one level for each pixel, 0 black to 255 white"
        if channels == 1
        else "red, green and blue of each pixel, 0 to 255 as in an sRGB image file"
    )
    return f"uint8 [N, {height}, {width}, {channels}], any N: rows from the top, {pixel}"


def _labels(manifest: Manifest) -> _Ports:
    if not manifest.classes:
        return {}
    names = ", ".join(f"{number} {name}" for number, name in enumerate(manifest.labels[: manifest.classes]))
    if len(names) > _MAX_CLASS_NAMES:
        names = "manifest.json names them"
    named = f" ({names})" if names else ""
    return {"labels": f"int64 [N]: the class of each image, from 0 to {manifest.classes - 1}{named}"}


def _draws(manifest: Manifest) -> str:
    if manifest.prior is not None:
        return "latents that prior.onnx makes of noise"
    return "latents near such means" if gives_points(manifest) else "standard normal numbers"


def _how_to_draw(manifest: Manifest) -> str:
    if manifest.prior is not None and (manifest.prior.learnt or gives_points(manifest)):
        return "For new images feed latents that prior.onnx makes of noise; standard normal latents do not fit."
    if gives_points(manifest):
        return "This model has no density to draw new latents from: standard normal ones do not fit."
    if manifest.prior is not None:
        return "For new images feed standard normal latents or, nearer to the data, latents that prior.onnx makes."
    if _lookup(manifest.provenance, "imported") is not None:
        return "What it was trained with is not known; if that was N(0, I), standard normal latents make new images."
    return "For new images feed standard normal latents."


def _data(manifest: Manifest) -> str:
    name, digest = (_lookup(manifest.provenance, "data", key) for key in ("name", "sha256"))
    if not isinstance(name, str):
        return ""
    return name + (f", SHA-256 of the pixels {digest}" if isinstance(digest, str) else "")


def _lookup(value: object, *keys: str) -> object:
    """A value inside what a manifest brings, which may be anything; None if it is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
