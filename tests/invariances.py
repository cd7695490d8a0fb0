"""Laws of invariance: what an explorer learns does not depend on how its task happens to be written down.

The same task in other words: rewards plus a number, features in another basis, responses under several names. Where the
randomness of both runs can be coupled, the law is exact: the same requests and the same policy; where it cannot, it
holds in distribution. `test_invariances.py` runs the laws over every explorer, and shows that each of them fails on an
explorer that is broken on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from laws import CONFIDENCE, Bench, Trace, drive, spec_of
from scipy.stats import norm, ortho_group

from spannerlm.environments import TabularEnvironment
from spannerlm.explorers import Explorer
from spannerlm.explorers.learner import asked as asked_for
from spannerlm.policy import kl_divergence
from spannerlm.records import DrawRequest, Draws, Event, FloatArray, Label, LabelItem, Labelled, LabelRequest, Request

ROUNDING = 1e-6
"""By how much equal tasks, written differently, may differ in a probability or, relative to its size, in theta."""
NAMES = 8
"""Names that the first response of each prompt gets."""
SEEDS = 12
"""Runs of each of two tasks that are compared in distribution."""


def generic(*, prompts: int = 3, responses: int = 9, dim: int = 5, seed: int = 5) -> TabularEnvironment:
    """A realizable environment without ties; the first response of each prompt is its likeliest, none is very rare."""
    rng = np.random.default_rng(seed)
    base = -np.sort(-rng.dirichlet(np.full(responses, 1.5), size=prompts), axis=1)
    features = rng.normal(size=(prompts, responses, dim))
    theta = rng.normal(size=dim)
    rewards = features @ (theta / np.linalg.norm(theta))
    return TabularEnvironment(rng.dirichlet(np.full(prompts, 20.0)), base, features, rewards, beta=0.7, noise_std=0.4)


# --- the same task in other words -----------------------------------------------------------------------------------


def shifted(env: TabularEnvironment, shift: Any) -> TabularEnvironment:
    """The task with ``shift``, a number or [X], added to all rewards of each prompt."""
    return replace(env, mean_rewards=env.mean_rewards + np.broadcast_to(shift, len(env.prompt_probs))[:, None])


def rotated(env: TabularEnvironment, rotation: FloatArray) -> TabularEnvironment:
    """The task with features phi Q, Q [d, d] orthogonal."""
    return replace(env, features=env.features @ rotation)


def shares(responses: int) -> FloatArray:
    """[Y, NAMES] how the names of each response share its mass: the first has many names, every other has one."""
    table = np.zeros((responses, NAMES))
    table[:, 0] = 1.0
    table[0] = np.arange(1.0, NAMES + 1.0)
    return table / table.sum(axis=1, keepdims=True)


def split(env: TabularEnvironment) -> TabularEnvironment:
    """The task with each response y under the names y NAMES + 0, 1, .. with equal features and rewards."""
    base = env.base_probs[:, :, None] * shares(env.base_probs.shape[1])
    return replace(
        env,
        base_probs=base.reshape(len(base), -1),
        features=np.repeat(env.features, NAMES, axis=1),
        mean_rewards=np.repeat(env.mean_rewards, NAMES, axis=1),
    )


def merged(table: FloatArray, names: int) -> FloatArray:
    """[X, Y] probabilities of responses whose ``names`` names have [X, Y * names]."""
    return np.asarray(table.reshape(len(table), -1, names).sum(axis=2))


@dataclass
class SplitBench(Bench):
    """A bench of the task before it was split: the same draws and the same labels come, under several names."""

    def _draw(self, prompts: Iterable[int], n: int, rng: np.random.Generator) -> tuple[Draws, ...]:
        found = []
        for i, record in enumerate(super()._draw(prompts, n, rng)):
            originals = np.array([int(response) for response in record.responses])
            part = np.random.default_rng([self.spent, i])  # of its own: what else comes from rng stays what it was
            counts = part.multinomial(record.counts, shares(self.env.base_probs.shape[1])[originals])  # [n, NAMES]
            rows, names = np.nonzero(counts)
            responses = tuple(str(y) for y in originals[rows] * NAMES + names)
            found.append(Draws(record.prompt, responses, counts[rows, names], record.features[rows]))
            self.rows.update({(record.prompt, y): phi for y, phi in zip(responses, found[-1].features, strict=True)})
        return tuple(found)

    def _label(self, item: LabelItem) -> Label:
        def original(name: str | None) -> str | None:
            return None if name is None else str(int(name) // NAMES)

        renamed = replace(item, response=original(item.response), opponent=original(item.opponent))
        if renamed.response == renamed.opponent:  # equal rewards: a tie
            self.known.setdefault(asked_for(item), []).append(0.5)
            return Label(item.prompt, item.response, 0.5, opponent=item.opponent)
        return replace(super()._label(renamed), response=item.response, opponent=item.opponent)


@dataclass
class Reseeded:
    """An environment whose draws and label noise are another run's."""

    env: TabularEnvironment
    seed: int

    def draw(self, prompts: Any, n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """Draws that depend on the seed too."""
        return self.env.draw(prompts, n, rng=np.random.default_rng([self.seed, int(rng.integers(2**62))]))

    def reward(self, _: int) -> Any:
        """The rater of this seed."""
        return self.env.reward(self.seed)

    def comparison(self, _: int, scale: float) -> Any:
        """The rater of pairs of this seed."""
        return self.env.comparison(self.seed, scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)


# --- what two runs are compared by ----------------------------------------------------------------------------------


def asked(trace: Trace, names: int = 1) -> list[Any]:
    """What each request asked for, without its diagnostics; the names of a response count as one."""

    def one(request: Request) -> Any:
        if isinstance(request, DrawRequest):
            return "draw", request.prompts, request.n, request.tilt is None
        if isinstance(request, LabelRequest):
            return [
                (item.prompt, *(int(name) // names for name in (item.response, item.opponent) if name is not None))
                for item in request.items
            ]
        return "stop"

    return [one(request) for request in trace.requests]


def close(first: FloatArray, second: FloatArray) -> bool:
    """Whether these are equal but for rounding, relative to their size where that is above 1."""
    return bool(np.max(np.abs(first - second)) <= ROUNDING * max(1.0, float(np.max(np.abs(first)))))


def reading(explorer: Explorer, task: TabularEnvironment, env: TabularEnvironment, seed: int) -> FloatArray:
    """[1 + Y + 2 X Y] what a run of ``task`` came to: its regret, labels by response, shares by prompt, its policy.

    ``env`` is the task as it was first written, whose responses may have several names in ``task``.
    """
    trace = drive(explorer, Bench(Reseeded(task, seed), spec_of(task, labels=24)), seed=seed)
    names = task.base_probs.shape[1] // env.base_probs.shape[1]
    labels = np.zeros(env.base_probs.shape)
    for item in trace.bench.asked:
        for name in (item.response, item.opponent):
            if name is not None:
                labels[item.prompt, int(name) // names] += 1.0
    table = merged(explorer.policy(trace.state).table(task), names)
    within = labels / np.maximum(labels.sum(axis=1, keepdims=True), 1.0)
    return np.concatenate([[env.regret(table)], labels.sum(axis=0), within.ravel(), table.ravel()])


def assert_same_law(explorer: Explorer, task: TabularEnvironment, env: TabularEnvironment) -> None:
    """Regrets and labels of independent runs of both differ in their means by no more than chance allows."""
    first = np.array([reading(explorer, env, env, seed) for seed in range(SEEDS)])
    second = np.array([reading(explorer, task, env, seed) for seed in range(SEEDS, 2 * SEEDS)])
    gap = np.abs(first.mean(axis=0) - second.mean(axis=0))
    error = np.sqrt((first.var(axis=0, ddof=1) + second.var(axis=0, ddof=1)) / SEEDS)
    limit = norm.isf(CONFIDENCE / 2 / len(gap)) * error + ROUNDING
    worst = int(np.argmax(gap / limit))
    assert gap[worst] <= limit[worst], f"mean {worst} moved by {gap[worst]:.3g}, chance allows {limit[worst]:.3g}"


# --- laws of invariance ---------------------------------------------------------------------------------------------


def a_common_shift_changes_nothing(explorer: Explorer, env: TabularEnvironment) -> None:
    """All rewards plus one number: the same requests, theta and policy but for rounding.

    Exact for everyone: pairs take differences, and single labels are fitted with a flat mean mu.
    """
    other = shifted(env, 2.0)
    first, second = (drive(explorer, Bench(task, spec_of(task))) for task in (env, other))
    assert asked(first) == asked(second), "other requests"
    policy, moved = explorer.policy(first.state), explorer.policy(second.state)
    assert close(policy.theta, moved.theta), "another theta"
    assert close(policy.table(env), moved.table(other)), "another policy"


PROMPT_SHIFT = 10.0
"""Largest shift of a prompt's rewards: 25 standard deviations of the label noise of `generic`."""
SAME_LABELS = 0.1
"""What such a shift of 60 given labels may cost, as a share of the regret without labels. Seen: below .001, but .04 for
`coreset`, which asks for few responses of a prompt again and again, and so compares less within prompts."""
OTHER_LABELS = 0.1
"""What it may cost a run of 60 labels, which then asks for others. Seen: below .01, `coreset` .05."""


def shifts(env: TabularEnvironment) -> FloatArray:
    """[X] a number for each prompt, large and of both signs."""
    return PROMPT_SHIFT * np.cos(2.4 * np.arange(len(env.prompt_probs)))


def shift_labels(events: Iterable[Event], shift: FloatArray) -> list[Event]:
    """The events with ``shift`` [X] added to the labels of each prompt."""

    def one(label: Label) -> Label:
        scalar = label.value is not None and label.opponent is None  # a shift changes no comparison
        return replace(label, value=label.value + shift[label.prompt]) if scalar else label

    return [
        replace(event, labels=tuple(map(one, event.labels))) if isinstance(event, Labelled) else event
        for event in events
    ]


def cost_of_a_prompt_shift(explorer: Explorer, env: TabularEnvironment) -> float:
    """beta E KL between the policies of 60 labels, shifted and not, as a share of the regret without labels."""
    trace = drive(explorer, Bench(env, spec_of(env, labels=60)))
    state = explorer.init(trace.bench.spec)
    for event in shift_labels(trace.events, shifts(env)):
        state = explorer.absorb(state, event)
    moved, table = explorer.policy(state).table(env), explorer.policy(trace.state).table(env)
    divergence = kl_divergence(moved, table)
    return float(env.beta * (env.prompt_probs @ divergence) / env.regret(env.base_probs))


def prompt_shifts_hardly_matter(explorer: Explorer, env: TabularEnvironment) -> None:
    """A number for each prompt added to all its rewards moves the policy by next to nothing.

    It changes no optimal policy. Differences within a pair do not see it (`test_invariances.py` asserts that the
    published schedule is exact). Single labels with a random intercept per prompt see it in one way only: the larger
    the intercepts' variance appears, the less labels of different prompts are compared with each other; that is a share
    of about one in so many labels as a prompt has. So the promise is a bound: the same labels, shifted by up to 25
    standard deviations of their noise, move the policy by at most `SAME_LABELS` of what there is to gain, and a whole
    run in the shifted task ends within `OTHER_LABELS` of the regret it had.
    """
    start = env.regret(env.base_probs)
    assert abs(cost_of_a_prompt_shift(explorer, env)) <= SAME_LABELS, "the same labels, shifted, give another policy"
    ends = []
    for task in (env, shifted(env, shifts(env))):
        trace = drive(explorer, Bench(task, spec_of(task, labels=60)))
        ends.append(env.regret(explorer.policy(trace.state).table(task)))
    assert abs(ends[1] - ends[0]) <= OTHER_LABELS * start, f"regret {ends[0]:.3g} became {ends[1]:.3g} of {start:.3g}"


def a_rotation_changes_nothing(explorer: Explorer, env: TabularEnvironment) -> None:
    """Features in another orthonormal basis: the same requests, theta in that basis, the same policy.

    Exact unless the explorer draws random directions, whose law alone is the same: then so is the run's.
    """
    rotation = ortho_group.rvs(env.dim, random_state=3)
    other = rotated(env, rotation)
    first, second = (drive(explorer, Bench(task, spec_of(task))) for task in (env, other))
    policy, turned = explorer.policy(first.state), explorer.policy(second.state)
    exact = asked(first) == asked(second) and close(policy.theta @ rotation, turned.theta)
    if not (exact and close(policy.table(env), turned.table(other))):
        assert_same_law(explorer, other, env)


def names_change_nothing(explorer: Explorer, env: TabularEnvironment) -> None:
    """A response under several names, with the same features and a share of its mass each: the same law of the run.

    Exact where the draws and labels of one run can be handed to the other under new names; in distribution for those
    who use random numbers by name: a tilted draw from a pool, rejection sampling by counts.
    """
    other = split(env)
    first = drive(explorer, Bench(env, spec_of(env)))
    second = drive(explorer, SplitBench(env, spec_of(env)))
    policy, renamed = explorer.policy(first.state), explorer.policy(second.state)
    exact = asked(first) == asked(second, NAMES) and close(policy.theta, renamed.theta)
    if not (exact and close(policy.table(env), merged(renamed.table(other), NAMES))):
        assert_same_law(explorer, other, env)


INVARIANCE_LAWS: tuple[Callable[[Explorer, TabularEnvironment], None], ...] = (
    a_common_shift_changes_nothing,
    prompt_shifts_hardly_matter,
    a_rotation_changes_nothing,
    names_change_nothing,
)
