"""What families share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from spannerlm.environments.parts import (
    bulk_features,
    bulk_theta,
    check_count,
    check_number,
    check_share,
    generator,
    with_rare,
)
from spannerlm.errors import InputError


def test_streams_differ_by_name_and_seed() -> None:
    first = generator("a", 1).random(4)
    np.testing.assert_array_equal(first, generator("a", 1).random(4))
    for other in (generator("b", 1), generator("a", 2), np.random.default_rng(1), np.random.default_rng([1, 1])):
        assert not np.array_equal(first, other.random(4))


def test_bulk_is_half_of_unit_vectors_without_a_preferred_direction() -> None:
    phi = bulk_features(500, generator("test", 0))
    assert phi.shape == (500, 40, 8)
    np.testing.assert_allclose(np.linalg.norm(phi, axis=-1), 0.5, rtol=1e-12)
    products = np.einsum("ni,nj->nij", phi.reshape(-1, 8), phi.reshape(-1, 8))
    error = products.std(axis=0) / np.sqrt(len(products))
    assert (np.abs(products.mean(axis=0) - 0.25 * np.eye(8) / 8) < 5 * error).all()
    theta = np.array([bulk_theta(generator("test", seed)) for seed in range(300)])
    assert abs(theta.std() - 0.3 / math.sqrt(8)) < 5 * 0.3 / math.sqrt(8) / math.sqrt(2 * theta.size)


def test_rare_responses_follow_the_bulk_and_leave_it_the_rest() -> None:
    bulk = bulk_features(2, generator("test", 0))
    rare = np.zeros((2, 2, 10))
    rare[..., 8:] = np.eye(2)
    masses = np.array([[0.1, 0.3], [0.01, 0.02]])
    env = with_rare(bulk, rare, masses, np.arange(10.0), beta=0.3, noise_std=0.7)
    for x, left in enumerate((0.6, 0.97)):
        np.testing.assert_allclose(env.base_probs[x], [left / 40] * 40 + list(masses[x]), rtol=1e-12)
        np.testing.assert_allclose(env.mean_rewards[x, :40], bulk[x] @ np.arange(8.0), rtol=1e-12)
        np.testing.assert_array_equal(env.mean_rewards[x, 40:], [8.0, 9.0])
    assert (env.beta, env.noise_std, env.dim) == (0.3, 0.7, 10)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan, math.inf, "0.5", True, None])
def test_a_share_lies_between(value: Any) -> None:
    check_share("p", 0.5)
    with pytest.raises(InputError, match="p: expected a number strictly between 0 and 1, got"):
        check_share("p", value)


@pytest.mark.parametrize("value", [0, -3, 2.0, "2", True, None])
def test_a_count_is_a_whole_number(value: Any) -> None:
    check_count("n", np.int64(2))
    with pytest.raises(InputError, match="n: expected an integer of at least 1, got"):
        check_count("n", value)


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "2", False, None])
def test_a_number_is_finite_and_large_enough(value: Any) -> None:
    check_number("z", 0)
    with pytest.raises(InputError, match="z: expected a finite number of at least 0, got"):
        check_number("z", value)
    with pytest.raises(InputError, match="z: expected a finite number above 0, got 0"):
        check_number("z", 0, strictly=True)
