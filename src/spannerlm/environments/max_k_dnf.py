"""max-k-dnf(n, k): a policy is informative on a prompt only if its theta satisfies the prompt's term (THEORY 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spannerlm.environments.parts import check_count, check_number, generator
from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.records import FloatArray, IntArray

INFO, NULL = 0, 1
"""Columns of the two responses."""


@dataclass(frozen=True, eq=False)
class Terms:
    """The formula behind a max-k-dnf environment: one term per prompt."""

    variables: IntArray
    """[X, k] S: the variables of each term, ascending, counted from 0."""
    signs: IntArray
    """[X, k] s: the sign, -1 or 1, that the term asks of each of them."""
    truth: IntArray
    """[n] the planted assignment: the signs of theta*."""

    def satisfied(self, assignment: Any) -> NDArray[np.bool_]:
        """[X] whether signs ``assignment`` [n] satisfy each term; the mean is what Max-k-DNF maximises."""
        return np.asarray(np.all(np.asarray(assignment)[self.variables] == self.signs, axis=1))


def max_k_dnf_terms(k: int = 4, *, n: int = 24, prompts: int = 20_000, seed: int = 0) -> Terms:
    """The terms of `max_k_dnf` of the same parameters, row x that of prompt x, for a MaxSAT solver.

    S is a uniform k-subset. Every other prompt (even x) is planted: its signs are those of the truth; the others' are
    uniform, so that a share 2^-k of them is satisfied by chance. Raises `InputError` unless 1 <= k <= n.
    """
    check_count("k", k)
    check_count("n", n)
    check_count("prompts", prompts)
    if k > n:
        raise InputError(f"k: expected at most n = {n} variables in a term, got {k}")
    rng = generator("max-k-dnf", seed)
    truth = rng.choice(np.array([-1, 1]), n)
    variables = np.sort(np.argsort(rng.random((prompts, n)), axis=1)[:, :k], axis=1)
    signs = rng.choice(np.array([-1, 1]), (prompts, k))
    signs[::2] = truth[variables[::2]]
    return Terms(variables, signs, truth)


def max_k_dnf(
    k: int = 4, *, n: int = 24, prompts: int = 20_000, beta: float = 1.0, noise_std: float = 2.0, seed: int = 0
) -> TabularEnvironment:
    """max-k-dnf(n, k): prompt x is a term (S, s) of `max_k_dnf_terms`, with two responses.

    Response 0, info: phi = k^(-1/2) sum_{i in S} s_i e_i, logit pi_ref(info) = -(2k - 2). Response 1, null: phi = 0.
    theta* = 2 sqrt(k) beta truth: log-odds of pi*(info) are 2 - 4 w with w wrong signs, so C_cov = sigmoid(2)
    (1 + e^(2k - 2)). Every |theta_i| is at most `max_k_dnf_bound`. d = n. A run sees few of the 20,000 prompts, so that
    `regret` is that of prompts it never drew. A pair of equal responses tells nothing: methods are to skip it. Raises
    `InputError` unless 1 <= k <= n and beta > 0.
    """
    check_number("beta", beta, strictly=True)
    terms = max_k_dnf_terms(k, n=n, prompts=prompts, seed=seed)
    features: FloatArray = np.zeros((prompts, 2, n))
    features[np.arange(prompts)[:, None], INFO, terms.variables] = terms.signs / np.sqrt(k)
    logit = -(2.0 * k - 2.0)
    base = np.empty((prompts, 2))
    base[:, INFO], base[:, NULL] = 1.0 / (1.0 + np.exp(-logit)), 1.0 / (1.0 + np.exp(logit))
    theta = max_k_dnf_bound(k, beta=beta) * terms.truth
    rho = np.full(prompts, 1.0 / prompts)
    return TabularEnvironment(rho, base, features, features @ theta, beta=beta, noise_std=noise_std)


def max_k_dnf_bound(k: int = 4, *, beta: float = 1.0) -> float:
    """2 sqrt(k) beta: the family's bound on every |theta_i|. Within it the log-odds of info exceed 0 only where theta
    has all signs of the term: a wrong one adds at most 0, each of the others at most 2, to -(2k - 2)."""
    return float(2.0 * np.sqrt(k) * beta)
