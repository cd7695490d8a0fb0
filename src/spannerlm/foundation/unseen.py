"""What n draws of each prompt have seen and what they have not: entropy, Good-Turing, directions (THEORY 3; ours).

Everything is about one fixed set of prompts, each drawn equally often: a mean over prompts is over these, and its
interval says what other draws of them would have given. No labels are needed, nothing here costs a draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, ndtri, stdtrit

from spannerlm.coverage import Interval
from spannerlm.foundation.pool import CONFIDENCE, Pool
from spannerlm.records import FloatArray, IntArray
from spannerlm.spanner import draws_to_see, mass_seen
from spannerlm.wording import count, share, short

Z = float(ndtri(0.5 + CONFIDENCE / 2.0))
SLACK = 2.0
"""Added to the variance of a count of singletons: one doubleton more than were seen, so that none is not certainty."""
DOUBT_ABOVE, DOUBT_BELOW = 1.5, 0.25
"""Shares of what the entropy estimate adds for unseen responses that it may be off by, beyond its own noise: a tail is
as long as it likes. Set on tables with seeds from 1000 on, and on Zipf's law over 1e5 responses. Below, all of it where
the draws do not bound the entropy from above. A tenth of the mass spread over 1e4 responses still escapes 64 draws."""
SPREAD = 0.9
"""Unseen mass from which on nothing is known of how long the tail is."""
REPEATS, TAIL = 3, 0.1
"""With fewer responses than ``REPEATS`` drawn twice, and certainly more than ``TAIL`` unseen, neither."""


MOST = 0.99
"""Mass above which there is nothing to say of seeing it."""


@dataclass(frozen=True)
class PromptUnseen:
    """One prompt."""

    prompt: int
    draws: int
    distinct: int
    entropy: Interval
    """Of pi_ref(. | x), nats; ``high`` is inf where the draws hardly repeat."""
    unseen: Interval
    """Base mass of the responses that were not drawn."""
    top: str
    """The commonest response."""
    top_share: float
    """Its share of the draws."""


@dataclass(frozen=True)
class Unseen:
    """What the draws have seen of these prompts. Intervals are of 95 %, the bounds of ``1 - delta``."""

    prompts: tuple[PromptUnseen, ...]
    draws: int
    """Of each prompt."""
    total: int
    distinct: float
    """Mean over prompts."""
    entropy: Interval
    """Mean over these prompts, nats."""
    unseen: Interval
    """Mean over these prompts."""
    constant: int
    """Prompts with one single response; 0 where each was drawn only once."""
    fixed_direction: float
    """Mass of one direction fixed beforehand that the draws of one prompt show: ln(1/delta)/n, at most 1."""
    every_direction: float
    """Mass from which on they show every direction: n = ln(1/(eps delta))/eps, at most 1."""
    never: float
    """Mass below which a direction was seen with probability below delta: delta/n."""
    fixed_direction_total: float
    """The same three for all draws together: the mass is then the average over these prompts."""
    every_direction_total: float
    never_total: float
    delta: float
    exact: bool
    """Whether the entropy rests on known log-probabilities of the draws instead of on counts."""
    statements: tuple[str, ...]


def unseen(pool: Pool) -> Unseen:
    """How much of pi_ref(. | x) the draws of ``pool`` have seen, per prompt and overall.

    Entropy: the mean of -log pi_ref(y | x) where log-probabilities are known, else the estimator of Chao, Wang and Jost
    (2013) from counts. Unseen mass: Good and Turing's estimate less its bias. Direction bounds: THEORY 3, with equally
    many draws of each prompt. Cost: no draws, no labels.
    """
    n, size, delta = pool.n, len(pool.prompts), 1.0 - CONFIDENCE
    counts = pool.counts()
    rare = np.array([_rare(c) for c in counts], dtype=np.float64)
    masses = [missing_mass(row[None], n) for row in rare]
    found = [_entropy(c, None if pool.logprobs is None else pool.logprobs[x]) for x, c in enumerate(counts)]
    prompts = tuple(
        PromptUnseen(
            prompt=x,
            draws=n,
            distinct=int(np.count_nonzero(c)),
            entropy=_interval([found[x]]),
            unseen=masses[x],
            top=str(pool.draws[x].responses[int(np.argmax(c))]),
            top_share=float(np.max(c) / n),
        )
        for x, c in enumerate(counts)
    )
    result = Unseen(
        prompts=prompts,
        draws=n,
        total=n * size,
        distinct=float(np.mean([p.distinct for p in prompts])),
        entropy=_interval(found),
        unseen=missing_mass(rare, n),
        constant=sum(p.distinct == 1 for p in prompts) if n > 1 else 0,
        fixed_direction=mass_seen(n, delta),
        every_direction=every_mass_seen(n, delta),
        never=delta / n,
        fixed_direction_total=mass_seen(n * size, delta),
        every_direction_total=every_mass_seen(n * size, delta),
        never_total=delta / (n * size),
        delta=delta,
        exact=pool.logprobs is not None,
        statements=(),
    )
    return replace(result, statements=_statements(result))


def every_mass_seen(n: int, delta: float) -> float:
    """Mass from which on ``n`` draws show every direction at once with probability 1 - delta, at most 1 (THEORY 3).

    The inverse of `spannerlm.spanner.draws_to_see`: the root eps of n = ln(1/(eps delta))/eps.
    """
    if n <= draws_to_see(1.0, delta):
        return 1.0
    least = math.log(1.0 / delta) / n  # below 1; there ln(1/(eps delta)) exceeds ln(1/delta)
    return float(brentq(lambda eps: draws_to_see(eps, delta) - n, least, 1.0, xtol=1e-15, rtol=1e-12))


def missing_mass(rare: FloatArray, n: int) -> Interval:
    """Base mass of responses that ``n`` draws of each prompt left out, mean over prompts, with its 95 % interval.

    ``rare`` [X, 2] how many responses of each prompt were drawn once and twice. The estimate is Good and Turing's
    f1 / n less its bias 2 f2 / (n (n - 1)). Esty's (1983) variance of f1 - n M, n M (1 - M) + 2 f2, is taken at the
    mass M that an end stands for, as in Wilson's interval, so that an end remains where nothing came once. One draw of
    each prompt tells nothing.
    """
    if n < 2:
        return Interval(1.0, 0.0, 1.0)
    once, twice = float(rare[:, 0].sum()), float(rare[:, 1].sum())
    estimate = max(once - 2.0 * twice / (n - 1), 0.0)
    uneven = float(rare[:, 0] @ rare[:, 0]) / (n * once * once) if once else 0.0  # sum of m_x^2 / n, over m^2
    a = 1.0 + Z * Z * uneven
    b = estimate + 0.5 * Z * Z
    c = estimate * estimate - Z * Z * (2.0 * twice + SLACK)
    root = math.sqrt(max(b * b - a * c, 0.0))
    whole = float(n * len(rare))
    return Interval(estimate / whole, max(0.0, (b - root) / a) / whole, min(1.0, (b + root) / a / whole))


@dataclass(frozen=True)
class _Entropy:
    """An estimate of one prompt's entropy."""

    value: float
    variance: float
    added: float
    """What of the value is for responses that were not drawn: it may be wrong."""
    bounded: bool
    """Whether the draws bound it from above."""


