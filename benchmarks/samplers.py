"""Error of samplers against the draws they spend, as markdown: python benchmarks/samplers.py [--runs 40000].

Table 1: total variation between the law of one response and the tilted law on k-point laws of known C_cov = C, for a
given number of draws. Figures without an error are exact (SoftmaxSampler beyond two points: but for the simulation of
Zhat); the others average the probability of each response given the draws (Rao-Blackwell), with the standard error of
the total. Table 2: scans that size themselves, told nothing of C.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from scipy.special import gammainccinv
from scipy.stats import binom, norm

from spannerlm.records import FloatArray, IntArray
from spannerlm.samplers import adaptive_law

Law = tuple[FloatArray, FloatArray, FloatArray]
"""Base law, weights (mean 1), tilted law: [Y] each."""

K_POINT = {
    "two": ([0.9, 0.1], [1.0]),
    "three": ([0.3, 0.6, 0.1], [1.0, 0.1]),
    "five": ([0.3, 0.2, 0.2, 0.2, 0.1], [1.0, 0.3, 0.1, 0.03]),
}


def k_point(name: str, coverage: float) -> Law:
    target, ratios = (np.array(x) for x in K_POINT[name])
    base = target[:-1] / (coverage * ratios)
    base = np.append(base, 1.0 - base.sum())
    return base, target / base, target


def lognormal(sd: float) -> Law:
    """400 cells of log-weights N(0, sd^2): KL = sd^2 / 2, C without bound."""
    grid = np.linspace(-6.0, 6.0 + 1.2 * sd, 400)
    half = (grid[1] - grid[0]) / 2
    base = norm.cdf(grid + half) - norm.cdf(grid - half)
    base /= base.sum()
    weights = np.exp(sd * grid) / (base @ np.exp(sd * grid))
    return base, weights, base * weights


def tv(law: FloatArray, tilted: FloatArray) -> float:
    """Total variation; on fine laws over ten cells of equal tilted mass, so that noise does not add up."""
    if tilted.size > 10:
        cell = np.minimum((10 * np.cumsum(tilted)).astype(int), 9)
        law, tilted = np.bincount(cell, law, 10), np.bincount(cell, tilted, 10)
    return 0.5 * float(np.abs(law - tilted).sum())


# --- designs: selection probabilities [S, Y] of one response, from S independent sets of n draws ----------------------


def resample(counts: IntArray, weights: FloatArray) -> FloatArray:
    """Self-normalised importance resampling: keys weight / exponential."""
    x = counts * weights
    return x / x.sum(axis=1, keepdims=True)


def first_accepted(counts: IntArray, accept: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, IntArray]:
    """Share of each response among the accepted draws, and how many were accepted."""
    hits = rng.binomial(counts, np.clip(accept, 0.0, 1.0))
    total = hits.sum(axis=1, keepdims=True)
    return hits / np.maximum(total, 1), total[:, 0]


def largest(counts: IntArray, weights: FloatArray) -> FloatArray:
    return np.max(np.where(counts > 0, weights, 0.0), axis=1, keepdims=True)


def snir(law: Law, n: int, runs: int, rng: np.random.Generator) -> FloatArray:
    return resample(rng.multinomial(n, law[0], size=runs), law[1])


def split(law: Law, n: int, runs: int, rng: np.random.Generator, share: float = 0.5) -> FloatArray:
    """The bound from a first part, a scan of the rest, resampling over all where that fails."""
    first = rng.multinomial(int(share * n), law[0], size=runs)
    rest = rng.multinomial(n - int(share * n), law[0], size=runs)
    bound = largest(first, law[1])
    q, accepted = first_accepted(rest, law[1] / bound, rng)
    failed = (accepted == 0) | (largest(rest, law[1]) > bound)[:, 0]
    return np.where(failed[:, None], resample(first + rest, law[1]), q)


def quarter(law: Law, n: int, runs: int, rng: np.random.Generator) -> FloatArray:
    return split(law, n, runs, rng, share=0.25)


def inflated(law: Law, n: int, runs: int, rng: np.random.Generator) -> FloatArray:
    """A scan of all draws at twice their largest weight, resampling where nothing is accepted."""
    counts = rng.multinomial(n, law[0], size=runs)
    q, accepted = first_accepted(counts, law[1] / (2.0 * largest(counts, law[1])), rng)
    return np.where((accepted == 0)[:, None], resample(counts, law[1]), q)


def chunks(law: Law, n: int, runs: int, rng: np.random.Generator) -> FloatArray:
    """The bound is the median of the largest weights of eight chunks, for a scan of the second half."""
    first = rng.multinomial(n // 16, law[0], size=(8, runs))
    bound = np.median([largest(c, law[1]) for c in first], axis=0)
    rest = rng.multinomial(n - 8 * (n // 16), law[0], size=runs)
    q, accepted = first_accepted(rest, law[1] / bound, rng)
    return np.where((accepted == 0)[:, None], resample(first.sum(axis=0) + rest, law[1]), q)


def jackknife(law: Law, n: int, runs: int, rng: np.random.Generator) -> FloatArray:
    """Resampling probabilities with the bias of order 1/n taken out, clipped at 0."""
    counts = rng.multinomial(n, law[0], size=runs)
    left_out = np.zeros(counts.shape)
    for j in range(law[0].size):
        fewer = np.maximum(counts - (np.arange(law[0].size) == j), 0)
        left_out += counts[:, [j]] * resample(fewer, law[1])
    q = np.maximum(n * resample(counts, law[1]) - (n - 1) * left_out / n, 0.0)
    return q / q.sum(axis=1, keepdims=True)


def iterated(law: Law, n: int, runs: int, rng: np.random.Generator, parts: int = 4) -> FloatArray:
    """Iterated resampling: the winner of each chunk competes in the next one."""
    keep = np.zeros((runs, law[0].size), dtype=np.int64)
    for part in range(parts):
        q = resample(rng.multinomial(n // parts, law[0], size=runs) + keep, law[1])
        if part < parts - 1:
            keep = rng.multinomial(1, q)
    return q


def softmax_law(law: Law, bound: float, size: int, runs: int, rng: np.random.Generator) -> FloatArray:
    """Law of SoftmaxSampler, exact but for the simulation of Zhat beyond two points."""
    base, weights, _ = law
    if base.size == 2:
        hits = np.arange(size + 1)
        prob, zhat = binom.pmf(hits, size, base[0]), (hits * weights[0] + (size - hits) * weights[1]) / size
    else:
        zhat = rng.multinomial(size, base, size=runs) @ weights / size
        prob = np.full(runs, 1.0 / runs)
    accept = base * np.minimum(1.0, weights / (bound * zhat[:, None]))
    total = accept.sum(axis=1, keepdims=True)
    none = (1.0 - total) ** size
    return prob @ (accept / total * (1.0 - none) + none * base)


DESIGNS: dict[str, Callable[..., FloatArray]] = {
    "self-normalised resampling": snir,
    "half for the bound, half scanned": split,
    "quarter for the bound": quarter,
    "median-of-chunks bound": chunks,
    "twice the largest weight of all": inflated,
    "jackknifed resampling": jackknife,
    "iterated resampling, 4 chunks": iterated,
}


def table_one(runs: int, rng: np.random.Generator) -> None:
    print("| law | C | sampler | TV at 8 C draws | at 16 C |\n|---|---|---|---|---|")
    for name in K_POINT:
        for coverage in (100, 1000):
            law, row = k_point(name, coverage), f"| {name} points | {coverage} |"
            for factor in (1, 2):
                size = math.ceil(4 * factor * coverage * math.log(400.0))
                error = tv(softmax_law(law, factor * coverage, size, runs, rng), law[2])
                spent = size / coverage + factor
                print(f"{row} SoftmaxSampler, M = {factor} C, delta .01 | at {spent:.0f} C: | {error:.1e} |")
            for label, design in DESIGNS.items():
                cells = [estimate(design(law, m * coverage, runs, rng), law[2]) for m in (8, 16)]
                print(f"{row} {label} | {cells[0]} | {cells[1]} |")
            exact = [tv(adaptive_law(law[0], np.log(law[1]), m * coverage), law[2]) for m in (8, 16)]
            print(f"{row} **largest key (`adaptive_sampler`)** | {exact[0]:.1e} | {exact[1]:.1e} |")


def estimate(q: FloatArray, tilted: FloatArray) -> str:
    error = 0.5 * float(np.linalg.norm(q.std(axis=0))) / math.sqrt(len(q))
    return f"{tv(q.mean(axis=0), tilted):.5f} ± {error:.5f}"


# --- scans that size themselves --------------------------------------------------------------------------------------


def best_keys(counts: IntArray, weights: FloatArray, rng: np.random.Generator) -> FloatArray:
    """[S, Y] largest log-key of each response's copies."""
    gap = rng.standard_exponential(counts.shape) / np.maximum(counts, 1)
    return np.where(counts > 0, np.log(weights) - np.log(-np.expm1(-gap)), -np.inf)


