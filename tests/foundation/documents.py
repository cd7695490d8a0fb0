"""Made-up coverage documents of every shape that the page must bear; the numbers are plausible, not computed."""

from __future__ import annotations

from typing import Any

import numpy as np

Row = dict[str, Any]
HOSTILE = "<script>alert(1)</script>\u202eevil\x1b[31m </style><img src=x onerror=alert(2)> 'quote\" $x^2$ {{ 7*7 }}"
RTL = "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627"
LONG = "supercalifragilistic" * 30


def around(value: float, half: float) -> Row:
    """An interval; one-sided ones are made with `below`."""
    return {"value": value, "low": value - half, "high": value + half}


def below(value: float, high: float | None) -> Row:
    """An estimate with an upper bound, None where there is none."""
    return {"value": value, "low": 1.0, "high": high}


def unseen(prompts: int, draws: int, rng: np.random.Generator, alike: bool) -> Row:
    rows = []
    for x in range(prompts):
        distinct = 1 if alike else int(rng.integers(3, draws // 2))
        entropy = 0.0 if alike else float(np.log(distinct) * rng.uniform(0.5, 0.9))
        rows.append(
            {"prompt": x, "draws": draws, "distinct": distinct, "entropy": around(entropy, 0.1 if not alike else 0.0),
             "unseen": {"value": 0.0 if alike else distinct / draws / 2, "low": 0.0, "high": 0.01 + distinct / draws},
             "top": f"commonest answer {x}", "top_share": 1.0 if alike else float(rng.uniform(0.05, 0.6))}
        )  # fmt: skip
    mean = {k: float(np.mean([r[k]["value"] for r in rows])) for k in ("entropy", "unseen")}
    return {
        "prompts": tuple(rows),
        "draws": draws,
        "total": draws * prompts,
        "distinct": float(np.mean([r["distinct"] for r in rows])),
        "entropy": around(mean["entropy"], 0.0 if alike else 0.05),
        "unseen": {"value": mean["unseen"], "low": 0.0, "high": mean["unseen"] + 0.02},
        "constant": prompts if alike else 0,
        "fixed_direction": 3.0 / draws,
        "every_direction": 11.0 / draws,
        "never": 0.05 / draws,
        "delta": 0.05,
        "statements": (f"n = {draws} draws see every direction of mass above {1100 / draws:.2g} %.",),
    }


def span(name: str, dim: int, draws: int, alike: bool) -> Row:
    values = np.exp(-np.arange(dim) / max(1.0, dim / 6))
    values /= values.sum()
    rank = float(np.exp(-(values * np.log(values)).sum()))
    ks = [2**k for k in range(2, 12) if 2**k <= draws]
    return {
        "map": name,
        "dim": dim,
        "spectrum": () if alike else tuple(values.tolist()),
        "effective_rank": {"value": None, "low": None, "high": None} if alike else around(rank, 0.3),
        "directions_95": 0 if alike else int(np.searchsorted(np.cumsum(values), 0.95)) + 1,
        "growth": () if alike else tuple({"draws": k, "pairs": int(dim * (1 - 2.0 ** (-k / 40)))} for k in ks),
        "nu": 2.0,
        "penalty": 1.0,
        "eta": 1.0 if alike else 0.031,
        "radius": 1.3,
        "eta_radius": 0.02,
        "acceptances": 18,
        "tested": 500,
        "beyond": 3,
        "statements": (f"With {name}, at most 3.1 % of pairs lie beyond the spanner (95 % confidence).",),
    }


def success(prompts: int, draws: int, rng: np.random.Generator, value: float, by: str, real: bool) -> Row:
    rates = np.sort(rng.beta(0.35 * value * 10, 4.0, prompts)) * (rng.random(prompts) > 0.15)
    if prompts == 1:
        rates = np.array([0.04 * value * 3])
    ks = [2**k for k in range(20) if 2**k <= 10 * draws]
    pass_at = []
    for k in ks:
        mean = float(np.mean(1.0 - (1.0 - rates) ** k))
        half = 0.02 if k <= draws else 0.02 + 0.05 * np.log2(k / draws)
        pass_at.append(
            {"k": k, "value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half / 2),
             "measured": k <= draws}
        )  # fmt: skip
    rows = []
    for x, rate in enumerate(rates):
        correct = round(float(rate) * draws)
        low, high = max(0.0, rate * 0.7), min(1.0, rate * 1.3 + 3 / draws)
        rows.append(
            {"prompt": x, "draws": draws, "correct": correct,
             "rate": {"value": correct / draws, "low": low, "high": high}, "hopeless": 0.97 if not correct else 0.0}
        )  # fmt: skip
    none = [row["prompt"] for row in rows if not row["correct"]]
    best = [{"k": k, **around(0.2 + 0.1 * float(np.log2(k)) * value, 0.02)} for k in ks if k <= draws]
    return {
        "level": {"value": 1.0 if not real else 0.8, "source": "two values" if not real else "optimum"},
        "by": by,
        "draws": draws * prompts,
        "max_draws": 1000,
        "pass_at": tuple(pass_at),
        "told": float(4 * draws),
        "components": ({"weight": 1.0, "a": 0.4, "b": 4.0},),
        "zero": {"value": len(none) / prompts, "low": 0.0, "high": min(1.0, 0.1 + len(none) / prompts)},
        "per_prompt": tuple(rows),
        "hopeless": tuple(none),
        "best_of": tuple(best) if real and by == "true reward" else (),
        "statements": ("One draw in twelve succeeds.", "Beyond 2,048 draws the data cannot tell."),
    }


def reach(value: float, by: str) -> Row:
    rows = []
    for kl in (0.25, 0.5, 1.0, 2.0, 3.0, 4.0):
        mean, cost = 0.2 + 0.25 * value * kl**0.5, float(np.exp(1.2 * kl))
        high = 1.5 * cost if kl <= 1.0 else 4 * cost if kl <= 2.0 else None
        rows.append(
            {"kl": kl, "beta": 1 / kl, "value": around(mean, 0.02 * kl), "gain": mean - 0.2,
             "ratio_q99": below(2 * cost, high), "draws_per_answer": below(cost, high), "worst_prompt": 0,
             "told": kl <= 2.0}
        )  # fmt: skip
    return {
        "by": by,
        "base": around(0.2, 0.01),
        "rows": tuple(rows),
        "kl": 2.0,
        "at": rows[3],
        "needed": below(180.0, 420.0),
        "statements": ("At KL = 2 nats the policy is worth 0.55 [0.51, 0.59].",),
    }


def maps(names: tuple[str, ...], value: float, by: str, parts: tuple[str, ...]) -> Row:
    rows = []
    for k, name in enumerate(names):
        r2 = 0.6 * value - 0.22 * k
        told = by == "true reward"
        rows.append(
            {"map": name, "dim": 16 * (k + 1), "r2": around(r2, 0.08),
             "share": around(max(0.05, 0.93 - 0.3 * k), 0.05) if told else {"value": None, "low": None, "high": None},
             "parts": tuple({"part": p, "variance": 1 / len(parts), "r2": around(r2 / (1 + j), 0.1)}
                            for j, p in enumerate(parts))}
        )  # fmt: skip
    return {
        "rows": tuple(rows),
        "best": names[0],
        "reason": f"{names[0]} keeps the most of the gain",
        "by": by,
        "labels": 0 if told else 60,
        "folds": "prompts",
        "statements": (f"{names[0]} explains {60 * value:.0f} % of the variance within a prompt.",),
    }


def forecast(value: float, name: str) -> Row:
    done = value > 0.5
    return {
        "map": name,
        "by": "true reward",
        "explorer": "directed",
        "target": 0.52,
        "share": 0.9,
        "labels": around(60 / value, 15) if done else {"value": None, "low": 300.0, "high": None},
        "reached": 1.0 if done else 0.3,
        "budget": 500,
        "random_labels": {"value": 240.0, "low": 130.0, "high": None},
        "random_reached": 0.6,
        "draws": below(180.0, 420.0),
        "answer": below(11.0, 44.0),
        "tokens_per_answer": 310.0,
        "simulations": 8,
        "held": 0.54,
        "statements": ("About 60 labels bring 90 % of what this model can gain.",),
    }


TITLES = {
    "go": "Go: about 60 labels [45, 75] bring 90 % of what this model can gain.",
    "go with draws": "Go only with 900 draws per prompt: fewer hold too little of what is good.",
    "better features": "Better features first: none of the maps tested keeps half of what tilting by the reward gains.",
    "no foundation": "No foundation for these prompts: no amount of exploration will help; train or prompt first.",
    "nothing to gain": "Nothing to gain: the base model does it already.",
    "cannot tell": "Without a reward nobody can tell: below is what the draws hold, not whether any of it is good.",
}


def section(
    name: str, prompts: int, draws: int, reward: str | None, value: float, kind: str, rng: np.random.Generator,
    *, alike: bool = False, names: tuple[str, ...] = ("model-hidden", "bag-of-words", "length"),
    by: str = "true reward", parts: tuple[str, ...] = (), text: str = "a reply",
) -> Row:  # fmt: skip
    can = reward is not None and not alike
    return {
        "name": name,
        "model": f"models/{name}",
        "counts": {"prompts": prompts, "draws": draws * prompts, "labels": 60 if by == "labels" else 0, "skips": 0},
        "verdict": {
            "kind": kind,
            "title": TITLES[kind],
            "reasons": ("A draw succeeds (reward 1 or more) with probability 0.083.", "Features: model-hidden 73 %."),
            "advice": ("spannerlm run --labels 80 with the features model-hidden.",),
        },
        "unseen": unseen(prompts, draws, rng, alike),
        "spans": [span(n, 16 * (k + 1), draws, alike) for k, n in enumerate(names)],
        "success": success(prompts, draws, rng, value, by, reward == "real") if can else None,
        "reach": reach(value, by) if can else None,
        "maps": maps(names, value, by, parts) if can else None,
        "forecast": forecast(value, names[0]) if can and by == "true reward" else None,
        "warnings": [],
        "examples": [
            {"prompt": f"{text}: prompt {x}", "responses": [
                {"text": f"{text} {k}", "share": 0.3 / (k + 1), "reward": 0.1 * k if can else None} for k in range(4)]}
            for x in range(min(prompts, 2))
        ],
    }  # fmt: skip


def whole(models: list[Row], prompts: list[str], draws: int, reward: str | None, title: str = "helpdesk") -> Row:
    """A document of these sections."""
    level = {"two values": {"value": 1.0, "source": "two values"}, "real": {"value": 0.8, "source": "optimum"}}
    return {
        "title": f"Coverage: {title}",
        "prompts": prompts,
        "settings": {
            "kl": 2.0, "kls": [0.25, 0.5, 1.0, 2.0, 3.0, 4.0], "share": 0.9, "max_draws": 1000, "draws": draws,
            "labels": 0, "success": level.get(reward or ""), "reward": None if reward is None else "solved",
            "reward_kind": reward, "seed": 0, "horizon": 500, "batch": 10, "simulations": 8,
        },
        "headline": [models[0]["verdict"]["title"]] if len(models) == 1 else
                    [f"{models[0]['name']} is the best foundation of these {len(models)}."],
        "best": models[0]["name"] if len(models) > 1 else None,
        "models": models,
    }  # fmt: skip


def texts(count: int) -> list[str]:
    return [f"A customer writes: my router number {x} does not connect. What do you say?" for x in range(count)]


def case(name: str) -> Row:
    """The document of this name, one of CASES."""
    rng = np.random.default_rng(CASES.index(name))
    if name == "one prompt":
        return whole([section("tiny", 1, 512, "two values", 0.9, "go", rng)], texts(1), 512, "two values")
    if name == "500 prompts":
        return whole([section("big", 500, 256, "two values", 0.6, "go with draws", rng)], texts(500), 256, "two values")
    if name == "alike":
        return whole([section("stuck", 12, 256, "two values", 0.6, "no foundation", rng, alike=True)], texts(12), 256,
                     "two values")  # fmt: skip
    if name == "real rewards":
        parts = ("correct", "polite")
        return whole([section("real", 24, 512, "real", 0.8, "go", rng, parts=parts)], texts(24), 512, "real")
    if name == "labels":
        return whole([section("judged", 24, 512, "real", 0.8, "better features", rng, by="labels")], texts(24), 512,
                     "real")  # fmt: skip
    if name == "no rewards":
        return whole([section("unjudged", 24, 512, None, 0.8, "cannot tell", rng)], texts(24), 512, None)
    if name == "three models":
        names = [f"some-organisation/a-language-model-of-a-very-long-name-checkpoint-{k}00" for k in (3, 2, 1)]
        kinds = ("go", "better features", "no foundation")
        models = [
            section(n, 16, 512, "two values", v, k, rng) for n, v, k in zip(names, (0.9, 0.6, 0.3), kinds, strict=True)
        ]
        return whole(models, texts(16), 512, "two values")
    hostile = section(HOSTILE, 8, 64, "real", 0.8, "go", rng, names=(HOSTILE, LONG, RTL), parts=(HOSTILE, RTL),
                      text=HOSTILE)  # fmt: skip
    other = section(LONG, 8, 64, "real", 0.4, "no foundation", rng, names=(HOSTILE, LONG, RTL), text=LONG)
    for part in (hostile, other):
        part["warnings"] = [HOSTILE]
        part["verdict"]["reasons"] = (HOSTILE, LONG)
        part["success"]["hopeless"] = (0, 1, 2)
        part["unseen"]["prompts"][0]["top"] = HOSTILE
        part["unseen"]["statements"] = (HOSTILE,)
    document = whole([hostile, other], [HOSTILE, LONG, RTL, *texts(5)], 64, "real", title=HOSTILE)
    document["settings"]["reward"] = HOSTILE
    return document


CASES = (
    "one prompt", "500 prompts", "alike", "real rewards", "labels", "no rewards", "three models",
    "hostile",
)  # fmt: skip
