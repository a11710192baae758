"""The numbers of a request, checked: counts, indices, temperatures, classes, amounts. Tensors and images are
the codec's.

Every function raises `InvalidArgument` with the field, what was got and what was wanted.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from latentry import words
from latentry.manifest import Manifest
from latentry.printable import plain
from latentry.v1 import vae_pb2 as pb
from serving.errors import InvalidArgument
from serving.latents.draws import Draw, Span
from serving.latents.paths import Opposite, Path
from serving.model import Model

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

MAX_STREAM_ITEMS = 1 << 20  # of one stream
MAX_TEMPERATURE = 10.0
MIN_TRUNCATION, MAX_TRUNCATION = 0.01, 10.0
MAX_DISTANCE = 10.0  # of neighbours, in latent space: far beyond where any prior has its mass
MAX_DIFFERENCES = 16
MAX_DIFFERENCE = 10.0
_DEFAULT_DISTANCE = 0.5
_NAMED = 20  # classes or attributes that an error names
_LONGEST_NAME = 64

_PATHS: dict[int, words.Path] = {number: cast("words.Path", word) for word, number in words.PATHS.items()}
_PATHS[pb.INTERPOLATION_PATH_UNSPECIFIED] = "linear"
_EASINGS: dict[int, words.Easing] = {number: cast("words.Easing", word) for word, number in words.EASINGS.items()}
_EASINGS[pb.EASING_UNSPECIFIED] = "none"


def read_count(count: int, most: int, field: str = "count") -> int:
    """The number of images wanted."""
    if not 1 <= count <= most:
        raise InvalidArgument(field, count, f"1 to {most}")
    return count


def read_first_index(first: int, count: int, field: str = "first_index") -> int:
    """Where in a seed's sequence to begin."""
    if not 0 <= first <= 2**63 - count:
        raise InvalidArgument(field, first, "0 or more, with the last index below 2^63")
    return first


def read_temperature(request: pb.SampleRequest | pb.EncodeRequest) -> float:
    """The scale of the noise."""
    if not request.HasField("temperature"):
        return 1.0
    return _within("temperature", request.temperature, 0.0, MAX_TEMPERATURE)


def read_seed(request: pb.SampleRequest | pb.NeighboursRequest) -> int:
    """The seed, or one that is drawn now."""
    return request.seed if request.HasField("seed") else secrets.randbits(64)


def read_draw(request: pb.SampleRequest, model: Model, most: int, *, streamed: bool = False) -> Draw:
    """What is to be drawn, at most so many images; `streamed` ones are of one seed."""
    if streamed and request.spans:
        raise InvalidArgument("spans", f"{len(request.spans)} of them", "none: a stream is of one seed")
    spans = _read_sample_spans(request, most)
    bound = None
    if request.HasField("truncation"):
        bound = _within("truncation", request.truncation, MIN_TRUNCATION, MAX_TRUNCATION)
    if request.truncation_mode not in pb.Truncation.values():
        wanted = "TRUNCATION_RESAMPLE (1) or TRUNCATION_CLAMP (2)"
        raise InvalidArgument("truncation_mode", request.truncation_mode, wanted)
    return Draw(
        spans=spans,
        temperature=read_temperature(request),
        bound=bound,
        clamp=request.truncation_mode == pb.TRUNCATION_CLAMP,
        fitted=_read_prior(request.prior, model),
        classes=read_classes(request.classes, sum(span.count for span in spans), model.manifest),
    )


def _read_sample_spans(request: pb.SampleRequest, most: int) -> list[Span]:
    if request.spans:
        if request.count:
            raise InvalidArgument("count", request.count, "none beside spans")
        return _read_spans(request, most)
    count = read_count(request.count, most)
    return [Span(read_seed(request), read_first_index(request.first_index, count), count)]


def read_encode_spans(request: pb.EncodeRequest, items: int) -> list[Span]:
    """The noise of each of so many images' draws; none if no draw is asked for."""
    if request.spans:
        spans = _read_spans(request, items)
        total = sum(span.count for span in spans)
        if total != items:
            raise InvalidArgument("spans", f"{total} images", f"{items}, as there are")
        return spans
    first = read_first_index(request.first_index, items)
    return [Span(request.seed, first, items)] if request.HasField("seed") else []


