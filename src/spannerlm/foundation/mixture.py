"""Success rates of prompts as a mixture of beta laws and a share of zeros, and what counts leave open of it (ours).

Given its rate p, a prompt has Binomial(n, p) successes. Rates come from a mixture whose components are fixed beforehand
(`dictionary`): a rate of exactly 0, and beta laws with means a factor of 2 apart, from far below one success in n draws
to nearly 1. Only the weights are unknown; their posterior, under a sparse Dirichlet prior (few components are used), is
drawn from by Markov chains. A fit of free components would give one answer where counts say nothing: of rates far
below 1 / n. Here two priors are kept side by side, one that expects rates of 0 and one that does not, and every band
is to hold both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaln, gammaln

from spannerlm.records import FloatArray, IntArray

SHAPES = (3.0, 12.0)
"""Smaller parameters of the beta laws: broad ones (a factor of 2 or so) that overlap, and narrow ones."""
DEPTH = 64.0
"""The lowest component has mean 1 / (DEPTH n): ten times n draws cannot tell less from 0."""
PRIORS = ((0.5, 1.0), (0.001, 0.1))
"""Prior weights (Dirichlet parameters) of a rate of 0 and of all beta laws together: some zeros and a spread of rates,
or hardly a zero and rates much alike."""
CHAINS, WARM, KEPT = 64, 25, 10
"""Markov chains of each prior, sweeps before and sweeps kept: CHAINS x KEPT draws of the weights."""


@dataclass(frozen=True, eq=False)
class RateMixture:
    """Posterior of the prompts' success rates."""

    a: FloatArray
    """[J] first parameters of the components; 0 for the first one: a rate of exactly 0."""
    b: FloatArray
    """[J] second parameters."""
    weights: FloatArray
    """[P, S, J] draws from the posterior of the weights under each of P priors."""
    rates: FloatArray
    """[P, S, X] draws from the posterior of the rates of these prompts, jointly."""
    responsibilities: FloatArray
    """[P, X, J] posterior probability that a prompt's rate comes from a component."""
    draws: IntArray
    """[X] n."""
    correct: IntArray
    """[X] c."""

    def below(self, rate: float) -> FloatArray:
        """[X] posterior probability that the prompt's rate is below ``rate``: the smallest that a prior gives."""
        a = self.a[1:] + self.correct[:, None]
        b = self.b[1:] + (self.draws - self.correct)[:, None]
        chance = np.concatenate([np.ones((len(a), 1)), betainc(a, b, min(rate, 1.0))], axis=1)
        return np.asarray(np.sum(self.responsibilities * chance, axis=2).min(axis=0))

    def pass_at(self, k: int) -> FloatArray:
        """[P, S] draws from the posterior of the mean over these prompts of 1 - (1 - p)^k."""
        with np.errstate(divide="ignore"):
            return np.asarray(1.0 - np.exp(k * np.log1p(-self.rates)).mean(axis=2))


def dictionary(n: int) -> tuple[FloatArray, FloatArray]:
    """([J], [J]) parameters of the components for counts out of ``n``; the first is a rate of 0, as Beta(0, 1)."""
    means = 0.5 ** np.arange(int(np.ceil(np.log2(DEPTH * n))), 0, -1)  # up to 1/2
    upper = means[(means >= 1.0 / (n + 2.0)) & (means < 0.5)][::-1]
    a: list[FloatArray] = [np.zeros(1)]
    b: list[FloatArray] = [np.ones(1)]
    for shape in SHAPES:
        a += [np.full(len(means), shape), np.asarray(shape / upper - shape)]
        b += [np.asarray(shape / means - shape), np.full(len(upper), shape)]
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
        priors = [np.append(zero, np.full(len(a) - 1, rest / (len(a) - 1))) for zero, rest in PRIORS]
    else:
        a, b, prior = components
        priors = [prior]
    kinds, kind, count = np.unique(np.stack([draws, correct]), axis=1, return_inverse=True, return_counts=True)
    kind = kind.ravel()
    log_l = log_likelihood(kinds[0], kinds[1], a, b)
    likelihood = np.exp(log_l - log_l.max(axis=1, keepdims=True))  # [U, J]
    found = []
    for prior in priors:
        weights, kept = rng.dirichlet(prior + 1.0 / len(prior), CHAINS), []
        for sweep in range(WARM + KEPT):
            weights = _assigned(weights, likelihood, kind, prior, rng)
            weights = _resplit(weights, likelihood, count, prior, rng)
            if sweep >= WARM:
                kept.append(weights)
        sample = np.concatenate(kept)  # [S, J]
        found.append((sample, *_rates(sample, likelihood, draws, correct, kind, a, b, rng)))
    sample, rates, mean = (np.stack(part) for part in zip(*found, strict=True))
    return RateMixture(a, b, sample, rates, mean[:, kind], draws, correct)


