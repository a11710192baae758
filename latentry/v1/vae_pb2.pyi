from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]

class Resize(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESIZE_UNSPECIFIED: _ClassVar[Resize]
    RESIZE_CROP: _ClassVar[Resize]
    RESIZE_STRETCH: _ClassVar[Resize]

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_RAW_UINT8: _ClassVar[ImageFormat]
    IMAGE_FORMAT_RAW_FLOAT32: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]
    IMAGE_FORMAT_GIF: _ClassVar[ImageFormat]
    IMAGE_FORMAT_ANIMATED_WEBP: _ClassVar[ImageFormat]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]

class Prior(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIOR_UNSPECIFIED: _ClassVar[Prior]
    PRIOR_STANDARD: _ClassVar[Prior]
    PRIOR_FITTED: _ClassVar[Prior]

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    TRUNCATION_RESAMPLE: _ClassVar[Truncation]
    TRUNCATION_CLAMP: _ClassVar[Truncation]

class InterpolationPath(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTERPOLATION_PATH_UNSPECIFIED: _ClassVar[InterpolationPath]
    INTERPOLATION_PATH_LINEAR: _ClassVar[InterpolationPath]
    INTERPOLATION_PATH_SPHERICAL: _ClassVar[InterpolationPath]
    INTERPOLATION_PATH_CATMULL_ROM: _ClassVar[InterpolationPath]

class Easing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EASING_UNSPECIFIED: _ClassVar[Easing]
    EASING_NONE: _ClassVar[Easing]
    EASING_IN: _ClassVar[Easing]
    EASING_OUT: _ClassVar[Easing]
    EASING_IN_OUT: _ClassVar[Easing]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_FLOAT32: DataType
RESIZE_UNSPECIFIED: Resize
RESIZE_CROP: Resize
RESIZE_STRETCH: Resize
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_RAW_UINT8: ImageFormat
IMAGE_FORMAT_RAW_FLOAT32: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
IMAGE_FORMAT_GIF: ImageFormat
IMAGE_FORMAT_ANIMATED_WEBP: ImageFormat
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_FAILED: ModelState
PRIOR_UNSPECIFIED: Prior
PRIOR_STANDARD: Prior
PRIOR_FITTED: Prior
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_RESAMPLE: Truncation
TRUNCATION_CLAMP: Truncation
INTERPOLATION_PATH_UNSPECIFIED: InterpolationPath
INTERPOLATION_PATH_LINEAR: InterpolationPath
INTERPOLATION_PATH_SPHERICAL: InterpolationPath
INTERPOLATION_PATH_CATMULL_ROM: InterpolationPath
EASING_UNSPECIFIED: Easing
EASING_NONE: Easing
EASING_IN: Easing
EASING_OUT: Easing
EASING_IN_OUT: Easing

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Images(_message.Message):
    __slots__ = ("tensor", "encoded")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    tensor: Tensor
    encoded: EncodedImages
    def __init__(self, tensor: _Optional[_Union[Tensor, _Mapping]] = ..., encoded: _Optional[_Union[EncodedImages, _Mapping]] = ...) -> None: ...

class EncodedImages(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, images: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ImageOutput(_message.Message):
    __slots__ = ("format", "quality", "frame_ms")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    FRAME_MS_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    quality: int
    frame_ms: int
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., quality: _Optional[int] = ..., frame_ms: _Optional[int] = ...) -> None: ...

class Classes(_message.Message):
    __slots__ = ("names", "indices")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, names: _Optional[_Iterable[str]] = ..., indices: _Optional[_Iterable[int]] = ...) -> None: ...

class ModelSelector(_message.Message):
    __slots__ = ("name", "version", "label")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    label: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("name", "version", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    digest: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class ImageShape(_message.Message):
    __slots__ = ("height", "width", "channels")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    channels: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_items", "max_message_bytes", "max_stream_items")
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    max_items: int
    max_message_bytes: int
    max_stream_items: int
    def __init__(self, max_items: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_stream_items: _Optional[int] = ...) -> None: ...

class Likelihood(_message.Message):
    __slots__ = ("name", "parameters")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[_Mapping[str, float]] = ...) -> None: ...

class RefusedVersion(_message.Message):
    __slots__ = ("version", "reason")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    version: int
    reason: str
    def __init__(self, version: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("provider", "precision", "timings")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    provider: str
    precision: str
    timings: Timings
    def __init__(self, provider: _Optional[str] = ..., precision: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_s", "inference_s", "codec_s", "total_s")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_S_FIELD_NUMBER: _ClassVar[int]
    CODEC_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    inference_s: float
    codec_s: float
    total_s: float
    def __init__(self, queue_s: _Optional[float] = ..., inference_s: _Optional[float] = ..., codec_s: _Optional[float] = ..., total_s: _Optional[float] = ...) -> None: ...

class Attribute(_message.Message):
    __slots__ = ("name", "amount", "limit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    amount: float
    limit: float
    def __init__(self, name: _Optional[str] = ..., amount: _Optional[float] = ..., limit: _Optional[float] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("model", "state", "image_shape", "latent_dim", "limits", "likelihood", "class_labels", "version_labels", "evaluation", "provider", "precision", "precisions", "refused_versions", "provenance_json", "classes", "attributes", "prior")
    class EvaluationEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    LATENT_DIM_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABELS_FIELD_NUMBER: _ClassVar[int]
    VERSION_LABELS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PRECISIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_JSON_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    state: ModelState
    image_shape: ImageShape
    latent_dim: int
    limits: Limits
    likelihood: Likelihood
    class_labels: _containers.RepeatedScalarFieldContainer[str]
    version_labels: _containers.RepeatedScalarFieldContainer[str]
    evaluation: _containers.ScalarMap[str, float]
    provider: str
    precision: str
    precisions: _containers.RepeatedScalarFieldContainer[str]
    refused_versions: _containers.RepeatedCompositeFieldContainer[RefusedVersion]
    provenance_json: str
    classes: int
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    prior: str
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., state: _Optional[_Union[ModelState, str]] = ..., image_shape: _Optional[_Union[ImageShape, _Mapping]] = ..., latent_dim: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., likelihood: _Optional[_Union[Likelihood, _Mapping]] = ..., class_labels: _Optional[_Iterable[str]] = ..., version_labels: _Optional[_Iterable[str]] = ..., evaluation: _Optional[_Mapping[str, float]] = ..., provider: _Optional[str] = ..., precision: _Optional[str] = ..., precisions: _Optional[_Iterable[str]] = ..., refused_versions: _Optional[_Iterable[_Union[RefusedVersion, _Mapping]]] = ..., provenance_json: _Optional[str] = ..., classes: _Optional[int] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., prior: _Optional[str] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("model", "images", "resize", "seed", "first_index", "temperature", "classes", "spans")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    images: Images
    resize: Resize
    seed: int
    first_index: int
    temperature: float
    classes: Classes
    spans: _containers.RepeatedCompositeFieldContainer[SeedSpan]
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., resize: _Optional[_Union[Resize, str]] = ..., seed: _Optional[int] = ..., first_index: _Optional[int] = ..., temperature: _Optional[float] = ..., classes: _Optional[_Union[Classes, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[SeedSpan, _Mapping]]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("model", "mean", "logvar", "latents", "seed", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    LOGVAR_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    mean: Tensor
    logvar: Tensor
    latents: Tensor
    seed: int
    provenance: Provenance
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., mean: _Optional[_Union[Tensor, _Mapping]] = ..., logvar: _Optional[_Union[Tensor, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("model", "latents", "output", "classes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    latents: Tensor
    output: ImageOutput
    classes: Classes
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., classes: _Optional[_Union[Classes, _Mapping]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("model", "images", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    images: Images
    provenance: Provenance
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class SeedSpan(_message.Message):
    __slots__ = ("seed", "first_index", "count")
    SEED_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    seed: int
    first_index: int
    count: int
    def __init__(self, seed: _Optional[int] = ..., first_index: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("model", "count", "seed", "first_index", "temperature", "output", "truncation", "truncation_mode", "classes", "prior", "spans")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_MODE_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    count: int
    seed: int
    first_index: int
    temperature: float
    output: ImageOutput
    truncation: float
    truncation_mode: Truncation
    classes: Classes
    prior: Prior
    spans: _containers.RepeatedCompositeFieldContainer[SeedSpan]
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., count: _Optional[int] = ..., seed: _Optional[int] = ..., first_index: _Optional[int] = ..., temperature: _Optional[float] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., truncation: _Optional[float] = ..., truncation_mode: _Optional[_Union[Truncation, str]] = ..., classes: _Optional[_Union[Classes, _Mapping]] = ..., prior: _Optional[_Union[Prior, str]] = ..., spans: _Optional[_Iterable[_Union[SeedSpan, _Mapping]]] = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("model", "images", "latents", "seed", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    images: Images
    latents: Tensor
    seed: int
    provenance: Provenance
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class StreamSampleRequest(_message.Message):
    __slots__ = ("sample", "chunk_items")
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ITEMS_FIELD_NUMBER: _ClassVar[int]
    sample: SampleRequest
    chunk_items: int
    def __init__(self, sample: _Optional[_Union[SampleRequest, _Mapping]] = ..., chunk_items: _Optional[int] = ...) -> None: ...

class StreamSampleResponse(_message.Message):
    __slots__ = ("part", "first_index")
    PART_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    part: SampleResponse
    first_index: int
    def __init__(self, part: _Optional[_Union[SampleResponse, _Mapping]] = ..., first_index: _Optional[int] = ...) -> None: ...

class InterpolateRequest(_message.Message):
    __slots__ = ("model", "latents", "images", "resize", "steps", "path", "output", "easing", "loop", "exclude_end_points", "classes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    EASING_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_END_POINTS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    latents: Tensor
    images: Images
    resize: Resize
    steps: int
    path: InterpolationPath
    output: ImageOutput
    easing: Easing
    loop: bool
    exclude_end_points: bool
    classes: Classes
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., resize: _Optional[_Union[Resize, str]] = ..., steps: _Optional[int] = ..., path: _Optional[_Union[InterpolationPath, str]] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., easing: _Optional[_Union[Easing, str]] = ..., loop: bool = ..., exclude_end_points: bool = ..., classes: _Optional[_Union[Classes, _Mapping]] = ...) -> None: ...

class InterpolateResponse(_message.Message):
    __slots__ = ("model", "images", "latents", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    images: Images
    latents: Tensor
    provenance: Provenance
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class StreamInterpolateRequest(_message.Message):
    __slots__ = ("interpolate", "chunk_items", "first_frame")
    INTERPOLATE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ITEMS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FRAME_FIELD_NUMBER: _ClassVar[int]
    interpolate: InterpolateRequest
    chunk_items: int
    first_frame: int
    def __init__(self, interpolate: _Optional[_Union[InterpolateRequest, _Mapping]] = ..., chunk_items: _Optional[int] = ..., first_frame: _Optional[int] = ...) -> None: ...

class StreamInterpolateResponse(_message.Message):
    __slots__ = ("part", "first_frame", "frames")
    PART_FIELD_NUMBER: _ClassVar[int]
    FIRST_FRAME_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    part: InterpolateResponse
    first_frame: int
    frames: int
    def __init__(self, part: _Optional[_Union[InterpolateResponse, _Mapping]] = ..., first_frame: _Optional[int] = ..., frames: _Optional[int] = ...) -> None: ...

class ReconstructRequest(_message.Message):
    __slots__ = ("model", "images", "resize", "output", "seed", "first_index", "classes", "omit_images")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    OMIT_IMAGES_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    images: Images
    resize: Resize
    output: ImageOutput
    seed: int
    first_index: int
    classes: Classes
    omit_images: bool
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., resize: _Optional[_Union[Resize, str]] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., seed: _Optional[int] = ..., first_index: _Optional[int] = ..., classes: _Optional[_Union[Classes, _Mapping]] = ..., omit_images: bool = ...) -> None: ...

class ReconstructResponse(_message.Message):
    __slots__ = ("model", "images", "latents", "squared_error", "kl", "elbo", "seed", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    SQUARED_ERROR_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    ELBO_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    images: Images
    latents: Tensor
    squared_error: Tensor
    kl: Tensor
    elbo: Tensor
    seed: int
    provenance: Provenance
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., squared_error: _Optional[_Union[Tensor, _Mapping]] = ..., kl: _Optional[_Union[Tensor, _Mapping]] = ..., elbo: _Optional[_Union[Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class AttributeAmount(_message.Message):
    __slots__ = ("name", "amount")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    amount: float
    def __init__(self, name: _Optional[str] = ..., amount: _Optional[float] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("plus_latents", "plus_images", "minus_latents", "minus_images", "amount")
    PLUS_LATENTS_FIELD_NUMBER: _ClassVar[int]
    PLUS_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MINUS_LATENTS_FIELD_NUMBER: _ClassVar[int]
    MINUS_IMAGES_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    plus_latents: Tensor
    plus_images: Images
    minus_latents: Tensor
    minus_images: Images
    amount: float
    def __init__(self, plus_latents: _Optional[_Union[Tensor, _Mapping]] = ..., plus_images: _Optional[_Union[Images, _Mapping]] = ..., minus_latents: _Optional[_Union[Tensor, _Mapping]] = ..., minus_images: _Optional[_Union[Images, _Mapping]] = ..., amount: _Optional[float] = ...) -> None: ...

class EditRequest(_message.Message):
    __slots__ = ("model", "latents", "images", "resize", "attributes", "differences", "output", "classes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    latents: Tensor
    images: Images
    resize: Resize
    attributes: _containers.RepeatedCompositeFieldContainer[AttributeAmount]
    differences: _containers.RepeatedCompositeFieldContainer[Difference]
    output: ImageOutput
    classes: Classes
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., resize: _Optional[_Union[Resize, str]] = ..., attributes: _Optional[_Iterable[_Union[AttributeAmount, _Mapping]]] = ..., differences: _Optional[_Iterable[_Union[Difference, _Mapping]]] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., classes: _Optional[_Union[Classes, _Mapping]] = ...) -> None: ...

class EditResponse(_message.Message):
    __slots__ = ("model", "images", "latents", "attributes", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    images: Images
    latents: Tensor
    attributes: _containers.RepeatedCompositeFieldContainer[AttributeAmount]
    provenance: Provenance
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., attributes: _Optional[_Iterable[_Union[AttributeAmount, _Mapping]]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class NeighbourGrid(_message.Message):
    __slots__ = ("rows", "columns", "spacing", "directions")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SPACING_FIELD_NUMBER: _ClassVar[int]
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    spacing: float
    directions: Tensor
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ..., spacing: _Optional[float] = ..., directions: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class NeighbourWalk(_message.Message):
    __slots__ = ("count", "step")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    count: int
    step: float
    def __init__(self, count: _Optional[int] = ..., step: _Optional[float] = ...) -> None: ...

class NeighboursRequest(_message.Message):
    __slots__ = ("model", "latents", "images", "resize", "grid", "walk", "seed", "output", "classes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    WALK_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    latents: Tensor
    images: Images
    resize: Resize
    grid: NeighbourGrid
    walk: NeighbourWalk
    seed: int
    output: ImageOutput
    classes: Classes
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., resize: _Optional[_Union[Resize, str]] = ..., grid: _Optional[_Union[NeighbourGrid, _Mapping]] = ..., walk: _Optional[_Union[NeighbourWalk, _Mapping]] = ..., seed: _Optional[int] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., classes: _Optional[_Union[Classes, _Mapping]] = ...) -> None: ...

class NeighboursResponse(_message.Message):
    __slots__ = ("model", "images", "latents", "seed", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    images: Images
    latents: Tensor
    seed: int
    provenance: Provenance
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "default_model")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MODEL_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    default_model: str
    def __init__(self, models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ..., default_model: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelInfo
    def __init__(self, model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...
