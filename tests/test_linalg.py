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
    monkeypatch.setattr(linalg, "SCREEN", block)
    points = np.random.default_rng([n, block]).normal(size=(n, 3))
    table = distances(points)
    i, j, far = farthest_pair(make(points))
    assert i < j
    assert table[i, j] == table.max()
    np.testing.assert_allclose(far, table.max(), rtol=1e-12)
    for nu in (0.0, 0.5, float(np.median(table)) + 1e-9, 1e9):
        np.testing.assert_array_equal(pairs_beyond(make(points), nu), (table > nu).sum(axis=1))


@arrays
@pytest.mark.parametrize("n", [linalg.SCREEN - 1, linalg.SCREEN + 1, linalg.BLOCK, 2 * linalg.BLOCK + 3])
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


# --- float32 screens, the own dtype decides -------------------------------------------------------------------------


def slow_farthest(points: np.ndarray) -> tuple[int, int, float]:
    """The first of the farthest pairs, each measured in float64 as the norm of a difference."""
    best = (0, 0, 0.0)
    for i in range(len(points)):
        for j in range(i + 1, len(points)):
            far = float(np.linalg.norm(points[i] - points[j]))
            best = (i, j, far) if far > best[2] else best
    return best


def nearly_equidistant(n: int, step: float) -> np.ndarray:
    """[n, n] corners of a regular simplex, moved so that each pair (i, j) lies ``step`` (i + j) farther apart, or so:
    with a step far below float32's rounding, float32 knows nothing of which pair is the farthest."""
    return np.eye(n) * (1.0 + step * np.arange(n))[:, None]


def disagreements(make: Any, points: np.ndarray) -> int:
    """How often the screen's farthest pair, or its answer to "is any pair beyond nu?", differs from the slow one, at
    thresholds on both sides of the farthest and the second farthest, 1e-9 apart."""
    i, j, far = slow_farthest(points)
    wrong = int(farthest_pair(make(points))[:2] != (i, j))
    for nu in (0.5 * far, far * (1 - 1e-9), far * (1 + 1e-9), 1.5 * far, 2.5 * far):
        found = farthest_pair(make(points), nu)
        wrong += found[:2] != ((i, j) if far > nu else (0, 0)) or not np.isclose(found[2], far * (far > nu), rtol=1e-12)
    return wrong


def adversaries() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    sphere = rng.normal(size=(60, 300))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    cloud = rng.normal(size=(70, 5))
    far = slow_farthest(cloud)
    rival = cloud[[far[0], far[1]]] + 40.0 * np.eye(5)[0] * np.array([[-1.0], [1.0]])
    twin = rival * (1.0 - 1e-10)  # the farthest pair and three within 1e-9 of it, all of them the same to float32
    return {
        "simplex, few": nearly_equidistant(12, 1e-10),
        "simplex, too many to measure": nearly_equidistant(60, 1e-10),
        "sphere": sphere,
        "rivals": np.vstack([twin[:1], cloud, rival, twin[1:]]),
        "heavy tails": cloud * rng.pareto(0.5, size=(70, 1)),
        "tiny": 1e-30 * cloud,
        "huge": 1e30 * cloud,
        "far from the origin": 1e3 + cloud,
        "doubled": np.vstack([cloud, cloud[::-1]]),
        "one point": np.zeros((9, 3)),
    }


@arrays
@pytest.mark.parametrize("screen", [4, 256])
@pytest.mark.parametrize("name", list(adversaries()))
def test_pairs_float32_cannot_tell_apart_are_told_apart(
    make: Any, name: str, screen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linalg, "SCREEN", screen)
    points = adversaries()[name]
    if name == "doubled":  # equal distances: which of the pairs is told is a matter of rounding
        assert farthest_pair(make(points))[2] == pytest.approx(slow_farthest(points)[2], rel=1e-14)
        return
    assert disagreements(make, points) == 0


def test_screening_without_the_error_bound_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adversaries are awake: the same code that trusts float32 fails on them."""
    monkeypatch.setattr(linalg, "_screening_error", lambda points: 0.0)
    monkeypatch.setattr(linalg, "SCREEN", 4)
    assert disagreements(as_numpy, adversaries()["simplex, few"]) > 0


@arrays
@pytest.mark.parametrize("d", [1, 30, 1000])
def test_float32_is_never_farther_off_than_its_bound(make: Any, d: int) -> None:
    """Products of points in the unit ball, among them equal, opposite and sparse ones, against float64."""
    rng = np.random.default_rng(d)
    points = rng.normal(size=(200, d)) * np.logspace(-6, 0, d)
    points[50:100] = np.abs(points[50:100])  # no sign cancels
    points /= np.linalg.norm(points, axis=1, keepdims=True) * rng.choice([1.0, 1.0, 3.0], size=(200, 1))
    points[150:] = -points[:50]
    left, right = linalg._halved(make(points.astype(np.float32)), make(np.linalg.norm(points, axis=1)))
    half = 0.5 * np.sum((points[:, None] - points[None, :]) ** 2, axis=2)
    assert left.dtype == right.dtype == make(points.astype(np.float32)).dtype
    error = np.abs(half + np.asarray(left @ right)).max()
    bound = linalg._screening_error(make(points))
    assert 0.0 < error < bound < 2e-7 * (d + 8)
    assert linalg._screening_error(make(points.astype(np.float32))) > 2.9 * bound
