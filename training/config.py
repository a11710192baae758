"""The config of a run: what it is trained on, the model, the objective, the optimiser, and the run itself.

Each value is checked when a config is made, and trusted from then on. Knows nothing of torch, nor of files.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from training.errors import ConfigError

MIN_SIDE = 8
MAX_SIDE = 4096

KINDS = ("conv", "plain", "dense", "dense-norm", "autoencoder", "denoising", "linear", "pca")
LIKELIHOODS = (
    "gaussian",
    "gaussian-fixed",
    "gaussian-predicted",
    "laplace",
    "bernoulli",
    "continuous-bernoulli",
    "discretised-logistic",
)
ESTIMATORS = ("elbo", "stl", "iwae", "dreg")
PERCEPTUALS = ("", "laplacian", "ms-ssim")
PRIOR_FITS = ("none", "mixture", "second-stage", "best")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """`image_size` (H, W) resizes and crops; `channels` is 1 or 3; without them the images say. `labels` names the
    classes in order. `holdout` is the share held out where the source has no test images of its own; `max_bad_share`
    the share of unreadable files that a run puts up with. `validation` of the images to train on are set aside to
    choose by, so that nothing is chosen on test images: the last ones, or drawn if the test images are drawn too.
    `cache` is a folder for pixels on the disk, for sets larger than memory."""

    path: str = ""
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    labels: tuple[str, ...] = ()
    holdout: float = 0.1
    max_bad_share: float = 0.05
    validation: int = 0
    cache: str = ""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """`kind` is one of `KINDS`. conv (residual) and plain: `width` channels at the first scale, doubled at each further
    one up to `max_width`, `blocks` residual blocks at each (conv), and `head` units before the latents. dense,
    dense-norm, autoencoder and denoising: `hidden` layer sizes. `conditional` gives both halves the class label."""

    kind: str = "conv"
    latent_dim: int = 32
    width: int = 32
    max_width: int = 128
    blocks: int = 1
    head: int = 128
    hidden: tuple[int, ...] = (256, 128)
    conditional: bool = False


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """`likelihood` is one of `LIKELIHOODS`; `variance` is the c of gaussian-fixed, N(mean, c·I). `prior` is N(0, I) or
    a flow learnt with the model. `estimator` is one of `ESTIMATORS`, with `samples` of the posterior for each image.
    `beta` weighs the KL; it grows from 0 over the first `beta_warmup` share of the steps, or rises in each of
    `beta_cycles` cycles. `free_bits` nats of each latent cost nothing. `perceptual` adds `perceptual_weight` times a
    distance that sees blur. `corruption` is the noise that a denoising autoencoder is shown."""

    likelihood: str = "gaussian"
    variance: float = 1.0
    prior: str = "normal"
    estimator: str = "elbo"
    samples: int = 1
    beta: float = 1.0
    beta_warmup: float = 0.1
    beta_cycles: int = 0
    free_bits: float = 0.0
    perceptual: str = ""
    perceptual_weight: float = 0.0
    corruption: float = 0.3


@dataclass(frozen=True, slots=True)
class PriorConfig:
    """What is fitted to the encoded training images once the model is trained: `fit` is none, mixture, second-stage or
    best (by held-out density). `components` of the mixture."""

    fit: str = "none"
    components: int = 50


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
    A checkpoint is written each `checkpoint_steps` and at the end of each epoch. `devices` processes on each of `nodes`
    machines share each batch. `snapshots` keeps the weights of epochs 1, 2, 3, 4, 6, 8, 11, 16, ... for animations."""

    epochs: int = 30
    batch_size: int = 128
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    checkpoint_steps: int = 200
    devices: int = 1
    nodes: int = 1
    snapshots: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """All that a run is made from, besides the images."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _check_data(self.data)
        _check_model(self.model)
        _check_objective(self.objective)
        _check_point(self.model, self.objective)
        _choice("prior.fit", self.prior.fit, PRIOR_FITS)
        _number("prior.components", self.prior.components, 1, 10_000)
        _check_unheard(self)
        _check_optimiser(self.optimiser)
        _check_run(self.run)
        if self.model.kind == "pca" and self.run.devices * self.run.nodes > 1:
            raise ConfigError(f"run.devices: got {self.run.devices}, wanted 1: pca is solved, not trained")


def _check_data(data: DataConfig) -> None:
    for side in data.image_size or ():
        _number("data.image_size", side, MIN_SIDE, MAX_SIDE)
    if data.channels is not None:
        _choice("data.channels", data.channels, (1, 3))
    _number("data.holdout", data.holdout, 0.001, 0.9)
    _number("data.max_bad_share", data.max_bad_share, 0, 1)
    _number("data.validation", data.validation, 0, 10**9)
    for name in data.labels:
        if not name or not name.isprintable() or data.labels.count(name) > 1:
            raise ConfigError(f"data.labels: got {name!r}, wanted names of printable characters, each once")


def _check_model(model: ModelConfig) -> None:
    _choice("model.kind", model.kind, KINDS)
    _number("model.latent_dim", model.latent_dim, 1, 65536)
    _number("model.blocks", model.blocks, 0, 64)
    for key in ("width", "max_width", "head"):
        _number(f"model.{key}", getattr(model, key), 1, 8192)
    for units in model.hidden:
        _number("model.hidden", units, 1, 65536)


def _check_objective(objective: ObjectiveConfig) -> None:
    _choice("objective.likelihood", objective.likelihood, LIKELIHOODS)
    _number("objective.variance", objective.variance, 1e-9, 1e9)
    _choice("objective.prior", objective.prior, ("normal", "flow"))
    _choice("objective.estimator", objective.estimator, ESTIMATORS)
    _number("objective.samples", objective.samples, 1, 10_000)
    _number("objective.beta", objective.beta, 0, 1e6)
    _number("objective.beta_warmup", objective.beta_warmup, 0, 1)
    _number("objective.beta_cycles", objective.beta_cycles, 0, 10_000)
    _number("objective.free_bits", objective.free_bits, 0, 1e6)
    _choice("objective.perceptual", objective.perceptual, PERCEPTUALS)
    _number("objective.perceptual_weight", objective.perceptual_weight, 0, 1e9)
    _number("objective.corruption", objective.corruption, 0, 10)
    estimator, perceptual = objective.estimator, objective.perceptual
    if estimator in ("iwae", "dreg") and objective.samples < 2:
        raise ConfigError(f"objective.samples: got {objective.samples}, wanted at least 2 with estimator {estimator}")
    if objective.free_bits > 0 and estimator in ("iwae", "dreg"):
        raise ConfigError(f"objective.free_bits: got {objective.free_bits}, wanted 0 with estimator {estimator}")
    if perceptual and estimator == "dreg":  # the weights on z's gradient would scale this distance's too
        raise ConfigError(f"objective.perceptual: got {perceptual}, wanted none with estimator dreg")
    if perceptual and not objective.perceptual_weight:
        raise ConfigError(f"objective.perceptual: got {perceptual}, wanted a perceptual_weight above 0 too")
    if objective.perceptual_weight > 0 and not perceptual:
        raise ConfigError(f"objective.perceptual_weight: got {objective.perceptual_weight}, wanted 0 if no perceptual")


def _check_point(model: ModelConfig, objective: ObjectiveConfig) -> None:
    """What speaks of a posterior means nothing to a model that has none, or that is solved."""
    if model.kind not in ("autoencoder", "denoising", "linear", "pca"):
        return
    wanted = {"estimator": "elbo", "samples": 1, "free_bits": 0.0, "beta": 1.0, "beta_cycles": 0}
    if model.kind == "pca":
        wanted |= {"perceptual": ""}
    for key, value in wanted.items():
        if getattr(objective, key) != value:
            raise ConfigError(
                f"objective.{key}: got {getattr(objective, key)}, wanted {value} for model.kind {model.kind}"
            )


def _check_unheard(config: Config) -> None:
    """What somebody has set, and nothing would come of."""
    variance, likelihood = config.objective.variance, config.objective.likelihood
    if variance != 1.0 and likelihood != "gaussian-fixed":
        raise ConfigError(f"objective.variance: got {variance} with {likelihood}, wanted likelihood gaussian-fixed")
    if config.objective.corruption != ObjectiveConfig().corruption and config.model.kind != "denoising":
        raise ConfigError(
            f"objective.corruption: got {config.objective.corruption}, wanted model.kind denoising with it"
        )
    components, fit = config.prior.components, config.prior.fit
    if components != PriorConfig().components and fit not in ("mixture", "best"):
        raise ConfigError(f"prior.components: got {components} with prior.fit {fit}, wanted fit mixture or best")


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
    _number("run.devices", run.devices, 1, 10_000)
    _number("run.nodes", run.nodes, 1, 10_000)
    if run.batch_size % (run.devices * run.nodes):
        wanted = f"a multiple of {run.devices * run.nodes}: run.devices x run.nodes processes share it equally"
        raise ConfigError(f"run.batch_size: got {run.batch_size}, wanted {wanted}")
    _choice("run.device", run.device, ("auto", "cpu", "cuda"))
    _choice("run.precision", run.precision, ("auto", "fp32", "bf16"))


def _choice(where: str, got: object, wanted: tuple[object, ...]) -> None:
    if got not in wanted:
        names = [str(name) for name in wanted]
        near = difflib.get_close_matches(str(got), names, n=1)
        hint = f"; did you mean {near[0]}?" if near and str(got) not in names else ""
        raise ConfigError(f"{where}: got {got or 'nothing'}, wanted {' or '.join(filter(None, names))}{hint}")


def _number(where: str, got: float, least: float, most: float) -> None:
    if not least <= got <= most:  # NaN is refused too
        raise ConfigError(f"{where}: got {got}, wanted {least} to {most}")
