"""The figures of (h): what locks cost against their length, step by step and as whole sequences (THEORY 5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spannerlm.bench.paper_axes import Numbers, canvas, growth, key, log_axis, loglog, values
from spannerlm.figures import MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def delayed(numbers: Numbers) -> Figure | None:
    """Tokens and labels against H on delayed locks."""
    return _lock(numbers, "delayed-lock", "Delayed locks: tokens and labels against length")


def gated(numbers: Numbers) -> Figure | None:
    """Tokens and labels against H on gated locks."""
    return _lock(numbers, "gated-lock", "Gated locks: tokens and labels against length")


def _lock(numbers: Numbers, family: str, title: str) -> Figure | None:
    found = (numbers.get("h") or {}).get(family)
    if not found:
        return None
    figure, (top, bottom) = canvas(title, "to 5 % of the regret; medians with 95 % intervals; hollow: at least", 2)
    figure.subplots_adjust(right=0.635, hspace=0.3)  # the key has exponents
    for name, method in found["methods"].items():
        law = ("H", "exponent_tokens") if method["steps"] else ("2^H", "rate_tokens")
        least = method["reached"] < 0.5
        growth(top, name, method["points"], "tokens", beside=_law(*law, method, least))
        growth(bottom, name, method["points"], "labels", beside=_law("H", "exponent_labels", method, least))
    exact = [(p["x"], p["tokens"]) for p in found["exact"]]
    top.plot(*zip(*exact, strict=True), color=MUTED, linewidth=1.6, linestyle=":", label="one answer: C_cov H")
    top.set_ylabel("tokens")
    bottom.set_ylabel("labels")
    bottom.set_xlabel("H, steps of a sequence")
    loglog(bottom, [x for x, _ in exact], [])
    log_axis(top, values(top))
    log_axis(bottom, values(bottom))
    key(top)
    key(bottom)
    return figure


def _law(base: str, name: str, method: Numbers, least: bool) -> str:
    """`` ~ H^1.9 (1.7 to 2.1)``, on a line of its own; nothing where no exponent could be fitted."""
    value, low, high = (method[name][end] for end in ("value", "low", "high"))
    if math.isnan(value):
        return ""
    inside = f"({low:.1f} to {high:.1f})".replace("-inf", "-\u221e").replace("inf", "\u221e")
    start = "(2^H)" if base == "2^H" else base
    sign = "\u2265" if least else "~"
    return f"\n{sign} {start}^{value:.1f} {inside}"
