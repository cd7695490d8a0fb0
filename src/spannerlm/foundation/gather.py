"""Draws, rewards and labels of a model for its coverage report, each counted in a ledger and kept by it (THEORY 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spannerlm.backends.oracle import ModelOracle, TextModel
from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.explorers import explorer_by_name
from spannerlm.features import Concatenation, FeatureMap, LogprobLength, feature_map
from spannerlm.foundation.bounds import laws_of, plain
from spannerlm.foundation.pool import Labels, Pool
from spannerlm.foundation.steps import Steps, steps_by_rollouts
from spannerlm.ledger import Counts, Ledger
from spannerlm.oracle import SamplingOracle, TokenOracle
from spannerlm.progress import Progress
from spannerlm.records import Drawn, DrawRequest, Draws, FloatArray, LabelItem, Spec
from spannerlm.rewards import RewardFunction, call_reward
from spannerlm.run import Driver
from spannerlm.segments import segments as parsed_segments
from spannerlm.stepwise import rolled

CANDIDATES: tuple[Any, ...] = ("hidden", "before-eos", "ngrams", "logprob-length")
"""Feature maps that are tested unless told otherwise: hidden states two ways, the text, and how sure and long it is."""
SERVED: tuple[Any, ...] = ("ngrams",)
"""The same for a model behind a server."""
TOLD = LogprobLength()
"""Drawn beside every map: it brings log-probabilities and lengths."""
BRIEF = {"kind": "ngrams", "dim": 1}
"""In its place where segments come from a server, which need not tell these: nobody reads features of segments."""

STEPS = "steps"
"""Folder, within a model's, of the ledger of what was drawn step by step."""

Observer = Callable[[Progress], None]


@dataclass(frozen=True)
class Source:
    """Where rewards come from."""

    reward: RewardFunction | None = None
    free: bool = False
    """Whether it costs nothing and always gives the same: then every draw is graded."""
    noise_std: float = 0.0
    """Noise that a label of a free reward would have (standard deviation)."""
    labels: int = 0
    """Random draws to have rewarded where it is not free."""
    parts: Mapping[str, RewardFunction] = field(default_factory=dict)
    """Name of a part of the reward -> the free function that gives it."""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """[X] per column, by name."""


@dataclass(frozen=True)
class StepPlan:
    """What going step by step is looked at with (`foundation.steps`)."""

    segments: Any
    """What a step is (see `spannerlm.segments.segments`)."""
    kl: float
    """KL budget in nats, which fixes beta on the pool."""
    prompts: int = 16
    """At most, evenly spread."""
    pool: int = 512
    """Whole answers of each: as many as the report's draws unless told otherwise, to show as much."""
    rollouts: int = 16
    """From each prefix of the answers that are looked at."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """A pool and what it has cost."""

    pool: Pool
    counts: Counts
    warnings: tuple[str, ...] = ()
    steps: Steps | None = None
    """Whole answers against step by step, where asked for."""


def map_name(spec: Any) -> str:
    """A short name for the specification of a feature map."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, Mapping):
        shown = [f"{key}={value}" for key, value in spec.items() if key != "kind"]
        return " ".join([str(spec.get("kind")), *shown])
    if isinstance(spec, Sequence):
        return " + ".join(map_name(part) for part in spec)
    return str(getattr(spec, "__name__", None) or type(spec).__name__)


def maps_under_test(specs: Sequence[Any], hidden_size: int | None) -> dict[str, FeatureMap]:
    """Name -> feature map; `InputError` where two have one name."""
    found: dict[str, FeatureMap] = {}
    for spec in specs:
        name = map_name(spec)
        if name in found:
            raise InputError(f"features: expected different maps to test, got {name!r} twice: leave one out")
        found[name] = feature_map(spec, hidden_size)
    if not found:
        raise InputError("features: expected at least one map to test, got none: name one, such as 'hidden'")
    return found


