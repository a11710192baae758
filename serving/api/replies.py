"""What replies say of the model and of how they were made."""

from __future__ import annotations

import json
import time
from weakref import WeakKeyDictionary

from latentry.v1 import vae_pb2 as pb
from serving import call
from serving.api.requests import MAX_STREAM_ITEMS
from serving.call import Call
from serving.catalog import Catalog
from serving.model import Model

_refs: WeakKeyDictionary[Model, pb.ModelRef] = WeakKeyDictionary()


def ref(model: Model) -> pb.ModelRef:
    """Its name, version and digest: made once, and not to be changed."""
    made = _refs.get(model)
    if made is None:
        made = pb.ModelRef(name=model.manifest.name, version=model.manifest.version, digest=model.digest)
        _refs[model] = made
    return made


def provenance(model: Model) -> pb.Provenance:
    """How what this call has made until now was made."""
    told = pb.Provenance()
    tell_provenance(told, model, call.current())
    return told


def tell_provenance(told: pb.Provenance, model: Model, record: Call) -> None:
    """The same, written into a reply's own message, which costs half."""
    told.provider, told.precision = model.provider, model.precision
    timings, seconds = told.timings, record.seconds.get
    timings.queue_s = seconds("queue", 0.0)
    timings.inference_s = seconds("inference", 0.0)
    timings.codec_s = seconds("codec_in", 0.0) + seconds("codec_out", 0.0)
    timings.total_s = time.perf_counter() - record.begun


def info(model: Model, catalog: Catalog) -> pb.ModelInfo:
    """Everything that a client may want to know of it."""
    about = model.manifest
    height, width, channels = about.image_shape
    refused = sorted(catalog.refusals(about.name).items())
    return pb.ModelInfo(
        model=ref(model),
        state=pb.MODEL_STATE_READY if model.up else pb.MODEL_STATE_FAILED,
        image_shape=pb.ImageShape(height=height, width=width, channels=channels),
        latent_dim=about.latent_dim,
        limits=pb.Limits(
            max_items=model.limits.max_items,
            max_message_bytes=model.limits.max_message_bytes,
            max_stream_items=MAX_STREAM_ITEMS,
        ),
        likelihood=pb.Likelihood(name=about.likelihood.name, parameters=about.likelihood.parameters),
        class_labels=about.labels,
        version_labels=sorted(catalog.labels_of(about.name, about.version)),
        evaluation=about.evaluation,
        provider=model.provider,
        precision=model.precision,
        precisions=about.precisions,
        provenance_json=json.dumps(about.provenance, sort_keys=True, ensure_ascii=False),
        refused_versions=[pb.RefusedVersion(version=v, reason=each.reason) for v, each in refused],
        classes=about.classes,
        attributes=[_attribute(model, name) for name in sorted(about.attributes)],
        prior=about.prior.kind if about.prior is not None and model.has_prior else "",
    )


def _attribute(model: Model, name: str) -> pb.Attribute:
    attribute = model.manifest.attribute(name)
    return pb.Attribute(name=name, amount=attribute.amount, limit=attribute.limit)