def _entropy(counts: IntArray, logprobs: FloatArray | None) -> _Entropy:
    n = int(counts.sum())
    floor = SLACK * ((math.log(n) + 1.0) / n) ** 2  # one more response drawn once would add (ln n + 1) / n
    if logprobs is not None:
        value = float(counts @ -logprobs) / n
        spread = float(counts @ (-logprobs - value) ** 2) / max(n - 1, 1)
        t = float(stdtrit(max(n - 1, 1), 0.5 + CONFIDENCE / 2.0)) / Z
        return _Entropy(value, t * t * spread / n + floor, 0.0, n > 1)
    if n < 2:
        return _Entropy(0.0, 0.0, 0.0, bounded=False)
    once, twice = _rare(counts)
    added = _tail(n, once, twice)
    mass = missing_mass(np.array([[once, twice]], dtype=np.float64), n)
    bounded = mass.high < SPREAD and (twice >= REPEATS or mass.low <= TAIL)
    return _Entropy(_drawn(counts) + added, _jackknife(counts) + floor, added, bounded)


def _interval(found: Sequence[_Entropy]) -> Interval:
    """The mean of independent estimates; what each adds for the unseen may be wrong in all of them alike."""
    value = float(np.mean([e.value for e in found]))
    error = Z * math.sqrt(sum(e.variance for e in found)) / len(found)
    below = float(np.mean([e.added * (DOUBT_BELOW if e.bounded else 1.0) for e in found]))
    above = DOUBT_ABOVE * float(np.mean([e.added for e in found])) if all(e.bounded for e in found) else math.inf
    return Interval(value, max(0.0, value - error - below), value + error + above)


def _rare(counts: IntArray) -> tuple[int, int]:
    """How many responses were drawn once, and twice."""
    return int(np.sum(counts == 1)), int(np.sum(counts == 2))


def _drawn(counts: IntArray) -> float:
    """sum_{k<n} of unbiased estimates of sum_y p (1 - p)^k / k: entropy from below, as n draws can have seen it."""
    n = int(counts.sum())
    return float(digamma(n) - np.sum(_terms(counts)) / n)


def _terms(counts: IntArray) -> FloatArray:
    """c digamma(c), and 0 for c = 0."""
    return np.asarray(counts * digamma(np.maximum(counts, 1)), dtype=np.float64)


