"""What does `latentry train` cost beside the network itself?

    OMP_NUM_THREADS=2 python benchmarks/training_loop.py
    python benchmarks/training_loop.py --preset tiny --precision fp32 --batch-size 32 --blocks 10

The real loop (shuffled images, the ELBO, clipping, the weights' average, a line in the log for each step, TensorBoard,
checkpoints; not the evaluation after each epoch) against three bare ones on one resident batch, of the same network,
precision, optimiser and threads. They take turns in blocks of some steps, so that whatever else the machine does falls
on all alike, and the ratio is that of the totals.

    bare            forward, backward, optimiser step
    with clipping   and the gradient's norm, clipped
    with average    and the moving average of the weights: what no training loop of ours could do without

`loop / bare` at 0.95 or more means that the loop costs a twentieth at most. Needs only what is in the repository.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training import config_file, fit, idx, objective
from training.config import Config
from training.ema import WeightAverage
from training.state import TrainingState

FASHION = Path(__file__).resolve().parent.parent / "data" / "fashion-mnist"
_COPIES = 6  # of the 10,000 images that come along: an epoch is as long as that of the whole set
_WARM_UP_BLOCKS = 1


clock = time.perf_counter


class _Enough(BaseException):
    """Ends the run: everything is measured."""


class Bare:
    """Forward, backward and step on one batch that stays where it is."""

    def __init__(self, training: TrainingState, x: torch.Tensor) -> None:
        self.training, self.x = training, x
        self.model = copy.deepcopy(training.model)
        wanted = {key: value for key, value in training.optimiser.defaults.items() if key != "decoupled_weight_decay"}
        optimiser = torch.optim.AdamW(self.model.parameters(), **wanted)
        self.forward, self.optimiser = training.fabric.setup(self.model, optimiser)
        self.average = WeightAverage(self.model, 0.999)

    def step(self, *, clipped: bool = False, averaged: bool = False) -> None:
        config, fabric = self.training.config, self.training.fabric
        passed = self.forward(self.x, self.training.generator, None, 1)
        result = objective.loss(config.objective, self.model, self.x, *passed, 1.0)
        self.optimiser.zero_grad()
        fabric.backward(result.loss)
        if clipped:
            fabric.clip_gradients(self.forward, self.optimiser, max_norm=5.0, error_if_nonfinite=False)
        self.optimiser.step()
        if averaged:
            self.average.update(1000)


class Turns:
    """Stands in for `train_step`: every `steps` calls the loop's clock stops, and the others have their turn."""

    def __init__(self, steps: int, blocks: int, *, alone: bool) -> None:
        self.steps, self.blocks, self.alone, self.calls, self.since = steps, blocks, alone, 0, 0.0
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.step = fit.train_step
        self.bare: Bare | None = None

    def __call__(self, training: TrainingState, x: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.bare is None:
            self.bare = Bare(training, x.clone())
        if self.calls % self.steps == 0:
            self._others(self.bare)
        self.calls += 1
        return self.step(training, x, *args, **kwargs)

    def _others(self, bare: Bare) -> None:
        if self.calls:
            _wait(bare)
            self.seconds["loop"].append(clock() - self.since)
        if not self.alone:
            self._time("bare", bare, bare.step)
            self._time("with clipping", bare, lambda: bare.step(clipped=True))
            self._time("with average", bare, lambda: bare.step(clipped=True, averaged=True))
        if len(self.seconds["loop"]) == self.blocks + _WARM_UP_BLOCKS:
            raise _Enough
        self.since = clock()

    def _time(self, name: str, bare: Bare, step: Callable[[], None]) -> None:
        start = clock()
        for _ in range(self.steps):
            step()
        _wait(bare)
        self.seconds[name].append(clock() - start)


def _wait(bare: Bare) -> None:
    if bare.x.is_cuda:
        torch.cuda.synchronize()


def measure(config: Config, steps: int, blocks: int, *, alone: bool = False) -> dict[str, list[float]]:
    """Seconds of each block by name, of the loop `alone` or of all. The first ones, in which kernels are chosen, are
    left out."""
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(steps, blocks, alone=alone)
        images = idx.read(FASHION, "t10k")
        np.savez(Path(folder) / "images.npz", images=np.concatenate([images.pixels] * _COPIES))
        config = replace(config, data=replace(config.data, path=str(Path(folder) / "images.npz"), labels=()))
        fit.train_step = turns  # type: ignore[assignment]
        try:
            fit.fit(config, Path(folder) / "run", resume=False)
        except _Enough:
            pass
        finally:
            fit.train_step = turns.step
    return {name: seconds[_WARM_UP_BLOCKS : blocks + _WARM_UP_BLOCKS] for name, seconds in turns.seconds.items()}


def config_of(args: argparse.Namespace) -> Config:
    """The preset with the command line's batch size, precision and device, and epochs that do not end too soon."""
    global clock
    clock = time.process_time if args.cpu_time else time.perf_counter
    config = config_file.read_preset(args.preset)
    wanted = {"precision": args.precision, "device": args.device, "batch_size": args.batch_size, "epochs": 1000}
    run = {name: value for name, value in wanted.items() if value is not None}
    hidden = tuple(map(int, args.hidden.split(","))) if args.hidden else config.model.hidden
    model = replace(config.model, kind=args.model or config.model.kind, hidden=hidden)
    return replace(config, model=model, run=replace(config.run, **run))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="fashion")
    parser.add_argument("--model", help="another kind than the preset's")
    parser.add_argument("--hidden", metavar="N,N", help="layers of a dense model")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20, help="in a block")
    parser.add_argument("--cpu-time", action="store_true", help="count processor seconds: on a machine that is busy")
    parser.add_argument("--blocks", type=int, default=12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args()
    config = config_of(args)
    seconds = measure(config, args.steps, args.blocks)
    images = config.run.batch_size * args.steps * args.blocks
    rates = {name: images / sum(blocks) for name, blocks in seconds.items()}
    print(
        f"{args.preset}, batch {config.run.batch_size}, {args.precision}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"{os.getloadavg()[0]:.1f} processes wanted to run; {args.blocks} blocks of {args.steps} steps each")
    for name, rate in rates.items():
        ratios = np.array(seconds["bare"]) / np.array(seconds[name])
        low, high = np.quantile(ratios, [0.1, 0.9])
        share = f"{rate / rates['bare']:.3f} of bare (blocks {low:.2f} to {high:.2f})"
        print(f"{name:<16}{rate:>10,.0f} images/s   {share}")


if __name__ == "__main__":
    main()