def _assigned(
    weights: FloatArray, likelihood: FloatArray, kind: IntArray, prior: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """[C, J] weights given components that the prompts are given at random."""
    z = np.stack([_components(w * likelihood, kind, rng) for w in weights])  # [C, X]
    chains, size = weights.shape
    held = np.bincount((z + size * np.arange(chains)[:, None]).ravel(), minlength=chains * size)
    out = np.maximum(rng.standard_gamma(prior + held.reshape(chains, size)), 1e-300)
    return np.asarray(out / out.sum(axis=1, keepdims=True))


def _components(law: FloatArray, kind: IntArray, rng: np.random.Generator) -> IntArray:
    """[X] a component for each prompt, by the law [U, J] of its kind up to a factor."""
    cumulative = np.cumsum(law, axis=1)
    drawn = rng.random(len(kind)) * cumulative[kind, -1]
    return np.asarray(np.argmax(cumulative[kind] > drawn[:, None], axis=1))


def _resplit(
    weights: FloatArray, likelihood: FloatArray, count: IntArray, prior: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """[C, J] weights after J proposals to split the weight of two components anew."""
    chains, size = weights.shape
    if size < 2:
        return weights
    w = weights.copy()
    mixed = w @ likelihood.T  # [C, U]
    score = np.asarray(np.log(mixed) @ count)
    rows = np.arange(chains)
    for _ in range(size):
        i: IntArray = np.asarray(rng.integers(size, size=(chains,)))
        j = (i + rng.integers(1, size, size=chains)) % size
        both = w[rows, i] + w[rows, j]
        new = np.asarray(np.clip(both * rng.beta(prior[i], prior[j]), 1e-300, both))
        proposal = mixed + (new - w[rows, i])[:, None] * (likelihood.T[i] - likelihood.T[j])
        proposal = np.maximum(proposal, 1e-300)
        proposed = np.asarray(np.log(proposal) @ count)
        accept = np.flatnonzero(np.log(rng.random(chains)) < proposed - score)
        w[accept, i[accept]] = new[accept]
        w[accept, j[accept]] = np.maximum(both - new, 1e-300)[accept]
        mixed[accept], score[accept] = proposal[accept], proposed[accept]
    return w


def _rates(
    sample: FloatArray,
    likelihood: FloatArray,
    draws: IntArray,
    correct: IntArray,
    kind: IntArray,
    a: FloatArray,
    b: FloatArray,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """([S, X] rates of the prompts given the weights, [U, J] mean responsibilities)."""
    rates = np.empty((len(sample), len(kind)))
    mean = np.zeros(likelihood.shape)
    for s, w in enumerate(sample):
        law = w * likelihood
        mean += law / law.sum(axis=1, keepdims=True)
        z = _components(law, kind, rng)
        some = np.where(a[z] > 0.0, a[z], 1.0)
        rates[s] = np.where(a[z] > 0.0, rng.beta(some + correct, b[z] + draws - correct), 0.0)
    return rates, mean / len(sample)
