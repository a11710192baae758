"""What two foreign graphs take and give, settled: from what was said, and from their names, shapes and types.

Each guess is said aloud; where the graphs leave a choice, the flag that makes it is asked for. Shapes that a graph does
not tell are learnt by running it on zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from latentry import onnx_file
from latentry.manifest import MAX_LATENT_DIM, MAX_SIDE
from latentry.onnx_parts import short
from training.errors import ConfigError, ExportError
from training.importing import batch, images, posterior, ranges
from training.importing.foreign import Dims, Foreign, Port
from training.importing.images import NUMPY, ImagePort, ImageShape
from training.importing.options import FLAT, FLAT_CHW, LAYOUTS, Options
from training.importing.posterior import Items, Posterior
from training.importing.runtime import NodeFailed, Session

_MOST_BATCH = 4096  # that a graph may be fixed to
_MOST_NUMBERS = 2 * 3 * MAX_SIDE**2  # that it is run on to learn its shapes
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the two graphs are to be wrapped. `latents` is the shape of one item that the decoder takes. `guesses`, and
    `left_out`, the outputs that nothing is made of, are for whoever runs this to read."""

    encoder: ImagePort
    posterior: Posterior
    latents: tuple[int, ...]
    decoder: ImagePort
    guesses: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def shape(self) -> ImageShape:
        """(H, W, C)."""
        return self.encoder.shape


def settle(encoder: Foreign, decoder: Foreign, options: Options) -> Plan:
    """The plan for a pair of graphs.

    Raises `ConfigError`, naming a flag and its choices, where they leave one; `ExportError` if they do not belong
    together, or do not run.
    """
    say: list[str] = []
    for foreign in (encoder, decoder):
        if foreign.port.kind not in NUMPY:
            wanted = "float32, float16, float64 or uint8"
            raise ExportError(f"{foreign.file}: got the input {foreign.port}, wanted {wanted}")
        if foreign.batch is not None and foreign.batch > _MOST_BATCH:
            raise ExportError(f"{foreign.file}: got a batch of {foreign.batch}, wanted a free one, or {_MOST_BATCH}")
    shape = _image_shape(options, encoder, decoder, say)
    layout = _layout("--layout", options.layout, encoder.port, shape, encoder.file, say)
    item = images.item_of(encoder.port, layout, shape)
    if item is None:
        raise ConfigError(f"--layout: {encoder.file} takes {encoder.port}, which is not {layout} of {list(shape)}")
    outputs, others = _items(encoder, item)
    moments = posterior.find(options, outputs, decoder.port.shape[1:], say, others)
    for port in encoder.outputs:
        if port.name in moments.outputs and port.kind not in _FLOATS:
            raise ExportError(f"{encoder.file}: got the output {port}, wanted float32, float16 or float64")
    latents = _latents(decoder, moments)
    output = _image_output(options, decoder, _items(decoder, latents)[0], shape, say)
    decoder_range, logits = ranges.of_decoder(options, decoder, output, shape[2], say)
    encoder_range = ranges.of_encoder(options, encoder, decoder_range, shape[2], say)
    decoder_layout = _layout(
        "--decoder-layout", options.decoder_layout, output, shape, decoder.file, say, usual=options.layout
    )
    return Plan(
        ImagePort(encoder.port.name, encoder.port.kind, layout, item, encoder_range, shape),
        moments,
        latents,
        ImagePort(output.name, output.kind, decoder_layout, _known(output.shape[1:]), decoder_range, shape, logits),
        tuple(say),
        (*_left_out(encoder, moments.outputs), *_left_out(decoder, [output.name])),
    )


def _image_shape(options: Options, encoder: Foreign, decoder: Foreign, say: list[str]) -> ImageShape:
    if options.image_shape is not None:
        return options.image_shape
    given = [("--layout", options.layout, encoder.port, encoder.file)]
    decoder_layout = options.decoder_layout or options.layout
    given += [("--decoder-layout", decoder_layout, port, decoder.file) for port in decoder.outputs]
    for flag, said, port, file in given:
        possible = images.layouts(port, None)
        if said is not None and possible and None not in port.shape[1:]:
            _check_layout(flag, said, possible, port, file)
        layout = said or (possible[0] if len(possible) == 1 else None)
        shape = layout and images.image_shape(port, layout)
        if shape:
            if max(shape) > MAX_SIDE:
                raise ExportError(f"{file}: got {port}, wanted images with sides up to {MAX_SIDE}")
            say.append(f"image shape {','.join(map(str, shape))} (H,W,C), from {port}")
            return shape
    raise ConfigError(
        f"--image-shape: the graphs do not tell it (the encoder takes {encoder.port}): wanted H,W,C such as 28,28,1"
    )


