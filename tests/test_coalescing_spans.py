"""Several seeds in one request: what `SampleRequest.spans` and `EncodeRequest.spans` promise."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

from latentry.v1 import vae_pb2 as pb
from serving.latents.draws import Draw, Span

SPANS = [(7, 0, 2), (9, 2**63 - 3, 3), (7, 1, 1)]
IMAGES = np.random.default_rng(6).integers(0, 256, (6, 12, 10, 1), np.uint8)


def spans(*each: tuple[int, int, int]) -> list[pb.SeedSpan]:
    return [pb.SeedSpan(seed=seed, first_index=first, count=count) for seed, first, count in each]


def images(items: int) -> pb.Images:
    part = IMAGES[:items]
    return pb.Images(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=part.shape, data=part.tobytes()))


def test_the_images_of_each_span_come_in_order(stub: Any) -> None:
    several: list[dict[str, Any]] = [{}, {"truncation": 1.0, "temperature": 0.5}]
    for options in several:
        together = stub.Sample(pb.SampleRequest(spans=spans(*SPANS), **options))
        alone = [
            stub.Sample(pb.SampleRequest(seed=seed, first_index=first, count=count, **options))
            for seed, first, count in SPANS
        ]
        assert together.latents.data == b"".join(each.latents.data for each in alone)
        assert list(together.images.tensor.shape) == [6, 12, 10, 1]
        assert together.seed == 7


def test_images_are_encoded_with_the_draws_of_their_spans(stub: Any) -> None:
    together = stub.Encode(pb.EncodeRequest(images=images(6), spans=spans(*SPANS), temperature=2.0))
    noise = stub.Sample(pb.SampleRequest(spans=spans(*SPANS), temperature=2.0))
    mean, logvar, draw, z = (
        np.frombuffer(each.data, "<f4") for each in (together.mean, together.logvar, together.latents, noise.latents)
    )
    np.testing.assert_allclose(draw, mean + np.exp(logvar / 2) * z, rtol=1e-5, atol=1e-5)
    assert not together.HasField("seed")


@pytest.mark.parametrize("at", range(7))
def test_any_part_of_a_draw_is_that_part(at: int) -> None:
    draw = Draw([Span(*each) for each in SPANS], 1.0, None, False, False, None)
    whole = draw.noise(0, 6, 5, 0)
    for count in range(1, 7 - at):
        assert draw.noise(at, count, 5, 0).tobytes() == whole[at : at + count].tobytes()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"spans": spans((1, 0, 0))}, r"spans\[0\].count: got 0, wanted 1 to 1024"),
        ({"spans": spans((1, 0, 1), (1, 0, 1025))}, r"spans\[1\].count: got 1025, wanted 1 to 1024"),
        ({"spans": spans((1, 0, 1), (1, 0, 1024))}, "spans: got more than 1024 images, wanted at most 1024 in all"),
        ({"spans": spans((1, -1, 1))}, r"spans\[0\].first_index: got -1, wanted 0 or more"),
        ({"spans": spans((1, 2**63 - 1, 2))}, r"spans\[0\].first_index: got 9223372036854775807, wanted"),
        ({"spans": spans((1, 0, 1)), "count": 1}, "count: got 1, wanted none beside spans"),
        ({"spans": spans((1, 0, 1)), "seed": 0}, "seed: got 0, wanted none beside spans"),
        ({"spans": spans((1, 0, 1)), "first_index": 4}, "first_index: got 4, wanted none beside spans"),
        ({"spans": spans((1, 0, 2)), "classes": pb.Classes(indices=[1])}, "classes: got 1, wanted none"),
    ],
)
def test_spans_that_make_no_sense_are_refused(stub: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(grpc.RpcError, match=said) as caught:
        stub.Sample(pb.SampleRequest(**fields))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"spans": spans((1, 0, 1))}, "spans: got 1 images, wanted 2, as there are"),
        ({"spans": spans((1, 0, 3))}, r"spans\[0\].count: got 3, wanted 1 to 2"),
        ({"spans": spans((1, 0, 2)), "seed": 5}, "seed: got 5, wanted none beside spans"),
        ({"spans": spans((1, 0, 2)), "first_index": 5}, "first_index: got 5, wanted none beside spans"),
    ],
)
def test_so_are_those_that_do_not_fit_the_images(stub: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(grpc.RpcError, match=said) as caught:
        stub.Encode(pb.EncodeRequest(images=images(2), **fields))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_is_of_one_seed(stub: Any) -> None:
    with pytest.raises(grpc.RpcError, match="spans: got 2 of them, wanted none: a stream is of one seed"):
        list(stub.StreamSample(pb.StreamSampleRequest(sample=pb.SampleRequest(spans=spans((1, 0, 1), (2, 0, 1))))))
