"""Elliptical design over relative features, and the certificate of what it covers (THEORY 3).

A *spanner* is a set of pairs whose relative features span, in the norm of Sigma^-1, almost everything that two
draws of the base model can differ in. Labels are bought for its pairs only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spannerlm.errors import InputError
from spannerlm.linalg import farthest_pair, whiten, whitening_root
from spannerlm.records import Draws, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Spanner:
    """Sigma, its whitening root, and how many pairs it was built from."""

    sigma: FloatArray
    """[d, d] Sigma = lambda I + sum of phi phi' over accepted pairs."""
    root: FloatArray
    """[d, d] W with ||phi||_{Sigma^-1} = |W phi|."""
    accepted: int

    @classmethod
    def start(cls, sigma: FloatArray, accepted: int = 0) -> Spanner:
        """A spanner whose matrix is ``sigma`` [d, d], positive definite: lambda I, or a posterior precision."""
        return cls(sigma, whitening_root(sigma), accepted)

    def accept(self, relative: FloatArray) -> Spanner:
        """The spanner with one more pair of relative feature [d]."""
        return Spanner.start(self.sigma + np.outer(relative, relative), self.accepted + 1)

    def norms(self, relative: FloatArray) -> FloatArray:
        """[k] norms ||phi||_{Sigma^-1} of relative features [k, d]."""
        norms: FloatArray = np.linalg.norm(whiten(self.root, relative), axis=-1)
        return norms


@dataclass(frozen=True)
class Pair:
    """Two distinct draws of one prompt: indices into its record, and their distance in Sigma^-1."""

    first: int
    second: int
    norm: float


