"""Does the coverage report tell the truth? Every interval against simulated tables whose truth is known exactly.

    python benchmarks/coverage.py                             # 200 tables: intervals, extrapolation, draws
    python benchmarks/coverage.py --forecasts --tables 200    # also labels, by running the explorers: about an hour

Table s is `random_table(seed=s)` with 128, 256, 512 or 1024 draws a prompt in turn. An interval that has no bound (an
infinite or a trivial end) covers; how often that happened is beside it. Rows are kept (--out) and not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from scipy.special import rel_entr

from spannerlm.coverage import draws_per_accept
from spannerlm.environments import TabularEnvironment, random_table
from spannerlm.foundation.forecast import forecast
from spannerlm.foundation.gather import gather_table
from spannerlm.foundation.reach import reach
from spannerlm.foundation.span import span
from spannerlm.foundation.success import level_of, success
from spannerlm.foundation.surrogate import trace
from spannerlm.foundation.unseen import unseen
from spannerlm.policy import beta_for_kl, kl_divergence, tilt

DRAWS = (128, 256, 512, 1024)
KLS = (0.5, 1.0, 2.0)
MAX_DRAWS = 1000
SHARE = 0.9


def check(rows: list, kind: str, interval, truth: float, *, trivial=(-math.inf, math.inf)) -> None:
    """Note whether the interval holds the truth, and whether it says anything."""
    low, high = interval.low, interval.high
    vacuous = low <= trivial[0] and high >= trivial[1]
    slack = 1e-9 * max(1.0, abs(truth))
    rows.append([kind, bool(low - slack <= truth <= high + slack), bool(vacuous), float(high - low)])


def table(seed: int, forecasts: bool) -> dict:
    """What the report said of one table, and whether it was true."""
    env = random_table(seed=seed)
    n = DRAWS[seed % len(DRAWS)]
    pool = gather_table(env, labels=None, draws=n, seed=seed).pool
    rows: list = []
    without_labels(rows, env, pool)
    level = level_of(pool, kl_of(env))
    rate = np.sum(env.base_probs * (env.mean_rewards >= level.value - 1e-12), axis=1)
    with_success(rows, env, pool, level, rate)
    found = with_tilts(rows, env, pool)
    out = {"seed": seed, "n": n, "rows": rows, "needed": draws_truth(env, found)}
    if forecasts:
        out["forecast"] = labels_truth(env, pool, found, seed)
    return out


def kl_of(env: TabularEnvironment) -> float:
    """The KL budget of a table: what its own optimum costs."""
    return float(np.mean(kl_divergence(env.optimal_policy(), env.base_probs)))


def without_labels(rows: list, env: TabularEnvironment, pool) -> None:
    seen = unseen(pool)
    exact = -np.sum(rel_entr(env.base_probs, 1.0), axis=1)
    missing = []
    for x, part in enumerate(seen.prompts):
        drawn = np.array(pool.draws[x].responses, dtype=np.int64)
        missing.append(1.0 - float(env.base_probs[x, drawn].sum()))
        check(rows, "entropy of a prompt", part.entropy, exact[x])
        check(rows, "unseen mass of a prompt", part.unseen, missing[x], trivial=(0.0, 1.0))
    check(rows, "entropy, mean", seen.entropy, float(exact.mean()))
    check(rows, "unseen mass, mean", seen.unseen, float(np.mean(missing)), trivial=(0.0, 1.0))
    found = span(pool, "features", rng=np.random.default_rng([7, len(rows)]))
    mean = np.einsum("xy,xyd->xd", env.base_probs, env.features)
    centred = env.features - mean[:, None]
    covariance = np.einsum("xy,xyd,xye->de", env.base_probs, centred, centred)
    share = np.maximum(np.linalg.eigvalsh(covariance), 0.0)
    share = share / share.sum()
    check(rows, "effective rank", found.effective_rank, float(np.exp(-np.sum(rel_entr(share, 1.0)))))


def with_success(rows: list, env: TabularEnvironment, pool, level, rate: np.ndarray) -> None:
    can = success(pool, level, max_draws=MAX_DRAWS, rng=np.random.default_rng([8, len(rows)]))
    for row in can.pass_at:
        truth = float(np.mean(-np.expm1(row.k * np.log1p(-np.minimum(rate, 1 - 1e-15)))))
        kind = "pass@k, k <= n" if row.measured else "pass@k, n < k < 10 n" if row.k < 10 * pool.n else "pass@10n"
        check(rows, kind, row, truth, trivial=(0.0, 1.0))
    check(
        rows, "share of prompts below 1/max_draws", can.zero, float(np.mean(rate < 1 / MAX_DRAWS)), trivial=(0.0, 1.0)
    )
    for part in can.per_prompt:
        check(rows, "success rate of a prompt", part.rate, rate[part.prompt], trivial=(0.0, 1.0))
    for x in can.hopeless:
        rows.append(["prompt named as beyond the model", bool(rate[x] < 1 / MAX_DRAWS), False, 0.0])
    for row in can.best_of:
        best = np.mean([best_of(env.base_probs[x], env.mean_rewards[x], row.k) for x in range(len(rate))])
        check(rows, "best reward of k", row, float(best))


def best_of(base: np.ndarray, rewards: np.ndarray, k: int) -> float:
    """Expected best reward of k draws, exactly."""
    order = np.argsort(rewards)
    below = np.append(0.0, np.cumsum(base[order])).clip(0.0, 1.0) ** k
    return float(np.diff(below) @ rewards[order] / below[-1])


def with_tilts(rows: list, env: TabularEnvironment, pool):
    kl = kl_of(env)
    kls = tuple(sorted({k for k in KLS if k <= 1.5 * kl} | {kl}))
    found = reach(
        pool, pool.rewards, kls=kls, kl=kl, share=SHARE, by="true reward", rng=np.random.default_rng([9, len(rows)])
    )
    check(
        rows, "value of the base model", found.base, float(np.mean(np.sum(env.base_probs * env.mean_rewards, axis=1)))
    )
    for row in found.rows:
        law = tilt(env.base_probs, env.mean_rewards, beta_for_kl(env.base_probs, env.mean_rewards, row.kl))
        check(rows, "value at a KL", row.value, float(np.mean(np.sum(law * env.mean_rewards, axis=1))))
        ratio = np.divide(law, env.base_probs, out=np.zeros_like(law), where=env.base_probs > 0)
        order = np.argsort(ratio.ravel())
        mass = np.cumsum(law.ravel()[order]) / len(law)
        q99 = float(ratio.ravel()[order][np.searchsorted(mass, 0.99 - 1e-12)])
        check(rows, "99 % quantile of the density ratio, bound", row.ratio_q99, q99, trivial=(1.0, math.inf))
        cost = float(np.mean([accept_cost(b, r) for b, r in zip(env.base_probs, ratio, strict=True)]))
        check(rows, "draws per answer, bound", row.draws_per_answer, cost, trivial=(1.0, math.inf))
    return found


def accept_cost(base: np.ndarray, ratio: np.ndarray) -> float:
    """Expected base draws per accepted response where 1 % of the tilted mass may be clipped, exactly."""
    counts = np.round(base * 10**12).astype(np.int64)
    with np.errstate(divide="ignore"):
        return draws_per_accept(np.log(ratio), counts, clipped=0.01)


def draws_truth(env: TabularEnvironment, found) -> dict:
    """Draws per prompt after which a stored pool holds the share of the gain: truth by simulation, beside `needed`."""
    rng = np.random.default_rng(11)
    law = env.optimal_policy()
    base = float(np.mean(np.sum(env.base_probs * env.mean_rewards, axis=1)))
    goal = base + SHARE * (float(np.mean(np.sum(law * env.mean_rewards, axis=1))) - base)

    def reached(n: int) -> float:
        means = []
        for b, r in zip(env.base_probs, env.mean_rewards, strict=True):
            weights = rng.multinomial(n, b / b.sum(), size=300) * np.exp((r - r.max()) / env.beta)
            means.append(float(np.mean(weights @ r / weights.sum(axis=1))))
        return float(np.mean(means))

    sizes = np.unique(np.round(2.0 ** np.arange(0, 16, 1 / 16)).astype(int))
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(int(sizes[middle])) >= goal else (middle + 1, high)
    needed = found.needed
    return {"truth": int(sizes[low]), "value": needed.value, "low": needed.low, "high": needed.high}


def labels_truth(env: TabularEnvironment, pool, found, seed: int) -> dict:
    """The forecast of labels, beside what `directed` needs on the table itself (median of 5 runs, and each)."""
    asked = {"kl": kl_of(env), "share": SHARE, "labels": 500, "batch": 10, "simulations": 8}
    asked |= {"needed": found.needed, "answer": found.at.draws_per_answer}
    told = forecast(pool, "features", rng=np.random.default_rng([10, seed]), **asked)
    if told is None:
        return {"told": None, "runs": []}
    kl, base = kl_of(env), float(np.mean(np.sum(env.base_probs * env.mean_rewards, axis=1)))
    goal = base + SHARE * (float(np.mean(np.sum(env.optimal_policy() * env.mean_rewards, axis=1))) - base)
    options = {"target": goal, "kl": kl, "draws": pool.n, "labels": 500, "batch": 10}
    runs = [trace(env, "directed", seed=100_000 + 10 * seed + k, **options).held for k in range(5)]
    plain = [trace(env, "random-singles", seed=100_000 + 10 * seed + k, **options).held for k in range(2)]
    out = {"told": ends(told.labels), "random": ends(told.random_labels), "runs": runs, "random_runs": plain}
    if seed % 2 == 0:  # what only a hundred random labels tell, on every other table
        few = gather_table(env, labels=100, draws=pool.n, seed=seed).pool
        guess = forecast(few, "features", **{**asked, "rng": np.random.default_rng([12, seed])})
        out["from labels"] = None if guess is None else ends(guess.labels)
    return out


def ends(interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def summary(results: list[dict]) -> None:
    kinds = defaultdict(list)
    for result in results:
        for kind, covered, vacuous, _ in result["rows"]:
            kinds[kind].append((result["seed"], covered, vacuous))
    print(f"{len(results)} tables\n")
    print(f"{'kind of interval':46s} {'covered':>8s} {'by table':>9s} {'no bound':>9s} {'intervals':>10s}")
    for kind, entries in sorted(kinds.items()):
        tables = defaultdict(list)
        for seed, covered, _ in entries:
            tables[seed].append(covered)
        by_table = np.mean([np.mean(v) for v in tables.values()])
        share, none = np.mean([c for _, c, _ in entries]), np.mean([v for *_, v in entries])
        print(f"{kind:46s} {share:8.3f} {by_table:9.3f} {none:9.3f} {len(entries):10d}")
    needed = [r["needed"] for r in results]
    told = [d for d in needed if d["value"] is not None and math.isfinite(d["value"])]
    within = np.mean([0.5 <= d["value"] / d["truth"] <= 2.0 for d in told])
    inside = np.mean([d["low"] <= d["truth"] <= d["high"] for d in needed])
    print(
        f"\ndraws needed: told for {len(told)}/{len(needed)}, within a factor 2 {within:.3f}, in the band {inside:.3f}"
    )
    rows = [r["forecast"] for r in results if r.get("forecast") and r["forecast"]["told"] is not None]
    if rows:
        for name, told, runs in (
            ("labels", "told", "runs"),
            ("labels, random draws", "random", "random_runs"),
            ("labels, from 100 random labels", "from labels", "runs"),
        ):
            show_labels(name, [r for r in rows if r.get(told) is not None], told, runs)


def show_labels(name: str, rows: list[dict], told: str, runs: str) -> None:
    truths = [float(np.median(r[runs])) for r in rows]
    both = [math.isinf(t) and math.isinf(r[told][0]) for t, r in zip(truths, rows, strict=True)]
    near = [b or 0.5 <= r[told][0] / t <= 2.0 for b, t, r in zip(both, truths, rows, strict=True)]
    guess = [0.5 <= 40.0 / t <= 2.0 for t in truths]
    single = np.mean([r[told][1] <= run <= r[told][2] for r in rows for run in r[runs]])
    print(
        f"{name}: {len(rows)} tables, within a factor 2 {np.mean(near):.3f} (both never {np.mean(both):.3f}; "
        f"always guessing 40: {np.mean(guess):.3f}); single runs in the band {single:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--forecasts", action="store_true", help="also forecast labels and run the explorers")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/coverage"), help="folder in which rows are kept")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    def job(seed: int) -> dict:
        file = args.out / f"{seed}{'-forecast' if args.forecasts else ''}.json"
        if not file.exists():
            file.write_text(json.dumps(table(seed, args.forecasts)))
        return json.loads(file.read_text())

    seeds = range(args.first, args.first + args.tables)
    summary(Parallel(n_jobs=args.jobs)(delayed(job)(seed) for seed in seeds))


if __name__ == "__main__":
    main()