def _read_spans(request: pb.SampleRequest | pb.EncodeRequest, most: int) -> list[Span]:
    if request.HasField("seed"):
        raise InvalidArgument("seed", request.seed, "none beside spans")
    if request.first_index:
        raise InvalidArgument("first_index", request.first_index, "none beside spans")
    spans: list[Span] = []
    left = most
    for i, each in enumerate(request.spans):
        field = f"spans[{i}]"
        count = read_count(each.count, most, f"{field}.count")
        if count > left:
            raise InvalidArgument("spans", f"more than {most} images", f"at most {most} in all")
        left -= count
        spans.append(Span(each.seed, read_first_index(each.first_index, count, f"{field}.first_index"), count))
    return spans


def _read_prior(prior: int, model: Model) -> bool:
    if prior not in pb.Prior.values():
        raise InvalidArgument("prior", prior, "PRIOR_STANDARD (1) or PRIOR_FITTED (2)")
    if prior == pb.PRIOR_FITTED and not model.has_prior:
        raise InvalidArgument("prior", "PRIOR_FITTED (2)", f"PRIOR_STANDARD (1): {model.manifest.name} has no other")
    return model.fitted_by_default if prior == pb.PRIOR_UNSPECIFIED else prior == pb.PRIOR_FITTED


def read_classes(classes: pb.Classes, items: int, about: Manifest, field: str = "classes") -> Int64s | None:
    """The class of each of so many items, int64 [items]; None for a model that is not conditional."""
    given = len(classes.names) + len(classes.indices)
    if not about.classes:
        if given:
            wanted = f"none: {about.name} is not conditional"
            raise InvalidArgument(
                field, plain(repr([*classes.names[:1], *classes.indices[:1]][0]), _LONGEST_NAME), wanted
            )
        return None
    if classes.names and classes.indices:
        raise InvalidArgument(field, "names and indices", "one of them")
    if given not in (1, items):
        wanted = f"one, or {items}, one an item" if items > 1 else "one"
        raise InvalidArgument(field, f"{given} classes" if given else "none", f"{wanted}: {_known(about)}")
    if classes.names:
        numbers = np.fromiter(_class_numbers(classes.names, about, field), np.int64, given)
    else:
        numbers = np.fromiter(classes.indices, np.int64, given)
        for i in np.flatnonzero((numbers < 0) | (numbers >= about.classes))[:1]:
            raise InvalidArgument(f"{field}.indices[{i}]", numbers[i], f"0 to {about.classes - 1}")
    return np.broadcast_to(numbers, (items,))


def _class_numbers(given: Iterable[str], about: Manifest, field: str) -> Iterator[int]:
    """Of a stream there may be a million."""
    numbers: dict[str, int] = {}
    for number, label in enumerate(about.labels[: about.classes]):
        numbers.setdefault(label, number)
    for i, name in enumerate(given):
        if name not in numbers:
            raise InvalidArgument(f"{field}.names[{i}]", plain(repr(name), _LONGEST_NAME), f"one of {_known(about)}")
        yield numbers[name]


def _known(about: Manifest) -> str:
    return names(about.labels) or f"the numbers 0 to {about.classes - 1}: they have no names"


def names(known: Sequence[str]) -> str:
    """Some names, for an error: no more than fit."""
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return ", ".join(plain(name, _LONGEST_NAME) for name in known[:_NAMED]) + more


def check_path(request: pb.InterpolateRequest) -> None:
    """The path's kind and easing, refused before key frames are encoded."""
    if request.path not in _PATHS:
        wanted = "INTERPOLATION_PATH_LINEAR (1), INTERPOLATION_PATH_SPHERICAL (2) or INTERPOLATION_PATH_CATMULL_ROM (3)"
        raise InvalidArgument("path", request.path, wanted)
    if request.easing not in _EASINGS:
        wanted = "EASING_NONE (1), EASING_IN (2), EASING_OUT (3) or EASING_IN_OUT (4)"
        raise InvalidArgument("easing", request.easing, wanted)
    if request.loop and request.exclude_end_points:
        raise InvalidArgument("exclude_end_points", "true with `loop`", "one of them: a loop has no end points")


