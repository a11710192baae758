"""Classes over the wire: every call of a conditional model, and what a wrong class is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import conditional_model
import linear_model
import numpy as np
import pytest
from conditional_model import ConditionalModel
from test_generating import calling, images, refusal
from test_servicer import array, latents, photos, tensor

from latentry.v1 import vae_pb2 as pb

LABELS = ("boot", "bag", "coat")
MIXED = np.array([2, 0, 1])
BAG = pb.Classes(names=["bag"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ConditionalModel]]:
    """A stub to a conditional linear model, and the model."""
    repository = tmp_path_factory.mktemp("classes")
    model = conditional_model.write(repository, len(LABELS))
    about = linear_model.manifest("linear", 1, model.linear.shape, 5)
    graphs = conditional_model.graphs(model.linear, len(LABELS))
    linear_model.save(model.linear.folder, graphs, replace(about, classes=len(LABELS), labels=LABELS))
    with calling(repository) as stub:
        yield stub, model


def same(got: pb.Images, wanted: Any) -> bool:
    return bool(np.abs(array(got.tensor) - 255 * wanted).max() <= 0.51)


def test_each_item_has_its_class_by_name_or_number(served: tuple[Any, ConditionalModel]) -> None:
    stub, model = served
    for classes in (pb.Classes(names=["coat", "boot", "bag"]), pb.Classes(indices=MIXED)):
        encoded = stub.Encode(pb.EncodeRequest(images=images(photos()), classes=classes))
        np.testing.assert_allclose(array(encoded.mean), model.encode(photos(), MIXED)[0], atol=1e-5)
        decoded = stub.Decode(pb.DecodeRequest(latents=tensor(latents()), classes=classes))
        assert same(decoded.images, model.decode(latents(), MIXED))
        seen = stub.Reconstruct(pb.ReconstructRequest(images=images(photos()), classes=classes))
        assert same(seen.images, model.decode(array(seen.latents), MIXED))
        edited = stub.Edit(pb.EditRequest(images=images(photos()), classes=classes))
        assert edited.images == seen.images
        drawn = stub.Sample(pb.SampleRequest(count=3, seed=1, classes=classes))
        assert same(drawn.images, model.decode(array(drawn.latents), MIXED))


def test_one_class_stands_for_all(served: tuple[Any, ConditionalModel]) -> None:
    stub, model = served

    def bags(reply: Any) -> bool:
        z = array(reply.latents)
        return same(reply.images, model.decode(z, np.full(len(z), 1)))

    keys, one = tensor(latents()), tensor(latents(1, 5))
    assert bags(stub.Sample(pb.SampleRequest(count=70, seed=1, classes=BAG)))
    assert bags(stub.Interpolate(pb.InterpolateRequest(latents=keys, steps=9, classes=BAG)))
    assert bags(stub.Interpolate(pb.InterpolateRequest(images=images(photos()), steps=9, classes=BAG)))
    grid = pb.NeighboursRequest(latents=one, grid=pb.NeighbourGrid(rows=2, columns=3), classes=BAG)
    assert bags(stub.Neighbours(grid))
    difference = pb.Difference(plus_images=images(photos()), minus_latents=one)
    edit = pb.EditRequest(latents=keys, differences=[difference], classes=BAG)
    assert bags(stub.Edit(edit))
    parts = stub.StreamSample(pb.StreamSampleRequest(sample=pb.SampleRequest(count=150, seed=1, classes=BAG)))
    assert all(bags(each.part) for each in parts)


def test_a_stream_takes_a_class_an_image(served: tuple[Any, ConditionalModel]) -> None:
    stub, model = served
    numbers = np.arange(150) % 3
    sample = pb.SampleRequest(count=150, seed=1, classes=pb.Classes(indices=numbers))
    for reply in stub.StreamSample(pb.StreamSampleRequest(sample=sample)):
        z = array(reply.part.latents)
        mine = numbers[reply.first_index : reply.first_index + len(z)]
        assert same(reply.part.images, model.decode(z, mine))


def test_noise_does_not_depend_on_the_class(served: tuple[Any, ConditionalModel]) -> None:
    stub, _ = served
    drawn = {
        stub.Sample(pb.SampleRequest(count=4, seed=1, classes=pb.Classes(indices=[k]))).latents.data for k in (0, 2)
    }
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("classes", "field", "says"),
    [
        (None, "classes", "got none, wanted one, or 3, one an item: boot, bag, coat"),
        (pb.Classes(names=["hat"]), "classes.names[0]", "got 'hat', wanted one of boot, bag, coat"),
        (pb.Classes(names=["bag", "bag", "Bag"]), "classes.names[2]", "got 'Bag', wanted one of boot, bag, coat"),
        (pb.Classes(indices=[3]), "classes.indices[0]", "got 3, wanted 0 to 2"),
        (pb.Classes(indices=[0, -1, 0]), "classes.indices[1]", "got -1, wanted 0 to 2"),
        (pb.Classes(indices=[0, 1]), "classes", "got 2 classes, wanted one, or 3, one an item: boot, bag, coat"),
        (pb.Classes(names=["bag"], indices=[1]), "classes", "got names and indices, wanted one of them"),
    ],
)
def test_a_wrong_class_is_told_which_there_are(
    served: tuple[Any, ConditionalModel], classes: pb.Classes | None, field: str, says: str
) -> None:
    stub, _ = served
    calls = [
        (stub.Encode, pb.EncodeRequest(images=images(photos()), classes=classes)),
        (stub.Decode, pb.DecodeRequest(latents=tensor(latents()), classes=classes)),
        (stub.Sample, pb.SampleRequest(count=3, classes=classes)),
        (stub.Reconstruct, pb.ReconstructRequest(images=images(photos()), classes=classes)),
        (stub.Edit, pb.EditRequest(latents=tensor(latents()), classes=classes)),
    ]
    for call, request in calls:
        assert refusal(call, request) == (field, says)
