"""What tilting the base model by a score reaches on these prompts, and what an answer then costs in draws (ours).

At a KL budget the policy is pi_ref tilted by exp(score / beta), beta such that KL(pi || pi_ref) is the budget on
average over the prompts. All bounds come from laws that may lie behind the draws: masses from Dirichlet(counts),
without and with one response more that no draw has shown and that scores as high as any (`foundation.bounds`). Each
law has its own beta at the budget. What no law of this kind can exclude is a response of base mass far below 1 / n
that earns more than any seen (THEORY 3). Nothing here costs a draw or a label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from spannerlm.coverage import Interval
from spannerlm.errors import InputError
from spannerlm.foundation.bounds import ScoreLaws, interval_of_mean, laws_of, plain, possible, upper
from spannerlm.foundation.pool import CONFIDENCE, Pool
from spannerlm.records import FloatArray
from spannerlm.wording import count, few, nats, short

CLIPPED = 0.01
"""Share of the tilted mass that may be clipped where draws per answer are counted."""
LEVEL = 0.99
"""Of the quantile of the density ratio."""
LAWS, LONG = 100, 30
"""Laws simulated of either kind; those whose needed draws are computed, too."""
UNSEEN = 0.4
"""Share of the tilted mass on responses that no draw has shown, on average over the simulated laws, above which the
draws cannot tell. It is 1/2 where one draw of one prompt carries all weight, 1/3 where two do."""
COLDER = 1.25
"""How much larger 1 / beta may be, on laws with an unseen response, than at the budget: draws that missed the good
responses of some prompts set too large a beta there. Without it draws per answer at KL = .5 are covered in .8 of 40
tables at 64 draws, with it in .97; 1.5 doubles the bounds at KL = 3. Seeds from 1200 on."""
SLACK = 1.15
"""Factor by which both ends of ``needed`` are moved out; without it they covered .88 to .98 of 40 tables."""
FARTHEST = 64
"""The needed draws are sought up to so many times the pool's."""


@dataclass(frozen=True)
class ReachRow:
    """What is reached at one KL budget."""

    kl: float
    """Nats, mean over these prompts."""
    beta: float
    """Temperature on the draws; inf where all scores of each prompt are equal: no tilt is possible."""
    value: Interval
    """Mean over these prompts of the expected score of the tilted policy at this KL."""
    gain: float
    """``value`` less the base model's."""
    ratio_q99: Interval
    """.99 quantile of pi(y) / pi_ref(y) for y drawn from pi; ``high`` is a one-sided bound, ``low`` is 1."""
    draws_per_answer: Interval
    """Expected base draws per answer by rejection that clips at most 1 % of each prompt's tilted mass, mean over these
    prompts; ``high`` is a one-sided bound, ``low`` is 1."""
    worst_prompt: int
    """The prompt with the most draws per answer, on the draws at hand."""
    told: bool
    """Whether the draws can tell: where not, ``high`` is inf throughout."""
    unseen: float
    """Share of the tilted mass that may lie on responses that no draw has shown; nan where no tilt is possible."""


@dataclass(frozen=True)
class Reach:
    """What tilting by a score reaches and costs. Bounds are of 95 %."""

    by: str
    """What the scores are."""
    base: Interval
    """Mean score of the base model over these prompts."""
    rows: tuple[ReachRow, ...]
    """One for each budget, rising."""
    kl: float
    """The budget asked about."""
    at: ReachRow
    """Its row."""
    needed: Interval
    """Draws per prompt after which a stored pool holds ``share`` of the gain at the budget (see `reach`)."""
    share: float
    """Of the gain."""
    draws: int
    """Per prompt."""
    prompts: int
    """With at least one score."""
    statements: tuple[str, ...]
    """The findings in words."""


