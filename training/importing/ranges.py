"""The range of what a foreign encoder takes and a decoder gives: as said, or as its types and last function tell."""

from __future__ import annotations

from onnx import TensorProto

from latentry.onnx_parts import called, short
from training.errors import ConfigError
from training.importing import graph, images
from training.importing.foreign import Foreign, Port
from training.importing.images import Range
from training.importing.options import LEVELS, LOGITS, MEAN, NORMALISED, RANGES, SIGNED, UNIT, Options

_PASSED_ON = {"Reshape", "Transpose", "Cast", "Identity", "Flatten", "Squeeze", "Unsqueeze"}  # a range outlives them
_ENDS = {"Sigmoid": UNIT, "Tanh": SIGNED}
_SCALES = {"Add", "Sub", "Mul", "Div"}
_PARTS = {"Slice", "Split", "Gather", "Pad", "Resize"}  # as of one channel


def of_decoder(options: Options, decoder: Foreign, output: Port, channels: int, say: list[str]) -> tuple[Range, bool]:
    """The range of the decoder's `output`, and whether it is logits; what is guessed goes into `say`.

    Raises `ConfigError`, naming a flag and its choices, if neither is said nor told by the graph.
    """
    ends = _end(decoder, output.name)
    if _is_logits(options, output, ends, decoder.file):
        return images.KNOWN[UNIT], True
    return _decoder_range(options, output, ends, decoder.file, channels, say), False


def _end(decoder: Foreign, name: str) -> str | None:
    """The range that the decoder's last function keeps its output in, None if it does not tell."""
    made_by = {output: node for node in decoder.model.graph.node for output in node.output}
    node = made_by.get(name)
    while node is not None and node.op_type in _PASSED_ON and node.domain == "":
        node = made_by.get(node.input[0])
    return None if node is None or node.domain else _ENDS.get(node.op_type)


def _is_logits(options: Options, output: Port, ends: str | None, file: str) -> bool:
    if options.decoder_output != LOGITS:
        return False
    if output.kind == TensorProto.UINT8 or ends is not None:
        what = "uint8" if output.kind == TensorProto.UINT8 else f"in {ends} already"
        raise ConfigError(
            f"--decoder-output: got {LOGITS}, but {file} gives {short(output.name)} {what}: wanted {MEAN}"
        )
    if options.decoder_range not in (None, UNIT):
        raise ConfigError(f"--decoder-range: got {options.decoder_range} for logits, wanted none: they become {UNIT}")
    return True


def _decoder_range(options: Options, output: Port, ends: str | None, file: str, channels: int, say: list[str]) -> Range:
    said = options.decoder_range
    if output.kind == TensorProto.UINT8:
        if said not in (None, LEVELS):
            raise ConfigError(f"--decoder-range: got {said}, but {file} gives {output}: wanted {LEVELS}")
        say.append(f"decoder's range {LEVELS}, from {output}") if said is None else None
        return images.KNOWN[LEVELS]
    if ends is not None:
        _check_end(options, ends, file)
        say.append(
            f"decoder's range {ends}, from the function that {short(output.name)} comes out of"
        ) if not said else None
        return images.KNOWN[ends]
    said = said or options.range
    if said is None:
        raise ConfigError(
            f"--decoder-range or --decoder-output: {file} gives {output} out of no sigmoid or tanh: wanted "
            f"--decoder-output {LOGITS}, or --decoder-range {UNIT}, {SIGNED} or {LEVELS}"
        )
    return _range("--decoder-range", said, options, channels)


def _check_end(options: Options, ends: str, file: str) -> None:
    """Raises `ConfigError` if the decoder's last function gives another range than is said."""
    what = f"{file} ends in a function that gives {ends}"
    if options.decoder_range not in (None, ends):
        raise ConfigError(f"--decoder-range: got {options.decoder_range}, but {what}: wanted {ends}")
    if options.decoder_range is None and options.range not in (None, ends, LEVELS):
        raise ConfigError(
            f"--decoder-range: --range says {options.range}, but {what}: wanted --decoder-range={ends} too, if the two "
            "differ"
        )


def of_encoder(options: Options, encoder: Foreign, decoder_range: Range, channels: int, say: list[str]) -> Range:
    """The range of what the encoder takes; raises as `of_decoder` does."""
    levels = encoder.port.kind == TensorProto.UINT8
    by_default = options.range is None and not levels
    if (options.mean or options.std) and NORMALISED not in (options.range, options.decoder_range) and not by_default:
        if levels:
            raise ConfigError(f"--mean, --std: got them, but {encoder.file} takes {encoder.port}: wanted neither")
        said = f"--range says {options.range}"
        raise ConfigError(f"--mean, --std: got them, but {said}: wanted neither, or --range {NORMALISED}")
    if levels:
        if options.range not in (None, LEVELS):
            raise ConfigError(f"--range: got {options.range}, but {encoder.file} takes {encoder.port}: wanted {LEVELS}")
        say.append(f"encoder's range {LEVELS}, from {encoder.port}") if options.range is None else None
        return images.KNOWN[LEVELS]
    if options.range is not None:
        return _range("--range", options.range, options, channels)
    if options.mean or options.std:
        return _range("--range", NORMALISED, options, channels)
    if decoder_range.name == LEVELS:
        raise ConfigError(f"--range: {encoder.file} takes {encoder.port}: wanted {UNIT}, {SIGNED}, {LEVELS}")
    if (scaling := _scaling(encoder)) is not None:
        raise ConfigError(
            f"--range: {encoder.file} scales what it takes by itself, in {scaling}: wanted {' or '.join(RANGES)}, what "
            "it takes before that"
        )
    say.append(f"encoder's range {decoder_range.name}, as the decoder's")
    return decoder_range


def _scaling(encoder: Foreign) -> str | None:
    """The node by which an encoder scales its input before all else, None if it does not."""
    body = encoder.model.graph
    depends, plain = graph.reached(body, [encoder.port.name]), {encoder.port.name}
    for node in body.node:
        if node.domain == "" and node.input and plain & set(node.input):
            if node.op_type in _SCALES and not depends.issuperset(node.input):
                return called(node)
            if node.op_type in _PASSED_ON | _PARTS and node.input[0] in plain:
                plain |= set(node.output)
    return None


def _range(flag: str, name: str, options: Options, channels: int) -> Range:
    if name != NORMALISED:
        return images.KNOWN[name]
    if not options.mean or not options.std:
        raise ConfigError(f"{flag}: got {NORMALISED}, wanted --mean and --std with it: (x - mean) / std of x in [0, 1]")
    if {len(options.mean), len(options.std)} - {1, channels}:
        raise ConfigError(f"--mean, --std: wanted one number each, or one for each of {channels} channels")
    return Range(NORMALISED, options.mean, options.std)
