"""Success rates of prompts as a mixture of beta laws and a share of zeros, and what counts leave open of it (ours).

Given its rate p, a prompt has Binomial(n, p) successes. Rates come from a mixture whose components are fixed beforehand
(`dictionary`): a rate of exactly 0, and beta laws with means a factor of 2 apart, from far below one success in n draws
to nearly 1. Only the weights are unknown; with few components used (a sparse Dirichlet prior) their posterior is drawn
from by Markov chains. Counts say little of rates far below 1 / n: there the prior spreads evenly over the factors of 2
and over 0, so that what is not known stays wide. There is nothing here to be stuck in, as in a fit of free components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaln, gammaln, softmax

from spannerlm.records import FloatArray, IntArray

SHAPES = (2.0, 16.0)
"""Smaller parameters of the beta laws: broad ones (a factor of 2 or so) that overlap, and narrow ones."""
DEPTH = 64.0
"""The lowest component has mean 1 / (DEPTH n): ten times n draws cannot tell less from 0."""
ZERO = 0.5
"""Prior weight (Dirichlet parameter) of a rate of 0."""
SPREAD = 1.0
"""Prior weight of all beta laws together: small, so that few are used."""
CHAINS, WARM, KEPT = 96, 30, 10
"""Markov chains, sweeps before and sweeps kept: CHAINS x KEPT draws of the weights."""


@dataclass(frozen=True, eq=False)
class RateMixture:
    """Posterior of the prompts' success rates."""

    a: FloatArray
    """[J] first parameters of the components; 0 for the first one: a rate of exactly 0."""
    b: FloatArray
    """[J] second parameters."""
    weights: FloatArray
    """[S, J] draws from the posterior of the weights."""
    rates: FloatArray
    """[S, X] draws from the posterior of the rates of these prompts, jointly."""
    responsibilities: FloatArray
    """[X, J] posterior probability that a prompt's rate comes from a component."""
    draws: IntArray
    """[X] n."""
    correct: IntArray
    """[X] c."""

    def below(self, rate: float) -> FloatArray:
        """[X] posterior probability that the prompt's rate is below ``rate``."""
        a = self.a[1:] + self.correct[:, None]
        b = self.b[1:] + (self.draws - self.correct)[:, None]
        return np.asarray(
            self.responsibilities[:, 0] + np.sum(self.responsibilities[:, 1:] * betainc(a, b, min(rate, 1.0)), axis=1)
        )

    def pass_at(self, k: int) -> FloatArray:
        """[S] draws from the posterior of the mean over these prompts of 1 - (1 - p)^k."""
        with np.errstate(divide="ignore"):
            return np.asarray(-np.expm1(k * np.log1p(-self.rates)).mean(axis=1))


def dictionary(n: int) -> tuple[FloatArray, FloatArray]:
    """([J], [J]) parameters of the components for counts out of ``n``; the first is a rate of 0, as Beta(0, 1)."""
    means = 0.5 ** np.arange(int(np.ceil(np.log2(DEPTH * n))), 0, -1)  # up to 1/2
    upper = means[(means >= 1.0 / (n + 2.0)) & (means < 0.5)][::-1]
    a, b = [np.zeros(1)], [np.ones(1)]
    for shape in SHAPES:
        a += [np.full(len(means), shape), shape / upper - shape]
        b += [shape / means - shape, np.full(len(upper), shape)]
    return np.concatenate(a), np.concatenate(b)


def log_likelihood(draws: IntArray, correct: IntArray, a: FloatArray, b: FloatArray) -> FloatArray:
    """[X, J] log-probability of ``correct`` [X] successes in ``draws`` [X] under each component (beta-binomial)."""
    n, c = draws[:, None].astype(np.float64), correct[:, None].astype(np.float64)
    ways = gammaln(n + 1.0) - gammaln(c + 1.0) - gammaln(n - c + 1.0)
    zero = a == 0.0
    safe = np.where(zero, 1.0, a)
    beta = ways + betaln(safe + c, b + n - c) - betaln(safe, b)
    return np.where(zero, np.where(c > 0, -np.inf, 0.0), beta)


