"""Report mappings to draw and to read: a full one, like helpdesk's, and a sparse, hostile one, a user's own."""

from __future__ import annotations

import math
from typing import Any

NAN = float("nan")
CERTIFICATE_KEYS = ("eta", "nu", "delta", "acceptances", "pairs", "beyond", "radius", "eta_radius")


def band(value: float, width: float) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def _history() -> list[dict[str, Any]]:
    open_, shut = (1.0, 2.0, 0.05, 12, 640, 3, 2.61, 0.0112), (0.0034, 1.4, 0.05, 31, 2560, 0, 1.32, 0.0034)
    certificates = (None, None, open_, open_, shut, shut)
    values, nus = (0.21, 0.38, 0.62, 0.80, 0.91, 0.96), (2.0, 2.0, 1.4, 1.4, 0.98, 0.98)
    phases, pairs = ("pool", "span", "explore", "span", "explore", "explore"), (0, 10, 16, 26, 34, 40)
    return [
        {
            "labels": 20 * k,
            "draws": 8192 * k,
            **band(values[k], 0.05),
            "phase": phases[k],
            "pairs": pairs[k],
            "nu": nus[k],
            "epoch": k // 2,
            "certificate": None if c is None else dict(zip(CERTIFICATE_KEYS, c, strict=True)),
        }
        for k, c in enumerate(certificates)
    ]


def curve(top: float, scale: float) -> list[dict[str, float]]:
    """Value rising from .21 to ``top`` at KL = 2; draws per answer exp(1.25 KL)."""
    rise = [(kl, (1 - math.exp(-kl / scale)) / (1 - math.exp(-2 / scale))) for kl in (0.0, 0.5, 1.0, 2.0, 4.0)]
    cost = {kl: math.exp(1.25 * kl) for kl, _ in rise}
    return [
        {"kl": kl, **band(0.21 + (top - 0.21) * r, 0.02 + 0.01 * kl), "draws_per_answer": cost[kl]} for kl, r in rise
    ]


def full() -> dict[str, Any]:
    """A run on a bundled task: the true reward is free, every number is there."""
    table = (
        ("base model", 0, 0, 0.21, 0.02, 0.0, 1.0),
        ("random, same labels", 100, 8192, 0.59, 0.05, 2.0, 11.8),
        ("random, 10x labels", 1000, 9216, 1.02, 0.04, 2.0, 15.1),
        ("spanner-sampling", 100, 40960, 0.96, 0.05, 2.0, 13.6),
        ("true-reward optimum", None, None, 1.145, 0.03, 2.0, 16.2),
    )
    randoms = ((20, 0.27), (50, 0.4), (100, 0.59), (200, 0.71), (500, 0.9), (1000, 1.02))
    before, after = (
        ("sorry about that .", "see our offers .", "many thanks ."),
        ("see page four .", "wipe the case .", "hm ."),
    )
    return {
        "title": "helpdesk: spanner-sampling with 100 labels",
        "model": "helpdesk (bundled)",
        "task": "helpdesk",
        "explorer": "spanner-sampling",
        "seed": 7,
        "kl": 2.0,
        "reward_name": "helpdesk, label noise 0.3",
        "true_reward_free": True,
        "counts": {"draws": 40960, "labels": 100, "eval_draws": 18432, "eval_labels": 0, "skips": 2, "failed": 0},
        "history": _history(),
        "baselines": {"random-singles": [{"labels": n, "draws": 8192 + n, **band(v, 0.05)} for n, v in randoms]},
        "table": [
            {"name": name, "labels": n, "draws": draws, **band(v, w), "kl": kl, "draws_per_answer": cost}
            for name, n, draws, v, w, kl, cost in table
        ],
        "value_against_kl": {
            "spanner-sampling": curve(0.96, 1.6),
            "random, same labels": curve(0.59, 1.2),
            "true-reward optimum": curve(1.145, 1.7),
        },
        "recommended": {"kl": 1.5, "beta": 0.31, **band(0.86, 0.04), "draws_per_answer": 6.52, "reason": "the knee"},
        "spectrum": [1.2 * k**-1.25 for k in range(1, 65)],
        "effective_rank": 17.3,
        "draws_per_answer": [2.0 + k for k in range(40)],
        "replies": [
            {
                "prompt": "my camera is dirty ;",
                "before": [{"text": text, "reward": 0.2 + k} for k, text in enumerate(before)],
                "after": [{"text": text, "reward": 2.2 - k} for k, text in enumerate(after)],
            }
        ],
        "fit": {
            "r2": 0.71,
            "low": 0.55,
            "high": 0.82,
            "labels": 100,
            "folds": 5,
            "noise_std": 0.31,
            "reading": "yes: the features explain 71% of the variance",
        },
        "estimates": [],
        "timings": {
            "generation": 31.2,
            "reward": 0.9,
            "explorer": 1.2,
            "evaluation": 9.7,
            "report": 1.6,
            "total": 54.9,
        },
        "versions": {"spannerlm": "0.1.0", "numpy": "2.3.1", "torch": "2.13.0"},
        "reason": "labels spent",
    }


