"""Replies of the API as arrays and results; several of one call become one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from latentry.messages import read_tensor
from latentry.pictures import Array, Pictures
from latentry.provenance import ModelRef, Provenance, Timings
from latentry.v1 import vae_pb2 as pb


def joined(replies: Sequence[Any], field: str) -> Array:
    """The tensors of this name, one after the other."""
    return np.concatenate([read_tensor(getattr(reply, field)) for reply in replies])


def joined_if_there(replies: Sequence[Any], field: str) -> Array | None:
    """The same, or None if a reply has none."""
    return joined(replies, field) if all(reply.HasField(field) for reply in replies) else None


def pictures(replies: Sequence[Any], seed: int | None = None, latents: Array | None = None) -> Pictures:
    """Images and latents, one after the other; `latents` are those of replies that do not repeat them."""
    z = joined(replies, "latents") if latents is None else latents
    return Pictures(images(replies), z, seed, model_ref(replies), provenance(replies))


def images(replies: Sequence[Any]) -> Array:
    """The raw images of the replies, one after the other."""
    return np.concatenate([read_tensor(reply.images.tensor) for reply in replies])


def model_ref(replies: Sequence[Any]) -> ModelRef:
    """The model that answered, the same in all of them."""
    ref = replies[0].model
    return ModelRef(ref.name, ref.version, ref.digest)


def provenance(replies: Sequence[Any]) -> Provenance:
    """How the replies were made, all together."""
    return together([_provenance(reply.provenance) for reply in replies])


def together(each: Sequence[Provenance]) -> Provenance:
    """How what is made of several was made."""
    if len(each) == 1:
        return each[0]
    times = [sum(getattr(one.timings, name) for one in each) for name in Timings.__dataclass_fields__]
    return Provenance(_all(one.provider for one in each), _all(one.precision for one in each), Timings(*times))


def _provenance(said: pb.Provenance) -> Provenance:
    at = said.timings
    return Provenance(said.provider, said.precision, Timings(at.queue_s, at.inference_s, at.codec_s, at.total_s))


def _all(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