def disjoint_pairs(counts: IntArray, *, rng: np.random.Generator) -> IntArray:
    """[k, 2] indices of the k = floor(N/2) disjoint pairs of a prompt's N draws, in random order.

    The draws are exchangeable, so a random permutation of the counts is a sequence of independent draws; the pairs
    are independent of each other (the n(n-1)/2 pairs of the same draws are not).
    """
    order = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return order[: 2 * (len(order) // 2)].reshape(-1, 2)


def disjoint_pair_counts(counts: IntArray, k: int, *, rng: np.random.Generator) -> IntArray:
    """[n, n] how often each (first, second) comes among ``k`` <= N/2 disjoint pairs of a prompt's N draws.

    The law of `disjoint_pairs`, in time n^2 whatever N is: k draws come first, k others second, in random order.
    """
    firsts = rng.multivariate_hypergeometric(counts, k, method="marginals")
    seconds = rng.multivariate_hypergeometric(counts - firsts, k, method="marginals")
    table = np.zeros((len(counts), len(counts)), dtype=np.int64)
    for i, size in enumerate(firsts):
        table[i] = rng.multivariate_hypergeometric(seconds, size, method="marginals")
        seconds = seconds - table[i]
    return table


def first_pair(spanner: Spanner, draws: Draws, nu: float, *, rng: np.random.Generator) -> tuple[Pair | None, int]:
    """(the first of the prompt's disjoint pairs beyond ``nu`` or None, pairs looked at): the paper's rule."""
    pairs = disjoint_pairs(draws.counts, rng=rng)
    norms = spanner.norms(draws.features[pairs[:, 0]] - draws.features[pairs[:, 1]])
    beyond = np.flatnonzero(norms > nu)
    if not len(beyond):
        return None, len(pairs)
    k = int(beyond[0])
    return Pair(int(pairs[k, 0]), int(pairs[k, 1]), float(norms[k])), k + 1


def greedy_pair(spanner: Spanner, draws: Draws, nu: float) -> Pair | None:
    """The pair of the prompt's draws farthest apart, if beyond ``nu``: all n(n-1)/2 pairs are screened."""
    i, j, norm = farthest_pair(whiten(spanner.root, draws.features), nu)
    return Pair(i, j, norm) if norm > nu else None


def greedy_disjoint_pairs(spanner: Spanner, draws: Draws, nu: float, limit: int) -> tuple[Spanner, tuple[Pair, ...]]:
    """The spanner after, and, up to ``limit`` pairs of one prompt's draws that share no response, farthest first.

    Each pair is measured in the Sigma that includes those before it, so that none repeats another's direction.
    """
    pairs: list[Pair] = []
    left = np.arange(len(draws.responses))
    while len(pairs) < limit and len(left) > 1:
        i, j, norm = farthest_pair(whiten(spanner.root, draws.features[left]), nu)
        if norm <= nu:
            break
        pairs.append(Pair(int(left[i]), int(left[j]), norm))
        spanner = spanner.accept(draws.features[left[i]] - draws.features[left[j]])
        left = np.delete(left, [i, j])
    return spanner, tuple(pairs)


def acceptance_bound(dim: int, penalty: float, nu: float) -> int:
    """Largest m with m <= d log(1 + 4 m / (d lambda)) / log(1 + nu^2): pairs ever accepted (elliptical potential).

    Holds for relative features of norm at most 2 and for any number of prompts scanned.
    """
    if penalty <= 0.0 or nu <= 0.0:
        raise InputError(f"expected positive lambda and nu, got {penalty} and {nu}")
    low, high = 0.0, 1.0
    while high <= dim * np.log1p(4.0 * high / (dim * penalty)) / np.log1p(nu * nu):
        high *= 2.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        inside = middle <= dim * np.log1p(4.0 * middle / (dim * penalty)) / np.log1p(nu * nu)
        low, high = (middle, high) if inside else (low, middle)
    return int(np.floor(low))


@dataclass(frozen=True)
class Certificate:
    """With confidence 1 - delta, what share of base pairs the spanner does not cover (THEORY 3, certificate)."""

    eta: float
    """Mass of pairs (y, y') ~ pi_ref^2 beyond ``nu``, at most; 1 where a pair beyond ``nu`` turned up."""
    nu: float
    delta: float
    acceptances: int
    """j: how many pairs had been accepted when the draws tested were still unseen."""
    pairs: int
    """Independent pairs tested: n fresh prompts with one each, or k X of a fixed set."""
    beyond: int
    """How many of them lay beyond ``nu``."""
    radius: float
    """The largest norm among them: ``eta_radius`` of the mass lies beyond it, at most."""
    eta_radius: float
    """1 - delta_j^(1/pairs), whatever ``beyond`` is: the maximum of independent norms is a tolerance bound."""


def spending(delta: float, acceptances: int) -> float:
    """delta_j = delta / ((j + 1)(j + 2)): sums to at most delta over j = 0, 1, ..."""
    return delta / ((acceptances + 1) * (acceptances + 2))


def certify(
    norms: FloatArray, nu: float, delta: float, acceptances: int, *, counts: IntArray | None = None
) -> Certificate:
    """The certificate from the norms [n] of independent pairs of draws that were not used before.

    ``counts`` [n] says how many pairs have each norm; one each where it is not given.

    Valid where the pairs are (1) one per prompt, prompts drawn afresh from rho: a statement on rho; or (2) the
    same k = floor(N/2) disjoint pairs for each prompt of a fixed set: a statement on the average over the set. At
    most one test per value of ``acceptances`` may be made: that is what delta_j pays for.
    """
    counts = np.ones(len(norms), dtype=np.int64) if counts is None else counts
    pairs = int(counts.sum())
    beyond = int(np.sum(counts[norms > nu]))
    eta = 1.0 - spending(delta, acceptances) ** (1.0 / pairs) if pairs else 1.0
    return Certificate(
        eta=eta if beyond == 0 else 1.0,
        nu=nu,
        delta=delta,
        acceptances=acceptances,
        pairs=pairs,
        beyond=beyond,
        radius=float(np.max(norms[counts > 0])) if pairs else float("nan"),
        eta_radius=eta,
    )


def draws_to_see(eps: float, delta: float) -> float:
    """Draws after which *every* direction of mass >= eps has shown up, with probability 1 - delta (THEORY 3)."""
    return float(np.log(1.0 / (eps * delta)) / eps)


def mass_seen(n: int, delta: float) -> float:
    """Mass of one direction fixed beforehand that ``n`` draws show with probability 1 - delta: ln(1/delta)/n."""
    return min(1.0, float(np.log(1.0 / delta) / n)) if n else 1.0
