"""The config of a run: what it is trained on, the model, the objective, the optimiser, and the run itself.

Each value is checked when a config is made, and trusted from then on. Knows nothing of torch, nor of files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from training.errors import ConfigError

MIN_SIDE = 8
MAX_SIDE = 4096


@dataclass(frozen=True, slots=True)
class DataConfig:
    """`image_size` (H, W) resizes and crops; `channels` is 1 or 3; without them the images say. `labels` names the
    classes in order. `holdout` is the share held out where the source has no test images of its own; `max_bad_share`
    the share of unreadable files that a run puts up with."""

    path: str = ""
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    labels: tuple[str, ...] = ()
    holdout: float = 0.1
    max_bad_share: float = 0.05


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """`kind` is `conv` or `dense`. Conv: `width` channels at the first scale, doubled at each further one up to
    `max_width`, `blocks` residual blocks at each, and `head` units before the latents. Dense: `hidden` layer sizes."""

    kind: str = "conv"
    latent_dim: int = 32
    width: int = 32
    max_width: int = 128
    blocks: int = 1
    head: int = 128
    hidden: tuple[int, ...] = (256, 128)


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """`likelihood` is `gaussian` or `bernoulli`. `beta` weighs the KL; it grows from 0 over the first
    `beta_warmup` share of the steps."""

    likelihood: str = "gaussian"
    beta: float = 1.0
    beta_warmup: float = 0.1


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """AdamW with `warmup_steps` of linear growth, then a cosine to zero. Gradients longer than `clip_norm` are
    shortened to it. `ema_decay` is the weight average's."""

    learning_rate: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    ema_decay: float = 0.999


@dataclass(frozen=True, slots=True)
class RunConfig:
    """`device` is auto, cpu or cuda; `precision` auto, fp32 or bf16 (auto: bf16 where the hardware has it).
    A checkpoint is written each `checkpoint_steps` and at the end of each epoch."""

    epochs: int = 30
    batch_size: int = 128
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    checkpoint_steps: int = 200


@dataclass(frozen=True, slots=True)
class Config:
    """All that a run is made from, besides the images."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _check_data(self.data)
        _check_model(self.model)
        _choice("objective.likelihood", self.objective.likelihood, ("gaussian", "bernoulli"))
        _number("objective.beta", self.objective.beta, 0, 1e6)
        _number("objective.beta_warmup", self.objective.beta_warmup, 0, 1)
        _check_optimiser(self.optimiser)
        _check_run(self.run)


def _check_data(data: DataConfig) -> None:
    for side in data.image_size or ():
        _number("data.image_size", side, MIN_SIDE, MAX_SIDE)
    if data.channels is not None:
        _choice("data.channels", data.channels, (1, 3))
    _number("data.holdout", data.holdout, 0.001, 0.9)
    _number("data.max_bad_share", data.max_bad_share, 0, 1)


def _check_model(model: ModelConfig) -> None:
    _choice("model.kind", model.kind, ("conv", "dense"))
    _number("model.latent_dim", model.latent_dim, 1, 65536)
    _number("model.blocks", model.blocks, 0, 64)
    for key in ("width", "max_width", "head"):
        _number(f"model.{key}", getattr(model, key), 1, 8192)
    for units in model.hidden:
        _number("model.hidden", units, 1, 65536)


def _check_optimiser(optimiser: OptimiserConfig) -> None:
    _number("optimiser.learning_rate", optimiser.learning_rate, 1e-9, 10)
    _number("optimiser.warmup_steps", optimiser.warmup_steps, 0, 10**9)
    _number("optimiser.weight_decay", optimiser.weight_decay, 0, 1)
    _number("optimiser.clip_norm", optimiser.clip_norm, 1e-9, 1e12)
    _number("optimiser.ema_decay", optimiser.ema_decay, 0, 0.999999)


def _check_run(run: RunConfig) -> None:
    _number("run.epochs", run.epochs, 1, 10**6)
    _number("run.batch_size", run.batch_size, 1, 10**6)
    _number("run.seed", run.seed, 0, 2**32 - 1)
    _number("run.checkpoint_steps", run.checkpoint_steps, 1, 10**9)
    _choice("run.device", run.device, ("auto", "cpu", "cuda"))
    _choice("run.precision", run.precision, ("auto", "fp32", "bf16"))


def _choice(where: str, got: object, wanted: tuple[object, ...]) -> None:
    if got not in wanted:
        names = [str(name) for name in wanted]
        raise ConfigError(f"{where}: got {got}, wanted {' or '.join(names)}")


def _number(where: str, got: float, least: float, most: float) -> None:
    if not least <= got <= most:  # NaN is refused too
        raise ConfigError(f"{where}: got {got}, wanted {least} to {most}")
