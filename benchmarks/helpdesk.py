"""Held-out value of the bundled helpdesk model at KL = 2 against labels: SpannerSampling beside random labels.

    python benchmarks/helpdesk.py [--seeds 8] [--ablations]

One pool of real draws (128 prompts x 320, 48 held-out prompts x 1024) is shared by all; each seed has its own label
noise and choices. Median with a 95 % bootstrap interval over seeds, mean, and the worst seed. With --ablations, what
limits it: features, nu and how it shrinks, label noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import numpy as np

from spannerlm.backends.oracle import ModelOracle
from spannerlm.config import load_config
from spannerlm.evaluation import EvaluationPool
from spannerlm.explorers import explorer_by_name
from spannerlm.features import feature_map
from spannerlm.ledger import Ledger
from spannerlm.measures import measure_truth
from spannerlm.oracle import RecordedOracle
from spannerlm.records import Draws, Spec
from spannerlm.rewards import NoisyReward
from spannerlm.run import Run
from spannerlm.tasks import load_model, load_task

PARTS = ["mean:-1", "before-eos:-1", "logprob-length"]
WIDTH = 96
FEATURES = {
    "hidden (mean)": slice(0, WIDTH),
    "before EOS": slice(WIDTH, 2 * WIDTH),
    "mean + logprob, length": np.r_[0:WIDTH, 2 * WIDTH : 2 * WIDTH + 2],
    "all three": slice(None),
}
TRAIN, HELDOUT, POOL, EVALUATION, KL = 128, 48, 320, 1024, 2.0


class Bench:
    """The shared draws, and what one run on them is worth."""

    def __init__(self) -> None:
        config = load_config(None)
        self.task = load_task(config)
        assert self.task.truth is not None
        model = load_model(config, self.task)
        oracle = ModelOracle(model, self.task.prompts, feature_map(PARTS, model.hidden_size))
        rng = np.random.default_rng(2026)
        train = np.sort(rng.choice(len(self.task.train), TRAIN, replace=False))
        heldout = len(self.task.train) + np.sort(rng.choice(len(self.task.heldout), HELDOUT, replace=False))
        self.train = oracle.draw([int(x) for x in train], POOL, rng=rng)
        self.heldout = oracle.draw([int(x) for x in heldout], EVALUATION, rng=rng)

    def pools(self, columns: Any) -> tuple[list[Draws], Any]:
        cut = [
            [Draws(d.prompt, d.responses, d.counts, np.ascontiguousarray(d.features[:, columns])) for d in draws]
            for draws in (self.train, self.heldout)
        ]
        return cut[0], measure_truth(EvaluationPool(cut[1]), self.task.truth, self.task.prompts, {})

    def values(
        self, name: str, labels: int, seeds: Iterable[int], *, columns: Any, noise: float, settings: dict[str, Any]
    ) -> np.ndarray:
        train, measure = self.pools(columns)
        probs = np.zeros(len(self.task.prompts))
        probs[[d.prompt for d in train]] = 1.0 / len(train)
        draws = TRAIN * POOL if name == "spanner-sampling" else None
        spec = Spec(probs, train[0].features.shape[1], labels, draws, batch=20, kl=KL)
        found = []
        for seed in seeds:
            explorer = explorer_by_name(name, settings)
            with Ledger.open(None, meta={}, prompts=self.task.prompts) as ledger:
                oracle, reward = RecordedOracle(self.task.prompts, train), NoisyReward(self.task.truth, noise, seed)
                run = Run(oracle, explorer, reward, ledger, spec, seed=seed)
                run.explore()
                theta = explorer.policy(run.state).theta
            found.append(measure.value(measure.pool.at_kl(measure.pool.scores(theta), KL)).value)
        return np.array(found)


def row(values: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    again = np.sort(np.median(values[rng.integers(len(values), size=(2000, len(values)))], axis=1))
    median = f"{np.median(values):.2f} [{again[50]:.2f}, {again[1949]:.2f}]"
    return f"{median} | {np.mean(values):.2f} | {np.min(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--ablations", action="store_true")
    args = parser.parse_args()
    bench = Bench()
    own = FEATURES["hidden (mean)"]
    _, measure = bench.pools(own)
    base = measure.value(measure.pool.at_beta(np.zeros_like(measure.table), float("inf")))
    best = measure.value(measure.pool.at_kl(measure.table, KL))
    print(f"base model {base.value:.2f}, true-reward optimum {best.value:.2f}\n")
    print("| explorer | variant | labels | median [95 %] | mean | worst |\n|---|---|---|---|---|---|")
    jobs: list[tuple[str, str, int, Any, float, dict[str, Any]]] = []
    jobs += [("spanner-sampling", "default", n, own, 0.3, {}) for n in (50, 100, 200, 500)]
    jobs += [("random-singles", "default", n, own, 0.3, {}) for n in (50, 100, 200, 500, 1000, 2000)]
    jobs += [("passive", "default", n, own, 0.3, {}) for n in (50, 100, 200, 500)]
    if args.ablations:
        for name, columns in list(FEATURES.items())[1:]:
            jobs += [("spanner-sampling", name, n, columns, 0.3, {}) for n in (50, 100, 200)]
        for nu in (1.0, 1.4, 2.8):
            jobs += [("spanner-sampling", f"nu = {nu}", n, own, 0.3, {"nu": nu}) for n in (50, 100, 200)]
        jobs += [("spanner-sampling", "nu shrinks by .5", n, own, 0.3, {"decay": 0.5}) for n in (50, 100, 200)]
        for noise in (0.0, 1.0):
            jobs += [("spanner-sampling", f"noise sd {noise}", n, own, noise, {}) for n in (50, 100, 200)]
            jobs += [("random-singles", f"noise sd {noise}", n, own, noise, {}) for n in (200,)]
    for name, variant, labels, columns, noise, settings in jobs:
        found = bench.values(name, labels, range(args.seeds), columns=columns, noise=noise, settings=settings)
        print(f"| {name} | {variant} | {labels} | {row(found)} |", flush=True)


if __name__ == "__main__":
    main()
