"""The laws of invariance hold for every explorer, and each of them catches one that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import invariances
import laws
import numpy as np
import pytest

from spannerlm.environments import TabularEnvironment
from spannerlm.explorers import Explorer, Passive
from spannerlm.policy import LinearSoftmaxPolicy
from spannerlm.records import LabelItem, Labelled, LabelRequest
from spannerlm.regression import fit_labels


@pytest.mark.parametrize("law", invariances.INVARIANCE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", laws.explorers())
def test_explorers_obey(law: Callable[..., None], name: str) -> None:
    law(laws.explorers()[name], invariances.generic())


@pytest.mark.parametrize("law", invariances.INVARIANCE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", laws.comparing_explorers())
def test_explorers_obey_where_labels_are_comparisons(law: Callable[..., None], name: str) -> None:
    law(laws.comparing_explorers()[name], laws.compared(invariances.generic()))


def test_a_prompt_shift_changes_nothing_at_all_for_differences() -> None:
    cost = invariances.cost_of_a_prompt_shift(laws.explorers()["theory"], invariances.generic())
    assert cost == pytest.approx(0.0, abs=1e-12)


def test_most_laws_are_met_path_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison in distribution is for those who need it, or a broken coupling would hide behind it."""

    def never(*_: Any) -> None:
        raise AssertionError("compared in distribution")

    monkeypatch.setattr(invariances, "assert_same_law", never)
    env = invariances.generic()
    for name in ("passive", "random-singles", "spanner-sampling", "theory"):
        invariances.a_rotation_changes_nothing(laws.explorers()[name], env)
    for name in ("passive", "random-singles"):
        invariances.names_change_nothing(laws.explorers()[name], env)


def test_the_task_in_other_words_is_the_same_task() -> None:
    env = invariances.generic()
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(env.dim, env.dim)))[0]
    for other, names in (
        (invariances.shifted(env, invariances.shifts(env)), 1),
        (invariances.rotated(env, rotation), 1),
        (invariances.split(env), invariances.NAMES),
    ):
        np.testing.assert_allclose(
            invariances.merged(other.optimal_policy(), names), env.optimal_policy(), rtol=0, atol=1e-12
        )
        assert other.coverage() == pytest.approx(env.coverage(), rel=1e-12)
        assert other.realizability_gap() == pytest.approx(0.0, abs=1e-10)


# --- explorers broken on purpose ------------------------------------------------------------------------------------


class Wrapped:
    """`passive`, to be broken one method at a time."""

    name = "broken"

    def __init__(self) -> None:
        self.inner: Explorer = Passive()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class LikesPositive(Wrapped):
    """Takes a reward below 0 for a failure."""

    def absorb(self, state: Any, event: Any) -> Any:
        if isinstance(event, Labelled):
            labels = tuple(replace(label, value=max(0.0, label.value)) for label in event.labels)
            event = replace(event, labels=labels)
        return self.inner.absorb(state, event)


class MindsTheLevel(Wrapped):
    """Learns from differences, but asks in another order while rewards are below 1."""

    def decide(self, state: Any, *, rng: np.random.Generator) -> Any:
        request = self.inner.decide(state, rng=rng)
        if isinstance(request, LabelRequest) and state.learner.stats.value_sums.sum() < state.learner.stats.labels:
            return replace(request, items=request.items[::-1])
        return request


class WithoutIntercepts(Wrapped):
    """Fits one mean for all prompts."""

    def policy(self, state: Any) -> Any:
        learner = state.learner
        fit = fit_labels(learner.stats, learner.centres, learner.scale, gammas=(1e-9,))
        return LinearSoftmaxPolicy(fit.mean, learner.spec.beta)


class IsSatisfied(Wrapped):
    """Labels the same response again and again once it has found a prompt of high rewards."""

    def decide(self, state: Any, *, rng: np.random.Generator) -> Any:
        request, stats = self.inner.decide(state, rng=rng), state.learner.stats
        means = stats.value_sums / np.maximum(stats.counts, 1.0)
        if not isinstance(request, LabelRequest) or means.max() < 3.0:
            return request
        best = int(means.argmax())
        return replace(request, items=(LabelItem(best, state.pools[best].responses[0], True),) * len(request.items))


class Clips(Wrapped):
    """Bounds every coordinate of theta."""

    def policy(self, state: Any) -> Any:
        policy = self.inner.policy(state)
        return LinearSoftmaxPolicy(np.clip(policy.theta, -0.2, 0.2), policy.beta)


class LikesTheFirstAxis(Wrapped):
    """Labels the response that is largest in the first coordinate."""

    def decide(self, state: Any, *, rng: np.random.Generator) -> Any:
        request = self.inner.decide(state, rng=rng)
        if not isinstance(request, LabelRequest):
            return request
        chosen = rng.choice(sorted(state.pools), size=len(request.items))
        tops = {x: draws.responses[int(np.argmax(draws.features[:, 0]))] for x, draws in state.pools.items()}
        return replace(request, items=tuple(LabelItem(int(x), tops[int(x)], True) for x in chosen))


class CountsNames(Wrapped):
    """Labels random distinct responses, whatever their mass."""

    def decide(self, state: Any, *, rng: np.random.Generator) -> Any:
        request = self.inner.decide(state, rng=rng)
        if not isinstance(request, LabelRequest):
            return request
        names = [str(rng.choice(state.pools[item.prompt].responses)) for item in request.items]
        return replace(request, items=tuple(replace(i, response=y) for i, y in zip(request.items, names, strict=True)))


class FlattensTheBase(Wrapped):
    """Tilts the uniform law of distinct responses instead of pi_ref."""

    def policy(self, state: Any) -> Any:
        return Flat(self.inner.policy(state))


class Flat:
    """A policy over the names of responses."""

    def __init__(self, policy: Any) -> None:
        self.theta, self.beta = policy.theta, policy.beta

    def table(self, env: TabularEnvironment) -> np.ndarray:
        weights = np.exp(env.features @ self.theta / self.beta) * (env.base_probs > 0.0)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


BROKEN: list[tuple[Callable[..., None], Any]] = [
    (invariances.a_common_shift_changes_nothing, LikesPositive()),
    (invariances.a_common_shift_changes_nothing, MindsTheLevel()),
    (invariances.prompt_shifts_hardly_matter, WithoutIntercepts()),
    (invariances.prompt_shifts_hardly_matter, IsSatisfied()),
    (invariances.a_rotation_changes_nothing, Clips()),
    (invariances.a_rotation_changes_nothing, LikesTheFirstAxis()),
    (invariances.names_change_nothing, CountsNames()),
    (invariances.names_change_nothing, FlattensTheBase()),
]


@pytest.mark.parametrize(
    ("law", "explorer"), BROKEN, ids=lambda case: case.__name__ if callable(case) else type(case).__name__
)
def test_laws_catch(law: Callable[..., None], explorer: Explorer) -> None:
    with pytest.raises(AssertionError):
        law(explorer, invariances.generic())


def test_every_law_is_shown_to_catch_something() -> None:
    assert {law for law, _ in BROKEN} == set(invariances.INVARIANCE_LAWS)
