"""What multi-turn exploration costs, on environments that know their optimum (THEORY 5).

    python benchmarks/multi_turn.py [--parts growth,bound,embedded,stop,misfit] [--seeds 10] [--jobs 2]

`multi-turn-spanner` with its defaults and nothing known in advance but beta. "Reached" is the first batch of labels
from which regret stays at or below 5 % of what it was for four batches. Medians over seeds, 95 % bootstrap intervals;
each seed has its own environment, noise and draws.

growth    delayed and gated locks: labels and tokens against H, with fitted exponents; beside them the tokens of one
          answer of the whole optimum drawn by rejection, C_cov H, exact.
bound     additive locks: labels beside 1.5 sigma_eff^2 sum_h d_eff / (2 beta eps) + 6 sum_h d_eff.
embedded  the embedded lock, beside what the best linear design and the true prior need.
stop      runs that are only told which regret may be left: was it reached, and at how many times the labels of a run
          that is stopped by an oracle; predicted against true regret goes to build/multi-turn/looks.csv.
misfit    rewards moved off the linear span by zeta beta: regret after a fixed number of labels, and warnings.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from scipy.stats import beta as beta_law

import spannerlm
from spannerlm.environments import TokenEnvironment, token_environment
from spannerlm.explorers.foresight import SUSPICION

SHARE, HOLD = 0.05, 4
FOLDER = Path(__file__).parents[1] / "build" / "multi-turn"


def start(env: TokenEnvironment) -> float:
    """Regret of pi_ref."""
    return env.regret(env.base_probs)


def reached(history: list[dict[str, Any]], target: float) -> tuple[float, float]:
    """(labels, tokens) at the first row from which regret stays at or below the target for HOLD rows, or to the end."""
    inside = [row["regret"] <= target for row in history]
    for i, row in enumerate(history):
        if all(inside[i : i + HOLD]) and len(inside[i:]) >= min(HOLD, len(inside)):
            return row["labels"], row["tokens"]
    return float("inf"), float("inf")


def interval(values: np.ndarray, of: Callable[..., Any] = np.median) -> tuple[float, float, float]:
    """Statistic with its 95 % bootstrap interval over seeds."""
    rng = np.random.default_rng(0)
    draws = [of(rng.choice(values, len(values))) for _ in range(2000)]
    low, high = np.quantile(draws, [0.025, 0.975], method="nearest")
    return float(of(values)), float(low), float(high)


def shown(values: np.ndarray) -> str:
    return "{:,.0f} [{:,.0f}, {:,.0f}]".format(*interval(values))


def one(family: str, labels: int, seed: int, share: float = SHARE, **parameters: Any) -> tuple[float, float]:
    env = token_environment(family, seed=seed, **parameters)
    result = spannerlm.explore(env, explorer="multi-turn-spanner", labels=labels, seed=seed)
    return reached(result.history, share * start(env))


def growth(seeds: int, pool: Parallel) -> None:
    print(f"{'':13}{'H':>3} {'labels':>18} {'tokens':>26} {'C_cond':>7} {'C_cov':>9} {'one whole answer':>20}")
    for family, horizons, budget in (
        ("delayed-lock", (4, 6, 8, 12, 16, 24, 32), 350),
        ("gated-lock", (4, 6, 8, 12, 16), 400),
    ):
        found = {}
        for h in horizons:
            found[h] = np.array(pool(delayed(one)(family, budget, s, horizon=h) for s in range(seeds)))
            env = token_environment(family, seed=0, horizon=h)
            cost = f"{shown(found[h][:, 0]):>18} {shown(found[h][:, 1]):>26}"
            exact = f"{env.step_coverage():>7.2f} {env.coverage():>9.3g} {env.coverage() * h:>13.3g} tokens"
            print(f"{family:13}{h:>3} {cost} {exact}", flush=True)
        for column, name in enumerate(("labels", "tokens")):
            cost = np.array([found[h][:, column] for h in horizons])  # [horizons, seeds]
            chosen = np.random.default_rng(0).integers(cost.shape[1], size=(2000, cost.shape[1]))
            medians = np.log(np.median(cost[:, chosen], axis=2))
            slopes = [np.polyfit(np.log(horizons), row, 1)[0] for row in medians.T if np.all(np.isfinite(row))]
            value = np.polyfit(np.log(horizons), np.log(np.median(cost, axis=1)), 1)[0]
            low, high = np.quantile(slopes, [0.025, 0.975])
            print(f"  exponent of {name}: {value:.2f} [{low:.2f}, {high:.2f}]", flush=True)


def bounded(family: str, horizon: int, labels: int, seed: int) -> tuple[float, float]:
    """(labels, bound) of one seed."""
    env = token_environment(family, seed=seed, horizon=horizon)
    result = spannerlm.explore(env, explorer="multi-turn-spanner", labels=labels, seed=seed)
    eps = SHARE * start(env)
    ranks = 0
    for h in range(horizon):
        base, phi = env.base_probs[h], env.features[h]
        centred = (phi - np.einsum("sa,sad->sd", base, phi)[:, None]) * np.sqrt(base)[..., None]
        ranks += int(np.linalg.matrix_rank(centred[env.reachable[h]].reshape(-1, phi.shape[-1])))
    noise = env.noise_std**2 + result.history[-1]["normaliser_std"] ** 2
    return reached(result.history, eps)[0], 1.5 * noise * ranks / (2.0 * env.beta * eps) + 6.0 * ranks


def bound(seeds: int, pool: Parallel) -> None:
    print(f"{'additive lock':13}{'H':>3} {'labels':>18} {'allowed':>8}")
    for h in (8, 12, 16):
        found = np.array(pool(delayed(bounded)("additive-lock", h, 1000, s) for s in range(seeds)))
        print(f"{'':13}{h:>3} {shown(found[:, 0]):>18} {np.median(found[:, 1]):>8,.0f}", flush=True)


def ideal(seed: int) -> float:
    """Labels after which a Bayesian who knows sigma and the prior's scale leaves 5 % on average, with unit features in
    all directions equally: mean of tr(Cov_h Cov_pi(phi_h)) / (2 beta) with precision n / d of each, to second order."""
    env = token_environment("embedded-lock", seed=seed)
    policy, occupancy = env.optimal_policy(), env.occupancy(env.optimal_policy())
    spread = 0.0
    for h in range(env.horizon):
        centred = env.features[h] - np.einsum("sa,sad->sd", policy[h], env.features[h])[:, None]
        spread += float(occupancy[h] @ np.sum(policy[h] * np.sum(centred**2, axis=-1), axis=-1))
    eps, noise = SHARE * start(env), env.noise_std**2
    prior = env.step_dim * noise * env.horizon**2  # |theta_h| = 1 / H
    return env.step_dim * (noise * spread / (2.0 * env.beta * eps) - prior)


def embedded(seeds: int, pool: Parallel) -> None:
    for share in (0.05, 0.1):
        found = np.array(pool(delayed(one)("embedded-lock", 700, s, share) for s in range(seeds)))
        print(f"embedded lock, regret to {share:.0%}: {shown(found[:, 0])} labels", flush=True)
    best = shown(np.array([ideal(s) for s in range(seeds)]))
    print(f"  a Bayesian with the true prior, sigma and an even design, 5 %: {best}")


STOPS = (("additive-lock", {"horizon": 8}), ("gated-lock", {"horizon": 8}), ("delayed-lock", {"horizon": 8}),
         ("random-token-mdp", {"horizon": 4}))  # fmt: skip


def stopped(family: str, parameters: dict[str, Any], seed: int) -> tuple[float, float, float, list[tuple[float, ...]]]:
    """(true regret over the asked one, labels, labels of an oracle stop, looks ahead) of one run."""
    env = token_environment(family, seed=seed, **parameters)
    eps = SHARE * start(env)
    result = spannerlm.explore(env, explorer="multi-turn-spanner", labels=4000, seed=seed, target_regret=eps)
    true = {row["labels"]: row["regret"] for row in result.history}
    looks = {row["predicted_at"]: row["predicted_regret"] for row in result.history if "predicted_at" in row}
    oracle = min(reached(result.history, eps)[0], result.labels)
    pairs = [(labels, value / eps, true[labels] / eps) for labels, value in looks.items() if labels in true]
    return result.history[-1]["regret"] / eps, result.labels, oracle, pairs


def stop(seeds: int, pool: Parallel) -> None:
    right, every = 0, 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "looks.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["family", "seed", "labels", "predicted / asked", "true / asked"])
        for family, parameters in STOPS:
            found = pool(delayed(stopped)(family, parameters, s) for s in range(5 * seeds))
            ok = sum(run[0] <= 1.0 for run in found)
            right, every = right + ok, every + len(found)
            ratio = np.array([run[1] / run[2] for run in found])
            rows.writerows((family, s, *pair) for s, run in enumerate(found) for pair in run[3])
            print(
                f"{family:17} reached in {ok} of {len(found)}, labels {shown(np.array([run[1] for run in found]))}, "
                "times an oracle's {:.2f} [{:.2f}, {:.2f}]".format(*interval(ratio)),
                flush=True,
            )
    low = beta_law.ppf(0.025, right, every - right + 1)
    print(f"all: {right} of {every}, share {right / every:.3f}, lower confidence limit {low:.3f}")


def misfitting(family: str, parameters: dict[str, Any], zeta: float, seed: int) -> tuple[float, float]:
    """(regret over that of pi_ref after 200 labels, the p-value of the lack-of-fit test then)."""
    env = token_environment(family, seed=seed, modifiers={"misspecified": {"zeta": zeta}}, **parameters)
    result = spannerlm.explore(env, explorer="multi-turn-spanner", labels=200, seed=seed)
    return result.history[-1]["regret"] / start(env), result.history[-1].get("misfit", float("nan"))


def misfit(seeds: int, pool: Parallel) -> None:
    print(f"{'200 labels':17}{'zeta':>5} {'regret left':>22} {'warned':>7}")
    families = (("additive-lock", {"horizon": 8, "actions": 3}), ("random-token-mdp", {"horizon": 4}))
    for family, parameters in families:
        for zeta in (0.0, 0.1, 0.2, 0.4, 0.8):
            found = np.array(pool(delayed(misfitting)(family, parameters, zeta, s) for s in range(2 * seeds)))
            left = "{:.1%} [{:.1%}, {:.1%}]".format(*interval(found[:, 0]))
            print(f"{family:17}{zeta:>5} {left:>22} {np.mean(found[:, 1] < SUSPICION):>7.0%}", flush=True)


PARTS: dict[str, Callable[[int, Parallel], None]] = {
    "growth": growth,
    "bound": bound,
    "embedded": embedded,
    "stop": stop,
    "misfit": misfit,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    with Parallel(n_jobs=arguments.jobs) as pool:
        for part in arguments.parts.split(","):
            PARTS[part](arguments.seeds, pool)


if __name__ == "__main__":
    main()
