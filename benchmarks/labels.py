"""Labels until regret is at most 10 % of where it started, and stays there: SpannerSampling beside random pairs.

    python benchmarks/labels.py [--seeds 10] [--jobs 2]

Exact environments, batches of 20 labels, "stays" = four batches in a row. Each seed has its own environment, noise and
draws, shared by both explorers. `passive` gets an opening pool as large as all draws of SpannerSampling (equal draws).
Medians with 95 % bootstrap intervals over seeds; inf = not within the label budget.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed

import spannerlm
from spannerlm.environments import TabularEnvironment, rare_skill, tie
from spannerlm.explorers import Passive

TARGET, HOLD = 0.1, 4


@dataclass(frozen=True)
class Column:
    name: str
    p: float | None
    ours: int
    """Label budget of SpannerSampling."""
    passive: int
    """Label budget of passive."""

    def environment(self, seed: int) -> TabularEnvironment:
        return tie(seed=seed) if self.p is None else rare_skill(self.p, seed=seed)


COLUMNS = (
    Column("rare-skill p = .1", 0.1, 1000, 3000),
    Column("rare-skill p = .01", 0.01, 1000, 12_000),
    Column("rare-skill p = .001", 0.001, 1000, 100_000),
    Column("tie", None, 2000, 2000),
)


def first_held(history: list[dict[str, float]]) -> tuple[float, float]:
    """(labels, draws) at the first row from which regret stays at or below the target for HOLD rows."""
    start = history[0]["regret"]
    inside = [row["regret"] <= TARGET * start for row in history]
    for i in range(len(history) - HOLD + 1):
        if all(inside[i : i + HOLD]):
            return history[i]["labels"], history[i]["draws"]
    return float("inf"), float("inf")


def one_seed(column: Column, seed: int) -> tuple[float, float, float, float]:
    env = column.environment(seed)
    ours = spannerlm.explore(env, explorer="spanner-sampling", labels=column.ours, seed=seed)
    labels, draws = first_held(ours.history)
    pool = int(min(draws, 1e7) // len(env.prompt_probs))
    other = spannerlm.explore(env, explorer=Passive(pool=max(pool, 64)), labels=column.passive, seed=seed)
    return labels, draws, *first_held(other.history)


def median(values: np.ndarray) -> str:
    """Median with its bootstrap interval; seeds that never got there count as inf."""
    rng = np.random.default_rng(0)
    again = np.sort(np.median(values[rng.integers(len(values), size=(2000, len(values)))], axis=1))
    return f"{np.median(values):.4g} [{again[50]:.4g}, {again[1949]:.4g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    print("| environment | labels, SpannerSampling | labels, passive | ratio per seed | draws, SpannerSampling |")
    print("|---|---|---|---|---|")
    for column in COLUMNS:
        rows = np.array(Parallel(args.jobs)(delayed(one_seed)(column, seed) for seed in range(args.seeds)))
        ratio = rows[:, 2] / rows[:, 0]
        cells = (median(rows[:, 0]), median(rows[:, 2]), median(ratio), median(rows[:, 1]))
        print(f"| {column.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
