"""Coverage of one step against coverage of the whole answer: would going step by step help, and by how much (ours).

Along an answer y of the tilted law, pi*_h / pi_ref,h at step h is W(y_<=h) / W(y_<h), where W(prefix) is the mean of
exp(r / beta) over base roll-outs from the prefix (THEORY 5: beta log W is V*): the steps' ratios multiply to that of
the answer. Rejection that clips 1 % of the tilted mass needs about as many draws as the ratio is large (THEORY 3): of
the answer at once, or of each segment alone. What an answer costs either way, in tokens, is compared.

W is estimated on a tree of base roll-outs, from the leaves up: a prefix is worth the mean of the segments drawn after
it, each worth what *all* roll-outs through it say, so that what later steps have learned is used for earlier ones. The
answer itself is among the roll-outs that it was picked from: then 1 / W is free of bias for a single level of the tree
(Andrieu and others 2010, conditional Monte Carlo). What is left is from finite roll-outs: a ratio above their number
cannot be seen, and noise makes large ratios larger; `benchmarks/step_coverage.py` says how much on exact tables.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spannerlm.coverage import Interval, quantile_interval
from spannerlm.errors import InputError
from spannerlm.foundation.bounds import upper
from spannerlm.foundation.pool import CONFIDENCE
from spannerlm.foundation.reach import CLIPPED, LEVEL, UNSEEN
from spannerlm.foundation.trees import Ask, Node, Score, Tree, Wholes, graded, kept, missed, wholes_of
from spannerlm.oracle import TokenOracle, joined
from spannerlm.records import Draws, FloatArray, IntArray
from spannerlm.wording import count, few

PATHS = 320
"""Answers of the tilted law that are looked at, in all: 299 are the fewest that bound a 99 % quantile."""
ROUNDS, WEAK = 2, 0.1
"""Further roll-outs from prefixes whose worth rests on the one draw that was picked, each time four times as many; and
the share of answers that may have such a prefix left."""
RESAMPLES = 400
"""Of the bootstrap over prompts and their answers."""
SLACK = 1.2
"""Factor by which both ends of tokens and of their quotient are moved out: noise of the roll-outs makes the price of
steps up to 1.14 times too large. Without it, it was covered in none of 20 environments; seeds from 1000 on."""
HELPS = 1.25
"""How many times fewer tokens an answer must take before going step by step is said to help."""


@dataclass(frozen=True)
class StepRow:
    """One step."""

    step: int
    """From 1 on."""
    ratio_q99: Interval
    """.99 quantile of pi*_h / pi_ref,h under pi*; ``high`` is a one-sided bound (inf: none), ``low`` is 1."""
    largest: float
    """Largest ratio seen."""
    draws: float
    """Base draws for one segment by rejection that clips this step's part of 1 %."""
    tokens: float
    """Of one base draw of the segment."""
    share: float
    """Share of the answers that get to this step."""


@dataclass(frozen=True)
class Steps:
    """Step by step against the whole answer at once, at one KL. Intervals of 95 %, upper bounds one-sided."""

    beta: float
    rows: tuple[StepRow, ...]
    step: Interval
    """C_cond: the largest of the rows' 99 % quantiles."""
    sequence: Interval
    """C_cov: the same quantile of pi*(y) / pi_ref(y)."""
    sequence_tokens: Interval
    """Base tokens for an answer by rejection of whole ones, with one bound for all prompts, 1 % clipped."""
    step_tokens: Interval
    """Base tokens for an answer segment by segment, one bound for each step, 1 % clipped in all."""
    fewer: Interval
    """``sequence_tokens`` over ``step_tokens``: above 1 multi-turn is cheaper."""
    helps: bool | None
    """Whether it is sure to be 1.25 times cheaper, or sure not to be; None: cannot tell."""
    told: bool
    """Whether the draws show enough of the tilted law; where not, no interval has an end."""
    prompts: int
    paths: int
    """Answers looked at."""
    draws: int
    """Segments drawn for all this."""
    tokens: int
    """Their tokens."""
    by: str
    """What it rests on: ``base roll-outs`` and the like, or ``a policy of steps``."""
    statements: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What either estimator hands over. N answers of the tilted law, K whole ones with their mass under it."""

    owners: IntArray
    """[N] row of the prompt."""
    ratios: FloatArray
    """[N, H] of each step; nan after an answer's end."""
    segment: FloatArray
    """[H] tokens of a base draw of the next segment."""
    wholes: Wholes
    length: float
    """Tokens of a whole draw: of the base model, or of the policy where no base draws were made."""


