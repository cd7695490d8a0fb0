"""What a run's history says of a policy: its value on held-out draws, by the true reward or by its labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from spannerlm.coverage import Interval
from spannerlm.evaluation import EvaluationPool, Sampled, Tilted, mean_interval, predicted_value, sampling_plan
from spannerlm.policy import Policy, padded
from spannerlm.records import Draws, FloatArray, Info, LabelItem
from spannerlm.regression import Posterior
from spannerlm.rewards import RewardFunction, call_reward
from spannerlm.run import Driver

UNDEFINED = Interval(float("nan"), float("nan"), float("nan"))


class Measure(Protocol):
    """Values policies on a pool of held-out draws."""

    @property
    def pool(self) -> EvaluationPool:
        """The held-out draws."""

    def value(self, tilted: Tilted) -> Interval:
        """Mean reward of the policy on the pool's prompts, with its 95 % interval."""

    def rewards(self) -> FloatArray | None:
        """[X, n] true mean reward of each response; None where it is not free."""


@dataclass(frozen=True, eq=False)
class TruthMeasure:
    """By the true reward; the interval is over prompts."""

    pool: EvaluationPool
    table: FloatArray
    """[X, n] true mean rewards, 0 where a row is shorter."""

    def value(self, tilted: Tilted) -> Interval:
        """Mean over prompts of the expected true reward."""
        return mean_interval(tilted.mean(self.table))

    def rewards(self) -> FloatArray | None:
        """[X, n] the true mean rewards."""
        return self.table


@dataclass(frozen=True, eq=False)
class LabelMeasure:
    """By the posterior that the run's labels leave; undefined before the first label."""

    pool: EvaluationPool
    run: Driver

    def value(self, tilted: Tilted) -> Interval:
        """Posterior prediction of the mean reward."""
        posterior = self.run.explorer.learner(self.run.state).posterior
        if not isinstance(posterior, Posterior):  # no label yet, or comparisons only, which know no level of rewards
            return UNDEFINED
        return predicted_value(posterior, self.pool, tilted)

    def rewards(self) -> FloatArray | None:
        """None: the reward is not free."""
        return None


def measure_truth(
    pool: EvaluationPool,
    truth: RewardFunction,
    prompts: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> TruthMeasure:
    """Measure by a free true reward, asked once per distinct held-out response; None answers leave the pool."""
    kept: list[Draws] = []
    rewards: list[FloatArray] = []
    for draws in pool.draws:
        n, x = len(draws.responses), draws.prompt
        values = call_reward(truth, [prompts[x]] * n, draws.responses, {c: [v[x]] * n for c, v in columns.items()})
        rows = np.array([i for i, value in enumerate(values) if value is not None], dtype=np.int64)
        if len(rows):
            kept.append(Draws(x, tuple(draws.responses[i] for i in rows), draws.counts[rows], draws.features[rows]))
            rewards.append(np.array([values[i] for i in rows], dtype=np.float64))
    return TruthMeasure(EvaluationPool(kept), padded(rewards))


class Measured:
    """Measures the run's policies at one KL, as soon as its held-out draws are there."""

    def __init__(self, run: Driver, kl: float, build: Callable[[EvaluationPool], Measure]) -> None:
        self._run, self.kl, self._build = run, kl, build
        self._measure: Measure | None = None
        self.sampled: Sampled | None = None
        self.plan: Tilted | None = None

    @property
    def measure(self) -> Measure | None:
        """The measure; None without held-out draws."""
        if self._measure is None and self._run.evaluation_draws:
            self._measure = self._build(EvaluationPool(self._run.evaluation_draws))
        return self._measure

    def policy(self, policy: Policy) -> Info:
        """Value at the KL budget with its interval, for a row of the history; empty without held-out draws."""
        if self.measure is None:
            return {}
        return asdict(self.measure.value(self.tilted(policy)))

    def tilted(self, policy: Policy) -> Tilted:
        """The policy on the held-out draws, at the KL budget."""
        assert self.measure is not None  # the callers have looked
        pool = self.measure.pool
        return pool.at_kl(pool.scores(policy.theta), self.kl)

    def buy(self, labels: int, *, seed: int) -> None:
        """Buy ``labels`` labels of held-out responses, half drawn from the base model, half from the learned policy.

        Each is bought afresh, whatever was labelled before: the estimate must not rest on labels that the policy was
        learned from. Without held-out draws nothing is bought.
        """
        if self.measure is None:
            return
        pool = self.measure.pool
        self.plan = self.tilted(self._run.explorer.policy(self._run.state))
        prompts, rows = sampling_plan(self.plan, labels, rng=np.random.default_rng([seed, 11]))
        items = [
            LabelItem(pool.draws[x].prompt, pool.draws[x].responses[i], fresh=True)
            for x, i in zip(prompts, rows, strict=True)
        ]
        found = self._run.label_for_evaluation(items)
        kept = [i for i, label in enumerate(found.labels) if label.value is not None]
        values = np.array([found.labels[i].value for i in kept], dtype=np.float64)
        self.sampled = Sampled(prompts[kept], rows[kept], values)
