"""What changes with the step, and with nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest

from training import schedule
from training.config import ObjectiveConfig, OptimiserConfig


def test_beta_grows_in_a_straight_line_and_stays() -> None:
    config = ObjectiveConfig(beta=2.0, beta_warmup=0.5)
    assert [schedule.beta(config, step, 8) for step in range(8)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert schedule.beta(ObjectiveConfig(beta=1.0, beta_warmup=0.0), 0, 8) == 1.0


def test_beta_rises_in_half_of_each_cycle_and_stays_for_the_other() -> None:
    config = ObjectiveConfig(beta=2.0, beta_cycles=2)
    cycle = [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert [schedule.beta(config, step, 16) for step in range(16)] == cycle * 2


@pytest.mark.parametrize(("cycles", "steps"), [(3, 100), (4, 7), (10, 3), (1, 1)])
def test_cycles_begin_as_often_as_asked_and_never_exceed_beta(cycles: int, steps: int) -> None:
    betas = [schedule.beta(ObjectiveConfig(beta=1.0, beta_cycles=cycles), step, steps) for step in range(steps)]
    assert max(betas) == 1.0
    assert min(betas) > 0
    falls = sum(after < before for before, after in pairwise(betas))
    assert falls <= cycles - 1
    if steps == 100:
        assert falls == cycles - 1


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=10)
    rates = [schedule.learning_rate(config, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_a_short_run_is_not_all_warm_up() -> None:
    assert schedule.learning_rate(OptimiserConfig(learning_rate=1.0, warmup_steps=300), 10, 50) == 1.0
