"""Throughput of the spanner's accept test, the farthest pair among all n(n-1)/2, as ratios taken in the same run.

    OMP_NUM_THREADS=1 python benchmarks/accept.py [--json] [--n 4096] [--repeats 9]

Features are whitened beforehand, as the spanner does once per prompt. *sphere* has points of equal norm, so that no
block can be ruled out by norms alone: the worst case. *gaussian* is what nature gives. Compared in turns, one thread:

- *naive*: one pair at a time, phi' Sigma^-1 phi with relative features, in Python;
- *Woodbury*: one response at a time against all later ones, Sigma^-1 carried along by the rank-one identity;
- *GEMM*: the machine's float32 peak, the faster of NumPy's and torch's 1024^3 product; a pair counts 2d flops.

Medians over repeats, of the ratio within each repeat; both loops are timed on a part of the pairs, and agree with ours
there. "whitened too" counts the time of whitening the n responses as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from spannerlm.linalg import farthest_pair, whiten, whitening_root

EDGE = 1024
LOOKED = 200
"""Pairs that the naive loop is timed on."""
ROWS = 3
"""Responses that the Woodbury loop is timed on."""


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def naive(features: np.ndarray, inverse: np.ndarray) -> tuple[float, int]:
    """(farthest of the first LOOKED pairs, their number): one quadratic form each."""
    far = 0.0
    for j in range(1, LOOKED + 1):
        relative = features[0] - features[j]
        far = max(far, float(np.sqrt(relative @ inverse @ relative)))
    return far, LOOKED


def woodbury(features: np.ndarray, inverse: np.ndarray) -> tuple[float, int]:
    """(farthest from the first response, pairs): per response, all later ones, then Sigma^-1 with its farthest pair."""
    pairs, first = 0, 0.0
    for i in range(ROWS):
        relative = features[i + 1 :] - features[i]
        images = relative @ inverse
        squared = np.einsum("ij,ij->i", images, relative)
        best = int(np.argmax(squared))
        inverse = inverse - np.outer(images[best], images[best]) / (1.0 + squared[best])
        first = first or float(np.sqrt(squared[best]))
        pairs += len(relative)
    return first, pairs


def points(kind: str, n: int, d: int) -> np.ndarray:
    """[n, d] features to be whitened with Sigma = I / 2, which keeps equal norms equal."""
    features = np.random.default_rng([n, d]).normal(size=(n, d))
    return features / np.linalg.norm(features, axis=1, keepdims=True) if kind == "sphere" else features


def row(kind: str, n: int, d: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each library."""
    features, sigma = points(kind, n, d), 0.5 * np.eye(d)
    inverse, root = np.linalg.inv(sigma), whitening_root(sigma)
    whitened = whiten(root, features)
    made = {"numpy": whitened, "torch": torch.from_numpy(whitened)}
    roots = {"numpy": (root, features), "torch": (torch.from_numpy(root), torch.from_numpy(features))}
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, EDGE, EDGE)).astype(np.float32)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    squares = np.linalg.norm(whitened[1:] - whitened[0], axis=1)
    assert np.isclose(naive(features, inverse)[0], squares[:LOOKED].max(), rtol=1e-9)
    assert np.isclose(woodbury(features, inverse)[0], squares.max(), rtol=1e-9)
    assert farthest_pair(made["torch"])[:2] == farthest_pair(whitened)[:2]
    seen: dict[str, list[dict[str, float]]] = {"numpy": [], "torch": []}
    for _ in range(repeats):
        peak = max(2.0 * EDGE**3 / seconds(run) for run in (lambda: a @ b, lambda: ta @ tb) for _ in range(2))
        slow = LOOKED / seconds(lambda: naive(features, inverse))
        middle = woodbury(features, inverse)[1] / seconds(lambda: woodbury(features, inverse))
        for library, found in seen.items():
            screen = seconds(lambda library=library: farthest_pair(made[library]))
            before = seconds(lambda library=library: whiten(*roots[library]))
            rate = 0.5 * n * (n - 1) / screen
            whole = 0.5 * n * (n - 1) / (screen + before)
            found.append(
                {
                    "pairs_per_s": rate,
                    "naive": rate / slow,
                    "woodbury": rate / middle,
                    "of_peak": 2.0 * d * rate / peak,
                    "of_peak_whitened_too": 2.0 * d * whole / peak,
                    "peak_gflops": peak / 1e9,
                }
            )
    rows = []
    for library, found in seen.items():
        medians = {key: statistics.median(f[key] for f in found) for key in found[0]}
        rows.append({"kind": kind, "library": library, "d": d, "n": n, **medians})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--n", type=int, default=4096, help="responses of the prompt")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in ("sphere", "gaussian"):
        for d in (64, 256, 1024):
            rows += row(kind, options.n, d, options.repeats)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print("| points | library | d | pairs/s | x naive | x Woodbury | of GEMM peak | whitened too |\n|" + "---|" * 8)
    for r in rows:
        rates = f"{r['pairs_per_s']:.2e} | {r['naive']:,.0f} | {r['woodbury']:,.0f}"
        shares = f"{r['of_peak']:.0%} | {r['of_peak_whitened_too']:.0%}"
        print(f"| {r['kind']} | {r['library']} | {r['d']} | {rates} | {shares} |")


if __name__ == "__main__":
    main()