def _check_layout(flag: str, said: str, possible: Sequence[str], port: Port, file: str) -> None:
    if said not in possible and not (said == FLAT_CHW and FLAT in possible):  # of one channel the two are one
        raise ConfigError(
            f"{flag}: got {said}, but {file} has {port}: wanted {' or '.join(possible) or 'another shape'}"
        )


def _layout(
    flag: str, said: str | None, port: Port, shape: ImageShape, file: str, say: list[str], usual: str | None = None
) -> str:
    """The layout of a port: as said, or the only one that its shape allows; `usual` if that is among several."""
    possible = images.layouts(port, shape)
    if said is not None:
        _check_layout(flag, said, possible, port, file)
        return said
    if usual in possible:
        return str(usual)
    if len(possible) == 1:
        say.append(f"layout {possible[0]}, from {port} of {file}")
        return possible[0]
    choices = possible or LAYOUTS
    raise ConfigError(f"{flag}: {file} has {port} for images of {list(shape)}: wanted {' or '.join(choices)}")


def _items(foreign: Foreign, item: tuple[int, ...]) -> tuple[Items, Mapping[str, str]]:
    """The shape of one item of each output that has one for each image, learnt by running the graph on zeros, and what
    the others are in words."""
    n = foreign.batch or 2
    if n * math.prod(item) > _MOST_NUMBERS:
        raise ExportError(f"{foreign.file}: got a batch of {n} of {math.prod(item)} numbers each, wanted a free batch")
    zeros = np.zeros((n, *item), NUMPY[foreign.port.kind])
    names = [port.name for port in foreign.outputs]
    try:
        results = Session(foreign.as_given, foreign.file).run(zeros, names)
    except NodeFailed as failed:
        raise ExportError(
            f"{foreign.file}: {failed.operator} (node {failed.name}) fails on zeros of shape {list(zeros.shape)}: "
            f"{failed}; is the image shape right?"
        ) from failed
    except ExportError:
        # what is wrong may have a better name than ONNX Runtime has for it
        onnx_file.check(batch.freed(foreign)[0].SerializeToString(), foreign.file)
        raise
    shapes = {name: result.shape for name, result in zip(names, results, strict=True)}
    items = {name: shape[1:] for name, shape in shapes.items() if len(shape) > 1 and shape[0] == n}
    others = {name: str(list(shape)) for name, shape in shapes.items() if name not in items}
    return items, {**others, **foreign.others}


def _left_out(foreign: Foreign, needed: Sequence[str]) -> list[str]:
    """The outputs that are not needed, in words."""
    ports = [f"{port} of {foreign.file}" for port in foreign.outputs if port.name not in needed]
    return ports + [f"{short(name)}, a {kind}, of {foreign.file}" for name, kind in foreign.others.items()]


def _latents(decoder: Foreign, moments: Posterior) -> tuple[int, ...]:
    """The whole shape of one item that the decoder takes."""
    item = decoder.port.shape[1:]
    if len(item) == len(moments.item):
        item = tuple(want if got is None else got for got, want in zip(item, moments.item, strict=True))
    elif item.count(None) == 1 and len(item) == 1:
        item = (moments.size,)
    known = _known(item)
    if moments.size > MAX_LATENT_DIM:
        raise ExportError(f"{decoder.file}: got {moments.size} latents, wanted at most {MAX_LATENT_DIM}")
    if len(known) != len(item) or math.prod(known) != moments.size:
        raise ExportError(
            f"{decoder.file}: takes {decoder.port}, but the encoder gives latents of {list(moments.item)}: wanted "
            "the decoder of the same model; or another output, --mean-output"
        )
    return known


def _known(item: Dims) -> tuple[int, ...]:
    return tuple(side for side in item if side is not None)


def _image_output(options: Options, decoder: Foreign, outputs: Items, shape: ImageShape, say: list[str]) -> Port:
    """The output that holds the images, with the shape that it has when it runs."""
    kinds = {port.name: port.kind for port in decoder.outputs}
    fitting = [name for name, item in outputs.items() if math.prod(item) == math.prod(shape)]
    name = options.image_output or (fitting[0] if len(fitting) == 1 else None)
    wanted = " or ".join(map(short, fitting)) or "as many numbers; is this the decoder of the same model?"
    listed = ", ".join(f"{short(each)} {list(item)}" for each, item in outputs.items())
    if name is None or name not in fitting:
        raise ConfigError(
            f"--image-output: {decoder.file} gives {listed or 'nothing for each latent'} for images of {list(shape)}: "
            f"wanted one of {wanted}"
        )
    if kinds[name] not in NUMPY:
        raise ExportError(f"{decoder.file}: {short(name)}: got another type, wanted float32, float16, float64 or uint8")
    if options.image_output is None and len(outputs) > 1:
        say.append(f"image output {short(name)}, as it alone has {math.prod(shape)} numbers for each image")
    return Port(name, kinds[name], (None, *outputs[name]))
