"""Whitening and screening against naive loops, for NumPy and torch arrays, around the edges of a block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spannerlm import linalg
from spannerlm.linalg import elliptical_norms, farthest_pair, pair_distances, pairs_beyond, whiten, whitening_root


def random_sigma(d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(d, d)) * np.logspace(-2, 1, d)
    return factor @ factor.T + 1e-3 * np.eye(d)


def distances(points: np.ndarray) -> np.ndarray:
    """[n, n] Euclidean distances, one pair after the other."""
    return np.array([[np.sqrt(sum((a - b) ** 2 for a, b in zip(p, q, strict=True))) for q in points] for p in points])


def as_numpy(points: np.ndarray) -> Any:
    return points


def as_torch(points: np.ndarray) -> Any:
    return torch.from_numpy(points.copy())


arrays = pytest.mark.parametrize("make", [as_numpy, as_torch])


@pytest.mark.parametrize("d", [1, 2, 7])
def test_root_whitens_sigma(d: int) -> None:
    sigma = random_sigma(d, 3)
    root = whitening_root(sigma)
    np.testing.assert_allclose(root @ sigma @ root.T, np.eye(d), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(root, np.tril(root))


@arrays
def test_norms_are_those_of_the_inverse(make: Any) -> None:
    sigma, rng = random_sigma(5, 4), np.random.default_rng(5)
    features = rng.normal(size=(6, 5))
    expected = [np.sqrt(phi @ np.linalg.inv(sigma) @ phi) for phi in features]
    root = make(whitening_root(sigma))
    np.testing.assert_allclose(np.asarray(elliptical_norms(root, make(features))), expected, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(whiten(root, make(features))), axis=1), expected, rtol=1e-9)


@arrays
def test_pair_distances_of_one_block(make: Any) -> None:
    points = np.random.default_rng(6).normal(size=(9, 3))
    block = np.asarray(pair_distances(make(points), slice(1, 4), slice(4, 9)))
    np.testing.assert_allclose(block, distances(points)[1:4, 4:9] ** 2, rtol=0, atol=1e-13)
    diagonal = np.asarray(pair_distances(make(1e8 + points), slice(0, 9), slice(0, 9))).diagonal()
    np.testing.assert_array_equal(diagonal, 0.0)


@arrays
@pytest.mark.parametrize("block", [1, 4, 5])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8, 9, 13])
def test_screening_equals_naive_loops_at_every_edge_of_a_block(
    make: Any, n: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linalg, "BLOCK", block)
    points = np.random.default_rng([n, block]).normal(size=(n, 3))
    table = distances(points)
    i, j, far = farthest_pair(make(points))
    assert i < j
    assert table[i, j] == table.max()
    np.testing.assert_allclose(far, table.max(), rtol=1e-12)
    for nu in (0.0, 0.5, float(np.median(table)) + 1e-9, 1e9):
        np.testing.assert_array_equal(pairs_beyond(make(points), nu), (table > nu).sum(axis=1))


@arrays
@pytest.mark.parametrize("n", [linalg.BLOCK - 1, linalg.BLOCK, linalg.BLOCK + 1, 2 * linalg.BLOCK + 3])
def test_screening_around_the_real_block(make: Any, n: int) -> None:
    points = np.random.default_rng(n).normal(size=(n, 2))
    points[[3, n - 1]] = [[-9.0, 1.0], [9.0, -2.0]]
    assert farthest_pair(make(points))[:2] == (3, n - 1)
    beyond = pairs_beyond(make(points), 3.0)
    for row in (0, 3, n // 2, n - 1):
        assert beyond[row] == np.sum(np.hypot(*(points - points[row]).T) > 3.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_screening_keeps_the_dtype_of_torch(dtype: Any) -> None:
    points = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 3)).astype(dtype))
    assert pair_distances(points, slice(0, 5), slice(0, 5)).dtype == points.dtype
    assert farthest_pair(points)[2] == pytest.approx(distances(points.numpy()).max(), rel=1e-5)


@arrays
def test_fewer_than_two_rows_have_no_pair(make: Any) -> None:
    for n in (0, 1):
        assert farthest_pair(make(np.ones((n, 3)))) == (0, 0, 0.0)
        np.testing.assert_array_equal(pairs_beyond(make(np.ones((n, 3))), 0.5), np.zeros(n))


@arrays
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e7])
def test_a_large_common_part_does_not_hide_or_invent_distances(make: Any, offset: float) -> None:
    """Gram matrices cancel: without centring, points 1e-3 apart at 1e7 are lost, and equal ones are not."""
    rng = np.random.default_rng(7)
    points = offset * rng.normal(size=11) + np.zeros((40, 11))
    assert farthest_pair(make(points))[2] <= 1e-8
    assert not pairs_beyond(make(points), 1e-8).any()
    points[7, 2] += 1e-3
    i, j, far = farthest_pair(make(points))
    assert 7 in (i, j)
    assert far == pytest.approx(1e-3, rel=1e-4)
    np.testing.assert_array_equal(pairs_beyond(make(points), 5e-4), np.where(np.arange(40) == 7, 39, 1))