def own_weights(law: Law, least: int, runs: int, rng: np.random.Generator) -> tuple[FloatArray, float]:
    """Doubling until the scan's own weights look even enough for delta = .01: what not to do."""
    counts = np.zeros((runs, law[0].size), dtype=np.int64)
    keys, going, n = np.full(counts.shape, -np.inf), np.arange(runs), least
    while going.size:
        new = rng.multinomial(n, law[0], size=going.size)
        counts[going] += new
        keys[going] = np.maximum(keys[going], best_keys(new, law[1], rng))
        size = (counts[going] @ law[1]) / largest(counts[going], law[1])[:, 0]
        n = int(counts[going[0]].sum())
        going = going[(size < gammainccinv(1, 0.01)) & (2 * n <= 65_536)]
    return np.bincount(keys.argmax(axis=1), minlength=law[0].size) / runs, float(counts.sum(axis=1).mean())


def pilot(law: Law, least: int, runs: int, rng: np.random.Generator) -> tuple[FloatArray, float]:
    """`adaptive_sampler` with its default margin, all runs at once."""
    counts = rng.multinomial(least, law[0], size=runs)
    top = largest(counts, law[1])[:, 0]
    size = (counts @ law[1]) / top
    level, rate = np.log(top * (1.0 + 8.0 / size)), size / least / (1.0 + 8.0 / size)
    block = (least * np.ceil(np.maximum(1.0, 1.0 / rate) / least)).astype(np.int64)
    spent, keys, going = np.full(runs, least), np.full(counts.shape, -np.inf), np.arange(runs)
    while going.size:
        n = np.minimum(block[going], 65_536 - spent[going])
        keys[going] = np.maximum(keys[going], best_keys(rng.multinomial(n, law[0]), law[1], rng))
        spent[going] += n
        going = going[(keys[going].max(axis=1) < level[going]) & (spent[going] < 65_536)]
    return np.bincount(keys.argmax(axis=1), minlength=law[0].size) / runs, float(spent.mean())


def table_two(runs: int, rng: np.random.Generator) -> None:
    print("\n| weights | least draws | own weights rule: TV at draws | pilot rules (ours) | fixed, same draws |")
    print("|---|---|---|---|---|")
    laws = {f"{name} points, C = {c}": k_point(name, c) for name in K_POINT for c in (20, 100, 1000)}
    laws |= {f"lognormal, KL = {sd * sd / 2:g}": lognormal(sd) for sd in (1.0, 2.0, 3.0)}
    for label, law in laws.items():
        for least in (64, 256):
            own, own_draws = own_weights(law, least, runs, rng)
            ours, draws = pilot(law, least, runs, rng)
            fixed = tv(adaptive_law(law[0], np.log(law[1]), round(draws)), law[2])
            print(
                f"| {label} | {least} | {tv(own, law[2]):.3f} at {own_draws:.0f} "
                f"| {tv(ours, law[2]):.3f} at {draws:.0f} | {fixed:.3f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40_000, help="simulated scans per figure")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    table_one(options.runs, rng)
    table_two(options.runs // 4, rng)


if __name__ == "__main__":
    main()