def steps_by_rollouts(
    oracle: TokenOracle,
    ask: Ask,
    score: Score,
    *,
    prompts: Sequence[int],
    beta: float,
    pool: int = 256,
    rollouts: int = 32,
    paths: int | None = None,
    by: str = "base roll-outs",
    rng: np.random.Generator,
) -> Steps:
    """What `Steps` holds, for the optimum of ``score`` at ``beta``, from base roll-outs alone.

    ``pool`` whole answers of each prompt are rolled out, ``paths`` of them are kept by the tilted law's odds (None: as
    many as make 320 in all), and ``rollouts`` go on from each prefix of those. Declined answers are never kept.
    ``ask``: `asked` of the oracle, or anything that records what it draws.

    Errors: no prompts, numbers below 1, beta not positive and finite, no answer with a reward. Cost: up to
    X H (pool + paths H rollouts / 2) segments, fewer where prefixes are shared; calls of ``score`` for each distinct
    answer, no labels. Where all the worth of a prefix rests on the one draw that was picked, up to 20 times as many
    roll-outs go on from it; where that is not enough for a tenth of the answers, the draws do not tell.
    """
    paths = paths if paths is not None else max(4, -(-PATHS // max(1, len(prompts))))
    _check(prompts, beta, {"pool": pool, "rollouts": rollouts, "paths": paths})
    tree = Tree(oracle, ask)
    ends, firsts = tree.walk({(x, ()): pool for x in prompts}), tree.tokens_of_first
    spent = tree.tokens
    leaves = graded(score, beta, ends, oracle)
    chosen = {x: kept(leaves, ends, x, paths, rng) for x in prompts}
    used = [x for x in prompts if chosen[x]]
    if not used:
        raise InputError("reward: expected one of an answer at least, got none: every draw was declined")
    nodes = sorted(
        {(x, y[:h]) for x in used for y in chosen[x] for h in range(1, len(y))}, key=lambda n: (len(n[1]), n)
    )
    began: dict[Node, int] = {}
    segment = [firsts / (pool * len(prompts))]
    for h in range(1, 1 + max((len(prefix) for _, prefix in nodes), default=0)):
        here = [node for node in nodes if len(node[1]) == h]
        before = tree.tokens
        for node, n in tree.step(dict.fromkeys(here, rollouts)).items():
            began[node] = began.get(node, 0) + n
        segment.append((tree.tokens - before) / (rollouts * len(here)))
    answers = [(i, x, y) for i, x in enumerate(used) for y in chosen[x]]
    for again in range(1, ROUNDS + 2):
        ended = {leaf: n for leaf, n in tree.walk(began).items() if leaf not in leaves}
        leaves.update(graded(score, beta, ended, oracle))
        value = tree.values(leaves, used)
        weak = [tree.weak(value, (x, y)) for _, x, y in answers]
        if again > ROUNDS:
            break
        began = tree.step({node: rollouts * 4**again for nodes in weak for node in nodes})
    ratios = np.full((len(answers), len(segment)), np.nan)
    for row, (_, x, y) in enumerate(answers):
        along = np.array([value[x, y[:h]] for h in range(len(y) + 1)])
        ratios[row, : len(y)] = np.exp(np.diff(along))
    pools = [tree.law(leaves, x) for x in used]
    seen = _Seen(
        owners=np.array([i for i, _, _ in answers], dtype=np.int64),
        ratios=ratios,
        segment=np.array(segment),
        wholes=wholes_of(pools, pool),
        length=spent / (pool * len(prompts)),
    )
    told = missed(pools, pool) <= UNSEEN and float(np.mean([bool(nodes) for nodes in weak])) <= WEAK
    return _steps(seen, beta, told, len(used), tree.draws, tree.tokens, by, rng)


def steps_of_policy(
    oracle: TokenOracle,
    ask: Ask,
    theta: FloatArray,
    *,
    prompts: Sequence[int],
    beta: float,
    draws: int = 128,
    paths: int | None = None,
    rng: np.random.Generator,
) -> Steps:
    """What `Steps` holds, for the policy of steps ``theta`` [H, d], with odds exp(<theta_h, phi> / beta) of a segment.

    Answers are put together step by step from ``draws`` base draws each, ``paths`` of each prompt; the ratio at a step
    is exp(f / beta) over its mean over these draws (answers that are alike so far share theirs), so at most their
    number. No roll-outs and no reward: how good the policy is, is not in it, and whether the draws tell is taken for
    granted. Errors: as `steps_by_rollouts`. Cost: X H paths ``draws`` segments.
    """
    paths = paths if paths is not None else max(4, -(-PATHS // max(1, len(prompts))))
    _check(prompts, beta, {"draws": draws, "paths": paths})
    at: list[Node] = [(x, ()) for x in prompts for _ in range(paths)]
    found: list[list[float]] = [[] for _ in at]
    segment: list[float] = []
    spent = tokens = 0
    while rows := [i for i, (x, y) in enumerate(at) if not oracle.complete(x, y)]:
        step = len(segment)
        records, cost = ask([at[i][0] for i in rows], [at[i][1] for i in rows], draws)
        alike: dict[Node, list[Draws]] = defaultdict(list)  # answers with the same prefix so far share their draws
        for i, record in zip(rows, records, strict=True):
            alike[at[i]].append(record)
        merged = {node: joined(same) for node, same in alike.items()}
        for i in rows:
            record = merged[at[i]]
            weights = record.features @ theta[step] / beta
            weights = np.exp(weights - np.max(weights))
            law = record.counts * weights
            pick = int(rng.choice(len(law), p=law / law.sum()))
            found[i].append(float(weights[pick] * record.counts.sum() / law.sum()))
            at[i] = at[i][0], (*at[i][1], record.responses[pick])
        segment.append(cost / (draws * len(rows)))
        spent, tokens = spent + draws * len(rows), tokens + cost
    ratios = np.full((len(at), len(segment)), np.nan)
    for i, row in enumerate(found):
        ratios[i, : len(row)] = row
    owners = np.repeat(np.arange(len(prompts)), paths)
    whole = np.prod(np.where(np.isnan(ratios), 1.0, ratios), axis=1)
    lengths = np.sum(~np.isnan(ratios) * np.array(segment), axis=1)
    seen = _Seen(
        owners=owners,
        ratios=ratios,
        segment=np.array(segment),
        wholes=lambda weights, rng: (whole, weights[owners] * _exponential(rng, len(whole))),
        length=float(np.mean(lengths)),
    )
    return _steps(seen, beta, True, len(prompts), spent, tokens, "a policy of steps", rng)


def _exponential(rng: np.random.Generator | None, n: int) -> FloatArray:
    return np.ones(n) if rng is None else rng.standard_exponential(n)


# --- from ratios to prices -------------------------------------------------------------------------------------------


def bound_for(ratios: FloatArray, masses: FloatArray, clipped: float) -> float:
    """The bound M at which rejection loses ``clipped`` of the tilted mass: E*[(1 - M / R)+] = clipped.

    ``ratios`` [k] of responses with ``masses`` [k] under the tilted law. An accepted one costs M / (1 - clipped) draws.
    """
    order = np.argsort(-ratios, kind="stable")
    r, mass = ratios[order], masses[order] / masses.sum()
    carried, tail = np.cumsum(mass), np.cumsum(mass / r)
    lost = carried - tail * np.append(r[1:], 0.0)
    i = min(int(np.searchsorted(lost, clipped, side="right")), len(r) - 1)
    return float(max(1.0, (carried[i] - clipped) / tail[i]))


def quantile(ratios: FloatArray, masses: FloatArray) -> float:
    """The .99 quantile of ``ratios`` [k] where each has so much mass [k]."""
    order = np.argsort(ratios, kind="stable")
    reached = np.cumsum(masses[order]) / masses.sum()
    return float(ratios[order][min(int(np.searchsorted(reached, LEVEL - 1e-12)), len(order) - 1)])


@dataclass(frozen=True, eq=False)
class _Price:
    quantiles: FloatArray
    """[H]"""
    draws: FloatArray
    """[H]"""
    shares: FloatArray
    """[H]"""
    step_tokens: float
    sequence: float
    sequence_tokens: float


def _price(seen: _Seen, prompts: int, rng: np.random.Generator | None = None) -> _Price:
    """Quantiles and prices; with a generator, under weights of the Bayesian bootstrap: of prompts and their answers."""
    weights = _exponential(rng, prompts)
    answers = weights[seen.owners] * _exponential(rng, len(seen.owners))
    whole, whole_masses = seen.wholes(weights, rng)
    there = ~np.isnan(seen.ratios)
    shares = answers @ there / answers.sum()
    clipped = CLIPPED / float(shares.sum())  # of each step: 1 % in all
    quantiles, draws = np.ones(len(shares)), np.ones(len(shares))
    for h in np.flatnonzero(shares > 0.0):
        used = there[:, h] & (answers > 0.0)
        ratios, masses = seen.ratios[used, h], answers[used]
        quantiles[h] = quantile(ratios, masses)
        draws[h] = bound_for(ratios, masses, clipped) / (1.0 - clipped)
    sequence = bound_for(whole, whole_masses, CLIPPED) / (1.0 - CLIPPED)
    return _Price(
        quantiles=quantiles,
        draws=draws,
        shares=shares,
        step_tokens=float(shares @ (draws * seen.segment)),
        sequence=quantile(whole, whole_masses),
        sequence_tokens=sequence * seen.length,
    )


def _steps(
    seen: _Seen, beta: float, told: bool, prompts: int, draws: int, tokens: int, by: str, rng: np.random.Generator
) -> Steps:
    """Estimates, bounds and words."""
    found = _price(seen, prompts)
    again = [_price(seen, prompts, rng) for _ in range(RESAMPLES)]
    rows = []
    for h, (quantile, price) in enumerate(zip(found.quantiles, found.draws, strict=True)):
        values = seen.ratios[~np.isnan(seen.ratios[:, h]), h]
        bound = quantile_interval(values, level=LEVEL, confidence=2.0 * CONFIDENCE - 1.0).high if told else math.inf
        ratio = Interval(float(quantile), 1.0, max(bound, float(quantile)))
        rows.append(
            StepRow(h + 1, ratio, float(np.max(values)), float(price), float(seen.segment[h]), float(found.shares[h]))
        )
    quotients = np.array([p.sequence_tokens / p.step_tokens for p in again])
    fewer = _between(found.sequence_tokens / found.step_tokens, quotients, told)
    sequence = upper(np.array([p.sequence for p in again]), CONFIDENCE) if told else math.inf
    out = {
        "step": Interval(float(np.max(found.quantiles)), 1.0, max(row.ratio_q99.high for row in rows)),
        "sequence": Interval(found.sequence, 1.0, max(sequence, found.sequence)),
        "sequence_tokens": _between(found.sequence_tokens, np.array([p.sequence_tokens for p in again]), told),
        "step_tokens": _between(found.step_tokens, np.array([p.step_tokens for p in again]), told),
        "fewer": fewer,
    }
    helps = True if fewer.low >= HELPS else False if fewer.high < HELPS else None
    return Steps(
        beta,
        tuple(rows),
        **out,
        helps=helps,
        told=told,
        prompts=prompts,
        paths=len(seen.owners),
        draws=draws,
        tokens=tokens,
        by=by,
        statements=tuple(_statements(out, rows, helps, draws, tokens, told)),
    )


def _between(value: float, simulated: FloatArray, told: bool) -> Interval:
    """The estimate with the ends of the bootstrap on the log scale, moved out by `SLACK`."""
    if not told:
        return Interval(value, 0.0, math.inf)
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = (float(np.quantile(simulated, level)) for level in (tail, 1.0 - tail))
    return Interval(value, min(low, value) / SLACK, max(high, value) * SLACK)


def _statements(
    found: Mapping[str, Interval], rows: Sequence[StepRow], helps: bool | None, draws: int, tokens: int, told: bool
) -> list[str]:
    """The findings in words."""
    at = max(rows, key=lambda row: row.ratio_q99.value)
    step, whole, fewer = found["step"], found["sequence"], found["fewer"]
    out = [
        f"The largest ratio of one step is {few(step.value)} (99 % quantile{_bound(step)}), at step {at.step} of "
        f"{len(rows)}; of a whole answer it is {few(whole.value)}{_bound(whole)}."
    ]
    if not told:
        out.append(
            "Whether going step by step would help, these draws cannot tell: too few of them carry the tilted policy."
        )
    else:
        ends = f" [{few(fewer.low)}, {few(fewer.high)}]"
        times = f"about {few(fewer.value)} times fewer tokens per answer{ends}"
        out.append(
            f"Multi-turn would need {times} at the same quality, once its steps' scores are learned."
            if helps
            else f"Multi-turn would not help: it would need {times}."
            if helps is False
            else f"Multi-turn might help: it would need {times}; these draws cannot tell."
        )
        before, after = found["sequence_tokens"], found["step_tokens"]
        out.append(
            f"An answer takes {few(before.value)} base tokens by tilting whole answers, {few(after.value)} step by "
            "step, with one bound for all prompts."
        )
    out.append(f"This took {count(draws)} segments ({count(tokens)} tokens) and no labels.")
    return out


def _bound(interval: Interval) -> str:
    return f", at most {few(interval.high)}" if math.isfinite(interval.high) else ""


def _check(prompts: Sequence[int], beta: float, numbers: Mapping[str, int]) -> None:
    if not prompts or len(set(prompts)) != len(prompts):
        raise InputError(f"prompts: expected at least one, each once, got {list(prompts)}")
    if not (beta > 0.0 and math.isfinite(beta)):
        raise InputError(f"beta: expected a positive KL temperature, got {beta}: no tilt, no steps to compare")
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: expected a whole number above 0, got {value!r}")
