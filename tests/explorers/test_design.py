"""Gains of labels against the full Bayesian linear model: theta, mu and all intercepts in one matrix, inverted."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.explorers.candidates import Candidates
from spannerlm.explorers.design import PairDesign, SingleDesign, pick, single_design
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.pools import add
from spannerlm.records import Drawn, Draws, Label, Labelled, Spec
from spannerlm.regression import fit_labels

X, D, FLAT = 6, 3, 1e-9


class Full:
    """The covariance of theta, from the joint precision of (theta, mu, u_0 .. u_5): mu is all but flat."""

    def __init__(self, prior: np.ndarray, gamma: float) -> None:
        self.precision = np.zeros((D + 1 + X, D + 1 + X))
        self.precision[:D, :D] = prior
        self.precision[D, D] = FLAT
        for x in range(X):  # without intercepts each is pinned to 0
            self.precision[D + 1 + x, D + 1 + x] = 1.0 / gamma if gamma > 0.0 else 1e12

    def label(self, x: int, f: np.ndarray, h: float = 1.0) -> None:
        """Add a label of noise variance h."""
        row = np.concatenate([f, [1.0], np.eye(X)[x]])
        self.precision = self.precision + np.outer(row, row) / h

    def spread(self, target: np.ndarray) -> float:
        """tr(M Cov(theta))"""
        return float(np.trace(target @ np.linalg.inv(self.precision)[:D, :D]))

    def gain(self, target: np.ndarray, x: int, f: np.ndarray, h: float) -> float:
        """By how much a label lowers it."""
        before, kept = self.spread(target), self.precision
        self.label(x, f, h)
        after, self.precision = self.spread(target), kept
        return before - after


class Case:
    """Labels of some prompts, a posterior at one gamma, and candidates of four prompts: two of them without labels."""

    def __init__(self, gamma: float, *, seed: int = 0, labels: int = 12) -> None:
        rng = np.random.default_rng(seed)
        learner = Learner.start(Spec(np.full(X, 1 / X), D, labels=100, draws=None, batch=5, beta=1.0, fresh=True))
        records = tuple(
            Draws(x, tuple("abcde"), rng.integers(1, 9, 5), rng.normal(size=(5, D)) * [2.0, 1.0, 0.3] + 1.0)
            for x in range(X)
        )
        learner = learner.absorb(Drawn(records, 100))
        # without intercepts the posterior drops gamma = 0 as soon as a prompt has two labels
        prompts = np.array([0, 1, 2, 5]) if gamma == 0.0 else rng.choice([0, 1, 2, 5], labels)
        rows = rng.integers(5, size=len(prompts))
        features = np.array([records[x].features[y] for x, y in zip(prompts, rows, strict=True)])
        marks = tuple(Label(int(x), "abcde"[y], float(rng.normal())) for x, y in zip(prompts, rows, strict=True))
        self.learner = learner.absorb(Labelled(marks, features))
        turn = self.learner.transform
        self.posterior = fit_labels(
            self.learner.stats,
            self.learner.centres,
            self.learner.scale,
            transform=turn,
            gammas=(gamma,),
            lambdas=(0.1,),
        )
        inverse = np.linalg.inv(turn)
        self.full = Full(0.1 * self.learner.scale * inverse @ inverse, gamma)
        for x, phi in zip(prompts, features, strict=True):
            self.full.label(int(x), phi - self.learner.centres[x])
        self.part = Candidates.of(add({}, records)).of_prompts(np.array([1, 3, 4, 5]))
        factor = rng.normal(size=(D, D))
        self.target = factor @ factor.T
        self.noise = rng.uniform(1.0, 4.0, len(self.part))

    def design(self) -> SingleDesign:
        part = self.part
        return single_design(
            self.learner, self.posterior, self.target, part.features, part.owners, part.ids, self.noise
        )

    def slow(self) -> np.ndarray:
        """[n] gains of all candidates."""
        part = self.part
        return np.array(
            [
                self.full.gain(self.target, int(part.ids[x]), f, h)
                for x, f, h in zip(part.owners, part.features, self.noise, strict=True)
            ]
        )

    def take(self, row: int) -> None:
        part = self.part
        self.full.label(int(part.ids[part.owners[row]]), part.features[row], self.noise[row])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 3.0, 1e4])
def test_gains_are_those_of_the_full_model_pick_after_pick(gamma: float, seed: int) -> None:
    case = Case(gamma, seed=seed)
    design, rng = case.design(), np.random.default_rng(seed)
    for k in range(9):
        slow = case.slow()
        np.testing.assert_allclose(design.gains(), slow, rtol=2e-5, atol=1e-6 * slow.max())
        # the best, one of a prompt with labels, one of a prompt without, the same once more, then any
        row = int(np.argmax(slow)) if k == 0 else (1, 6, 6)[k - 1] if k < 4 else int(rng.integers(len(slow)))
        design.take(row)
        case.take(row)
    np.testing.assert_allclose(design.sigma, np.linalg.inv(case.full.precision)[:D, :D], rtol=1e-5, atol=1e-7)


def test_intercepts_and_the_mean_matter_to_gains() -> None:
    """What the comparison above could not see if it were too coarse."""
    free, pinned = Case(1e4), Case(1e-6)
    assert np.abs(free.design().gains() / pinned.design().gains() - 1.0).max() > 0.1
    case = Case(0.3)
    known = case.design()
    known.mass, known.slope = 1e9, 0.0 * known.slope
    assert np.abs(known.gains() / case.design().gains() - 1.0).max() > 0.02


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_picks_are_greedy_in_the_full_model(gamma: float, again: bool) -> None:
    case = Case(gamma)
    allowed = np.ones(len(case.part), dtype=bool)
    allowed[int(np.argmax(case.slow()))] = False  # the best of all is not to be had
    found, taken = pick(case.design(), allowed, 8, again=again), allowed.copy()
    for row in found:
        assert row == int(np.argmax(np.where(taken, case.slow(), -np.inf)))
        case.take(row)
        taken[row] &= again
    assert len(found) == 8
    assert (len(set(found)) < 8) == again


def test_picks_end_where_nothing_is_left_or_nothing_is_gained() -> None:
    case = Case(1.0)
    some = np.arange(len(case.part)) < 3
    assert sorted(pick(case.design(), some, 10, again=False)) == [0, 1, 2]
    assert pick(case.design(), np.zeros(len(case.part), dtype=bool), 10, again=True) == []
    case.target = np.zeros((D, D))
    assert pick(case.design(), some, 10, again=True) == []
    assert pick(Case(1.0).design(), some, 0, again=True) == []


def test_designs_leave_the_learner_as_it_was() -> None:
    case = Case(1.0)
    counts, sums = case.learner.stats.counts.copy(), case.learner.stats.feature_sums.copy()
    design = case.design()
    for row in (0, 7, 0):
        design.take(row)
    np.testing.assert_array_equal(case.learner.stats.counts, counts)
    np.testing.assert_array_equal(case.learner.stats.feature_sums, sums)


def test_gains_of_comparisons_are_those_of_weighted_observations() -> None:
    rng = np.random.default_rng(4)
    factor, other = rng.normal(size=(D, D)), rng.normal(size=(D, D))
    precision, target = factor @ factor.T + 0.1 * np.eye(D), other @ other.T
    relative, told = rng.normal(size=(15, D)), rng.uniform(0.01, 0.25, 15)
    design = PairDesign(np.linalg.inv(precision), target, relative, told)
    for k in range(6):
        before = np.trace(target @ np.linalg.inv(precision))
        slow = [
            before - np.trace(target @ np.linalg.inv(precision + w * np.outer(z, z)))
            for z, w in zip(relative, told, strict=True)
        ]
        np.testing.assert_allclose(design.gains(), slow, rtol=1e-8)
        if k == 3:  # one that is no candidate
            z = rng.normal(size=D)
            design.account(z, 0.25)
            precision = precision + 0.25 * np.outer(z, z)
            continue
        row = int(np.argmax(slow))
        design.take(row)
        precision = precision + told[row] * np.outer(relative[row], relative[row])
    np.testing.assert_allclose(design.sigma, np.linalg.inv(precision), rtol=1e-8)