def reach(
    pool: Pool,
    scores: Sequence[FloatArray],
    *,
    kls: Sequence[float],
    kl: float,
    share: float,
    by: str,
    largest: float | None = None,
    rng: np.random.Generator,
) -> Reach:
    """What tilting by ``scores`` ([X] of [n_x], of the pool's distinct draws; nan: declined, left out) reaches.

    ``kls`` [K]: budgets in nats, to which ``kl``, the one asked about, is added. ``largest``: the largest score that
    any response can have, where it is known; otherwise no unseen response is taken to score above the best one drawn
    for any prompt. Prompts without a score are left out.

    ``needed`` is the smallest N with ``G(N) >= share * G``: G is the gain over the base model of the tilted policy at
    ``kl``, G(N) the expected gain of the law that weights N fresh base draws of each prompt by exp(score / beta), at
    the same beta, normalised over them; means over these prompts, N between whole numbers by interpolation. Its
    value is the median over laws without unseen responses, its ends the extremes over all laws, moved out by 15 %; inf
    beyond 64 n.

    Errors: scores that do not fit the pool, none at all, infinite ones, one above ``largest``; budgets not positive; a
    share outside (0, 1). Cost: no draws, no labels.
    """
    law = _checked(pool, scores, largest)
    budgets = sorted({float(k) for k in kls} | {float(kl)})
    if not (budgets[0] > 0.0 and math.isfinite(budgets[-1])):
        raise InputError(f"kls: expected positive budgets in nats, got {budgets}: leave the others out")
    if not 0.0 < share < 1.0:
        raise InputError(f"share: expected a share of the gain in (0, 1), got {share}: give for example .9")
    here = [x for x, s in enumerate(scores) if np.any(~np.isnan(s))]
    base = interval_of_mean(law, float(ndtri(0.5 + CONFIDENCE / 2.0)))
    seen = [possible(law, unseen=False, rng=rng) for _ in range(LAWS)]
    more = [possible(law, unseen=True, rng=rng) for _ in range(LAWS)]
    rows, needed = [], Interval(math.nan, math.nan, math.nan)
    for budget in budgets:
        row, coldness = _row(budget, law, seen, more, base, math.inf if largest is None else largest, here)
        rows.append(row)
        if budget == float(kl):
            needed = _needed(row, share, pool.n, seen, more, coldness)
    at = rows[budgets.index(float(kl))]
    told = tuple(_statements(rows, at, base, needed, share, pool.n, by))
    return Reach(by, base, tuple(rows), float(kl), at, needed, share, pool.n, len(here), told)


def _checked(pool: Pool, scores: Sequence[FloatArray], largest: float | None) -> ScoreLaws:
    """How often each score was drawn, beside the largest score of a response that was not."""
    if [len(s) for s in scores] != [len(c) for c in pool.counts()]:
        raise InputError(
            f"scores: expected one for each distinct draw of {len(pool.draws)} prompts, got other shapes: "
            "give the prompts' scores in the order of pool.draws"
        )
    used = [(s, c) for s, c in zip(scores, pool.counts(), strict=True) if np.any(~np.isnan(s))]
    known = np.concatenate([s[~np.isnan(s)] for s in scores])
    if not used or not np.all(np.isfinite(known)):
        raise InputError("scores: expected finite numbers, got none or infinite ones: grade some of the draws")
    best = float(np.max(known))
    if largest is not None and best > largest + 1e-12:
        raise InputError(f"largest: expected at least {best}, which a draw has, got {largest}: leave it out")
    top = best if largest is None else largest
    return laws_of([s for s, _ in used], [c for _, c in used], top)


def _row(
    kl: float,
    law: ScoreLaws,
    seen: Sequence[ScoreLaws],
    more: Sequence[ScoreLaws],
    base: Interval,
    top: float,
    here: Sequence[int],
) -> tuple[ReachRow, tuple[FloatArray, FloatArray]]:
    """One budget's row, and 1 / beta of the laws without [LAWS] and with [LAWS] unseen responses."""
    drawn = plain(law)
    inverse = drawn.inverse_for_kl(kl)
    without, having = ([found.inverse_for_kl(kl, inverse) for found in laws] for laws in (seen, more))
    low_values = np.array([found.value(c) for found, c in zip(seen, without, strict=True)])
    high_values = np.array([found.value(c) for found, c in zip(more, having, strict=True)])
    unseen = float(np.mean([np.mean(f.tilted(c)[:, -1]) for f, c in zip(more, having, strict=True)]))
    colder = [min(c, COLDER * own) for c, own in zip(without, having, strict=True)]
    kinds = ((seen, without), (more, having), (more, colder))
    pairs = [list(zip(laws, coldness, strict=True)) for laws, coldness in kinds]
    ratios = [[found.ratio_quantile(c, LEVEL) for found, c in kind] for kind in pairs]
    prices = [[float(np.mean(found.draws_per_accept(c, CLIPPED))) for found, c in kind] for kind in pairs]
    told = inverse > 0.0 and unseen <= UNSEEN
    costs = drawn.draws_per_accept(inverse, CLIPPED)
    quantile, price = drawn.ratio_quantile(inverse, LEVEL), float(np.mean(costs))
    value = base.value
    if inverse > 0.0:  # the simulated laws are as far off the draws' as these are off the truth
        value = min(2.0 * drawn.value(inverse) - float(np.mean(low_values)), float(np.mean(law.scores[:, -1])))
    low, high = float(np.quantile(low_values, 0.5 - CONFIDENCE / 2.0)), upper(high_values, 0.5 + CONFIDENCE / 2.0)
    low = low if inverse > 0.0 else min(low, base.low)
    value, low, high = (min(v, top) for v in (value, low, high))

    def bound(values: Sequence[Sequence[float]], least: float) -> float:
        return max(least, *(upper(np.array(v), CONFIDENCE) for v in values)) if told else math.inf

    row = ReachRow(
        kl=kl,
        beta=1.0 / inverse if inverse > 0.0 else math.inf,
        value=Interval(value, min(low, value), max(high, value) if told else top),
        gain=value - base.value,
        ratio_q99=Interval(quantile, 1.0, bound(ratios, quantile)),
        draws_per_answer=Interval(price, 1.0, bound(prices, price)),
        worst_prompt=here[int(np.argmax(costs))],
        told=told,
        unseen=unseen,
    )
    return row, (np.array(without), np.array(having))


