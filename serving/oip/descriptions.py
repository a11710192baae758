"""What the protocol tells of its models: metadata, and configuration as Triton's `config.pbtxt` has it."""

from __future__ import annotations

from latentry.printable import plain
from serving.catalog import Catalog
from serving.inference import grpc_service_pb2 as oip
from serving.inference import model_config_pb2 as config
from serving.oip.faces import Face, Port, kinds

PLATFORM = "latentry_onnx"
_TYPES = {"UINT8": config.TYPE_UINT8, "INT64": config.TYPE_INT64, "FP32": config.TYPE_FP32}
_LONGEST = 256


def metadata(face: Face, catalog: Catalog) -> oip.ModelMetadataResponse:
    """Names, types and shapes; a batched model's shapes begin with -1."""
    there = sorted(catalog.versions(face.model.manifest.name).items())
    return oip.ModelMetadataResponse(
        name=face.name,
        versions=[str(number) for number, model in there if face.kind in kinds(model)],
        platform=PLATFORM,
        inputs=[_tensor(port, face) for port in face.inputs],
        outputs=[_tensor(port, face) for port in face.outputs],
    )


def configuration(face: Face) -> config.ModelConfig:
    """As Triton would have it, so that its tools understand it. What cannot be said with it is among `parameters`."""
    model, about = face.model, face.model.manifest
    facts = {
        "latentry.model": about.name,
        "latentry.digest": model.digest,
        "latentry.precision": model.precision,
        "latentry.provider": model.provider,
        "latentry.max_items": str(model.limits.max_items),
        "latentry.classes": str(about.classes),
        "latentry.class_labels": ", ".join(plain(label, _LONGEST) for label in about.labels[: about.classes]),
        "latentry.attributes": ", ".join(plain(name, _LONGEST) for name in sorted(about.attributes)),
    }
    made = config.ModelConfig(
        name=face.name,
        platform=PLATFORM,
        max_batch_size=model.limits.max_items if face.batched else 0,
        input=[
            config.ModelInput(name=p.name, data_type=_TYPES[p.datatype], dims=p.dims, optional=p.optional)
            for p in face.inputs
        ],
        output=[config.ModelOutput(name=p.name, data_type=_TYPES[p.datatype], dims=p.dims) for p in face.outputs],
        parameters={key: config.ModelParameter(string_value=value) for key, value in facts.items() if value},
        model_transaction_policy=config.ModelTransactionPolicy(decoupled=False),
    )
    made.version_policy.specific.versions.append(about.version)
    if face.batched:
        made.dynamic_batching.SetInParent()
    return made


def _tensor(port: Port, face: Face) -> oip.ModelMetadataResponse.TensorMetadata:
    shape = (-1, *port.dims) if face.batched else port.dims
    return oip.ModelMetadataResponse.TensorMetadata(name=port.name, datatype=port.datatype, shape=shape)
