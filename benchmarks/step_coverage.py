"""Does the coverage report tell the truth about going step by step? Its estimates on environments known exactly.

    python benchmarks/step_coverage.py --policies             # 120 token environments

Environment s is of family s mod 4 (gated, delayed, additive locks, random token MDPs), of 4 to 12 steps, at a KL of .5
to 3 nats, which fixes beta. Truth: by dynamic programming for steps, from the table of all sequences for these.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from spannerlm.environments import TokenEnvironment
from spannerlm.environments.token_families import token_environment
from spannerlm.foundation.reach import CLIPPED
from spannerlm.foundation.steps import bound_for, quantile, steps_by_rollouts, steps_of_policy
from spannerlm.foundation.trees import asked
from spannerlm.policy import beta_for_kl

FAMILIES = ("gated-lock", "delayed-lock", "additive-lock", "random-token-mdp")
HORIZONS = (4, 6, 8, 10, 12)
KLS = (0.5, 1.0, 2.0, 3.0)
PROMPTS = 16


def made(seed: int) -> TokenEnvironment:
    """Environment ``seed``, at its KL."""
    family, horizon = FAMILIES[seed % 4], HORIZONS[seed // 4 % 5]
    kl = KLS[seed // 20 % 4]
    sizes = {"actions": 2, "states": 2 * PROMPTS if family in FAMILIES[:2] else PROMPTS}
    env = token_environment(family, horizon=horizon, seed=seed, **sizes)
    rho = np.where(np.arange(env.states) < PROMPTS, 1.0 / PROMPTS, 0.0)  # these prompts, all counted alike
    env = replace(env, initial_probs=rho)
    table = env.to_table()
    beta = beta_for_kl(table.base_probs[:PROMPTS], table.mean_rewards[:PROMPTS], kl)
    return replace(env, beta=beta)


def truth(env: TokenEnvironment) -> dict:
    """What `Steps` estimates, exactly."""
    optimal = env.optimal_policy()
    visits = env.occupancy(optimal)
    used = (visits[:, :, None] * optimal) > 0.0
    ratio = np.divide(optimal, env.base_probs, out=np.ones_like(optimal), where=used)
    mass = visits[:, :, None] * optimal
    clipped = CLIPPED / env.horizon
    rows = [(r[u], m[u]) for r, m, u in zip(ratio, mass, used, strict=True)]
    draws = [bound_for(r, m, clipped) / (1.0 - clipped) for r, m in rows]
    table = env.to_table()
    law, base = table.optimal_policy()[:PROMPTS], table.base_probs[:PROMPTS]
    there = law > 0.0
    whole, masses = law[there] / base[there], law[there] / PROMPTS
    sequence = bound_for(whole, masses, CLIPPED) / (1.0 - CLIPPED) * env.horizon
    quantiles = [quantile(r, m) for r, m in rows]
    return {
        "quantiles": quantiles,
        "step": max(quantiles),
        "sequence": quantile(whole, masses),
        "sequence_tokens": sequence,
        "step_tokens": float(np.sum(draws)),
        "fewer": sequence / float(np.sum(draws)),
    }


def theta_of(env: TokenEnvironment) -> np.ndarray:
    """[H, d] the optimum's step scores by least squares, exact where the environment is realizable."""
    out = []
    for h in range(env.horizon):
        here = env.reachable[h]
        phi, q = env.features[h][here], env.action_values[h][here]
        phi, q = phi - phi.mean(axis=1, keepdims=True), q - q.mean(axis=1, keepdims=True)
        out.append(np.linalg.lstsq(phi.reshape(-1, env.step_dim), q.ravel(), rcond=None)[0])
    return np.array(out)


