"""Neighbours: what lies around one latent, on a plane through it or along a random walk from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from latentry.v1 import vae_pb2 as pb
from serving import call
from serving.api import codec, replies, requests
from serving.api.tensors import check_reach
from serving.api.wire import Reply
from serving.api.work import Int64s, Work, check_kind
from serving.errors import InvalidArgument
from serving.latents import neighbours
from serving.latents.neighbours import NoPlane
from serving.model import Float32s

Arrange = Callable[[Float32s, int], Float32s]  # from a base [Z] and a seed to latents [N, Z] around it


async def explore(request: pb.NeighboursRequest, work: Work) -> Reply:
    """Answers one request."""
    layout = request.WhichOneof("layout")
    if layout is None:
        raise InvalidArgument("layout", "none", "a grid or a walk")
    codec.check_output(request.output, animated=layout == "walk")
    items = _count(request, work.most)
    arrange = _grid(request.grid, work) if layout == "grid" else _walk(request.walk)
    classes = requests.read_classes(request.classes, 1, work.about)
    seed = requests.read_seed(request)
    base = await _base(request, classes, work)
    await work.admit(items)
    with call.current().timed("codec_in"):
        z = arrange(base, seed)
        check_reach(z, str(request.WhichOneof("base")))
    images = await work.decode(z, request.output, None if classes is None else classes.repeat(items))
    message = pb.NeighboursResponse(model=replies.ref(work.model), seed=seed, provenance=replies.provenance(work.model))
    return Reply(message, images=images, latents=z)


def _count(request: pb.NeighboursRequest, most: int) -> int:
    if request.WhichOneof("layout") == "walk":
        return requests.read_count(request.walk.count, most, "walk.count")
    rows = requests.read_count(request.grid.rows, most, "grid.rows")
    return rows * requests.read_count(request.grid.columns, most // rows, "grid.columns")


async def _base(request: pb.NeighboursRequest, classes: Int64s | None, work: Work) -> Float32s:
    """The latent [Z] in the middle."""
    kind = check_kind(request, "base", "a latent or an image")
    if kind == "latents":
        z = work.read_latents(request.latents)
    else:
        images = await work.read_images(request.images, request.resize)
        _check_one(kind, len(images))
        z, _ = await work.encode(images, classes)
    _check_one(kind, len(z))
    return np.asarray(z[0])


def _check_one(kind: str, items: int) -> None:
    if items != 1:
        raise InvalidArgument(kind, f"{items} of them", "exactly one")


def _grid(grid: pb.NeighbourGrid, work: Work) -> Arrange:
    spacing = requests.read_distance(grid, "grid.spacing")
    directions = work.read_latents(grid.directions, "grid.directions") if grid.HasField("directions") else None
    if directions is not None and len(directions) != 2:
        raise InvalidArgument("grid.directions.shape", list(directions.shape), f"[2, {work.about.latent_dim}]")

    def arrange(base: Float32s, seed: int) -> Float32s:
        try:
            return neighbours.grid(base, grid.rows, grid.columns, spacing, seed, directions)
        except NoPlane as error:
            raise InvalidArgument(f"grid.{error.field}", error.got, error.wanted) from error

    return arrange


def _walk(walk: pb.NeighbourWalk) -> Arrange:
    step = requests.read_distance(walk, "walk.step")
    return lambda base, seed: neighbours.random_walk(base, walk.count, step, seed)
