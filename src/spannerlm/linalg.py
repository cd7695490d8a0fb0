"""Whitening, elliptical norms and all-pairs screening, for NumPy or torch arrays.

Every function computes with the array library of its first argument (array-api-compat), on its device and in
its dtype. Screening works on *whitened* features z = W phi, for which the elliptical norm of a relative feature
is a plain distance: ||phi - phi'||_{Sigma^-1} = |z - z'|, so that all n(n-1)/2 pairs come out of one Gram matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.linalg
from array_api_compat import array_namespace, device

from spannerlm.records import FloatArray

BLOCK = 1024
"""Rows of one block of the Gram matrix: 1024 x 1024 float64 is 8 MiB, about one level-2 to level-3 cache."""


def whitening_root(sigma: FloatArray) -> FloatArray:
    """[d, d] lower-triangular W with W sigma W' = I, hence ||phi||_{sigma^-1} = |W phi|; sigma positive definite.

    Time: d^3/3 flops for the Cholesky factor, as many for its inverse. No draws, no labels.
    """
    factor = np.linalg.cholesky(sigma)
    root: FloatArray = scipy.linalg.solve_triangular(factor, np.eye(len(sigma)), lower=True)
    return root


def whiten(root: Any, features: Any) -> Any:
    """[n, d] whitened features z = W phi of features [n, d]."""
    return features @ root.T


def elliptical_norms(root: Any, features: Any) -> Any:
    """[n] norms ||phi||_{Sigma^-1} of features [n, d]."""
    xp = array_namespace(features)
    whitened = whiten(root, features)
    return xp.sqrt(xp.sum(whitened * whitened, axis=-1))


def pair_distances(whitened: Any, rows: slice, columns: slice) -> Any:
    """[rows, columns] squared distances between whitened features, one block of all pairs (2d flops a pair).

    Exactly 0 on the diagonal. Elsewhere cancellation leaves an absolute error of about eps |z|^2: centre the features
    where distances are tiny.
    """
    xp = array_namespace(whitened)
    left, right = whitened[rows, :], whitened[columns, :]
    squares = xp.sum(left * left, axis=1)[:, None] + xp.sum(right * right, axis=1)[None, :]
    distances = xp.clip(squares - 2.0 * (left @ right.T), 0.0, None)
    if rows != columns:
        return distances
    return distances * (1.0 - xp.eye(distances.shape[0], dtype=distances.dtype, device=device(distances)))


def _centred(whitened: Any) -> Any:
    """[n, d] the rows less their mean: distances stay, their rounding shrinks from |z|^2 to the spread of z."""
    xp = array_namespace(whitened)
    return whitened - xp.mean(whitened, axis=0) if whitened.shape[0] else whitened


def _blocks(n: int) -> Iterator[tuple[slice, slice]]:
    """The blocks on and above the diagonal: each unordered pair is visited once, off the diagonal blocks."""
    starts = range(0, n, BLOCK)
    for i in starts:
        for j in starts:
            if j >= i:
                yield slice(i, min(i + BLOCK, n)), slice(j, min(j + BLOCK, n))


def farthest_pair(whitened: Any) -> tuple[int, int, float]:
    """(i, j, distance): the pair of rows of whitened [n, d] farthest apart; (0, 0, 0.) where n < 2.

    Time: n^2/2 pairs of 2d flops, blocked; memory O(BLOCK^2).
    """
    xp, whitened = array_namespace(whitened), _centred(whitened)
    best = (0, 0, 0.0)
    for rows, columns in _blocks(whitened.shape[0]):
        block = pair_distances(whitened, rows, columns)
        flat = int(xp.argmax(xp.reshape(block, (-1,))))
        i, j = divmod(flat, block.shape[1])
        squared = float(block[i, j])
        if squared > best[2]:
            best = (rows.start + i, columns.start + j, squared)
    return min(best[:2]), max(best[:2]), float(np.sqrt(best[2]))


def pairs_beyond(whitened: Any, nu: float) -> FloatArray:
    """[n] for each row of whitened [n, d], how many other rows lie farther than ``nu`` from it.

    Time: n^2/2 pairs of 2d flops, blocked; memory O(BLOCK^2).
    """
    xp, whitened = array_namespace(whitened), _centred(whitened)
    n = whitened.shape[0]
    counts = np.zeros(n)
    for rows, columns in _blocks(n):
        beyond = pair_distances(whitened, rows, columns) > nu * nu
        counts[rows] += np.asarray(xp.sum(xp.astype(beyond, xp.int64), axis=1))
        if rows != columns:
            counts[columns] += np.asarray(xp.sum(xp.astype(beyond, xp.int64), axis=0))
    return counts
