"""Laws that every environment and every explorer must obey: plain functions that raise where one is broken.

`test_laws.py` runs them over all of both, and shows that each fails on an object broken on purpose. `Bench` is the
other side of an explorer: it draws, rewards, counts and remembers, without a ledger or a driver.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import chi2, norm

from spannerlm.environments import (
    FAMILIES,
    MODIFIERS,
    HeteroscedasticEnvironment,
    TabularEnvironment,
    environment,
    max_k_dnf,
    rare_skill,
    tie,
)
from spannerlm.explorers import EXPLORERS, Explorer, TheorySpannerSampling
from spannerlm.explorers.learner import asked
from spannerlm.policy import TruncatedSoftmaxPolicy
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Draws,
    Event,
    FloatArray,
    Label,
    LabelItem,
    Labelled,
    LabelRequest,
    Outcome,
    Request,
    Spec,
    StopRequest,
)
from spannerlm.samplers import softmax_sampler

CONFIDENCE = 1e-6
"""Chance that a statistical law fails on an object that obeys it, if its seed were drawn afresh."""


# --- what the laws are run over -------------------------------------------------------------------------------------


def random_table(seed: int, *, prompts: int = 4, responses: int = 7, dim: int = 3) -> TabularEnvironment:
    """An asymmetric environment with nothing special about it, not realizable, zeros in pi_ref and in rho."""
    rng = np.random.default_rng(seed)
    base = rng.dirichlet(np.full(responses, 0.7), size=prompts)
    base[0, 2] = base[1, 0] = base[1, 5] = 0.0
    base /= base.sum(axis=1, keepdims=True)
    rho = rng.dirichlet(np.ones(prompts))
    rho[-1] = 0.0
    features, rewards = rng.normal(size=(prompts, responses, dim)), rng.normal(size=(prompts, responses))
    return TabularEnvironment(rho / rho.sum(), base, features, rewards, beta=0.37, noise_std=0.4)


def environments() -> dict[str, TabularEnvironment]:
    """The few that explorers are held to: a hidden value, nothing rare, two responses, random tables."""
    return {
        "rare-skill": rare_skill(0.05, prompts=5, seed=3),
        "tie": tie(prompts=4, responses=9, dim=3, seed=3),
        "max-k-dnf": max_k_dnf(2, n=4, prompts=12, noise_std=0.5, seed=3),
        "random": random_table(1),
        "one prompt": random_table(2, prompts=2, dim=2),
    }


def explorers() -> dict[str, Explorer]:
    """Every explorer by name with its defaults but for small pools, and the published schedule, cut short."""
    found = {name: build() for name, build in EXPLORERS.items()}
    fields = {name: {f.name for f in dataclasses.fields(e)} for name, e in found.items() if dataclasses.is_dataclass(e)}
    found = {name: replace(e, pool=16) if "pool" in fields.get(name, ()) else e for name, e in found.items()}
    short = {"t_span": 40, "n_span": 6, "t_exp": 200, "nu": 0.9, "bound": 3.0}
    return {**found, "theory": TheorySpannerSampling(c_cov=3.0, overrides=short)}


class Compared(TabularEnvironment):
    """An environment whose labels are comparisons, and nothing else."""

    feedback = "comparison"

    def reward(self, seed: int) -> Any:
        """None to be had."""
        raise AssertionError("a reward was asked for where labels are comparisons")


def compared(env: TabularEnvironment) -> Compared:
    """The same task, labelled by comparisons."""
    arrays = env.prompt_probs, env.base_probs, env.features, env.mean_rewards
    return Compared(*arrays, beta=env.beta, noise_std=env.noise_std)


def comparing_environments() -> dict[str, TabularEnvironment]:
    """The smallest of `environments`, labelled by comparisons: a logistic fit takes its time."""
    return {name: compared(environments()[name]) for name in ("tie", "one prompt")}


def comparing_explorers() -> dict[str, Explorer]:
    """Those that learn from comparisons."""
    return {name: explorer for name, explorer in explorers().items() if getattr(explorer, "comparisons", False)}


# --- laws of environments -------------------------------------------------------------------------------------------

SMALL: dict[str, dict[str, Any]] = {
    "rare-skill": {"p": 0.05, "prompts": 9},
    "power-law": {"p": 0.05, "prompts": 9},
    "deceptive": {"p": 0.05, "prompts": 9},
    "decoys": {"mass": 0.2, "rare": 4, "prompts": 6},
    "low-variance": {"prompts": 5, "responses": 30, "dim": 6},
    "near-orthogonal": {"c": 64},
    "max-k-dnf": {"k": 3, "n": 8, "prompts": 60},
    "tie": {"prompts": 4, "responses": 9, "dim": 3},
    "random-table": {"prompts": 5, "responses": 30, "binary": 0},
}
"""Parameters of a small member of each family."""

SETTINGS: dict[str, dict[str, Any]] = {
    "misspecified": {"zeta": 0.5},
    "irrelevant-directions": {"extra": 3, "rare": 0.1},
    "duplicated": {"copies": 2},
    "rotated": {},
    "prompt-intercepts": {"std": 1.5},
    "heteroscedastic": {"spread": 9.0},
    "heavy-noise": {"factor": 3.0},
}
"""Parameters of each modifier."""


def small(name: str, *modifiers: str) -> TabularEnvironment:
    """A small member of a family, with the modifiers of these names."""
    return environment(name, seed=3, modifiers={m: SETTINGS[m] for m in modifiers}, **SMALL[name])


def families() -> dict[str, tuple[str, ...]]:
    """What the laws of environments run over: each family as it is, with each modifier, and with all of them."""
    chosen = [(), *((m,) for m in MODIFIERS), tuple(MODIFIERS)]
    return {" + ".join((name, *mods)): (name, *mods) for name in FAMILIES for mods in chosen}


def noise_of(env: TabularEnvironment, x: int, y: int) -> float:
    """The declared standard deviation of labels of one response."""
    shape = env.noise_shape[x, y] if isinstance(env, HeteroscedasticEnvironment) else 1.0
    return float(env.noise_std * shape)


def policies(env: TabularEnvironment, seed: int) -> list[FloatArray]:
    """Tables [X, Y] within the support of pi_ref: the base, the optimum, random ones, a point mass."""
    rng = np.random.default_rng(seed)
    weights = rng.gamma(0.5, size=(3, *env.base_probs.shape)) * (env.base_probs > 0.0)
    point = np.zeros_like(env.base_probs)
    point[np.arange(len(point)), env.base_probs.argmax(axis=1)] = 1.0
    random = [table / table.sum(axis=1, keepdims=True) for table in weights]
    return [env.base_probs / env.base_probs.sum(axis=1, keepdims=True), env.optimal_policy(), point, *random]


def slow_value(env: TabularEnvironment, policy: FloatArray) -> float:
    """J_beta of a table, term by term (THEORY 1)."""
    total = 0.0
    for x, rho in enumerate(env.prompt_probs):
        if rho == 0.0:
            continue
        for p, base, reward in zip(policy[x], env.base_probs[x], env.mean_rewards[x], strict=True):
            if p > 0.0:
                total += rho * p * (reward - env.beta * np.log(p / base))
    return float(total)


def value_is_the_objective(env: TabularEnvironment) -> None:
    """`value` is J_beta, summed slowly."""
    for policy in policies(env, 5):
        np.testing.assert_allclose(env.value(policy), slow_value(env, policy), rtol=0, atol=1e-12)


def regret_is_the_divergence_from_the_optimum(env: TabularEnvironment) -> None:
    """J(pi*) - J(pi) = beta E KL(pi || pi*), and `regret` is both (THEORY 1)."""
    optimum = env.optimal_policy()
    for policy in policies(env, 6):
        kl = sum(
            rho * sum(p * np.log(p / q) for p, q in zip(row, best, strict=True) if p > 0.0)
            for rho, row, best in zip(env.prompt_probs, policy, optimum, strict=True)
            if rho > 0.0
        )
        gap = slow_value(env, optimum) - slow_value(env, policy)
        np.testing.assert_allclose([env.regret(policy), env.beta * kl], gap, rtol=0, atol=1e-12)


def optimum_is_optimal(env: TabularEnvironment) -> None:
    """`optimal_policy` is a policy of value `optimal_value`, and every direction away from it is downhill."""
    optimum = env.optimal_policy()
    np.testing.assert_allclose(optimum.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(slow_value(env, optimum), env.optimal_value(), rtol=0, atol=1e-12)
    for policy in policies(env, 7):
        for step in (1.0, 1e-2):
            near = (1.0 - step) * optimum + step * policy
            assert slow_value(env, near) <= env.optimal_value() + 1e-12


def coverage_is_the_largest_ratio(env: TabularEnvironment) -> None:
    """C_cov bounds pi*/pi_ref wherever both can occur, is attained, and lies in [1, exp(range/beta)]."""
    ratios = [
        best / base
        for rho, row, refs in zip(env.prompt_probs, env.optimal_policy(), env.base_probs, strict=True)
        for best, base in zip(row, refs, strict=True)
        if rho > 0.0 and base > 0.0
    ]
    np.testing.assert_allclose(env.coverage(), max(ratios), rtol=1e-12)
    possible = env.base_probs > 0.0
    assert 1.0 <= env.coverage() <= np.exp(np.ptp(env.mean_rewards[possible]) / env.beta) * (1 + 1e-12)


def draws_follow_the_base(env: TabularEnvironment, n: int = 4000) -> None:
    """Counts, responses and features of `draw` are those of pi_ref: exact bookkeeping, and a chi-square of the law."""
    support = [x for x, rho in enumerate(env.prompt_probs) if rho > 0.0]
    for draws in env.draw(support, n, rng=np.random.default_rng(8)):
        assert len(set(draws.responses)) == len(draws.responses) == len(draws.counts)
        assert draws.counts.min() > 0
        assert draws.counts.sum() == n
        rows = [int(response) for response in draws.responses]
        np.testing.assert_array_equal(draws.features, env.features[draws.prompt, rows])
        counts = np.zeros(env.base_probs.shape[1])
        counts[rows] = draws.counts
        expected = n * env.base_probs[draws.prompt]
        assert not counts[expected == 0.0].any()
        used = expected > 0.0
        statistic = np.sum((counts[used] - expected[used]) ** 2 / expected[used])
        assert statistic <= chi2.isf(CONFIDENCE, used.sum() - 1)


def labels_have_the_declared_mean_and_noise(env: TabularEnvironment, n: int = 4000) -> None:
    """Replicates of one response average to its mean reward, spread as declared, and do not depend on company."""
    x, y = 0, int(env.base_probs[0].argmax())
    std = noise_of(env, x, y)
    reward = env.reward(9)
    values = np.array(reward([str(x)] * n, [str(y)] * n, replicate=range(n)), dtype=np.float64)
    z = norm.isf(CONFIDENCE / 2)
    assert abs(values.mean() - env.mean_rewards[x, y]) <= z * std / np.sqrt(n) + 1e-12
    assert abs(values.std() - std) <= z * std / np.sqrt(2 * n) + 1e-12
    assert reward([str(x)], [str(y)], replicate=[17]) == [values[17]]


ENVIRONMENT_LAWS: tuple[Callable[[TabularEnvironment], None], ...] = (
    value_is_the_objective,
    regret_is_the_divergence_from_the_optimum,
    optimum_is_optimal,
    coverage_is_the_largest_ratio,
    draws_follow_the_base,
    labels_have_the_declared_mean_and_noise,
)


# --- the other side of an explorer ----------------------------------------------------------------------------------


@dataclass
class Bench:
    """Oracle, rater and books of one run of an explorer."""

    env: Any
    """Anything with `draw`, `reward` and, where comparisons are asked for, `comparison`."""
    spec: Spec
    declined: Callable[[int, str], bool] = lambda _x, _y: False
    """Which responses the rater declines: their label is a skip, and that of every pair they are in."""
    spent: int = 0
    base_spent: int = 0
    """Draws that no softmax sampler made."""
    asked: list[LabelItem] = field(default_factory=list)
    known: dict[tuple[Any, ...], list[float | None]] = field(default_factory=dict)
    """Replicates by (prompt, response), or by (prompt, first, second) in alphabetical order: 1 if first wins."""
    rows: dict[tuple[int, str], FloatArray] = field(default_factory=dict)

    def answer(self, k: int, request: Request) -> Outcome:
        """The outcome of a draw or label request."""
        if isinstance(request, DrawRequest):
            return self._drawn(k, request)
        assert isinstance(request, LabelRequest)
        labels = tuple(self._label(item) for item in request.items)
        features = np.array([self._phi(item) for item in request.items])
        return Labelled(labels, features, request.info)

    def _drawn(self, k: int, request: DrawRequest) -> Drawn:
        rng = np.random.default_rng([77, k])
        before, tilt = self.spent, request.tilt
        if request.info.get("enumerate"):
            draws = self._told(self._list(request.prompts, request.n))
            return Drawn(draws, self.spent - before, info=request.info)
        if tilt is None:
            draws = self._draw(request.prompts, request.n, rng)
            self.base_spent += self.spent - before
            return Drawn(draws, self.spent - before, info=request.info)
        policy = TruncatedSoftmaxPolicy(tilt.theta, tilt.beta, tilt.root, tilt.nu)
        found = [
            softmax_sampler(
                lambda n, x=x: self._draw((x,), n, rng)[0],
                lambda phi, i=i: policy.scores(phi, tilt.anchors[i]) / tilt.beta,
                bound=tilt.bound,
                delta=tilt.delta,
                rng=rng,
            )
            for i, x in enumerate(request.prompts)
        ]
        one = np.ones(1, dtype=np.int64)
        draws = tuple(Draws(x, a.responses, one, a.features) for x, a in zip(request.prompts, found, strict=True))
        return Drawn(draws, self.spent - before, tuple(a.exhausted for a in found), request.info)

    def _draw(self, prompts: Iterable[int], n: int, rng: np.random.Generator) -> tuple[Draws, ...]:
        return self._told(self.env.draw(tuple(prompts), n, rng=rng))

    def _list(self, prompts: tuple[int, ...], limit: int) -> tuple[Draws, ...]:
        found: tuple[Draws, ...] = self.env.enumerate(prompts, limit)
        return found

    def _told(self, draws: tuple[Draws, ...]) -> tuple[Draws, ...]:
        self.spent += sum(int(record.counts.sum()) for record in draws)
        for record in draws:
            for response, phi in zip(record.responses, record.features, strict=True):
                self.rows[record.prompt, response] = phi
        return draws

    def _label(self, item: LabelItem) -> Label:
        """As the ledger does: a fresh item is a new replicate, any other is bought once, a pair whichever way round."""
        x, y, opponent = item.prompt, item.response, item.opponent
        texts = (y,) if opponent is None else tuple(sorted((y, opponent)))
        for text in texts:
            assert (x, text) in self.rows, f"label asked for {x, text}, which was never drawn"
        assert len(set(texts)) == len(texts), f"{x, y} compared with itself"
        self.asked.append(item)
        replicates = self.known.setdefault((x, *texts), [])
        reused = bool(replicates) and not item.fresh
        k = 0 if reused else len(replicates)
        if not reused:
            replicates.append(None if any(self.declined(x, text) for text in texts) else self._value(x, texts, k))
        value = replicates[k]
        if value is not None and y != texts[0]:
            value = 1.0 - value
        return Label(x, y, value, k, "skip" if value is None else "label", charged=not reused, opponent=opponent)

    def _value(self, x: int, texts: tuple[str, ...], k: int) -> float | None:
        """Replicate k of a reward, or of a comparison as of its first text."""
        rater = self.env.reward(1) if len(texts) == 1 else self.env.comparison(1, self.spec.scale)
        return rater([str(x)], *([text] for text in texts), replicate=[k])[0]

    def _phi(self, item: LabelItem) -> FloatArray:
        """Relative where responses are compared."""
        phi = self.rows[item.prompt, item.response]
        return phi if item.opponent is None else phi - self.rows[item.prompt, item.opponent]

    @property
    def bought(self) -> int:
        """Labels charged, skips included."""
        return sum(len(values) for values in self.known.values())


@dataclass
class Trace:
    """What one run of an explorer left behind."""

    state: Any
    bench: Bench
    events: list[Event]
    """Requests and outcomes in the order in which they were absorbed."""
    requests: list[Request]
    """What was decided, the last stop request included."""
    most_out: int
    """Labels that were out at once, at most."""

    @property
    def stop(self) -> StopRequest:
        """Why it ended."""
        assert isinstance(self.requests[-1], StopRequest)
        return self.requests[-1]


def drive(explorer: Explorer, bench: Bench, *, seed: int = 0, delay: int = 0, steps: int = 3000) -> Trace:
    """Run the explorer until it stops, with up to ``delay`` label requests out while it decides again."""
    state = explorer.init(bench.spec)
    trace = Trace(state, bench, [], [], 0)
    out: list[Outcome] = []

    def absorb(event: Event) -> None:
        trace.events.append(event)
        trace.state = explorer.absorb(trace.state, event)

    for k in range(steps):
        request = explorer.decide(trace.state, rng=np.random.default_rng([seed, k]))
        if isinstance(request, StopRequest) and not out:
            trace.requests.append(request)
            return trace
        if isinstance(request, StopRequest):
            absorb(out.pop(0))
            continue
        trace.requests.append(request)
        absorb(request)
        outcome = bench.answer(k, request)
        if isinstance(outcome, Labelled):
            out.append(outcome)
            trace.most_out = max(trace.most_out, sum(len(o.labels) for o in out if isinstance(o, Labelled)))
        else:
            absorb(outcome)
        while len(out) > delay:
            absorb(out.pop(0))
    raise AssertionError(f"no stop after {steps} requests")


def spec_of(env: TabularEnvironment, **changes: Any) -> Spec:
    """What an explorer is told of an environment: 40 fresh labels in batches of 6, unless changed."""
    feedback = getattr(env, "feedback", "scalar")
    told = {"labels": 40, "draws": None, "batch": 6, "beta": env.beta, "fresh": True, "feedback": feedback, **changes}
    return Spec(env.prompt_probs, env.dim, **told)


def fingerprint(value: Any) -> Any:
    """Everything that a state, request or outcome holds, as plain comparable values; cached results left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, {f.name: fingerprint(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return {key: fingerprint(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [fingerprint(entry) for entry in value]
    return repr(value)


# --- laws of explorers ----------------------------------------------------------------------------------------------


def deciding_changes_nothing(explorer: Explorer, env: TabularEnvironment) -> None:
    """`decide`, `policy`, `progress` leave the state as it is, `absorb` leaves the old one; all repeat themselves."""
    bench = Bench(env, spec_of(env))
    state = explorer.init(bench.spec)
    for k in range(3000):
        before = fingerprint(state)
        request, again = (explorer.decide(state, rng=np.random.default_rng(k)) for _ in range(2))
        explorer.policy(state).table(env)
        explorer.progress(state)
        assert fingerprint(state) == before, "decide, policy or progress changed the state"
        assert fingerprint(request) == fingerprint(again), "decide is not determined by state and rng"
        if isinstance(request, StopRequest):
            return
        asked = explorer.absorb(state, request)
        assert fingerprint(state) == before, "absorb changed the old state"
        state, before = asked, fingerprint(asked)
        outcome = bench.answer(k, request)
        told, again = explorer.absorb(state, outcome), explorer.absorb(state, outcome)
        assert fingerprint(state) == before, "absorb changed the old state"
        assert fingerprint(told) == fingerprint(again), "absorb is not determined by state and event"
        state = told
    raise AssertionError("no stop")


def a_run_is_a_fold_of_its_events(explorer: Explorer, env: TabularEnvironment) -> None:
    """Absorbing the events of a run from the start gives its state, its policy and its next decision again."""
    for delay in (0, 3):
        trace = drive(explorer, Bench(env, spec_of(env)), delay=delay)
        state = explorer.init(trace.bench.spec)
        for event in trace.events:
            state = explorer.absorb(state, event)
        assert fingerprint(state) == fingerprint(trace.state)
        np.testing.assert_array_equal(explorer.policy(state).table(env), explorer.policy(trace.state).table(env))


def seeds_decide(explorer: Explorer, env: TabularEnvironment) -> None:
    """The same seed asks for the same, another seed for something else."""
    first, same, other = (drive(explorer, Bench(env, spec_of(env)), seed=seed) for seed in (1, 1, 2))
    assert fingerprint(first.requests) == fingerprint(same.requests)
    assert fingerprint(first.requests) != fingerprint(other.requests)


def budgets_hold(explorer: Explorer, env: TabularEnvironment) -> None:
    """Labels and draws never exceed their budgets, odd ones and ones below a batch included, labels out or not."""
    for labels, batch, draws, delay in ((1, 20, None, 0), (7, 20, None, 2), (23, 5, 2000, 3), (40, 6, 70, 0)):
        spec = spec_of(env, labels=labels, batch=batch, draws=draws)
        trace = drive(explorer, Bench(env, spec), delay=delay)
        assert trace.bench.bought <= labels
        assert draws is None or trace.bench.spent <= draws
        sizes = [len(r.items) for r in trace.requests if isinstance(r, LabelRequest)]
        assert all(0 < size <= max(batch, 2) for size in sizes)
        assert explorer.learner(trace.state).bought == trace.bench.bought
        assert explorer.learner(trace.state).drawn == trace.bench.spent
        assert delay == 0 or labels <= 2 * batch or trace.most_out > batch, "nothing was decided while labels were out"


def every_label_is_spent(explorer: Explorer, env: TabularEnvironment) -> None:
    """Where labels are fresh and draws free, the whole budget is spent, and the stop says so."""
    for labels, delay in ((2, 0), (26, 0), (26, 2)):
        trace = drive(explorer, Bench(env, spec_of(env, labels=labels)), delay=delay)
        assert trace.bench.bought == labels, trace.stop.reason


def nothing_is_asked_twice(explorer: Explorer, env: TabularEnvironment) -> None:
    """Where a label settles its response, no response is asked for again: answered, out, skipped or told by others."""
    spec = spec_of(env, fresh=False)
    spec = replace(spec, labels=400 if spec.feedback == "scalar" else 100)  # of 21 pairs or 144, of 20 to 205 responses

    def declined(x: int, y: str) -> bool:
        return (x + int(y)) % 3 == 0

    for delay in (0, 3):
        trace = drive(explorer, Bench(env, spec, declined), delay=delay)
        again = [item for item, n in Counter(map(asked, trace.bench.asked)).items() if n > 1]
        assert not again, again[:3]
        assert not any(item.fresh for item in trace.bench.asked)
        assert any(value is None for values in trace.bench.known.values() for value in values)


def labels_from_elsewhere_count(explorer: Explorer, env: TabularEnvironment) -> None:
    """A label that was never asked for is learned from, before the first draw or later, and counts as bought."""
    for early in (True, False):
        bench, state, _ = drive_and_tell(explorer, env, early=early)
        assert np.isfinite(explorer.policy(state).table(env)).all()
        assert explorer.learner(state).bought == bench.bought <= bench.spec.labels


def what_others_told_is_not_asked(explorer: Explorer, env: TabularEnvironment) -> None:
    """A response or pair whose label came from elsewhere is not asked for, where a label settles it."""
    for early in (True, False):
        bench, _, told = drive_and_tell(explorer, env, early=early)
        assert asked(told) not in map(asked, bench.asked), "asked for what had been told by others"


def drive_and_tell(explorer: Explorer, env: TabularEnvironment, *, early: bool) -> tuple[Bench, Any, LabelItem]:
    """A run into which a label from elsewhere falls: before its first draw, or after its first labels."""
    bench = Bench(env, spec_of(env, labels=60, fresh=False))
    state, told = explorer.init(bench.spec), None
    for k in range(3000):
        if told is None and (early or explorer.learner(state).bought > 0):
            state, told = _tell_most_frequent(explorer, env, bench, state)
        request = explorer.decide(state, rng=np.random.default_rng(k))
        if isinstance(request, StopRequest):
            assert told is not None
            return bench, state, told
        state = explorer.absorb(state, request)
        state = explorer.absorb(state, bench.answer(k, request))
    raise AssertionError("no stop")


def _tell_most_frequent(explorer: Explorer, env: TabularEnvironment, bench: Bench, state: Any) -> tuple[Any, LabelItem]:
    """The state after a foreign label of the likeliest response or pair that has none, and what was labelled."""
    item = next(item for item in _likeliest(env, bench.spec) if asked(item) not in bench.known)
    x, opponent = item.prompt, item.opponent
    value, phi = 3.0, env.features[x, [int(item.response)]]
    if opponent is not None:
        value, phi = 1.0, phi - env.features[x, int(opponent)]
    bench.known[asked(item)] = [value if opponent is None or item.response < opponent else 1.0 - value]
    before = explorer.learner(state)
    state = explorer.absorb(state, Labelled((Label(x, item.response, value, opponent=opponent),), phi))
    after = explorer.learner(state)
    learned = after.stats.labels + after.comparisons.comparisons - before.stats.labels - before.comparisons.comparisons
    assert learned == 1, "a label from elsewhere was not learned from"
    assert opponent is not None or after.stats.value_sums[x] == before.stats.value_sums[x] + value
    return state, item


def _likeliest(env: TabularEnvironment, spec: Spec) -> Iterable[LabelItem]:
    """What may be labelled, by prompt and then by response, the likeliest first; pairs hold the likeliest of all."""
    for x in np.argsort(-env.prompt_probs)[: np.count_nonzero(env.prompt_probs)]:
        first, *others = (str(y) for y in np.argsort(-env.base_probs[x]))
        if spec.feedback == "comparison":
            yield from (LabelItem(int(x), first, opponent=y) for y in others)
        else:
            yield from (LabelItem(int(x), y) for y in (first, *others))


@dataclass
class Oracle:
    """Draws and labels of ``truth``; what is drawn, and nothing else, is written into the features ``shown``."""

    truth: TabularEnvironment
    shown: FloatArray
    """[X, Y, d]"""

    def draw(self, prompts: Iterable[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """The draws, which are shown from now on."""
        found = self.truth.draw(tuple(prompts), n, rng=rng)
        for record in found:
            self.shown[record.prompt, [int(y) for y in record.responses]] = record.features
        return found

    def enumerate(self, prompts: Iterable[int], limit: int) -> tuple[Draws, ...]:
        """Nothing: a model cannot list its responses."""
        raise AssertionError("asked for responses that were never drawn")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.truth, name)


def only_draws_are_seen(explorer: Explorer, env: TabularEnvironment) -> None:
    """Hiding all there is to know but what the oracle has returned so far changes no request and no parameter.

    Hidden are the features of responses until they are drawn, all probabilities and all mean rewards.
    """
    spec = spec_of(env, labels=12, draws=400)
    trace = drive(explorer, Bench(env, spec))
    truth = {name: getattr(env, name) for name in ("features", "base_probs", "mean_rewards")}
    hidden = {name: np.full_like(array, np.nan) for name, array in truth.items()}
    oracle = Oracle(replace(env), hidden["features"])
    for name, array in hidden.items():
        object.__setattr__(env, name, array)  # in place: an explorer may hold the environment itself
    try:
        again = drive(explorer, Bench(oracle, spec))
        theta = explorer.policy(again.state).theta
    finally:
        for name, array in truth.items():
            object.__setattr__(env, name, array)
    assert fingerprint(again.requests) == fingerprint(trace.requests)
    assert np.isfinite(theta).all()
    np.testing.assert_array_equal(theta, explorer.policy(trace.state).theta)


def degenerate_tasks_end_well(explorer: Explorer, env: TabularEnvironment) -> None:
    """Constant features, no features, equal rewards, no noise, odd scales: a finite policy, and a reason to stop."""
    ones = np.ones_like(env.features)
    flat = np.zeros_like(env.mean_rewards)
    for features, rewards, noise in (
        (1e3 * ones, env.mean_rewards, 0.4),
        (0.0 * ones, env.mean_rewards, 0.4),
        (env.features, flat + 2.0, 0.0),
        (1e6 * env.features, env.mean_rewards, 0.4),
        (1e-6 * env.features + 10.0, 1e4 * env.mean_rewards, 0.0),
    ):
        task = replace(env, features=features, mean_rewards=rewards, noise_std=noise)
        for fresh in (True, False):
            trace = drive(explorer, Bench(task, spec_of(task, labels=13, draws=300, fresh=fresh)))
            table = explorer.policy(trace.state).table(task)
            assert np.isfinite(table).all(), trace.stop.reason
            np.testing.assert_allclose(table.sum(axis=1), 1.0, rtol=0, atol=1e-9)
            assert trace.stop.reason


EXPLORER_LAWS: tuple[Callable[[Explorer, TabularEnvironment], None], ...] = (
    deciding_changes_nothing,
    a_run_is_a_fold_of_its_events,
    seeds_decide,
    budgets_hold,
    every_label_is_spent,
    nothing_is_asked_twice,
    labels_from_elsewhere_count,
    what_others_told_is_not_asked,
    only_draws_are_seen,
    degenerate_tasks_end_well,
)
