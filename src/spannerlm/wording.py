"""What a run's report says: its numbers as a reader wants them, and its findings in words.

Every sentence is made from the stored rows alone. An undefined number is "–" or its sentence is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

GAIN = "predicted gain over the base model"
"""Name of the estimate that comparisons allow where the true reward is not free."""

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Characters that steer a terminal or a page instead of showing: controls, invisible and direction-changing ones."""


def visible(text: str) -> str:
    r"""The text with each control character spelled out, as in ``\x1b`` or ``\u202e``; newline and tab stay."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def plain(name: str) -> str:
    """The name in letters that every font has, at most 28 of them."""
    text = visible(name).replace("\n", " ").replace("\t", " ").encode("ascii", "replace").decode("ascii")
    return text if len(text) <= 28 else f"{text[:25]}..."


def number(value: object) -> float:
    """The value as a float; nan where it is undefined: None, not a number, infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if math.isfinite(value) else math.nan


def short(value: object, width: float = math.nan) -> str:
    """The number with two decimals or more digits where it is small, or ``width`` (of its interval) is; or "–"."""
    x = number(value)
    if math.isnan(x):
        return "–"
    if 0.0 < abs(x) < 1e-6:
        return f"{x:.1e}"
    decimals = 0 if abs(x) >= 100.0 else 1 if abs(x) >= 10.0 else 2
    for unit in (abs(x) / 9.5, width / 3.0):
        decimals = max(decimals, min(9, math.ceil(-math.log10(unit)))) if 0.0 < unit < math.inf else decimals
    return f"{x:,.{decimals}f}"


def few(value: object) -> str:
    """The number to three digits, for draws per answer and the like: 1, 14.2, 1,230; or "–"."""
    x = number(value)
    return "–" if math.isnan(x) else f"{x:,.0f}" if abs(x) >= 100.0 else f"{x:.3g}"


def count(value: object) -> str:
    """A whole number with its thousands marked; or "–"."""
    x = number(value)
    return "–" if math.isnan(x) else f"{x:,.0f}"


def nats(value: object) -> str:
    """A KL with its unit: "1 nat", "1.5 nats"; or "–"."""
    text = few(value)
    return text if text == "–" else f"{text} nat" if text == "1" else f"{text} nats"


def share(value: object) -> str:
    """A share as a percentage; or "–"."""
    x = number(value)
    return "–" if math.isnan(x) else f"{few(100.0 * x)} %"


def interval(row: Row, key: str = "value") -> str:
    """Value and interval, "0.96 [0.91, 1.01]"; the value alone where the interval is undefined."""
    value, low, high = (number(row.get(k)) for k in (key, "low", "high"))
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        return short(value)
    width = high - low
    if value == low == 0.0:
        return f"0 [0, {short(high)}]"
    return f"{short(value, width)} [{short(low, width)}, {short(high, width)}]"


def seconds(value: object) -> str:
    """A time as a reader wants it: "0.4 s", "38 s", "12 min", "3.1 h"; or "–"."""
    x = number(value)
    if math.isnan(x):
        return "–"
    return (
        f"{x:.1f} s"
        if x < 9.95
        else f"{x:.0f} s"
        if x < 120
        else f"{x / 60:.0f} min"
        if x < 7200
        else f"{x / 3600:.1f} h"
    )


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest of the values (in rising order) that at least a share ``q`` of them does not exceed."""
    return values[max(0, math.ceil(q * len(values) - 1e-9) - 1)]


def row_of(report: Row, name: str) -> Row:
    """The table's row of this name; an empty one where there is none."""
    return next((row for row in report.get("table") or () if row.get("name") == name), {})


def outcome(report: Row) -> Row:
    """What the chosen explorer reached: its row of the table, or the last row of the history that has a value."""
    row = row_of(report, str(report.get("explorer")))
    valued = [h for h in report.get("history") or () if not math.isnan(number(h.get("value")))]
    return row if not math.isnan(number(row.get("value"))) else valued[-1] if valued else row


def headline(report: Row) -> tuple[str, ...]:
    """The run in at most four sentences: what was reached, beside random labels, beside the best possible."""
    ours = outcome(report)
    labels = number(ours.get("labels", (report.get("counts") or {}).get("labels")))
    if math.isnan(number(ours.get("value"))):
        return (*_untold(report, labels), *_reason(report))
    predicted = not report.get("true_reward_free", True)
    verb = "is predicted to earn" if predicted else "earns"
    base = row_of(report, "base model")
    first = f"With {_labels(labels)} the tilted policy {verb} {interval(ours)} on held-out prompts"
    if not math.isnan(number(base.get("value"))):
        first += f", against {interval(base)} for the base model"
        first += " (their 95 % intervals overlap)" if labels and _overlap(ours, base) else ""
    caution = ("The prediction comes from the labels alone: no free true reward was there to check it.",)
    return (f"{first}.", *_random(report, ours, labels), *_optimum(report, ours, base), *(caution if predicted else ()))