def fit_rates(
    draws: IntArray,
    correct: IntArray,
    *,
    rng: np.random.Generator,
    components: tuple[FloatArray, FloatArray, FloatArray] | None = None,
) -> RateMixture:
    """Posterior of the success rates of prompts with ``correct`` [X] of ``draws`` [X]; a prompt may have no draws.

    ``components``: parameters a, b [J] and prior weights [J] in place of `dictionary`. Two kinds of moves: the weights
    given each prompt's component, and for a random pair of components a new split of their common weight, from the
    prior: without it, a chain that gave its failures to 0 would never try a small rate. Cost: none.
    """
    if components is None:
        a, b = dictionary(int(max(draws.max(), 1)))
        prior = np.full(len(a), SPREAD / (len(a) - 1))
        prior[0] = ZERO
    else:
        a, b, prior = components
    kinds, kind, count = np.unique(np.stack([draws, correct]), axis=1, return_inverse=True, return_counts=True)
    log_l = log_likelihood(kinds[0], kinds[1], a, b)
    likelihood = np.exp(log_l - log_l.max(axis=1, keepdims=True))  # [U, J]
    weights = rng.dirichlet(prior + 1.0 / len(prior), CHAINS)
    kept = []
    for sweep in range(WARM + KEPT):
        weights = _assigned(weights, likelihood, count, prior, rng)
        weights = _resplit(weights, likelihood, count, prior, rng)
        if sweep >= WARM:
            kept.append(weights)
    sample = np.concatenate(kept)  # [S, J]
    rates, mean = _rates(sample, likelihood, kinds, kind.ravel(), a, b, rng)
    return RateMixture(a, b, sample, rates, mean[kind.ravel()], draws, correct)


def _assigned(
    weights: FloatArray, likelihood: FloatArray, count: IntArray, prior: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """[C, J] weights given components that the prompts are given at random."""
    out = np.empty_like(weights)
    for c, w in enumerate(weights):
        law = w * likelihood
        held = rng.multinomial(count, law / law.sum(axis=1, keepdims=True)).sum(axis=0)
        out[c] = rng.gamma(prior + held)
    out = np.maximum(out, 1e-300)
    return np.asarray(out / out.sum(axis=1, keepdims=True))


def _resplit(
    weights: FloatArray, likelihood: FloatArray, count: IntArray, prior: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """[C, J] weights after J proposals to split the weight of two components anew."""
    chains, size = weights.shape
    if size < 2:
        return weights
    w = weights.copy()
    mixed = w @ likelihood.T  # [C, U]
    score = np.log(mixed) @ count
    rows = np.arange(chains)
    for _ in range(size):
        i = rng.integers(size, size=chains)
        j = (i + rng.integers(1, size, size=chains)) % size
        both = w[rows, i] + w[rows, j]
        new = np.clip(both * rng.beta(prior[i], prior[j]), 1e-300, both)
        proposal = mixed + (new - w[rows, i])[:, None] * (likelihood.T[i] - likelihood.T[j])
        proposal = np.maximum(proposal, 1e-300)
        proposed = np.log(proposal) @ count
        accept = np.log(rng.random(chains)) < proposed - score
        w[rows[accept], i[accept]] = new[accept]
        w[rows[accept], j[accept]] = np.maximum(both - new, 1e-300)[accept]
        mixed[accept], score[accept] = proposal[accept], proposed[accept]
    return w


def _rates(
    sample: FloatArray,
    likelihood: FloatArray,
    kinds: IntArray,
    kind: IntArray,
    a: FloatArray,
    b: FloatArray,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """([S, X] rates of the prompts given the weights, [U, J] mean responsibilities)."""
    rates = np.empty((len(sample), len(kind)))
    mean = np.zeros(likelihood.shape)
    n, c = kinds[:, kind]
    for s, w in enumerate(sample):
        law = w * likelihood
        law /= law.sum(axis=1, keepdims=True)
        mean += law
        cumulative = np.cumsum(law, axis=1)[kind]
        z = np.minimum(np.sum(cumulative < rng.random(len(kind))[:, None], axis=1), len(a) - 1)
        rates[s] = np.where(a[z] == 0.0, 0.0, rng.beta(np.maximum(a[z], 1e-9) + c, b[z] + n - c))
    return rates, mean / len(sample)
