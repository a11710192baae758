"""One process of several that train together, each on its share of every batch. With one, nothing here does anything.

All hold the same weights: gradients are averaged (DistributedDataParallel through Lightning Fabric: gloo on CPUs,
nccl on GPUs), and what decides about a step is a mean over all. The first process alone writes, evaluates and speaks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from numpy.typing import NDArray
from torch import Tensor

from training.config import RunConfig
from training.errors import ConfigError
from training.launch import EXIT_ALONE, launched, leave
from training.progress import say

_TIMEOUT = timedelta(hours=2)  # the others wait while the first evaluates and draws

_T = TypeVar("_T")


def connect(accelerator: str, precision: Any, run: RunConfig) -> Fabric:
    """Lightning Fabric for `run`, connected to the other processes if there are any.

    Raises `ConfigError` if nobody has started them, or if there are fewer GPUs than processes on this machine.
    """
    world = run.devices * run.nodes
    if accelerator == "cuda" and run.devices > torch.cuda.device_count():
        raise ConfigError(f"run.devices: got {run.devices}, wanted at most the {torch.cuda.device_count()} GPUs here")
    if world == 1:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    if not launched():
        raise ConfigError(f"run.devices: got {world} processes, wanted `latentry train` or torchrun to start them")
    fabric = Fabric(
        accelerator=accelerator,
        devices=run.devices,
        num_nodes=run.nodes,
        strategy=DDPStrategy(timeout=_TIMEOUT),
        plugins=[TorchElasticEnvironment()],
        precision=precision,
    )
    fabric.launch()
    return fabric


def share_of(chosen: NDArray[np.int64], fabric: Fabric) -> NDArray[np.int64]:
    """This process's part of a batch; the parts of all are the batch."""
    return chosen[fabric.global_rank :: fabric.world_size]


def mean_of(values: Mapping[str, Tensor], fabric: Fabric) -> dict[str, float]:
    """The mean of each scalar over all processes: the same in each, and NaN or infinite in each if it is in one."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if fabric.world_size > 1:
        stacked = fabric.all_reduce(stacked, reduce_op="mean")  # type: ignore[assignment]
    return dict(zip(values, stacked.tolist(), strict=True))


def from_first(make: Callable[[], _T], fabric: Fabric) -> _T:
    """What `make` returns in the first process, in all; the others need neither its files nor its folder."""
    made = make() if fabric.global_rank == 0 else None
    return made if fabric.world_size == 1 else fabric.broadcast(made)  # type: ignore[return-value]


def reseed(generator: torch.Generator, seed: int, step: int, fabric: Fabric) -> None:
    """Make a step's noise a function of seed, step and process alone.

    So no process has a state to keep, and a run resumes, on any number of processes, with the noise of its step.
    """
    numbers = np.random.SeedSequence((seed, step, fabric.global_rank)).generate_state(1, np.uint64)
    generator.manual_seed(int(numbers[0]))


@contextlib.contextmanager
def together(fabric: Fabric) -> Iterator[None]:
    """Around all that a process does with the others: it ends at once if one of them is gone.

    Such a process did not fail: it says so in a line and has the exit status `EXIT_ALONE`.
    """
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size == 1 or not _is_of_the_others(error):
            raise
        say(f"latentry: process {fabric.global_rank} stops, because another has ended")
        leave(EXIT_ALONE)


def _is_of_the_others(error: RuntimeError) -> bool:
    """gloo raises plain RuntimeErrors, with its own files' names in them."""
    of_torch = isinstance(error, torch.distributed.DistError)
    return of_torch or any(word in str(error) for word in ("gloo", "Connection closed by peer", "NCCL"))