def _untold(report: Row, labels: float) -> tuple[str, ...]:
    """The sentences where no value is known: comparisons may tell the gain all the same."""
    if report.get("feedback") != "comparison":
        return (f"With {_labels(labels)} the value of the tilted policy cannot be told yet.",)
    gain: Row = next((row for row in report.get("estimates") or () if row.get("name") == GAIN), {})
    why = "Comparisons tell which reply is better, not how good it is."
    if math.isnan(number(gain.get("value"))):
        return (f"With {_labels(labels)} the value of the tilted policy cannot be told.", why)
    more = f"{interval(gain)} more than the base model on held-out prompts"
    return (f"With {_labels(labels)} the tilted policy is predicted to earn {more}.", why)


def _labels(labels: float) -> str:
    return "no labels" if labels == 0 else "1 label" if labels == 1 else f"{count(labels)} labels"


def _reason(report: Row) -> tuple[str, ...]:
    return (f"The run ended because: {report['reason']}.",) if report.get("reason") else ()


def _overlap(a: Row, b: Row) -> bool:
    """Whether two intervals overlap; False where one is undefined."""
    return number(a.get("low")) <= number(b.get("high")) and number(b.get("low")) <= number(a.get("high"))


def _random(report: Row, ours: Row, labels: float) -> tuple[str, ...]:
    """The sentence on random labelling, with the same labels and with more."""
    same, more = row_of(report, "random, same labels"), row_of(report, "random, 10x labels")
    parts = []
    if not math.isnan(number(same.get("value"))):
        better = number(same.get("value")) > number(ours.get("value"))
        note = ", intervals overlap" if _overlap(ours, same) else ", which is more" if better else ""
        parts.append(f"{interval(same)} with as many labels{note}")
    if not math.isnan(number(more.get("value"))):
        factor = number(more.get("labels")) / labels if labels > 0 else math.nan
        times = f"{few(factor)} times as many" if not math.isnan(factor) else "ten times as many"
        parts.append(f"{interval(more)} with {times}{'' if parts else ' labels'}")
    return (f"Random labelling reaches {' and '.join(parts)}.",) if parts else ()


def _optimum(report: Row, ours: Row, base: Row) -> tuple[str, ...]:
    """The sentence on the best policy at the same KL, and how far towards it the run came."""
    best = row_of(report, "true-reward optimum")
    if math.isnan(number(best.get("value"))):
        return ()
    gap = number(best.get("value")) - number(base.get("value"))
    way = (number(ours.get("value")) - number(base.get("value"))) / gap if gap > 0 else math.nan
    text = f"The optimum, tilted by the true reward itself, is {interval(best)}"
    return (f"{text}: {share(way)} of the way from the base model to it." if way > 0 else f"{text}.",)


def recommendation(report: Row) -> str:
    """The recommended KL, what it is worth there and what an answer costs; empty where there is none."""
    row: Row = report.get("recommended") or {}
    if math.isnan(number(row.get("kl"))):
        return ""
    beta = "" if math.isnan(number(row.get("beta"))) else f" (β = {few(row.get('beta'))})"
    text = f"Sample at a KL of {nats(row.get('kl'))} from the base model{beta}."
    if not math.isnan(number(row.get("value"))):
        text += f" There the policy is worth {interval(row)}"
        cost = number(row.get("draws_per_answer"))
        text += "." if math.isnan(cost) else f", and one answer costs {few(cost)} draws of the base model on average."
    return text


def bill(usage: Row) -> str:
    """``1,200, 52,000 + 9,100 tokens, cost 0.41``: requests to a server, and what they came to."""
    tokens = f"{count(usage.get('prompt_tokens'))} + {count(usage.get('completion_tokens'))} tokens"
    cost = number(usage.get("cost"))
    return f"{count(usage.get('requests'))}, {tokens}" + (f", cost {few(cost)}" if cost > 0 else "")


def last_certificate(report: Row) -> Row:
    """The last certificate that the run issued; an empty row where there is none."""
    issued = [row["certificate"] for row in report.get("history") or () if row.get("certificate")]
    return issued[-1] if issued else {}


