"""The laws hold for every environment and every explorer, and each of them catches an object that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import laws
import numpy as np
import pytest

from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.explorers import Explorer, Passive
from spannerlm.policy import LinearSoftmaxPolicy, tilt
from spannerlm.records import DrawRequest, Draws, Labelled, LabelRequest, StopRequest

REUSES = "its pairs share responses, whose labels the ledger answers at no cost"
EXEMPT = {("theory", laws.nothing_is_asked_twice): REUSES, ("theory", laws.what_others_told_is_not_asked): REUSES}
"""(explorer, law) -> why it need not hold."""


@pytest.mark.parametrize("law", laws.ENVIRONMENT_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", laws.environments())
def test_environments_obey(law: Callable[..., None], name: str) -> None:
    law(laws.environments()[name])


@pytest.mark.parametrize("law", laws.EXPLORER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", laws.explorers())
def test_explorers_obey(law: Callable[..., None], name: str) -> None:
    explorer = laws.explorers()[name]
    sees_all = law is laws.only_draws_are_seen and getattr(explorer, "enumerates", False)
    if sees_all or (name, law) in EXEMPT:
        with pytest.raises(AssertionError):  # an exemption that is not needed any more is to go
            law(explorer, laws.environments()["tie"])
        return
    for env in laws.environments().values():
        law(explorer, env)


@pytest.mark.parametrize("law", laws.EXPLORER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", laws.comparing_explorers())
def test_explorers_obey_where_labels_are_comparisons(law: Callable[..., None], name: str) -> None:
    for env in laws.comparing_environments().values():
        law(laws.comparing_explorers()[name], env)


@pytest.mark.parametrize("name", laws.explorers())
def test_explorers_learn_from_comparisons_or_refuse_them(name: str) -> None:
    explorer, env = laws.explorers()[name], laws.compared(laws.environments()["tie"])
    spec = laws.spec_of(env)
    if name not in laws.comparing_explorers():
        with pytest.raises(InputError, match="comparison"):
            explorer.init(spec)
        return
    trace = laws.drive(explorer, laws.Bench(env, spec))
    assert trace.bench.asked
    assert all(item.opponent is not None for item in trace.bench.asked)
    assert explorer.learner(trace.state).comparisons.comparisons == trace.bench.bought == spec.labels
    assert env.regret(explorer.policy(trace.state).table(env)) < 0.7 * env.regret(env.base_probs)


# --- environments broken on purpose ---------------------------------------------------------------------------------


def broken_environment(**methods: Any) -> TabularEnvironment:
    env = laws.random_table(1)
    broken = type("Broken", (TabularEnvironment,), methods)
    return broken(
        env.prompt_probs, env.base_probs, env.features, env.mean_rewards, beta=env.beta, noise_std=env.noise_std
    )


def without_divergence(env: TabularEnvironment, policy: np.ndarray) -> float:
    return float(env.prompt_probs @ np.sum(policy * env.mean_rewards, axis=1))


def reversed_divergence(env: TabularEnvironment, policy: np.ndarray) -> float:
    optimum, used = env.optimal_policy(), env.base_probs > 0
    ratio = np.where(used, optimum / np.where(used, np.maximum(policy, 1e-12), 1.0), 1.0)
    return float(env.prompt_probs @ (env.beta * np.sum(optimum * np.log(np.maximum(ratio, 1e-300)), axis=1)))


def too_cold(env: TabularEnvironment) -> np.ndarray:
    return tilt(env.base_probs, env.mean_rewards, 0.99 * env.beta)


def its_own_bound(env: TabularEnvironment) -> float:
    return float(np.exp(np.ptp(env.mean_rewards) / env.beta))


def uniform_draws(env: TabularEnvironment, prompts: Any, n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
    size = env.base_probs.shape[1]
    found = [(x, rng.multinomial(n, np.full(size, 1 / size))) for x in prompts]
    return tuple(Draws(x, tuple(map(str, np.flatnonzero(c))), c[c > 0], env.features[x, c > 0]) for x, c in found)


def other_rows(env: TabularEnvironment, prompts: Any, n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
    return tuple(replace(d, features=d.features[::-1]) for d in TabularEnvironment.draw(env, prompts, n, rng=rng))


def noisier(env: TabularEnvironment, seed: int) -> Any:
    return replace(TabularEnvironment.reward(env, seed), std=1.1 * env.noise_std)


def noise_of_the_batch(env: TabularEnvironment, seed: int) -> Any:
    def reward(prompts: Any, completions: Any, *, replicate: Any) -> list[float]:
        rng = np.random.default_rng(seed)  # the k-th of a call, whatever it is
        means = [env.mean_rewards[int(x), int(y)] for x, y in zip(prompts, completions, strict=True)]
        return [float(m + env.noise_std * rng.standard_normal()) for m in means]

    return reward


BROKEN_ENVIRONMENTS: list[tuple[Callable[..., None], dict[str, Any]]] = [
    (laws.value_is_the_objective, {"value": without_divergence}),
    (laws.regret_is_the_divergence_from_the_optimum, {"regret": reversed_divergence}),
    (laws.optimum_is_optimal, {"optimal_policy": too_cold}),
    (laws.optimum_is_optimal, {"optimal_value": lambda env: env.value(env.base_probs)}),
    (laws.coverage_is_the_largest_ratio, {"coverage": its_own_bound}),
    (laws.draws_follow_the_base, {"draw": uniform_draws}),
    (laws.draws_follow_the_base, {"draw": other_rows}),
    (laws.labels_have_the_declared_mean_and_noise, {"reward": noisier}),
    (laws.labels_have_the_declared_mean_and_noise, {"reward": noise_of_the_batch}),
]


@pytest.mark.parametrize(("law", "methods"), BROKEN_ENVIRONMENTS)
def test_environment_laws_catch(law: Callable[..., None], methods: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        law(broken_environment(**methods))


# --- explorers broken on purpose ------------------------------------------------------------------------------------


class Wrapped:
    """`passive` with small pools, to be broken one method at a time."""

    name = "broken"

    def __init__(self, inner: Explorer | None = None) -> None:
        self.inner = inner or Passive(pool=16)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class WritesWhileDeciding(Wrapped):
    def decide(self, state: Any, *, rng: np.random.Generator) -> Any:
        state.learner.stats.counts[0] += 1.0
        return self.inner.decide(state, rng=rng)


class WritesWhileAbsorbing(Wrapped):
    def absorb(self, state: Any, event: Any) -> Any:
        if isinstance(event, Labelled):
            state.learner.moments.sums[0] += 1.0
        return self.inner.absorb(state, event)


class Rolls(Wrapped):
    def decide(self, state: Any, *, rng: np.random.Generator) -> Any:
        return self.inner.decide(state, rng=np.random.default_rng())


class Remembers(Wrapped):
    """Keeps in itself what belongs into its state."""

    calls = 0

    def absorb(self, state: Any, event: Any) -> Any:
        self.calls += 1
        state = self.inner.absorb(state, event)
        return replace(state, idle=self.calls)


class OneSeed(Wrapped):
    def decide(self, state: Any, *, rng: np.random.Generator) -> Any:
        return self.inner.decide(state, rng=np.random.default_rng(state.learner.drawn + state.learner.bought))


class Overspends(Wrapped):
    def init(self, spec: Any) -> Any:
        return self.inner.init(replace(spec, labels=2 * spec.labels))


class Overdraws(Wrapped):
    def init(self, spec: Any) -> Any:
        return self.inner.init(replace(spec, draws=None))


class ForgetsWhatIsOut(Wrapped):
    """Would ask for a whole budget again while labels are out."""

    def absorb(self, state: Any, event: Any) -> Any:
        state = self.inner.absorb(state, event)
        return replace(state, learner=replace(state.learner, pending=()))


class StopsEarly(Wrapped):
    def decide(self, state: Any, *, rng: np.random.Generator) -> Any:
        if state.learner.bought > state.learner.spec.labels - 7:
            return StopRequest("enough")
        return self.inner.decide(state, rng=rng)


class AsksAgain(Wrapped):
    """Asks for skipped responses again, as fresh ones."""

    def absorb(self, state: Any, event: Any) -> Any:
        state = self.inner.absorb(state, event)
        labelled = {k: n for k, n in state.learner.labelled.items() if sum(map(ord, k[1])) % 2}
        return replace(state, learner=replace(state.learner, labelled=labelled))


class DeafToOthers(Wrapped):
    def absorb(self, state: Any, event: Any) -> Any:
        return state if isinstance(event, Labelled) and not event.info else self.inner.absorb(state, event)


class ForgetsOthers(Wrapped):
    """Learns from labels that came from elsewhere, and asks for them all the same."""

    def absorb(self, state: Any, event: Any) -> Any:
        after = self.inner.absorb(state, event)
        if isinstance(event, Labelled) and not event.info:
            return replace(after, learner=replace(after.learner, labelled=state.learner.labelled))
        return after


class Peeks(Wrapped):
    """Orders what it asks for by something of each prompt that it reads off the environment itself."""

    def __init__(self, look: Callable[[], np.ndarray]) -> None:
        super().__init__()
        self.look = look

    def decide(self, state: Any, *, rng: np.random.Generator) -> Any:
        request, order = self.inner.decide(state, rng=rng), self.look()
        if isinstance(request, LabelRequest):
            return replace(request, items=tuple(sorted(request.items, key=lambda item: order[item.prompt])))
        if isinstance(request, DrawRequest):
            return replace(request, prompts=tuple(sorted(request.prompts, key=lambda x: order[x])))
        return request


class DividesByNothing(Wrapped):
    def policy(self, state: Any) -> Any:
        policy = self.inner.policy(state)
        with np.errstate(all="ignore"):
            theta = policy.theta / np.trace(state.learner.covariance) * np.trace(state.learner.covariance)
        return LinearSoftmaxPolicy(theta, policy.beta)


BROKEN_EXPLORERS: list[tuple[Callable[..., None], Any]] = [
    (laws.deciding_changes_nothing, WritesWhileDeciding()),
    (laws.deciding_changes_nothing, WritesWhileAbsorbing()),
    (laws.deciding_changes_nothing, Rolls()),
    (laws.a_run_is_a_fold_of_its_events, Remembers()),
    (laws.seeds_decide, Rolls()),
    (laws.seeds_decide, OneSeed()),
    (laws.budgets_hold, Overspends()),
    (laws.budgets_hold, Overdraws()),
    (laws.budgets_hold, ForgetsWhatIsOut()),
    (laws.every_label_is_spent, StopsEarly()),
    (laws.nothing_is_asked_twice, AsksAgain()),
    (laws.labels_from_elsewhere_count, DeafToOthers()),
    (laws.what_others_told_is_not_asked, ForgetsOthers()),
    (laws.degenerate_tasks_end_well, DividesByNothing()),
]


@pytest.mark.parametrize(
    ("law", "explorer"), BROKEN_EXPLORERS, ids=lambda case: case.__name__ if callable(case) else type(case).__name__
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_explorer_laws_catch(law: Callable[..., None], explorer: Explorer) -> None:
    with pytest.raises(AssertionError):
        law(explorer, laws.environments()["random"])


@pytest.mark.parametrize("name", ["features", "base_probs", "mean_rewards"])
def test_explorer_laws_catch_a_look_at_what_was_not_drawn(name: str) -> None:
    env = laws.random_table(4, prompts=6)

    def look() -> np.ndarray:
        first = np.nan_to_num(getattr(env, name)[:, :3])
        return first.reshape(len(first), -1).sum(axis=1)

    laws.only_draws_are_seen(Passive(pool=16), env)
    with pytest.raises(AssertionError):
        laws.only_draws_are_seen(Peeks(look), env)


@pytest.mark.parametrize(
    ("law", "broken"),
    [
        (laws.budgets_hold, Overspends),
        (laws.labels_from_elsewhere_count, DeafToOthers),
        (laws.what_others_told_is_not_asked, ForgetsOthers),
    ],
)
def test_explorer_laws_catch_where_labels_are_comparisons(law: Callable[..., None], broken: Any) -> None:
    env, obedient = laws.comparing_environments()["one prompt"], laws.comparing_explorers()["online-dpo"]
    law(obedient, env)
    with pytest.raises(AssertionError):
        law(broken(obedient), env)


def test_every_law_is_shown_to_catch_something() -> None:
    assert {law for law, _ in BROKEN_ENVIRONMENTS} == set(laws.ENVIRONMENT_LAWS)
    assert {law for law, _ in BROKEN_EXPLORERS} | {laws.only_draws_are_seen} == set(laws.EXPLORER_LAWS)
