"""The estimator's rate: warm-up, cosine, plateau; a function of progress alone, whatever the number of steps."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest

from model.schedule import Plateau, ScheduleName, rate_share


def test_the_rate_warms_up_and_falls_along_a_cosine_to_one_percent() -> None:
    warming = [rate_share("cosine", progress) for progress in (0.0, 0.0125, 0.025, 0.0499)]
    assert warming == pytest.approx([0.01, 0.25, 0.5, 0.998])
    progress = np.linspace(0.05, 1, 40)
    falling = 0.01 + 0.99 * (1 + np.cos(np.pi * (progress - 0.05) / 0.95)) / 2
    assert [rate_share("cosine", float(p)) for p in progress] == pytest.approx(falling.tolist())
    assert rate_share("cosine", 1.3) == pytest.approx(0.01)


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_all_warm_up_alike_and_never_rise_again(schedule: ScheduleName) -> None:
    shares = [rate_share(schedule, progress, plateau_share=0.25) for progress in np.linspace(0, 1, 101).tolist()]
    assert shares[:5] == [rate_share("cosine", progress) for progress in np.linspace(0, 1, 101)[:5].tolist()]
    assert all(before >= after for before, after in pairwise(shares[5:]))
    assert min(shares) > 0
    assert shares[50] == {"cosine": pytest.approx(0.547, abs=0.01), "plateau": 0.25, "constant": 1.0}[schedule]


def test_a_loss_that_stays_halves_the_rate_after_the_patience_and_again() -> None:
    state, shares = Plateau(), []
    for loss in [3.0, 2.0, *[2.0] * 12]:
        state = state.after(loss)
        shares.append(state.share)
    assert shares == [1.0] * 7 + [0.5] * 6 + [0.25]


def test_an_improvement_starts_the_patience_anew() -> None:
    state = Plateau()
    for loss in [2.0, *[2.0] * 5, 1.9, *[1.9] * 5]:
        state = state.after(loss)
    assert state.share == 1.0
    assert state.best == 1.9


def test_the_rate_of_a_plateau_has_a_floor_and_a_loss_of_nan_is_no_improvement() -> None:
    state = Plateau(best=1.0)
    for _ in range(200):
        state = state.after(float("nan"))
    assert state.share == 0.01
    assert state.best == 1.0


def test_a_plateau_survives_a_checkpoint() -> None:
    for state in (Plateau(), Plateau().after(2.0).after(3.0)):
        assert Plateau(**json.loads(json.dumps(asdict(state)))) == state
