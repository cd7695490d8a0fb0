"""What features are worth where nobody sees a model's hidden states: n-grams and a local encoder beside hidden states.

    OMP_NUM_THREADS=1 python benchmarks/remote_features.py [--labels 100] [--seeds 8]
    vllm serve MODEL --served-model-name embedder --runner pooling --convert embed --dtype float32
    OMP_NUM_THREADS=1 python benchmarks/remote_features.py --url http://127.0.0.1:8000/v1 --model embedder

The helpdesk model's draws are those of benchmarks/models.py; the encoder is the helpdesk model itself, given texts
alone; with --url the vectors are a server's. `directed` chooses the labels, or nobody does (`random-singles`). Values
at KL = 2 nats on held-out prompts, median over seeds with its bootstrap interval, and the difference to random labels
with the same features, paired by seed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from model_pools import BEDS, POOL, TRAIN, Pool, load_pool, make_pool
from models import BASELINE, against, median

from spannerlm import bundled
from spannerlm.evaluation import EvaluationPool
from spannerlm.explorers import explorer_by_name
from spannerlm.features import FeatureMap, feature_map
from spannerlm.ledger import Ledger
from spannerlm.measures import measure_truth
from spannerlm.oracle import RecordedOracle
from spannerlm.records import Draws, Generated, Spec
from spannerlm.rewards import NoisyReward
from spannerlm.run import Driver

TASK = "helpdesk"
ENCODER = {"kind": "encoder", "model": str(bundled.load(TASK).model_path)}
MAPS: dict[str, Any] = {
    "hidden": None,
    "ngrams": "ngrams",
    "ngrams, d = 64": {"kind": "ngrams", "dim": 64},
    "encoder": ENCODER,
    "encoder, prompt and response": {**ENCODER, "text": "both"},
    "encoder, not projected": {**ENCODER, "project": None},
    "encoder, norms kept": {**ENCODER, "normalise": False},
}
EXPLORERS = ("directed", BASELINE)


def seen_by(phi: FeatureMap, draws: Draws, prompts: Sequence[str]) -> Draws:
    """The record with the features of its texts."""
    n = len(draws.responses)
    blank, ends = np.zeros(n), np.ones(n, dtype=bool)
    text = Generated(prompts[draws.prompt], draws.responses, draws.counts, blank, draws.counts, ends)
    return replace(draws, features=phi(text))


def pool_with(config: Any) -> Pool:
    """The bed's draws with these features; None: its own hidden states."""
    pool = load_pool(TASK)
    if config is None:
        return pool
    phi, held = feature_map(config), pool.measure.pool.draws
    train = tuple(seen_by(phi, draws, pool.prompts) for draws in pool.train)
    heldout = EvaluationPool([seen_by(phi, draws, pool.prompts) for draws in held])
    return replace(pool, train=train, measure=measure_truth(heldout, BEDS[TASK].truth, pool.prompts, {}))


def value(pool: Pool, explorer: str, labels: int, seed: int) -> float:
    """Of the policy that a run ends with, at KL = 2."""
    probs = np.zeros(len(pool.prompts))
    probs[[d.prompt for d in pool.train]] = 1.0 / len(pool.train)
    spec = Spec(probs, pool.train[0].features.shape[1], labels, TRAIN * POOL, batch=5, kl=BEDS[TASK].kl)
    reward = NoisyReward(BEDS[TASK].truth, bundled.load(TASK).noise_std, seed)
    with Ledger.open(None, meta={}, prompts=pool.prompts) as ledger:
        oracle = RecordedOracle(pool.prompts, pool.train)
        run = Driver(oracle, explorer_by_name(explorer), reward, ledger, spec, seed=seed)
        run.measure = lambda policy: {"value": pool.value_of(policy.theta)}
        run.explore()
    return float(run.history[-1]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--url", help="an embeddings endpoint: its vectors alone, and hidden states")
    parser.add_argument("--model", help="what the endpoint calls its model")
    args = parser.parse_args()
    make_pool(BEDS[TASK])
    base = load_pool(TASK).base_value
    print(f"{TASK}, {args.labels} labels, KL = {BEDS[TASK].kl:g}, {args.seeds} seeds; base {base:.3f}")
    print("| features | d | labels chosen by | value, median [95 %] | worst | against random labels [95 %] |")
    print("|---|---|---|---|---|---|")
    maps = MAPS
    if args.url is not None:
        maps = {"hidden": None, "embeddings": {"kind": "embeddings", "url": args.url, "model": args.model}}
    for name, config in maps.items():
        pool = pool_with(config)
        d = pool.train[0].features.shape[1]
        jobs = list(itertools.product(EXPLORERS, range(args.seeds)))
        found = Parallel(args.jobs)(delayed(value)(pool, explorer, args.labels, seed) for explorer, seed in jobs)
        values = dict(zip(EXPLORERS, np.array(found).reshape(len(EXPLORERS), -1), strict=True))
        for explorer in EXPLORERS:
            pairs = "–" if explorer == BASELINE else against(values[explorer].tolist(), values[BASELINE].tolist())
            cells = (median(values[explorer]), f"{values[explorer].min():.3f}", pairs)
            print(f"| {name} | {d} | {explorer} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
