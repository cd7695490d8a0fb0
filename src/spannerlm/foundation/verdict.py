"""Is the model a good enough foundation? The parts of a report weighed: the verdict in words, with reasons (ours).

The order of the questions is that of what can be helped least: no draw of the model succeeds (train or prompt first);
every draw does (nothing to gain); draws cannot tell; features cannot tell good from bad; draws or answers cost more
than was called affordable; else go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from spannerlm.coverage import Interval
from spannerlm.foundation.forecast import Forecast
from spannerlm.foundation.maps import MapRow, Maps
from spannerlm.foundation.reach import Reach
from spannerlm.foundation.steps import Steps
from spannerlm.foundation.success import Success
from spannerlm.foundation.unseen import Unseen
from spannerlm.wording import count, few, share, short

Kind = Literal["go", "go with draws", "better features", "no foundation", "nothing to gain", "cannot tell"]
ORDER: tuple[Kind, ...] = (
    "nothing to gain",
    "go",
    "go with draws",
    "better features",
    "cannot tell",
    "no foundation",
)
"""From the best foundation to the worst."""

ENOUGH = 0.5
"""Share of the optimum's gain that a map's policy must keep: below it features lose more than exploration finds."""
EXPLAINED = 0.1
"""Share of the labels' within-prompt variance that a map must explain, where only labels are known."""
MOST = 0.5
"""Share of prompts beyond the model from which it is no foundation."""
HIDDEN = 0.25
"""Mass of one prompt's replies that draws all alike may have missed, above which they do not tell that all are."""
SURE = 0.95
"""Mean success rate of the base model from which there is nothing to gain."""
NEGLIGIBLE = 0.02
"""Gain of the optimum, as a share of the range of rewards seen, below which there is nothing to gain."""
USUAL = 512
"""Draws of each prompt that a run makes unless told otherwise."""


WORTH: tuple[Kind, ...] = ("go", "go with draws")
"""Verdicts after which it matters whether answers are tilted whole or step by step."""