def gather(
    model: TextModel,
    prompts: Sequence[str],
    source: Source,
    *,
    features: Sequence[Any] = CANDIDATES,
    draws: int,
    seed: int,
    directory: Path | None = None,
    about: Mapping[str, Any] | None = None,
    in_doubt: Literal["rebuy", "drop"] | None = None,
    steps: StepPlan | None = None,
    observe: Observer = lambda _: None,
) -> Gathered:
    """The pool of a model: ``draws`` of each prompt, with every map's features and what the source tells of rewards.

    Cost: draws X draws, counted apart from T_comp, as evaluation is; ``source.labels`` labels at most where the reward
    is not free; with ``steps``, for which it must be, the segments of `steps_by_rollouts` on top, a draw each. With
    ``directory`` the ledger stays there, and the same call goes on where it was cut off.
    """
    width = getattr(model, "hidden_size", None)
    maps = maps_under_test(features, width)
    beside = () if width is None else (TOLD,)  # a server need not tell log-probabilities
    oracle = ModelOracle(model, prompts, Concatenation((*maps.values(), *beside)))
    bounds = list(accumulate((phi.dim for phi in maps.values()), initial=0))
    slices = {name: slice(*ends) for name, ends in zip(maps, pairwise(bounds), strict=True)}
    described = {**(about or {}), "maps": list(maps)}
    found, labels, counts = _drawn(oracle, source, draws, seed, directory, described, in_doubt, observe)
    told = [d.features[:, -TOLD.dim :] * TOLD.typical for d in found] if beside else None
    observe(Progress("grade the draws", counts.eval_draws, counts.eval_labels, source.labels))
    pool = Pool(
        prompts=tuple(prompts),
        draws=found,
        maps=slices,
        rewards=graded(source.reward, found, prompts, source) if source.free else None,
        noise_std=source.noise_std,
        parts={name: graded(part, found, prompts, source) for name, part in source.parts.items()},
        labels=labels,
        logprobs=None if told is None else tuple(row[:, 0] for row in told),
        tokens=None if told is None else tuple(np.rint(row[:, 1]).astype(np.int64) for row in told),
    )
    if steps is None:
        return Gathered(pool, counts, declined(pool))
    observe(Progress("go step by step", counts.eval_draws, counts.eval_labels, source.labels))
    place = None if directory is None else directory / STEPS
    stepped, spent = _stepped(model, pool, source, steps, seed, place, about or {})
    counts = replace(
        counts,
        eval_draws=counts.eval_draws + spent.eval_draws,
        eval_tokens=counts.eval_tokens + spent.eval_tokens,
    )
    return Gathered(pool, counts, declined(pool), stepped)


def _stepped(
    model: TextModel,
    pool: Pool,
    source: Source,
    plan: StepPlan,
    seed: int,
    directory: Path | None,
    about: Mapping[str, Any],
) -> tuple[Steps | None, Counts]:
    """Step by step against whole answers, and what it cost; nothing where all draws of each prompt are worth the same.

    Every draw goes through a ledger of its own: what it holds is not drawn again.
    """
    segments, beta = parsed_segments(plan.segments), beta_of(pool, plan.kl)
    if not math.isfinite(beta):
        return None, Counts()
    rows = np.unique(np.linspace(0, len(pool.prompts) - 1, plan.prompts).astype(int)).tolist()
    phi = feature_map(BRIEF) if getattr(model, "hidden_size", None) is None else TOLD
    oracle = ModelOracle(model, pool.prompts, phi, segments=segments)
    meta = {"purpose": "steps", "seed": seed, "segments": str(segments), "beta": beta, "pool": plan.pool, **about}
    meta |= {"rollouts": plan.rollouts, "rows": rows}

    def score(prompts: Sequence[int], texts: Sequence[str]) -> FloatArray:
        assert source.reward is not None  # checked by whoever asked for steps
        columns = {name: [values[x] for x in prompts] for name, values in source.columns.items()}
        values = call_reward(source.reward, [pool.prompts[x] for x in prompts], texts, columns)
        return np.array([np.nan if value is None else value for value in values])

    with Ledger.open(directory, meta=meta, prompts=list(pool.prompts), columns=source.columns) as ledger:
        found = steps_by_rollouts(
            oracle,
            _Recorded(oracle, ledger, seed),
            score,
            prompts=rows,
            beta=beta,
            pool=plan.pool,
            rollouts=plan.rollouts,
            by=f"base roll-outs in segments of {segments} tokens" if segments.fixed else f"base roll-outs, {segments}",
            rng=np.random.default_rng([seed, 19]),
        )
        return found, ledger.counts


def beta_of(pool: Pool, kl: float) -> float:
    """The temperature at which tilting the pool's draws by their rewards costs ``kl`` nats; inf where none can."""
    if pool.rewards is None:
        raise InputError("segments: expected a free reward, as every answer that is rolled out is graded: leave it out")
    known = [(r, c) for r, c in zip(pool.rewards, pool.counts(), strict=True) if not np.all(np.isnan(r))]
    if not known:
        return math.inf
    inverse = plain(laws_of([r for r, _ in known], [c for _, c in known], -math.inf)).inverse_for_kl(kl)
    return 1.0 / inverse if inverse > 0.0 else math.inf


class _Recorded:
    """Draws after prefixes, each recorded before it is used; those recorded before are not made again."""

    def __init__(self, oracle: TokenOracle, ledger: Ledger, seed: int) -> None:
        self._oracle, self._ledger, self._seed = oracle, ledger, seed
        self._known = [entry.event for entry in ledger.replay() if isinstance(entry.event, Drawn)]
        self._next = 0

    def __call__(
        self, prompts: Sequence[int], prefixes: Sequence[tuple[str, ...]], n: int
    ) -> tuple[Sequence[Draws], int]:
        k = self._next
        self._next += 1
        if k < len(self._known):
            return self._known[k].draws, self._known[k].tokens
        request = DrawRequest(tuple(prompts), n, info={"phase": "steps"}, prefixes=tuple(prefixes))
        if self._ledger.unfinished() is None:
            self._ledger.request(k, request, purpose="evaluate")
        drawn = rolled(self._oracle, request, rng=np.random.default_rng([self._seed, k, 1]))
        drawn = self._ledger.drawn(k, drawn)
        return drawn.draws, drawn.tokens


