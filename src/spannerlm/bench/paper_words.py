"""The sentences of `bench paper`: what was measured, what was asked, and whether the one meets the other.

No verdict is written down beforehand: `meets` compares a number with its bounds, and an undefined one is said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spannerlm.wording import count, few

Numbers = Mapping[str, Any]

TITLES = {
    "a": "Coverage is necessary",
    "b": "Rare skills",
    "c": "Interventions at training time",
    "d": "What a draw of the tilted policy costs",
    "e": "Where nothing is rare, exploring must not hurt",
    "f": "The rivals",
    "g": "The regret that is left, as predicted",
    "h": "Step by step, or whole sequences",
}
THEOREM = (
    "The theorem (THEORY 2): any algorithm needs T_comp = Omega(min{C*, exp(beta^2 d / 2), exp(1 / (2 beta))}) draws "
    "unless it buys T_data >= |Y| / 8 labels. At sizes that can be run exp(beta^2 d / 2) is about 1, so that its "
    "constant is quoted, not drawn. The curve drawn is elementary: P(y* is among n draws) = 1 - (1 - 1/C)^n."
)


def sentences(numbers: Numbers) -> dict[str, list[str]]:
    """Claim -> its sentences; claims that were not measured are absent."""
    makers = {
        "a": _coverage,
        "b": _rare,
        "c": _interventions,
        "d": _samplers,
        "e": _harmless,
        "f": _rivals,
        "g": _foresight,
        "h": _stepwise,
    }
    return {name: make(numbers[name]) for name, make in makers.items() if numbers.get(name)}


def meets(value: float, low: float = -math.inf, high: float = math.inf) -> str:
    """``holds``, ``does not hold``, or ``undecided`` where the value is undefined."""
    return "undecided" if math.isnan(value) else "holds" if low <= value <= high else "does not hold"


def interval(numbers: Numbers, digits: int = 2) -> str:
    """``1.02 [0.98, 1.06]``; an infinite end is ∞, an undefined value "undefined"."""
    value, low, high = (_decimal(numbers[key], digits) for key in ("value", "low", "high"))
    return "undefined" if value == "undefined" else f"{value} [{low}, {high}]"


def _decimal(value: float, digits: int) -> str:
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits}f}"


def _asked(numbers: Numbers, said: str, low: float = -math.inf, high: float = math.inf, bound: str = "") -> str:
    """``1.02 [0.98, 1.06] (asked: within 1.00 +- .05: holds)``; ``bound`` says which side is only bounded."""
    verdict = meets(numbers["value"], low, high)
    if bound == "least" and verdict != "undecided":  # the true value is this or more
        verdict = "holds" if numbers["value"] >= low and high == math.inf else "does not hold"
        verdict = "undecided" if numbers["value"] <= high < math.inf or numbers["value"] < low else verdict
    start = "at least " if bound == "least" else ""
    return f"{start}{interval(numbers)} (asked: {said}: {verdict})"


def _coverage(a: Numbers) -> list[str]:
    found = []
    for name, method in (a.get("given") or {}).items():
        found.append(
            f"{name}, given n draws: draws to completion grow like C to the power "
            f"{_asked(method['exponent_draws'], 'within 1.00 ± 0.05', 0.95, 1.05)}, {method['seeds']} seeds a point."
        )
        for noise, labels in method["labels"].items():
            if labels["points"]:
                found.append(
                    f"{name}, label noise {noise}: labels to completion, with draws to spare, "
                    f"{_range(labels['points'], 'labels')}; exponent in C "
                    f"{_asked(labels['exponent_labels'], 'at most 0.15', high=0.15, bound=_bound(labels))}."
                )
    for name, method in (a.get("told_nothing") or {}).items():
        found.append(
            f"{name}, told nothing: exponent in C of draws to completion {_least(method)}"
            f"{interval(method['exponent_draws'])}, of labels {_least(method)}{interval(method['exponent_labels'])}; "
            f"its pools grow with its labels, {_range(method['points'], 'labels')}."
        )
    return [*found, THEOREM]


def _rare(b: Numbers) -> list[str]:
    found = []
    for name, method in b["methods"].items():
        points = method["points"]
        if len(points) < 2:
            continue
        start = (
            f"{name}: labels {_range(points, 'labels')} for p = {1 / points[0]['x']:.2g} .. {1 / points[-1]['x']:.2g}"
        )
        if name in ("spanner-sampling", "directed"):
            labels = _asked(method["exponent_labels"], "at most 0.15", high=0.15, bound=_bound(method))
            draws = _asked(method["exponent_draws_rare"], "within 1.0 ± 0.1", 0.9, 1.1, bound=_bound(method))
            found.append(f"{start}, exponent in 1/p {labels}; of draws, for p <= .01, {draws}.")
        else:
            found.append(
                f"{start}, exponent in 1/p {_least(method)}{interval(method['exponent_labels'])}, no method told p."
            )
    for ours, others in b["ratios"].items():
        for name, ratio in others.items():
            low = "at least " if ratio["reached"] < 0.5 else ""
            capped = meets(ratio["value"], low=100.0)
            verdict = "undecided" if capped == "does not hold" and low else capped
            found.append(
                f"At p = .001 {name} takes {low}{few(ratio['value'])} times the labels of {ours} (asked: at least 100: "
                f"{verdict}; {ratio['seeds']} seeds, {few(100 * ratio['reached'])} % of them got there)."
            )
    for name, method in b["rate"].items():
        least = "at least " if method["reached"] < 0.5 else ""
        found.append(
            f"{name}, p = .01: labels grow like 1 / regret to the power {least}{interval(method['exponent'])}, from .3 "
            "to .01 of the start."
        )
    return found


def _interventions(c: Numbers) -> list[str]:
    found = []
    for name, method in (c.get("without_skip") or {}).items():
        labels, short = _range(method["points"], "labels"), name.removesuffix(", proper")
        if method["proper"]:
            said = _asked(method["exponent_labels"], "at least 2^(0.8 k)", low=0.8, bound=_bound(method))
            found.append(f"{short}, proper, without the skip: labels {labels}, growing like 2^(e k) with e = {said}.")
        else:
            spread = dict.fromkeys(("value", "low", "high"), method["spread_labels"])
            verdict = meets(spread["value"], high=3.0) if method["reached"] >= 0.5 else "does not hold"
            at_least = "at least " if method["reached"] < 0.5 else ""
            found.append(
                f"{name}, improper, without the skip: labels {labels}, largest over smallest {at_least}"
                f"{few(method['spread_labels'])} (asked: at most 3: {verdict})."
            )
    for name, method in (c.get("with_skip") or {}).items():
        short = name.removesuffix(", proper")
        kind = "proper" if method["proper"] else "improper"
        found.append(
            f"{short}, {kind}, with the skip: labels {_range(method['points'], 'labels')}, rounds "
            f"{_range(method['points'], 'rounds')}, growing like 2^(e k) with e = {_least(method)}"
            f"{interval(method['exponent_rounds'])} (predicted for proper ones: 1)."
        )
    if c.get("signs"):
        for row in c["signs"]["mean"]:
            found.append(
                f"n = {row['n']}, {c['signs']['terms']} terms: the best sign vector satisfies {row['best']:.1f}, "
                f"the planted one {row['planted']:.1f}, a random one {row['random']:.1f}; the signs of what "
                f"coreset learned {row['coreset']:.1f}, of online-dpo's {row['online-dpo']:.1f}."
            )
    return found


def _samplers(d: Numbers) -> list[str]:
    found = []
    for curve in d["curves"]:
        within = [x for x, y in curve["points"] if y <= 0.01]
        name = "The largest key" if curve["sampler"] == "adaptive" else f"SoftmaxSampler with M = {curve['m']} C"
        least = min(y for _, y in curve["points"])
        said = (
            f"is within .01 of the tilted law from {few(min(within))} C draws on" if within else "is never within .01"
        )
        end = max(x for x, _ in curve["points"])
        found.append(f"C = {curve['c']:,}: {name} {said}; its least error, up to {few(end)} C draws, is {least:.1e}.")
    return found


def _harmless(e: Numbers) -> list[str]:
    found = []
    for task, methods in e.items():
        for name, method in methods.items():
            if name == "passive":
                continue
            known = [r for r in method["ratio"] if not math.isnan(r["value"])]
            worse = [r for r in known if r["low"] > 1.0]
            last = known[-1] if known else None
            verdict = "undecided" if last is None else "hurts at some budgets" if worse else "no harm seen"
            end = "" if last is None else f"; at {last['labels']} labels the ratio is {interval(last)}"
            found.append(
                f"{task}: {name} has more regret than passive, with its whole interval, at {len(worse)} of "
                f"{len(known)} budgets ({verdict}){end}; {method['seeds']} seeds."
            )
    return found


def _rivals(f: Numbers) -> list[str]:
    rows = [r for r in f["table"] if r["variant"] != "linucb-enumerate"]
    ours = "directed" if any(r["variant"] == "directed" for r in rows) else "spanner-sampling"
    worst, reached = [], 0
    tasks = dict.fromkeys(r["task"] for r in rows)
    for task in tasks:
        values = {r["variant"]: r["labels"]["value"] for r in rows if r["task"] == task}
        best = min((v for k, v in values.items() if k != ours and not math.isnan(v)), default=math.nan)
        mine = values.get(ours, math.nan)
        if math.isfinite(best) and best > 0.0 and not math.isnan(mine):
            worst.append((mine / best, task))
            reached += mine <= 1.3 * best
    if not worst:
        return [f"{f['source']}; no task has both {ours} and a rival that got there."]
    ratio, task = max(worst)
    return [
        f"{f['source']}.",
        f"{ours} takes at most 1.3 times the labels of the best rival (enumeration aside) on {reached} of {len(worst)} "
        f"tasks where a rival got there; at worst {_decimal(ratio, 2)} times, on {task} (asked: 1.3 everywhere: "
        f"{meets(ratio, high=1.3)}; medians).",
    ]


def _foresight(g: Numbers) -> list[str]:
    found = [f"{g['source']}."]
    if g.get("realizable"):
        families, overall = g["realizable"]["families"], g["realizable"]["overall"]
        for name, said in (("expected", "expected regret"), ("wide", "regret under the wide prior")):
            medians = {task: method[name]["value"] for task, method in families.items()}
            known = {task: value for task, value in medians.items() if not math.isnan(value)}
            inside = sum(meets(value, 0.5, 2.0) == "holds" for value in known.values())
            start = (
                f"True over predicted, {said}: median {_asked(overall[name], 'within [0.5, 2]', 0.5, 2.0)} over "
                f"{overall['seeds']} runs; within on {inside} of {len(known)} families"
            )
            least, most = min(known, key=known.__getitem__, default=""), max(known, key=known.__getitem__, default="")
            ends = f", from {known[least]:.2f} ({least}) to {known[most]:.2f} ({most})" if known else ""
            found.append(f"{start}{ends}.")
        found.append(f"False alarms where the features explain the reward: {_warned(overall)}.")
    for task, method in (g.get("misspecified") or {}).get("families", {}).items():
        found.append(
            f"{task}: {_warned(method)}; true regret is {interval(method['expected'])} times the expected one."
        )
    return found


def _stepwise(h: Numbers) -> list[str]:
    found = ["A lock counts as opened where regret is at most 5 % of its start and stays there for 60 labels."]
    for family, numbers in h.items():
        for name, method in numbers["methods"].items():
            points = method["points"]
            start = f"{family}, {name}: H = {points[0]['x']:.0f}"
            start += f" .. {points[-1]['x']:.0f}, " if len(points) > 1 else ", "
            costs = f"tokens {_range(points, 'tokens')}, labels {_range(points, 'labels')}"
            short = [p for p in points if p["reached"] < 0.5]
            places = ", ".join(format(p["x"], ".0f") for p in short)
            fewer = f"; not reached by half of the seeds at H = {places}" if short else ""
            if method["steps"]:
                tokens = _asked(method["exponent_tokens"], "at most 2.1", high=2.1, bound=_bound(method))
                labels = _least(method) + interval(method["exponent_labels"])
                if family == "delayed-lock":
                    labels = _asked(method["exponent_labels"], "at most 1.3", high=1.3, bound=_bound(method))
                law = f"growing like H to the power {tokens} in tokens, {labels} in labels"
            else:
                rate = _asked(method["rate_tokens"], "at least 2^(0.8 H)", low=0.8, bound=_bound(method))
                law = f"tokens growing like 2^(e H) with e = {rate}"
            found.append(f"{start}{costs}, {law}{fewer}; {method['seeds']} seeds.")
        found.append(_exact(family, numbers))
    return found


def _exact(family: str, numbers: Numbers) -> str:
    """What one answer of the whole optimum costs, which needs no run, beside the coverage of one step."""
    first, last = numbers["exact"][0], numbers["exact"][-1]
    rate = numbers["rate_exact"]["value"]
    return (
        f"{family}, exact: one answer of the sequence-level optimum takes C_cov H = {count(first['tokens'])} tokens at "
        f"H = {first['x']:.0f} and {count(last['tokens'])} at H = {last['x']:.0f}, growing like 2^(e H) with e = "
        f"{_decimal(rate, 2)} (asked: at least 2^(0.8 H): {meets(rate, low=0.8)}); C_cond of one step is "
        f"{first['c_cond']:.2f} and {last['c_cond']:.2f}."
    )


def _warned(method: Numbers) -> str:
    """``12 % of 40 runs warn at some row, 5 % at the last``."""
    shares = [f"{100.0 * method[key]:.0f} %" for key in ("warned", "warned_last")]
    return f"{shares[0]} of {method['seeds']} runs warn at some row, {shares[1]} at the last"


def _bound(method: Numbers) -> str:
    return "least" if method["reached"] < 0.5 else ""


def _least(method: Numbers) -> str:
    return "at least " if method["reached"] < 0.5 else ""


def _range(points: Sequence[Numbers], cost: str) -> str:
    """``20 .. 28``: medians at the first and the last x; ``> 400`` where fewer than half got there."""
    ends = [points[0], points[-1]]
    return " .. ".join(f"{'> ' if p['reached'] < 0.5 else ''}{count(p[cost]['value'])}" for p in ends)
