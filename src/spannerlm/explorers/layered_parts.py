"""Layered exploration: a step's pairs, regression and sampler; the state and the policy of all steps (THEORY 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

from spannerlm.errors import InputError
from spannerlm.explorers.learner import Learner
from spannerlm.policy import FiniteEnvironment, StepEnvironment, TruncatedSoftmaxPolicy
from spannerlm.records import Draws, FloatArray, LabelItem, Rollout
from spannerlm.regression import DifferenceStats
from spannerlm.samplers import Accepted, Score, softmax_sampler
from spannerlm.spanner import Spanner, first_pair


@dataclass(frozen=True, eq=False)
class StepPair:
    """Two segments that may follow one prefix, and how much more the first one's roll-out was worth."""

    prompt: int
    prefix: tuple[str, ...]
    first: str
    second: str
    relative: FloatArray
    """[d] phi_h of the first less phi_h of the second."""
    difference: float | None = None
    """Of the latest two returns, in reward units; None before they came."""
    open: bool = True
    """Whether roll-outs are to be made: there are none, or a later step has learned since."""

    @property
    def starts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the two roll-outs go on from."""
        return (*self.prefix, self.first), (*self.prefix, self.second)


@dataclass(frozen=True, eq=False)
class Layer:
    """One step: its spanner, all pairs with roll-outs, its parameter. The pairs' order never changes."""

    spanner: Spanner
    """Sigma_h of the core pairs: those that lay beyond nu when they were found."""
    theta: FloatArray
    """[d]"""
    pairs: tuple[StepPair, ...] = ()
    """Core pairs, and those of the exploration rounds."""
    rounds: int = 0
    """Exploration rounds done."""

    @classmethod
    def start(cls, dim: int, penalty: float) -> Layer:
        """A step of which nothing is known."""
        return cls(Spanner.start(penalty * np.eye(dim)), np.zeros(dim))

    def tested(self, draws: Draws, nu: float, *, rng: np.random.Generator) -> Layer:
        """With the first of the disjoint pairs of these draws beyond ``nu`` as a core pair; itself where none is."""
        assert draws.prefix is not None  # draws of a step
        pair, _ = first_pair(self.spanner, draws, nu, rng=rng)
        if pair is None:
            return self
        relative = draws.features[pair.first] - draws.features[pair.second]
        one, other = draws.responses[pair.first], draws.responses[pair.second]
        core = StepPair(draws.prompt, draws.prefix, one, other, relative)
        return replace(self, spanner=self.spanner.accept(relative), pairs=(*self.pairs, core))

    def with_pairs(self, pairs: Sequence[StepPair], rounds: int) -> Layer:
        """With pairs of so many exploration rounds, which do not enter Sigma."""
        return replace(self, pairs=(*self.pairs, *pairs), rounds=self.rounds + rounds)

    @property
    def open(self) -> tuple[int, ...]:
        """Rows of the pairs that are to be rolled out."""
        return tuple(i for i, pair in enumerate(self.pairs) if pair.open)

    def closed(self, rows: Sequence[int]) -> Layer:
        """With these pairs rolled out."""
        done = set(rows)
        pairs = tuple(replace(pair, open=False) if i in done else pair for i, pair in enumerate(self.pairs))
        return replace(self, pairs=pairs)

    def stale(self) -> Layer:
        """With every pair to be rolled out again; what is known of them is kept until then."""
        return replace(self, pairs=tuple(replace(pair, open=True) for pair in self.pairs))

    def fitted(self, news: Sequence[tuple[int, float]], penalty: float, bound: float | None) -> Layer:
        """With new differences of the pairs in these rows, and theta by least squares on those of all pairs.

        Ridge ``penalty``, norm at most ``bound`` (THEORY 3, phase 2). An intercept per pair, by taking differences: Q
        is linear in phi_h only up to a function of the prefix.
        """
        pairs = list(self.pairs)
        for row, difference in news:
            pairs[row] = replace(pairs[row], difference=difference)
        known = [(pair.relative, pair.difference) for pair in pairs if pair.difference is not None]
        relative, differences = np.array([phi for phi, _ in known]), np.array([value for _, value in known])
        stats = DifferenceStats.empty(len(self.theta)).add(relative, differences)
        return replace(self, pairs=tuple(pairs), theta=stats.ridge(penalty, bound))


@dataclass(frozen=True)
class Planned:
    """Both roll-outs of a pair, to be labelled."""

    step: int
    row: int
    """Of the pair, in its layer."""
    items: tuple[LabelItem, LabelItem]
    gains: tuple[float, float]
    """What each return is less than its label."""


