"""Replies as bytes of the wire are what protobuf reads as the same message, whatever their arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latentry.messages import read_tensor, write_tensor
from latentry.v1 import vae_pb2 as pb
from serving.api.wire import Reply

Array = np.ndarray[Any, np.dtype[Any]]

MODEL = pb.ModelRef(name="fashion", version=3, digest="a" * 64)


@pytest.mark.parametrize("items", [1, 16, 200, 10_000])  # lengths of one to four bytes, inside and outside
def test_a_reply_is_the_message_that_it_would_have_been(fashion_images: Array, items: int) -> None:
    images = fashion_images[:items]
    latents = np.linspace(-3, 3, items * 5, dtype=np.float32).reshape(items, 5)
    reply = Reply(pb.SampleResponse(model=MODEL, seed=2**64 - 1), images=images, latents=latents)
    wanted = pb.SampleResponse(
        model=MODEL, seed=2**64 - 1, images=pb.Images(tensor=write_tensor(images)), latents=write_tensor(latents)
    )
    assert pb.SampleResponse.FromString(reply.to_bytes()) == wanted
    assert reply.to_message() == wanted
    assert len(reply.to_bytes()) == wanted.ByteSize()


def test_a_part_of_a_stream_is_a_reply_inside_a_message(fashion_images: Array) -> None:
    latents = np.ones((2, 5), np.float32)
    reply = Reply(pb.SampleResponse(model=MODEL), images=fashion_images[:2], latents=latents)
    part = reply.within(pb.StreamSampleResponse(first_index=7), "part")
    latents[:] = 0.0  # the part has its own copy: a batch is not kept for a reader that is slow
    got = pb.StreamSampleResponse.FromString(part.to_bytes())
    assert got.first_index == 7
    assert read_tensor(got.part.latents).tolist() == np.ones((2, 5)).tolist()
    np.testing.assert_array_equal(read_tensor(got.part.images.tensor), fashion_images[:2])


def test_files_and_floats_go_beside_each_other(fashion_images: Array) -> None:
    files = pb.Images(encoded=pb.EncodedImages(images=[b"a file", b"another"]))
    scores = np.array([1.5, -2.0], np.float32)
    got = Reply(pb.ReconstructResponse(seed=0), images=files, squared_error=scores).to_message()
    assert got == pb.ReconstructResponse(seed=0, images=files, squared_error=write_tensor(scores))
    means = fashion_images[:2] / np.float32(255)
    got = Reply(pb.DecodeResponse(), images=means).to_message()
    assert got == pb.DecodeResponse(images=pb.Images(tensor=write_tensor(means)))


def test_the_rows_of_a_wider_array_are_written_in_their_order() -> None:
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    got = Reply(pb.EncodeResponse(), mean=wide[:, 1:3], logvar=wide.astype(">f4")[:1]).to_message()
    assert read_tensor(got.mean).tolist() == [[1, 2], [5, 6], [9, 10]]
    assert read_tensor(got.logvar).tolist() == [[0, 1, 2, 3]]


def test_only_what_a_tensor_can_hold_is_written() -> None:
    with pytest.raises(KeyError):
        Reply(pb.EncodeResponse(), mean=np.ones((2, 3)))
    with pytest.raises(KeyError):
        Reply(pb.EncodeResponse(), images=np.ones((2, 3), np.float32))