HOSTILE = "<script>alert(1)</script>\x1b[2J $x_1$ \u202eevil"


def sparse() -> dict[str, Any]:
    """The user's own case: one label batch, undefined numbers, one prompt, and texts that mean harm."""
    point = {"labels": 20, "draws": 512, "value": 3.4, "low": 2.1, "high": 4.7}
    start = {"labels": 0, "draws": 512, "value": None, "low": None, "high": NAN}
    stage = {"phase": "span", "epoch": 0, "nu": 2.0, "certificate": None}
    base = {"name": "base model", "labels": 0, "draws": 0, "value": 2.9, "low": 2.4, "high": 3.4}
    return full() | {
        "title": HOSTILE,
        "model": HOSTILE,
        "task": HOSTILE,
        "reward_name": HOSTILE,
        "true_reward_free": False,
        "counts": {"draws": 512, "labels": 20, "eval_draws": 256, "eval_labels": 6, "skips": 3, "failed": 1},
        "history": [{**start, **stage, "pairs": 0}, {**point, **stage, "pairs": 10}],
        "baselines": {},
        "table": [
            base | {"kl": 0.0, "draws_per_answer": 1.0},
            {"name": "spanner-sampling", **point, "kl": NAN, "draws_per_answer": None},
        ],
        "value_against_kl": {
            "spanner-sampling": [
                {"kl": 0.0, "value": 2.9, "low": 2.4, "high": 3.4, "draws_per_answer": 1.0},
                {"kl": 1.0, "value": None, "low": None, "high": None, "draws_per_answer": None},
                {"kl": 2.0, "value": 3.4, "low": 2.1, "high": 4.7, "draws_per_answer": 14.0},
            ]
        },
        "recommended": {"kl": 1.0, "beta": None, "value": 3.3, "low": None, "high": None, "reason": HOSTILE}
        | {"draws_per_answer": None},
        "spectrum": [0.5, 0.2, 0.01, 0.0, None],
        "effective_rank": None,
        "draws_per_answer": [4.1],
        "replies": [
            {
                "prompt": HOSTILE + "long " * 40,
                "before": [{"text": HOSTILE, "reward": None}, {"text": "{{ 7 * 7 }}", "reward": 1.0}],
                "after": [{"text": "<img src=x onerror=alert(2)>", "reward": -2.5}, {"text": "", "reward": None}],
            }
        ],
        "fit": {
            "r2": None,
            "low": None,
            "high": NAN,
            "labels": 20,
            "folds": 5,
            "noise_std": None,
            "reading": "too few",
        },
        "estimates": [
            {"name": "posterior prediction", "value": 3.4, "low": 2.1, "high": 4.7, "note": HOSTILE},
            {"name": "off-policy estimate", "value": None, "low": None, "high": None, "note": "too few labels"},
        ],
        "timings": {"generation": 312.0, "reward": None, "total": 340.0},
    }