@dataclass(frozen=True)
class Verdict:
    """What the report comes to, for one model."""

    kind: Kind
    title: str
    """One sentence."""
    reasons: tuple[str, ...]
    """Why: each with its number."""
    advice: tuple[str, ...]
    """What to do."""


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on; None where it is not known."""

    prompts: int
    draws: int
    """Of each prompt."""
    max_draws: int
    """Base draws of one answer that are still affordable."""
    unseen: Unseen
    success: Success | None
    reach: Reach | None
    maps: Maps | None
    forecast: Forecast | None
    spread: float
    """Range of the rewards seen; nan where none is known."""
    given: bool
    """Whether the level of success was given or is the upper of two values: then it does not follow the model."""
    steps: Steps | None = None


def verdict(found: Evidence) -> Verdict:
    """The verdict on one model. Cost: no draws, no labels."""
    for question in (_alike, _untold, _beyond, _sated, _unsure, _features, _dear):
        answer = question(found)
        if answer is not None:
            return replace(answer, advice=(*answer.advice, *_stepwise(found))) if answer.kind in WORTH else answer
    return Verdict(
        "go", f"Go: {_reached(found)}.", (*_able(found), *_cost(found)), (*_advice(found), *_stepwise(found))
    )


# --- the questions, in their order -----------------------------------------------------------------------------------


def _alike(found: Evidence) -> Verdict | None:
    if found.unseen.constant <= MOST * found.prompts or found.unseen.fixed_direction > HIDDEN:
        return None
    if found.success is not None and found.given and found.success.pass_at[0].low >= SURE:
        return None  # alike, and what was asked for
    which = "every prompt" if found.unseen.constant == found.prompts else f"{found.unseen.constant} of the prompts"
    return Verdict(
        "no foundation",
        "No foundation: the model answers everything alike, so there is nothing to choose from.",
        (f"For {which} all {count(found.draws)} draws are one and the same response.",),
        ("Use a checkpoint whose replies still vary; exploration chooses among draws.",),
    )


def _untold(found: Evidence) -> Verdict | None:
    if found.success is not None or found.reach is not None or found.maps is not None:
        return None
    return Verdict(
        "cannot tell",
        "Without a reward nobody can tell: below is what the draws hold, not whether any of it is good.",
        (found.unseen.statements[0],) if found.unseen.statements else (),
        ("Give a reward: free (reward_free), or --labels N to have N random draws rewarded.",),
    )


def _beyond(found: Evidence) -> Verdict | None:
    """No foundation: most prompts are beyond the model at this level of success."""
    known = found.success
    if known is None or not found.given or not known.zero.value > MOST:
        return None
    asked = f"a reward of {few(known.level.value)} or more"
    named = len(known.hopeless)
    reasons = [
        f"{_percent(known.zero)} of these prompts have {asked} less than once in {count(found.max_draws)} draws."
    ]
    if named:
        reasons.append(f"{named} of {found.prompts} prompts are named below as beyond the model.")
    if known.zero.low <= MOST:
        more = max(2 * found.draws, 3 * found.max_draws)
        return Verdict(
            "cannot tell",
            f"Cannot tell yet: {count(found.draws)} draws of each prompt hold too few successes.",
            tuple(reasons),
            (f"Draw more: --draws {more} tells rates around 1 in {count(found.max_draws)}.",),
        )
    if found.reach is not None and found.reach.at.gain > 0.0:
        better = f"{short(found.reach.at.value.value)} at KL = {few(found.reach.kl)}, from {_base(found.reach)}"
        reasons.append(f"What tilting can still reach is a mean reward of {better}, without such replies.")
    return Verdict(
        "no foundation",
        "No foundation for these prompts: no amount of exploration will help; train or prompt first.",
        tuple(reasons),
        (
            "Train on a few examples of what you want, or put them into the prompt, and look again with this command.",
            "If a lower reward would do, say so: --success R.",
        ),
    )


def _sated(found: Evidence) -> Verdict | None:
    known, reach = found.success, found.reach
    if known is not None and found.given and known.pass_at[0].low >= SURE:
        first = known.pass_at[0]
        why = f"A single draw succeeds with probability {short(first.value)} [{short(first.low)}, {short(first.high)}]."
        return Verdict("nothing to gain", "Nothing to gain: the base model does it already.", (why,), _as_it_is())
    if reach is None:
        return None
    if math.isinf(reach.at.beta):
        return _same(found, reach)
    most = NEGLIGIBLE * found.spread + 1e-12 * abs(reach.base.value)
    if not reach.at.gain <= most or not (reach.at.told or reach.at.value.high - reach.base.value <= most):
        return None
    why = f"At KL = {few(reach.kl)} tilting by the {reach.by} earns {short(reach.at.gain)} more than the base model's"
    return Verdict(
        "nothing to gain",
        "Nothing to gain: at this KL the best policy is hardly better than the base model.",
        (f"{why} {_base(reach)}.",),
        _as_it_is(),
    )


def _same(found: Evidence, reach: Reach) -> Verdict:
    """Cannot tell: no draw of a prompt is better than another, and a better one may be rarer than the draws show."""
    why: tuple[str, ...] = ()
    if found.draws < 2:
        title = "Cannot tell: one draw of each prompt can be compared with no other."
    else:
        title = (
            "Cannot tell: all draws of a prompt are worth the same, and whether any reply is worth more is not known."
        )
        missed = share(found.unseen.fixed_direction_total)
        where = "on average over these prompts" if found.prompts > 1 else "of this prompt"
        why = (
            f"The mean {reach.by} is {_base(reach)}. Replies worth another reward, with {missed} of the mass or more "
            f"{where}, would have shown with 95 % confidence; rarer ones may be there.",
        )
    more = f"Draw more (--draws {max(USUAL, 4 * found.draws)}): better replies may be rarer than these show."
    level = () if found.given else ("Say from which reward on a reply is a success: --success R.",)
    return Verdict("cannot tell", title, (*why, *(_able(found) if found.given else ())), (*level, more))


def _unsure(found: Evidence) -> Verdict | None:
    if found.reach is None:
        return _few_labels(found)
    if found.reach.at.told:
        return None
    return Verdict(
        "cannot tell",
        f"Cannot tell: at KL = {few(found.reach.kl)} the policy rests on replies that few of the draws show.",
        (*found.reach.statements[:2], *_able(found)),
        (f"Draw more (--draws {4 * found.draws}), or settle for a smaller KL.",),
    )


def _few_labels(found: Evidence) -> Verdict | None:
    """Cannot tell: labels are there, and no map is sure to explain any of them."""
    if found.maps is None:
        return None
    many = 4 * max(found.maps.labels, 50)
    return Verdict(
        "cannot tell",
        f"Cannot tell yet: {found.maps.labels} labels do not show that the map to use explains any of them.",
        (found.maps.reason, *_able(found)),
        (
            f"Buy more of them (--labels {many}), or explore at once: spannerlm run learns more from chosen labels.",
            "Or test maps of your own (coverage.features).",
        ),
    )


def _features(found: Evidence) -> Verdict | None:
    if found.maps is None:
        return None
    row = best_map(found.maps)
    if math.isnan(row.share.value):
        if not row.r2.high < EXPLAINED:
            return None
        title = (
            "Better features or labels first: the maps tested explain little of the labels, or these are mostly noise."
        )
        why = f"The best, {row.map}, explains {_percent(row.r2)} of the labels' variance, noise included."
    elif max(other.share.value for other in found.maps.rows) < ENOUGH:
        title = "Better features first: none of the maps tested keeps half of what tilting by the reward gains."
        why = f"A policy fitted on the map to use, {row.map}, keeps {_percent(row.share)} of it."
    else:
        return None
    return Verdict(
        "better features",
        title,
        (why, *_able(found)),
        ("Test maps of your own (coverage.features), such as a sentence encoder or what your raters look at.",),
    )


def _dear(found: Evidence) -> Verdict | None:
    """Go, but only with more draws than usual, or at a price for each answer."""
    if found.reach is None:
        return None
    needed, answer = found.reach.needed.value, found.reach.at.draws_per_answer
    if needed <= max(USUAL, 1) and answer.value <= found.max_draws:
        return None
    reasons = [*_able(found), *_cost(found)]
    if answer.value > found.max_draws:
        title = f"Go only where an answer may cost {few(answer.value)} draws: {_reached(found)}."
        return Verdict("go with draws", title, tuple(reasons), ("A smaller KL makes answers cheaper: see the table.",))
    draws = f"{count(needed)} draws per prompt" if math.isfinite(needed) else f"more than {count(found.draws)} draws"
    title = f"Go only with {draws}: fewer hold too little of what is good; {_reached(found)}."
    return Verdict("go with draws", title, tuple(reasons), _advice(found))


# --- sentences -------------------------------------------------------------------------------------------------------


def best_map(maps: Maps) -> MapRow:
    """The row of the map to use."""
    return next(row for row in maps.rows if row.map == maps.best)


def _able(found: Evidence) -> tuple[str, ...]:
    """What the model can do, in draws."""
    known = found.success
    if known is None:
        return ()
    first, last = known.pass_at[0], max((p for p in known.pass_at if p.measured), key=lambda p: p.k)
    sentence = (
        f"A draw succeeds (reward {few(known.level.value)} or more) with probability {_number(first.value)}; one of "
        f"{count(last.k)} does with probability {_number(last.value)} [{_number(last.low)}, {_number(last.high)}]."
    )
    if not known.hopeless:
        return (sentence,)
    named = f"{len(known.hopeless)} of {found.prompts} prompts are beyond the model: exploration will not help there."
    return (sentence, named)


def _cost(found: Evidence) -> tuple[str, ...]:
    """Features, labels and draws that it takes."""
    out = []
    row = None if found.maps is None else best_map(found.maps)
    if row is not None and not math.isnan(row.share.value):
        out.append(f"Features: a policy on {row.map} keeps {_percent(row.share)} of what the reward itself would gain.")
    if found.reach is not None:
        answer = found.reach.at.draws_per_answer
        bound = f", at most {few(answer.high)} with 95 % confidence" if math.isfinite(answer.high) else ""
        out.append(f"Serving: an answer at KL = {few(found.reach.kl)} costs {few(answer.value)} base draws{bound}.")
    random = random_does_it(found.forecast)
    if random:
        out.append(random)
    return tuple(out)


def random_does_it(forecast: Forecast | None) -> str:
    """The sentence where labels at random do as well as chosen ones; empty where they do not, or nothing is known."""
    if forecast is None or not math.isfinite(forecast.labels.value) or forecast.pays:
        return ""
    if forecast.by != "true reward":  # from labels alone it was right in three of four cases only
        return ""
    if forecast.random_labels.value < forecast.labels.value / 1.3:
        fewer = count(forecast.random_labels.value)
        return f"Exploration does not pay here: labels of random draws get there with fewer, about {fewer}."
    return "Exploration does not pay here: labels of random draws get there with about as many."


def _reached(found: Evidence) -> str:
    """What labels bring, in one clause."""
    forecast = found.forecast
    if forecast is None:
        return "the model's draws hold what the reward asks for"
    goal = f"{few(100 * forecast.share)} % of what this model can gain"
    if not math.isfinite(forecast.labels.value):
        return f"more than {count(forecast.budget)} labels are expected to be needed for {goal}"
    high = count(forecast.labels.high) if math.isfinite(forecast.labels.high) else f"more than {count(forecast.budget)}"
    return f"about {count(forecast.labels.value)} labels [{count(forecast.labels.low)}, {high}] bring {goal}"


def _advice(found: Evidence) -> tuple[str, ...]:
    """What to type next."""
    if found.forecast is None or not math.isfinite(found.forecast.labels.value):
        return ("Explore, and watch the value that its report predicts; what limits it stands below.",)
    high = found.forecast.labels.high
    labels = high if math.isfinite(high) else found.forecast.labels.value
    which = "" if found.maps is None else f", on the feature map {found.maps.best}"
    open_end = "" if math.isfinite(high) else "; more may be needed: the draws give no upper end"
    return (f"Explore with {10 * math.ceil(labels / 10)} labels{which}{open_end}.",)


def _stepwise(found: Evidence) -> tuple[str, ...]:
    """Whether to go step by step, where it was looked at and the draws can tell."""
    steps = found.steps
    if steps is None or steps.helps is None:
        return ()
    if not steps.helps:
        return ("Tilt whole answers: going step by step would not make them much cheaper.",)
    times = f"{few(steps.fewer.value)} times fewer tokens, at least {few(steps.fewer.low)}"
    return (f"Go step by step (multi-turn-spanner): an answer of the same quality takes about {times}.",)


def _as_it_is() -> tuple[str, ...]:
    return ("Use the base model as it is.",)


def _base(reach: Reach) -> str:
    return short(reach.base.value)


def _percent(part: Interval) -> str:
    """ "73 % [61, 82]"; the value alone where the interval is undefined."""
    if not (math.isfinite(part.low) and math.isfinite(part.high)):
        return f"{few(100 * part.value)} %"
    return f"{_whole(part.value)} % [{_whole(part.low)}, {_whole(part.high)}]"


def _whole(part: float) -> str:
    return f"{round(100 * part)}"


def _number(value: float) -> str:
    """A probability to two significant digits."""
    return "–" if math.isnan(value) else f"{value:.2g}"