def _needed(
    row: ReachRow,
    share: float,
    draws: int,
    seen: Sequence[ScoreLaws],
    more: Sequence[ScoreLaws],
    coldness: tuple[FloatArray, FloatArray],
) -> Interval:
    """Draws per prompt for a share of the gain: the median of laws without unseen responses, the extremes of all."""
    if math.isinf(row.beta):
        return Interval(1.0, 1.0, math.inf)
    most = float(FARTHEST * draws)
    without, having = (
        [found.needed(float(c), share, most) for found, c in zip(laws[:LONG], colds[:LONG], strict=True)]
        for laws, colds in zip((seen, more), coldness, strict=True)
    )
    value = upper(np.array(without), 0.5)
    low, high = max(1.0, min(*without, *having) / SLACK), max(*without, *having) * SLACK
    return Interval(value, low, high if row.told else math.inf)


def _statements(
    rows: Sequence[ReachRow], at: ReachRow, base: Interval, needed: Interval, share: float, draws: int, by: str
) -> list[str]:
    """The findings in words."""
    if math.isinf(at.beta):
        return [
            f"All draws of a prompt have the same {by}: tilting changes nothing, and of better ones they tell nothing."
        ]
    width = at.value.high - at.value.low if math.isfinite(at.value.high) else math.nan
    ends = "" if math.isnan(width) else f" [{short(at.value.low, width)}, {short(at.value.high, width)}]"
    out = [
        f"Tilted by the {by} at KL = {nats(at.kl)} the policy is worth {short(at.value.value, width)}{ends}, "
        f"{short(at.gain)} more than the base model's {short(base.value)}."
    ]
    answer = at.draws_per_answer
    cost = f"At KL = {nats(at.kl)} an answer costs {few(answer.value)} base draws on average"
    if at.told:
        out.append(f"{cost}, at most {few(answer.high)} with 95 % confidence.")
    else:
        out.append(f"{cost} as far as the draws show; they do not bound it.")
    lost = [row.kl for row in rows if not row.told]
    if lost:
        known = [row.kl for row in rows if row.told and row.kl < lost[0]]
        where = f"Beyond KL = {nats(known[-1])}" if known else f"Already at KL = {nats(lost[0])}"
        out.append(
            f"{where} the {count(draws)} draws of each prompt cannot tell: more than {count(100 * UNSEEN)} % of the "
            "policy may lie on responses that they do not hold."
        )
    part = f"{few(100.0 * share)} % of that gain"
    if math.isinf(needed.value):
        out.append(f"A stored pool needs more than {count(FARTHEST * draws)} draws of each prompt for {part}.")
    else:
        band = f", at most {count(math.ceil(needed.high))}" if math.isfinite(needed.high) else ", or many more"
        many = math.ceil(needed.value)
        out.append(f"A stored pool needs about {count(many)} draw{'s' * (many != 1)} of each prompt for {part}{band}.")
    out.append("What is rarer than the draws could show is not in these numbers: no rule can be free of this.")
    return out