def certificate_words(report: Row) -> tuple[str, ...]:
    """What the spanner may promise, and what it may not (THEORY 3, certificate)."""
    row = last_certificate(report)
    eta, pairs = number(row.get("eta")), number(row.get("pairs"))
    if math.isnan(eta) or not pairs > 0:
        return ("No certificate was issued: no fresh draws were tested against the spanner.",)
    sure = f"With confidence {share(1.0 - number(row.get('delta')))}"
    whom = "two draws of the base model for the same prompt, averaged over the prompts tested,"
    nu, beyond, radius = few(row.get("nu")), number(row.get("beyond")), number(row.get("radius"))
    if eta < 1.0:
        promise = f"{sure}: {whom} differ by more than the spanner covers (ν = {nu}) in at most {share(eta)} of cases."
    else:
        promise = f"At ν = {nu} the spanner promises nothing yet: a pair beyond it turned up."
    wider = f"{sure}: at most {share(row.get('eta_radius'))} of such pairs are farther apart than {few(radius)}."
    test = (
        f"Tested on {count(pairs)} independent pairs of fresh draws, after {count(row.get('acceptances'))} pairs had "
        f"been accepted; {'none' if beyond == 0 else count(beyond)} of them lay beyond ν."
    )
    limits = (
        "This is about coverage, not about quality, and about the base model's draws, not the tilted policy's. "
        "Behaviour rarer than the draws could show remains unseen: no rule can be free of this."
    )
    return (promise, *((wider,) if radius > 0 and eta >= 1.0 else ()), test, limits)


def captions(report: Row) -> dict[str, str]:
    """Figure name -> one sentence of what it shows in this run."""
    return {
        "value_against_labels": _caption_labels(report),
        "value_against_kl": _caption_kl(report),
        "spanner_growth": _caption_spanner(report),
        "spectrum": _caption_spectrum(report),
        "draws_per_answer": _caption_draws(report),
    }


def _valued(rows: Sequence[Row] | None) -> list[Row]:
    return [row for row in rows or () if not math.isnan(number(row.get("value")))]


def _caption_labels(report: Row) -> str:
    rows = _valued(report.get("history"))
    if not rows:
        return "The value after each batch of labels is not known."
    way = f"goes from {short(rows[0]['value'])} to {short(rows[-1]['value'])} within"
    way = way if len(rows) > 1 else f"is at {short(rows[0]['value'])} with"
    text = f"{report.get('explorer')} {way} {_labels(number(rows[-1].get('labels')))}"
    ends = [(name, _valued(points)[-1]) for name, points in (report.get("baselines") or {}).items() if _valued(points)]
    others = [f"{name} ends at {short(r['value'])} with {_labels(number(r.get('labels')))}" for name, r in ends]
    return "; ".join([text, *others]) + "."


def _caption_kl(report: Row) -> str:
    row: Row = report.get("recommended") or {}
    text = "The farther the policy moves from the base model, the more draws an answer costs"
    if math.isnan(number(row.get("kl"))):
        return f"{text}."
    cost = f", {few(row.get('draws_per_answer'))} draws an answer" if row.get("draws_per_answer") is not None else ""
    return f"{text}; the recommended KL of {nats(row['kl'])} is marked{cost}."


def _caption_spanner(report: Row) -> str:
    pairs = [number(row.get("pairs")) for row in report.get("history") or ()]
    known = [p for p in pairs if not math.isnan(p)]
    row = last_certificate(report)
    text = f"{count(known[-1]) if known else '–'} pairs were accepted"
    if math.isnan(number(row.get("eta"))):
        return f"{text}; no certificate was issued."
    if number(row.get("eta")) >= 1.0:
        return f"{text}; the last test still found a pair beyond ν = {few(row.get('nu'))}."
    return f"{text}; at most {share(row['eta'])} of base pairs are left uncovered at ν = {few(row.get('nu'))}."


def _caption_spectrum(report: Row) -> str:
    size = len(report.get("spectrum") or ())
    text = f"The base model's replies differ in {count(size)} measured directions"
    rank = number(report.get("effective_rank"))
    return f"{text}." if math.isnan(rank) else f"{text}, worth about {few(rank)} independent ones."


def _caption_draws(report: Row) -> str:
    values = sorted(v for v in map(number, report.get("draws_per_answer") or ()) if v > 0.0)
    if not values:
        return "The draws per answer are not known."
    if len(values) == 1:
        return f"The one held-out prompt needs {few(values[0])} draws an answer."
    half, most = few(quantile(values, 0.5)), few(quantile(values, 0.9))
    return (
        f"Half of the {count(len(values))} held-out prompts need at most {half} draws an answer, 90 % at most {most}."
    )
