"""The pool refuses what no part of a report could use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spannerlm.environments import random_table
from spannerlm.errors import InputError
from spannerlm.foundation.pool import Labels, pool_of

ENV = random_table(prompts=3, responses=12, seed=1100)
POOL = pool_of(ENV, 32, rng=np.random.default_rng(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_are_numbers(value: float) -> None:
    labels = Labels(np.array([0, 1]), np.array([0, 0]), np.array([0.5, value]), random=True)
    with pytest.raises(InputError, match="labels"):
        replace(POOL, labels=labels)


def test_rewards_are_one_for_each_distinct_response_and_nan_only_where_declined() -> None:
    assert POOL.rewards is not None
    first, *rest = POOL.rewards
    declined = first.copy()
    declined[0] = np.nan
    assert replace(POOL, rewards=(declined, *rest)).rewards is not None
    for wrong in ((first[:-1], *rest), tuple(rest), (np.full(len(first), np.inf), *rest)):
        with pytest.raises(InputError, match="rewards"):
            replace(POOL, rewards=wrong)


@pytest.mark.parametrize("noise", [-0.1, np.nan])
def test_noise_is_a_standard_deviation(noise: float) -> None:
    with pytest.raises(InputError, match="noise_std"):
        replace(POOL, noise_std=noise)
