"""The range of what a foreign encoder takes and a decoder gives: as said, or as its types and last function tell."""

from __future__ import annotations

from onnx import TensorProto

from training.errors import ConfigError
from training.importing import images
from training.importing.foreign import Foreign, Port
from training.importing.images import Range
from training.importing.options import LEVELS, LOGITS, MEAN, NORMALISED, SIGNED, UNIT, Options

_PASSED_ON = {"Reshape", "Transpose", "Cast", "Identity", "Flatten", "Squeeze", "Unsqueeze"}  # a range outlives them
_ENDS = {"Sigmoid": UNIT, "Tanh": SIGNED}


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
        raise ConfigError(f"--decoder-output: got {LOGITS}, but {file} gives {output.name} {what}: wanted {MEAN}")
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
    if said is None and ends is not None:
        if options.range not in (None, ends, LEVELS):
            raise ConfigError(
                f"--decoder-range: --range says {options.range}, but {file} ends in a function that gives {ends}: "
                "wanted --decoder-range too, to say which it is"
            )
        say.append(f"decoder's range {ends}, from the function that {output.name} comes out of")
        return images.KNOWN[ends]
    said = said or options.range
    if said is None:
        raise ConfigError(
            f"--decoder-range or --decoder-output: {file} gives {output} out of no sigmoid or tanh: wanted "
            f"--decoder-output {LOGITS}, or --decoder-range {UNIT}, {SIGNED} or {LEVELS}"
        )
    return _range("--decoder-range", said, options, channels)


def of_encoder(options: Options, encoder: Foreign, decoder_range: Range, channels: int, say: list[str]) -> Range:
    if encoder.port.kind == TensorProto.UINT8:
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
    say.append(f"encoder's range {decoder_range.name}, as the decoder's")
    return decoder_range


def _range(flag: str, name: str, options: Options, channels: int) -> Range:
    if name != NORMALISED:
        return images.KNOWN[name]
    if not options.mean or not options.std:
        raise ConfigError(f"{flag}: got {NORMALISED}, wanted --mean and --std with it: (x - mean) / std of x in [0, 1]")
    if {len(options.mean), len(options.std)} - {1, channels}:
        raise ConfigError(f"--mean, --std: wanted one number each, or one for each of {channels} channels")
    return Range(NORMALISED, options.mean, options.std)