def one(seed: int, pool: int, rollouts: int, policies: bool) -> dict:
    """Truth and estimates of one environment."""
    env = made(seed)
    reward = env.reward(0).mean

    def score(prompts, texts):
        return np.array(reward([env.prompts[x] for x in prompts], texts))

    def kept(found):
        names = ("step", "sequence", "sequence_tokens", "step_tokens", "fewer")
        intervals = {name: getattr(found, name) for name in names}
        ends = {name: [i.value, i.low, i.high] for name, i in intervals.items()}
        rows = [[row.ratio_q99.value, row.ratio_q99.high] for row in found.rows]
        return {**ends, "rows": rows, "told": found.told, "helps": found.helps, "draws": found.draws}

    rng = np.random.default_rng([1, seed])
    options = {"prompts": range(PROMPTS), "beta": env.beta, "rng": rng}
    out = {"seed": seed, "env": FAMILIES[seed % 4], "horizon": env.horizon, "truth": truth(env)}
    out["rollouts"] = kept(steps_by_rollouts(env, asked(env, rng), score, pool=pool, rollouts=rollouts, **options))
    if policies:
        out["policy"] = kept(steps_of_policy(env, asked(env, rng), theta_of(env), **options))
    return out


def summary(results: list[dict], by: str) -> None:
    """How near the estimates are, and how often the intervals hold the truth, where the draws tell."""
    print(f"\n{by}: {len(results)} environments, {np.mean([r[by]['draws'] for r in results]):,.0f} segments each")
    print(f"{'what':18s} {'told':>5s} {'within 1.25':>11s} {'of 2':>9s} {'bias':>6s} {'covered':>8s} {'no end':>7s}")
    for name in ("step", "sequence", "sequence_tokens", "step_tokens", "fewer"):
        told = [r for r in results if r[by]["told"]]
        off = np.array([math.log(r[by][name][0] / r["truth"][name]) for r in told])
        held = [r[by][name][1] * (1 - 1e-9) <= r["truth"][name] <= r[by][name][2] * (1 + 1e-9) for r in told]
        none = np.mean([math.isinf(r[by][name][2]) for r in told])
        near = [np.mean(np.abs(off) <= math.log(f)) for f in (1.25, 2.0)]
        bias = math.exp(float(np.median(off)))
        print(f"{name:18s} {len(told):5d} {near[0]:11.3f} {near[1]:9.3f} {bias:6.2f} {np.mean(held):8.3f} {none:7.3f}")
    pairs = [zip(r[by]["rows"], r["truth"]["quantiles"], strict=True) for r in results if r[by]["told"]]
    rows = [(value, high, t) for pair in pairs for (value, high), t in pair]
    held = np.mean([t <= hi * (1 + 1e-9) for _, hi, t in rows])
    near = np.mean([abs(math.log(v / t)) <= math.log(1.25) for v, _, t in rows])
    print(f"{'q99 of each step':18s} {len(rows):5d} {near:11.3f} {'':9s} {'':6s} {held:8.3f}")
    said = defaultdict(list)
    for r in results:
        said[r[by]["helps"]].append(r["truth"]["fewer"] >= 1.25)
    for word, right in said.items():
        print(f"helps: {word}: {len(right)} times, truly helps {np.mean(right):.3f}")
    for family in FAMILIES:
        mine = [r for r in results if r["env"] == family and r[by]["told"]]
        if not mine:
            continue
        off = np.array([math.log(r[by]["fewer"][0] / r["truth"]["fewer"]) for r in mine])
        print(f"{family:18s} quotient off by exp({off.mean():+.2f} +- {off.std():.2f}) of {len(mine)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=int, default=120)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--pool", type=int, default=256)
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--policies", action="store_true", help="also the optimum's own step scores, without roll-outs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/step-coverage"), help="folder in which rows are kept")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    def job(seed: int) -> dict:
        file = args.out / f"{seed}-{args.pool}-{args.rollouts}{'-policies' if args.policies else ''}.json"
        if not file.exists():
            file.write_text(json.dumps(one(seed, args.pool, args.rollouts, args.policies)))
        return json.loads(file.read_text())

    seeds = range(args.first, args.first + args.environments)
    results = Parallel(n_jobs=args.jobs)(delayed(job)(seed) for seed in seeds)
    for by in ("rollouts", "policy"):
        found = [result for result in results if by in result]
        if found:
            summary(found, by)


if __name__ == "__main__":
    main()
