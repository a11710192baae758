"""What the client's calls say and in what order, apart from how they travel: `Client` and `AsyncClient` share this.

A plan is a generator: it yields what is to be asked, is sent the answer or thrown the `LatentryError`, and returns the
result. What is larger than the model's limits is split into several calls, which the caller does not
notice. `Client` says what each plan promises.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from latentry import choices, inputs, pieces, replies
from latentry.asks import Model, Samples, Walk, check_room
from latentry.choices import ClassInput, Dtype
from latentry.fitting import Fitting
from latentry.inputs import ImageInput, Images, Input, Latents
from latentry.pictures import Edited, Pictures, Posterior, Reconstruction
from latentry.pieces import Answer, Piece
from latentry.places import Told
from latentry.v1 import vae_pb2 as pb
from latentry.words import Resize

T = TypeVar("T")
# It yields a piece, and is sent its `Answer`; or an rpc and its request, and is sent the reply.
Plan: TypeAlias = Generator["Piece | tuple[str, Any]", Any, T]


def encode(
    model: Model,
    images: ImageInput,
    *,
    classes: ClassInput | None,
    seed: int | None,
    first_index: int,
    temperature: float,
    resize: Resize | None,
) -> Plan[Posterior]:
    """Encode any number of images."""
    given, first = (
        inputs.read_images(images, "images", model.fitting(resize)),
        choices.index("first_index", first_index),
    )
    asked = choices.classes(classes)
    if seed is None:
        choices.unused_without_seed(first_index=(first, 0), temperature=(temperature, 1.0))
    scale = None if seed is None else choices.number("temperature", temperature)
    options = {"resize": choices.one_of("resize", resize, choices.RESIZES), "temperature": scale}
    answers: list[Answer] = []
    for part in given.parts(model.info):
        piece = pieces.encode(given.items[part], asked, part, len(given), choices.seed(seed), first, options)
        with Told({"images": given}, part.start, asked.start(part)):
            answers.append((yield piece))
    draws = None if seed is None else pieces.joined(answers, "latents")
    return Posterior(
        pieces.joined(answers, "mean"),
        pieces.joined(answers, "logvar"),
        draws,
        seed,
        answers[0].model,
        pieces.provenance(answers),
    )


def decode(model: Model, latents: npt.ArrayLike, *, classes: ClassInput | None, dtype: Dtype) -> Plan[Pictures]:
    """Decode any number of latents [N, Z]."""
    given, asked = inputs.read_latents(latents), choices.classes(classes)
    options = {"output": choices.output(dtype)}
    answers: list[Answer] = []
    for part in given.parts(model.info):
        piece = pieces.decode(given.items[part], asked, part, len(given), dtype, options)
        with Told({}, part.start, asked.start(part)):
            answers.append((yield piece))
    images = pieces.joined(answers, "images")
    return Pictures(images, given.items, None, answers[0].model, pieces.provenance(answers))


def sample(model: Model, ask: Samples) -> Plan[Pictures]:
    """Draw any number of images; without a seed, of one that is drawn here, for all of them."""
    answers: list[Answer] = []
    most = model.info.limits.max_items
    seed = secrets.randbits(64) if ask.seed is None else ask.seed
    for at in range(0, max(ask.count, 1), most):
        with Told({}, at, ask.classes.start(slice(at, None))):
            answers.append((yield ask.piece(at, most, seed)))
    images, latents = pieces.joined(answers, "images"), pieces.joined(answers, "latents")
    return Pictures(images, latents, seed, answers[0].model, pieces.provenance(answers))


def interpolate(model: Model, ask: Walk) -> Plan[Pictures]:
    """Walk from key frame to key frame."""
    request, given = ask.request(model)
    with Told({"images": given}):
        reply: pb.InterpolateResponse = yield "Interpolate", request
    return replies.pictures([reply])


def reconstruct(
    model: Model,
    images: ImageInput,
    *,
    classes: ClassInput | None,
    seed: int | None,
    first_index: int,
    resize: Resize | None,
    dtype: Dtype,
    scores_only: bool,
) -> Plan[Reconstruction]:
    """Reconstruct any number of images."""
    given, first = (
        inputs.read_images(images, "images", model.fitting(resize)),
        choices.index("first_index", first_index),
    )
    asked = choices.classes(classes)
    if seed is None:
        choices.unused_without_seed(first_index=(first, 0))
    answers: list[pb.ReconstructResponse] = []
    for part in given.parts(model.info):
        request = pb.ReconstructRequest(
            model=model.selector,
            resize=choices.one_of("resize", resize, choices.RESIZES),
            output=choices.output(dtype),
            seed=choices.seed(seed),
            first_index=0 if seed is None else first + part.start,
            classes=asked.part(part, len(given)),
            omit_images=scores_only,
            **given.fields(part),
        )
        with Told({"images": given}, part.start, asked.start(part)):
            answers.append((yield "Reconstruct", request))
    shape = model.info.image_shape
    return Reconstruction(
        np.empty((0, shape.height, shape.width, shape.channels), dtype) if scores_only else replies.images(answers),
        replies.joined(answers, "latents"),
        seed,
        replies.model_ref(answers),
        replies.provenance(answers),
        replies.joined(answers, "squared_error"),
        replies.joined_if_there(answers, "kl"),
        replies.joined_if_there(answers, "elbo"),
    )


def edit(
    model: Model,
    base: Input,
    *,
    attributes: Mapping[str, float] | None,
    plus: Input | None,
    minus: Input | None,
    amount: float | None,
    classes: ClassInput | None,
    resize: Resize | None,
    dtype: Dtype,
) -> Plan[Edited]:
    """Edit any number of images or latents, all in the same way."""
    fitting, asked = model.fitting(resize), choices.classes(classes)
    given, examples = inputs.read(base, "base", fitting), _examples(plus, minus, amount, fitting)
    differences, reserved = _differences(examples, amount), sum(each.size() for each in examples.values())
    check_room("plus and minus", reserved, model.info)
    answers: list[pb.EditResponse] = []
    for part in given.parts(model.info, reserved):
        request = pb.EditRequest(
            model=model.selector,
            resize=choices.one_of("resize", resize, choices.RESIZES),
            attributes=choices.amounts(attributes),
            differences=differences,
            output=choices.output(dtype),
            classes=asked.part(part, len(given)),
            **given.fields(part),
        )
        with Told({"images": given, **examples}, part.start, asked.start(part)):
            answers.append((yield "Edit", request))
    made = replies.pictures(answers)
    applied = {each.name: each.amount for each in answers[0].attributes}
    return Edited(made.images, made.latents, None, made.model, made.provenance, applied)


def neighbours(
    model: Model,
    base: Input,
    *,
    grid: tuple[int, int] | None,
    spacing: float | None,
    directions: npt.ArrayLike | None,
    walk: int | None,
    step: float | None,
    seed: int | None,
    classes: ClassInput | None,
    resize: Resize | None,
    dtype: Dtype,
) -> Plan[Pictures]:
    """Look around one image or latent; an array of one dimension is a latent too."""
    one = base[None] if isinstance(base, np.ndarray) and base.ndim == 1 else base
    given = inputs.read(one, "base", model.fitting(resize))
    check_room("base", given.size(), model.info)
    request = pb.NeighboursRequest(
        model=model.selector,
        resize=choices.one_of("resize", resize, choices.RESIZES),
        seed=choices.seed(seed),
        output=choices.output(dtype),
        classes=choices.classes(classes).one(),
        **_layout(grid, spacing, directions, walk, step),
        **given.fields(slice(None)),
    )
    with Told({"images": given}):
        reply: pb.NeighboursResponse = yield "Neighbours", request
    return replies.pictures([reply], reply.seed)


def _examples(
    plus: Input | None, minus: Input | None, amount: float | None, fitting: Fitting
) -> dict[str, Images | Latents]:
    """Those of a difference, by the fields of a request that would hold them; none if no difference is asked for."""
    if plus is None and minus is None:
        if amount is not None:
            raise ValueError(f"amount: got {amount} without plus and minus, whose difference it is of, wanted both")
        return {}
    if plus is None or minus is None:
        raise ValueError(f"plus and minus: got {'minus' if plus is None else 'plus'} alone, wanted both or neither")
    read = {"plus": inputs.read(plus, "plus", fitting), "minus": inputs.read(minus, "minus", fitting)}
    return {f"{name}_{'images' if isinstance(each, Images) else 'latents'}": each for name, each in read.items()}


def _differences(examples: Mapping[str, Images | Latents], amount: float | None) -> list[pb.Difference]:
    if not examples:
        return []
    fields: dict[str, Any] = {}
    for name, each in examples.items():
        fields |= each.fields(slice(None), f"{name.partition('_')[0]}_")
    return [pb.Difference(amount=choices.number("amount", amount), **fields)]


def _layout(
    grid: tuple[int, int] | None,
    spacing: float | None,
    directions: npt.ArrayLike | None,
    walk: int | None,
    step: float | None,
) -> dict[str, Any]:
    if (grid is None) == (walk is None):
        raise ValueError(f"grid and walk: got {'neither' if grid is None else 'both'}, wanted one of them")
    _check_layout(grid is not None, spacing, directions, step)
    if walk is not None:
        return {"walk": pb.NeighbourWalk(count=choices.count("walk", walk), step=choices.number("step", step))}
    sides = tuple(grid) if isinstance(grid, Sequence) else ()
    if len(sides) != 2:
        raise ValueError(f"grid: got {grid!r}, wanted (rows, columns)")
    rows, columns = (choices.count("grid", side) for side in sides)
    plane = None if directions is None else inputs.read_latents(directions, "directions").fields(slice(None))["latents"]
    return {
        "grid": pb.NeighbourGrid(
            rows=rows, columns=columns, spacing=choices.number("spacing", spacing), directions=plane
        )
    }


def _check_layout(grid: bool, spacing: float | None, directions: object, step: float | None) -> None:
    others = {"step": step} if grid else {"spacing": spacing, "directions": directions}
    for name, value in others.items():
        if value is not None:
            got, wanted = ("a grid", "a walk") if grid else ("a walk", "a grid")
            raise ValueError(f"{name}: got it with {got}, wanted it with {wanted} only")