def read_path(request: pb.InterpolateRequest, keys: Float32s, most: int) -> Path:
    """The path through key frames [K, Z], of at most so many points."""
    legs = len(keys) if request.loop else len(keys) - 1
    beside = 0 if request.loop else -1 if request.exclude_end_points else 1  # points that are in no leg
    least, highest = 2 + (legs + beside < 1), (most - beside) // legs + 1
    if not least <= request.steps <= highest:
        allow = f"{len(keys)} key frames{' in a loop' if request.loop else ''} and {most} images a reply allow"
        if request.exclude_end_points:
            allow = f"{len(keys)} key frames, the end points excluded, and {most} images a reply allow"
        raise InvalidArgument("steps", request.steps, f"{least} to {highest}, as {allow}")
    try:
        return Path(
            keys,
            request.steps,
            _PATHS[request.path],
            _EASINGS[request.easing],
            loop=request.loop,
            ends=not request.exclude_end_points,
        )
    except Opposite as error:
        got = f"key frames {error.at} and {(error.at + 1) % len(keys)} in opposite directions"
        wanted = "another path, or a key frame between them"
        raise InvalidArgument("path", f"INTERPOLATION_PATH_SPHERICAL (2) with {got}", wanted) from error


def read_chunk(chunk_items: int, max_items: int) -> int:
    """Images a part of a stream; 0 leaves it to the server."""
    if not 0 <= chunk_items <= max_items:
        raise InvalidArgument("chunk_items", chunk_items, f"1 to {max_items}, or 0 for the default")
    return chunk_items


def read_distance(message: pb.NeighbourGrid | pb.NeighbourWalk, field: str) -> float:
    """The length of a step between neighbours: the field's last name says which one it is."""
    name = field.rpartition(".")[2]
    if not message.HasField(name):
        return _DEFAULT_DISTANCE
    distance: float = getattr(message, name)
    if not 0.0 < distance <= MAX_DISTANCE:
        raise InvalidArgument(field, distance, f"above 0, at most {MAX_DISTANCE:g}")
    return distance


def read_attributes(asked: Sequence[pb.AttributeAmount], about: Manifest) -> list[tuple[str, float, float]]:
    """Name, amount within the attribute's limits, and the length of its direction to move by, for each attribute."""
    if len(asked) > max(1, len(about.attributes)):
        raise InvalidArgument("attributes", f"{len(asked)} of them", f"at most {len(about.attributes)}, each name once")
    found: dict[str, tuple[str, float, float]] = {}
    for i, each in enumerate(asked):
        field = f"attributes[{i}]"
        if each.name not in about.attributes:
            known = names(sorted(about.attributes)) or f"none: {about.name} has no attributes"
            got = plain(repr(each.name), _LONGEST_NAME)
            raise InvalidArgument(f"{field}.name", got, f"one of {known}" if about.attributes else known)
        if each.name in found:
            raise InvalidArgument(f"{field}.name", f"{plain(repr(each.name), _LONGEST_NAME)} again", "each name once")
        if not np.isfinite(each.amount):
            raise InvalidArgument(f"{field}.amount", each.amount, "a finite number")
        attribute = about.attribute(each.name)
        amount = float(np.clip(each.amount, -attribute.limit, attribute.limit))
        found[each.name] = (each.name, amount, amount * attribute.amount)
    return list(found.values())


def read_difference_amount(difference: pb.Difference, field: str) -> float:
    """How much of a difference is added."""
    if not difference.HasField("amount"):
        return 1.0
    return _within(f"{field}.amount", difference.amount, -MAX_DIFFERENCE, MAX_DIFFERENCE)


def _within(field: str, value: float, least: float, most: float) -> float:
    shortest = float(np.float32(least)), float(np.float32(most))  # the fields are float32, which rounds 0.01
    if not shortest[0] <= value <= shortest[1]:  # NaN is not
        raise InvalidArgument(field, value, f"{least:g} to {most:g}")
    return value