def _tail(n: int, once: int, twice: int) -> float:
    """The rest of that sum, if unseen responses are as rare as the singletons seem to be (Chao, Wang and Jost 2013).

    f1 / n times sum_{r>=n} q^(r-n+1) / r, q = 1 - A, A = 2 f2 / ((n - 1) f1 + 2 f2), f2 = 1 and f1 - 1 without f2.
    """
    if once == 0 or (once == 1 and twice == 0):
        return 0.0
    few_twice = (twice, once) if twice else (1, once - 1)
    a = 2.0 * few_twice[0] / ((n - 1) * few_twice[1] + 2.0 * few_twice[0])
    if a >= 1.0:
        return 0.0
    if n * a > 2.0:  # the series itself: it has converged to rounding after 40 / A terms
        r = np.arange(n, n + math.ceil(40.0 / a))
        total = float(np.sum(np.exp((r - n + 1) * math.log1p(-a)) / r))
    else:
        r = np.arange(1, n)
        head = float(np.sum(np.exp(r * math.log1p(-a)) / r))
        total = math.exp((1 - n) * math.log1p(-a)) * (-math.log(a) - head)
    return once / n * total


def _jackknife(counts: IntArray) -> float:
    """Variance of the entropy estimate by leaving out one draw: as many values as there are different counts."""
    n = int(counts.sum())
    classes, many = np.unique(counts[counts > 0], return_counts=True)
    once, twice = _rare(counts)
    rest = float(np.sum(_terms(counts))) - _terms(classes) + _terms(classes - 1)
    changes = {1: (-1, 0), 2: (1, -1), 3: (0, 1)}
    tails = {c: _tail(n - 1, once + f1, twice + f2) for c, (f1, f2) in changes.items() if c in classes}
    same = _tail(n - 1, once, twice)
    left = digamma(n - 1) - rest / (n - 1) + np.array([tails.get(int(c), same) for c in classes])
    weights = classes * many / n
    return float((n - 1) * (weights @ (left - weights @ left) ** 2))


def _up(mass: float) -> str:
    """A mass as a percentage of two digits, rounded up: what is said of all above it stays true."""
    return _percent(mass, math.ceil, -1e-9)


def _down(mass: float) -> str:
    """The same, rounded down."""
    return _percent(mass, math.floor, 1e-9)


def _percent(mass: float, whole: Callable[[float], int], rounding: float) -> str:
    step = 10.0 ** (math.floor(math.log10(100.0 * mass)) - 1)
    value = whole(100.0 * mass / step + rounding) * step
    return f"{np.format_float_positional(value, 2, fractional=False, trim='-')} %"


def _statements(found: Unseen) -> tuple[str, ...]:
    size, sure = len(found.prompts), f"{100.0 * (1.0 - found.delta):.0f} %"
    out = [_seen(f"n = {found.draws} draws of one prompt", "mass", found.every_direction, found.delta)]
    if size > 1:
        total = f"All {count(found.total)} draws of these {size} prompts together"
        out.append(_seen(total, "average mass", found.every_direction_total, found.delta))
    for n, fixed, never in (
        (found.draws, found.fixed_direction, found.never),
        (found.total, found.fixed_direction_total, found.never_total),
    )[: 1 + (size > 1)]:
        if fixed > MOST:
            continue
        where = "one prompt" if n == found.draws else "these prompts on average"
        out.append(
            f"A direction fixed beforehand that has {_up(fixed)} of the mass of {where} was seen, with {sure} "
            f"confidence; one below {_down(never)} was seen with probability below {100.0 * found.delta:.0f} %."
        )
    mass = found.unseen
    out.append(
        f"Responses that were not drawn have {share(mass.value)} of the base mass (95 %: {share(mass.low)} to "
        f"{share(mass.high)}), {'on average over these prompts' if size > 1 else 'of this prompt'}."
    )
    out.append(_entropy_sentence(found))
    if found.constant:
        which = "the one prompt" if size == 1 else f"{found.constant} of {size} prompts"
        out.append(f"For {which} all {found.draws} draws are one and the same response.")
    return tuple(out)


def _seen(draws: str, mass: str, eps: float, delta: float) -> str:
    """The bound on every direction, or that there is none."""
    if eps > MOST:
        return f"{draws} are too few to be sure of every direction of any {mass}."
    return f"{draws} see every direction of {mass} above {_up(eps)}, with {100.0 * (1.0 - delta):.0f} % confidence."


def _entropy_sentence(found: Unseen) -> str:
    h = found.entropy
    by = "from known log-probabilities" if found.exact else "from counts"
    if math.isinf(h.high):
        open_ended = sum(math.isinf(p.entropy.high) for p in found.prompts)
        which = "this prompt" if len(found.prompts) == 1 else f"{open_ended} of {len(found.prompts)} prompts"
        why = (
            f"the draws of {which} hardly ever repeat" if found.draws > 1 else "one draw of each prompt shows no spread"
        )
        return (
            f"The entropy of a response is at least {short(h.low)} nats ({by}); there is no upper bound, because {why}."
        )
    return f"The entropy of a response is {short(h.value)} nats (95 %: {short(h.low)} to {short(h.high)}; {by})."