def gather_table(env: TabularEnvironment, *, labels: int | None, draws: int, seed: int) -> Gathered:
    """The pool of an exact environment; ``labels``: random labels to buy, None where its true rewards may be seen."""
    source = Source(env.reward(seed), False, env.noise_std, labels or 0)
    found, bought, counts = _drawn(env, source, draws, seed, None, {}, None, lambda _: None)
    rewards = tuple(env.mean_rewards[d.prompt, np.array(d.responses, dtype=np.int64)] for d in found)
    pool = Pool(
        prompts=tuple(env.prompts),
        draws=found,
        maps={"features": slice(0, env.dim)},
        rewards=rewards if labels is None else None,
        noise_std=env.noise_std,
        labels=bought,
    )
    return Gathered(pool, counts)


def _drawn(
    oracle: SamplingOracle,
    source: Source,
    n: int,
    seed: int,
    directory: Path | None,
    about: Mapping[str, Any],
    in_doubt: Literal["rebuy", "drop"] | None,
    observe: Observer,
) -> tuple[tuple[Draws, ...], Labels | None, Counts]:
    """Draws and labels, through a ledger: what it holds already is not drawn or bought again."""
    count = len(oracle.prompts)
    spec = Spec(np.full(count, 1.0 / count), oracle.dim, max(1, source.labels), None, max(1, source.labels))
    meta = {"purpose": "coverage", "seed": seed, "draws": n, "labels": source.labels, **about}
    with Ledger.open(directory, meta=meta, prompts=list(oracle.prompts), columns=source.columns) as ledger:
        run = Driver(
            oracle,
            explorer_by_name("random-singles"),
            source.reward,
            ledger,
            spec,
            seed=seed,
            columns=source.columns,
        )
        if in_doubt is not None:
            ledger.settle_in_doubt(in_doubt)
        run.replay()
        observe(Progress("draw responses", ledger.counts.eval_draws, ledger.counts.eval_labels, source.labels))
        found = run.draw_for_evaluation(range(count), n)
        labels = None
        if source.labels and source.reward is not None and not source.free:
            observe(Progress("buy labels", ledger.counts.eval_draws, ledger.counts.eval_labels, source.labels))
            labels = _bought(run, found, source.labels, seed)
        return found, labels, ledger.counts


def _bought(run: Driver, draws: Sequence[Draws], k: int, seed: int) -> Labels:
    """Labels of ``k`` draws, chosen at random: prompts in turn, each one's draws without replacement.

    A response that was chosen twice is bought once, and counts as often as it was drawn.
    """
    rng = np.random.default_rng([seed, 13])
    order = {x: rng.permutation(np.repeat(np.arange(len(d.counts)), d.counts)) for x, d in enumerate(draws)}
    turns = rng.permutation(len(draws))
    chosen = [
        (int(x), int(row)) for i in range(int(draws[0].counts.sum())) for x in turns for row in order[x][i : i + 1]
    ]
    chosen = chosen[:k]
    distinct = list(dict.fromkeys(chosen))
    items = [LabelItem(draws[x].prompt, draws[x].responses[row]) for x, row in distinct]
    found = run.label_for_evaluation(items)
    values = {key: label.value for key, label in zip(distinct, found.labels, strict=True)}
    kept = [(x, row, value) for x, row in chosen if (value := values[x, row]) is not None]
    prompts, rows = (np.array([entry[i] for entry in kept], dtype=np.int64) for i in (0, 1))
    return Labels(prompts, rows, np.array([entry[2] for entry in kept], dtype=np.float64), random=True)


def graded(
    reward: RewardFunction | None, draws: Sequence[Draws], prompts: Sequence[str], source: Source
) -> tuple[FloatArray, ...]:
    """[X] of [n_x]: the reward of every distinct response, nan where it was declined. Cost: none, as it is free."""
    if reward is None:
        raise InputError("reward: expected a function where rewards are free, got None: give reward=")
    out = []
    for d in draws:
        n = len(d.responses)
        columns = {name: [values[d.prompt]] * n for name, values in source.columns.items()}
        values = call_reward(reward, [prompts[d.prompt]] * n, d.responses, columns)
        out.append(np.array([np.nan if value is None else value for value in values]))
    return tuple(out)


def declined(pool: Pool) -> tuple[str, ...]:
    """What to say where the reward was declined for some draws."""
    if pool.rewards is None:
        return ()
    share = sum(float(d.counts[np.isnan(r)].sum()) for d, r in zip(pool.draws, pool.rewards, strict=True))
    share /= pool.n * len(pool.draws)
    return (f"The reward declined {100 * share:.3g} % of the draws: they are left out.",) if share else ()
