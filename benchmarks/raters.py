"""A team of noisy raters, preferences only: the value of the learned policy against comparisons bought.

    OMP_NUM_THREADS=1 python benchmarks/raters.py [--labels 300] [--seeds 8] [--raters 5] [--overlap 2]

Five simulated people rate pairs of replies of the helpdesk model through `spannerlm.Run`, each reply pair rated by two
of them. Person i prefers y to y' with probability sigmoid((r - r') / s_i), with s_i from half to twice the fixed scale
s, and calls it a tie where the noisy difference is below s / 4; nobody knows the s_i. `directed` chooses the pairs, or
nobody does (`passive`: random pairs of base draws, to which further draws would add nothing). Values at KL = 2 nats on
held-out prompts, median over seeds with its bootstrap interval, and the paired difference with Student's. The pools of
real draws are those of benchmarks/models.py.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed
from model_pools import BEDS, POOL, TRAIN, load_pool, make_pool
from models import against, median

from spannerlm import Query, Run
from spannerlm.askdriver import Settings
from spannerlm.explorers import explorer_by_name
from spannerlm.ledger import Ledger
from spannerlm.oracle import RecordedOracle
from spannerlm.records import Spec

TASK = "helpdesk"
SCALE = 0.3
"""s in reward units: what a mild fault of a reply is worth."""
TIE = 0.25
"""Differences that a rater does not see, in units of s."""
EXPLORERS = ("directed", "passive")


@dataclass(frozen=True)
class Rater:
    """One simulated person."""

    name: str
    scale: float
    """s_i, in reward units."""

    def answer(self, query: Query, rng: np.random.Generator) -> float:
        """1 where the response is preferred, 0 where its opponent is, .5 for a tie."""
        truth = BEDS[TASK].truth
        rewards = truth([query.prompt] * 2, [query.response, query.opponent or ""])
        gap = float(rewards[0] or 0.0) - float(rewards[1] or 0.0) + self.scale * rng.logistic()
        return 0.5 if abs(gap) < TIE * SCALE else float(gap > 0.0)


def team(size: int) -> list[Rater]:
    """Raters whose scales go from half to twice s, evenly in their logarithm."""
    return [Rater(f"rater {i}", SCALE * 2.0**power) for i, power in enumerate(np.linspace(-1.0, 1.0, size))]


def values(explorer: str, labels: list[int], raters: int, overlap: int, seed: int) -> list[tuple[float, float, float]]:
    """(value at KL = 2, share of pairs of answers that agree, draws) at each number of comparisons."""
    pool, bed, people = load_pool(TASK), BEDS[TASK], team(raters)
    probs = np.zeros(len(pool.prompts))
    probs[[d.prompt for d in pool.train]] = 1.0 / len(pool.train)
    dim = pool.train[0].features.shape[1]
    spec = Spec(probs, dim, labels[-1], TRAIN * POOL, 4, kl=bed.kl, feedback="comparison", scale=SCALE)
    rng, found = np.random.default_rng([seed, 77]), []
    ledger = Ledger.open(None, meta={}, prompts=list(pool.prompts))
    oracle, settings = RecordedOracle(pool.prompts, pool.train), Settings(overlap, {}, None, {}, seed=seed)
    with Run(oracle, explorer_by_name(explorer), ledger, spec, settings) as run:
        for budget in labels:
            while run.counts.charged < budget:
                person = people[int(rng.integers(raters))]
                queries = run.ask(1, worker=person.name)
                if not queries and not any(run.ask(1, worker=other.name) for other in people):
                    break
                run.tell({query.id: person.answer(query, rng) for query in queries})
            share = run.agreement()[0]
            found.append((pool.value_of(run.policy().theta), share, float(run.counts.draws)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 100, 200, 400], help="comparisons bought")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--raters", type=int, default=5)
    parser.add_argument("--overlap", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    args = parser.parse_args()
    make_pool(BEDS[TASK])
    pool, labels = load_pool(TASK), sorted(args.labels)
    jobs = list(itertools.product(EXPLORERS, range(args.seeds)))
    rows = Parallel(args.jobs)(delayed(values)(name, labels, args.raters, args.overlap, seed) for name, seed in jobs)
    by_name = {name: [row for (other, _), row in zip(jobs, rows, strict=True) if other == name] for name in EXPLORERS}
    print(f"{TASK} at KL = {BEDS[TASK].kl:g}: base {pool.base_value:.3f}, true-reward optimum {pool.best_value:.3f}")
    print(f"{args.raters} raters, overlap {args.overlap}, s = {SCALE:g}, {args.seeds} seeds")
    print("| comparisons | chosen by | value, median [95 %] | worst | against passive [95 %] | agreement | draws |")
    print("|---|---|---|---|---|---|---|")
    for i, budget in enumerate(labels):
        baseline = [row[i][0] for row in by_name["passive"]]
        for name in EXPLORERS:
            got = np.array([row[i] for row in by_name[name]])
            pairs = "–" if name == "passive" else against(got[:, 0].tolist(), baseline)
            cells = (median(got[:, 0]), f"{got[:, 0].min():.3f}", pairs, f"{got[:, 1].mean():.2f}")
            print(f"| {budget} | {name} | " + " | ".join(cells) + f" | {np.median(got[:, 2]):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
