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
SCREEN = 256
"""Rows of one block of float32 screening: 256 x 256 float32 is 256 KiB, so that its extremum is read from the cache."""
MEASURED = 512
"""Pairs of a block that are measured one by one, at most: their differences take no more room than its features."""


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


def _blocks(n: int, size: int) -> Iterator[tuple[slice, slice]]:
    """The blocks on and above the diagonal: each unordered pair is visited once, off the diagonal blocks."""
    for i in range(0, n, size):
        for j in range(i, n, size):
            yield slice(i, min(i + size, n)), slice(j, min(j + size, n))


def farthest_pair(whitened: Any, nu: float = 0.0) -> tuple[int, int, float]:
    """(i, j, distance), i < j: the rows of whitened [n, d] farthest apart, (0, 0, 0.) where none lie beyond ``nu``.

    float32 only screens: a pair is passed over only if its float32 distance falls short by more than its rounding error
    can be, and what is left is measured in the dtype of ``whitened``, as the norm of a difference: exact up to that
    dtype's rounding. Blocks that the norms alone rule out are not computed.

    Time: at most n^2/2 pairs of 2d flops in float32, and as many again in its own dtype where most pairs are equally
    far. Memory O(n d). The error bound asks for float32 products in float32, the default of NumPy and torch.
    """
    xp = array_namespace(whitened)
    if whitened.shape[0] < 2:
        return 0, 0, 0.0
    points = _centred(whitened)
    lengths = xp.sqrt(xp.vecdot(points, points))
    order = xp.argsort(lengths, descending=True, stable=True)
    norms = np.asarray(xp.take(lengths, order).tolist())
    scale = float(norms[0])
    if not (np.isfinite(norms).all() and 2.0 * scale > nu):
        return 0, 0, 0.0
    norms, error = norms / scale, _screening_error(points)
    unit = xp.take(xp.astype(points / scale, xp.float32), order, axis=0)
    left, right = _halved(unit, xp.take(lengths, order) / scale)
    best, limit = (0, 0, 0.0), 0.5 * (nu / scale) ** 2
    for rows, columns in _blocks(len(norms), SCREEN):
        if 0.5 * (norms[rows.start] + norms[columns.start]) ** 2 + error < limit:
            continue
        screened = left[rows, :] @ right[:, columns]
        top = -float(xp.min(screened))
        if top + error < limit:
            continue
        hits = xp.nonzero(screened <= -max(limit - error, top - 2.0 * error))
        found = _farthest_of(points, order[rows], order[columns], hits)
        if found[2] > nu and (-found[2], found[:2]) < (-best[2], best[:2]):
            best, limit = found, 0.5 * (found[2] / scale) ** 2
    return best


def _halved(points: Any, norms: Any) -> tuple[Any, Any]:
    """([n, d + 2], [d + 2, n]) in float32, with product -|z - z'|^2/2 for points [n, d] of norms [n]: one pass does."""
    xp = array_namespace(points)
    half = xp.astype(0.5 * norms * norms, xp.float32)[:, None]
    one = xp.ones_like(half)
    return xp.concat([points, -half, -one], axis=1), xp.concat([points, one, half], axis=1).T


def _screening_error(points: Any) -> float:
    """How far a product of `_halved`, for points [n, d] of norm at most 1, is from half a squared distance, at most.

    Each term is rounded on the way in, and a sum of d + 2 of them, in any order, is off by (d + 2) u times the sum of
    their sizes, which is at most 2; u is half of float32's epsilon. The rounding of the points' own dtype comes on top.
    """
    own = float(array_namespace(points).finfo(points.dtype).eps)
    return 2.1 * (int(points.shape[1]) + 8) * (0.5 * float(np.finfo(np.float32).eps) + own)


def _farthest_of(points: Any, rows: Any, columns: Any, hits: tuple[Any, Any]) -> tuple[int, int, float]:
    """(i, j, distance), i < j, of the farthest among the pairs (rows[k], columns[l]) of points, (k, l) in ``hits``.

    Where they are too many to measure one by one, a second Gram matrix in their own dtype finds the farthest.
    """
    xp = array_namespace(points)
    if hits[0].shape[0] > MEASURED:
        block = xp.take(points, xp.concat([rows, columns]), axis=0)
        squares = pair_distances(block, slice(0, len(rows)), slice(len(rows), block.shape[0]))
        flat = xp.reshape(xp.argmax(xp.reshape(squares, (-1,))), (1,))
        hits = flat // len(columns), flat % len(columns)
    i, j = xp.take(rows, hits[0]), xp.take(columns, hits[1])
    relative = xp.take(points, i, axis=0) - xp.take(points, j, axis=0)
    squared = np.asarray(xp.vecdot(relative, relative).tolist())
    ends = np.sort([i.tolist(), j.tolist()], axis=0).T[squared == squared.max()]
    first, second = min(map(tuple, ends.tolist()))
    return first, second, float(np.sqrt(squared.max()))


def pairs_beyond(whitened: Any, nu: float) -> FloatArray:
    """[n] for each row of whitened [n, d], how many other rows lie farther than ``nu`` from it.

    Time: n^2/2 pairs of 2d flops, blocked; memory O(BLOCK^2).
    """
    xp, whitened = array_namespace(whitened), _centred(whitened)
    n = whitened.shape[0]
    counts = np.zeros(n)
    for rows, columns in _blocks(n, BLOCK):
        beyond = pair_distances(whitened, rows, columns) > nu * nu
        counts[rows] += np.asarray(xp.sum(xp.astype(beyond, xp.int64), axis=1))
        if rows != columns:
            counts[columns] += np.asarray(xp.sum(xp.astype(beyond, xp.int64), axis=0))
    return counts