@dataclass(frozen=True, eq=False)
class LayeredState:
    """Everything known, and what is planned. Steps count from 0."""

    learner: Learner
    layers: tuple[Layer, ...]
    """[H]"""
    nu: float
    """Radius of the tests now."""
    radius: float
    """That of the last schedule that was complete, of the first one before: what the policy trusts. Sigma has only
    grown since, so that what lay within it still does."""
    at: int = -1
    """The step that the backward induction is at; -1 where it is through."""
    since: int = 0
    """Labels bought before this schedule began."""
    scanned: int = 0
    """Roll-ins of the spanner phase done."""
    exploring: bool = False
    """Whether the spanner phase is over."""
    probes: tuple[tuple[int, int], ...] = ()
    """(step, row) of new core pairs that were never rolled out."""
    queue: tuple[Planned, ...] = ()
    contexts: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Prompts and prefixes of this exploration round."""
    anchors: tuple[Draws, ...] = ()
    """Comparison segments that wait for their softmax draw."""

    @property
    def horizon(self) -> int:
        """H"""
        return len(self.layers)

    @property
    def theta(self) -> FloatArray:
        """[H, d]"""
        return np.array([layer.theta for layer in self.layers])

    @property
    def beta(self) -> float:
        """KL temperature, which the spec tells."""
        assert self.learner.spec.beta is not None  # init has looked
        return self.learner.spec.beta

    def with_layer(self, step: int, layer: Layer) -> LayeredState:
        """With one layer replaced."""
        return replace(self, layers=(*self.layers[:step], layer, *self.layers[step + 1 :]))


def gains(
    draws: Sequence[Draws], starts: Sequence[int], paths: Sequence[Rollout], theta: FloatArray, beta: float
) -> FloatArray:
    """[m] beta sum_h log(pi_h / pi_ref,h) of the segments that a roll-out with ``theta`` [H, d] added to ``starts``.

    ``draws`` are all that it drew, as `rolled` returns them; ``starts`` [m] how many segments each path had before. A
    return less this has no variance at the optimum: soft values are nothing but rewards net of it (THEORY 5).
    """
    total, records = np.zeros(len(paths)), iter(draws)
    for later in range(max((len(path.segments) for path in paths), default=0)):
        for i, (path, start) in enumerate(zip(paths, starts, strict=True)):
            if (h := start + later) < len(path.segments):
                record = next(records)
                scores = record.features @ theta[h]
                value = beta * logsumexp(scores / beta, b=record.counts / record.counts.sum())
                total[i] += scores[record.responses.index(path.segments[h])] - value
    return total


def accepted(record: Draws, score: Score, bound: float, delta: float, *, rng: np.random.Generator) -> Accepted:
    """What `softmax_sampler` returns where its draws are those of one record, in random order.

    The record holds as many as it may ask for: `most_draws`.
    """
    order, taken = rng.permutation(np.repeat(np.arange(len(record.counts)), record.counts)), 0

    def draw(n: int) -> Draws:
        nonlocal taken
        rows, counts = np.unique(order[taken : taken + n], return_counts=True)
        taken += n
        return Draws(record.prompt, tuple(record.responses[row] for row in rows), counts, record.features[rows])

    return softmax_sampler(draw, score, bound=bound, delta=delta, rng=rng)


def most_draws(bound: float, delta: float) -> int:
    """What one call of `softmax_sampler` may draw: 2 N, and one more where nothing was accepted."""
    return 2 * int(np.ceil(4.0 * bound * np.log(4.0 / delta))) + 1


@dataclass(frozen=True, eq=False)
class TruncatedStepPolicy:
    """At each step the truncated softmax policy of THEORY 3, its comparison segment drawn afresh (THEORY 5).

    Equal to the step-by-step softmax policy of theta wherever all that can be drawn lies within nu.
    """

    theta: FloatArray
    """[H, d] parameter of each step."""
    beta: float
    roots: FloatArray
    """[H, d, d] W_h with ||phi||_{Sigma_h^-1} = |W_h phi|."""
    nu: float

    def table(self, env: FiniteEnvironment | StepEnvironment) -> FloatArray:
        """[H, S, A] exact probabilities. Time: H S A^2 d. Raises `InputError` for an environment of whole responses."""
        if not isinstance(env, StepEnvironment):
            raise InputError(f"env: expected one of steps for a policy of steps, got {type(env).__name__}")
        steps = zip(self.theta, self.roots, env.base_probs, env.features, strict=True)
        return np.array(
            [
                TruncatedSoftmaxPolicy(theta, self.beta, root, self.nu).table(_Step(base, features))
                for theta, root, base, features in steps
            ]
        )


@dataclass(frozen=True, eq=False)
class _Step:
    """One step of an environment as a table: states as prompts."""

    base_probs: FloatArray
    """[S, A]"""
    features: FloatArray
    """[S, A, d]"""
