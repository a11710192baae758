"""Streams as their reader sees them: what is still wanted, so that one that broke goes on where it was.

Knows nothing of channels: `Client` and `AsyncClient` open a stream with `request`, hand each reply to `take`, and ask
`pause` what to do about a failure.
"""

from __future__ import annotations

import random
from typing import TypeAlias

from latentry import choices, replies
from latentry.asks import Model, Samples, Walk
from latentry.pictures import Pictures
from latentry.places import in_words_of_caller
from latentry.v1 import vae_pb2 as pb

TRIES = 8  # without a part in between
FIRST_PAUSE_S = 0.2  # after the first failure, doubled after each
MAX_PAUSE_S = 5.0
_RESUMED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


class Tries:
    """How often a stream was opened without a part having come since."""

    def __init__(self) -> None:
        self._failures = 0
        self._parts_since_open = 0

    def opened(self) -> None:
        """The stream was opened, again perhaps."""
        self._parts_since_open = 0

    def progressed(self) -> None:
        """A part has come."""
        self._failures = 0
        self._parts_since_open += 1

    def pause(self, code: str) -> float | None:
        """Seconds to wait before it is opened again, after it failed with this status; None: it is to be given up.

        A deadline bounds each opened stream, not all that a reader takes its time for: one that passed after parts had
        come is no failure.
        """
        if code == "DEADLINE_EXCEEDED":
            return 0.0 if self._parts_since_open else None
        self._failures += 1
        if code not in _RESUMED or self._failures >= TRIES:
            return None
        pause: float = min(FIRST_PAUSE_S * 2 ** (self._failures - 1), MAX_PAUSE_S)
        return pause * random.uniform(0.8, 1.2)  # noqa: S311 - so that readers do not all come back at once

    def ended_early(self) -> bool:
        """Whether the stream came to an end without a part, which would go on for ever."""
        return not self._parts_since_open


class SampleStream:
    """The images of `stream_sample`, in as many streams as the model's limit of one makes necessary."""

    rpc = "StreamSample"

    def __init__(self, model: Model, ask: Samples, chunk_items: int) -> None:
        self.tries = Tries()
        self._model = model
        self._ask = ask
        self._chunk_items = choices.count("chunk_items", chunk_items)
        self._seed = ask.seed
        self._done = 0

    def request(self) -> pb.StreamSampleRequest | None:
        """What opens the stream of what is still wanted; None: nothing is."""
        if 0 < self._ask.count <= self._done:
            return None
        self.tries.opened()
        most = self._model.info.limits.max_stream_items
        sample = self._ask.request(self._model.selector, self._done, most, self._seed)
        return pb.StreamSampleRequest(sample=sample, chunk_items=self._chunk_items)

    def take(self, reply: pb.StreamSampleResponse) -> Pictures:
        """The next images. The seed that the server drew for the first is that of all."""
        self.tries.progressed()
        self._seed = reply.part.seed
        pictures = replies.pictures([reply.part], reply.part.seed)
        self._done += len(pictures.images)
        return pictures

    def said(self, message: str) -> str:
        """What a server says of what is still wanted, in the words of the whole."""
        return in_words_of_caller(message, {}, self._done, self._ask.classes.start(slice(self._done, None)))


class InterpolateStream:
    """The images of `stream_interpolate`."""

    rpc = "StreamInterpolate"

    def __init__(self, model: Model, ask: Walk, chunk_items: int, first_frame: int) -> None:
        self.tries = Tries()
        self._interpolate, self._given = ask.request(model)
        self._chunk_items = choices.count("chunk_items", chunk_items)
        self._next = choices.index("first_frame", first_frame)
        self._frames: int | None = None  # of the whole path, once the server has said it

    def request(self) -> pb.StreamInterpolateRequest | None:
        """What opens the stream of what is still wanted; None: nothing is."""
        if self._frames is not None and self._next >= self._frames:
            return None
        self.tries.opened()
        return pb.StreamInterpolateRequest(
            interpolate=self._interpolate, chunk_items=self._chunk_items, first_frame=self._next
        )

    def take(self, reply: pb.StreamInterpolateResponse) -> Pictures:
        """The next images."""
        self.tries.progressed()
        self._frames = reply.frames
        pictures = replies.pictures([reply.part])
        self._next = reply.first_frame + len(pictures.images)
        return pictures

    def said(self, message: str) -> str:
        """What a server says, in the words of the caller."""
        return in_words_of_caller(message, {"images": self._given})


Stream: TypeAlias = "SampleStream | InterpolateStream"
