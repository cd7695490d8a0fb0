"""Within one reply of the helpdesk model: segments of a few tokens against whole replies, at equal tokens.

    OMP_NUM_THREADS=1 python benchmarks/segments.py [--labels 200] [--seeds 8] [--segments 2 4 6] [--draws 4 8 16 32]

Both learn from the same number of noisy labels with the same feature map (hidden states in 32 dimensions, and
log-probability and length) at the same beta: `directed` on whole replies, `multi-turn-spanner` on segments. Then both
answer the held-out prompts: whole replies with n draws of which one is kept, segments with n draws at each step, both
by the largest key; that costs about the same tokens, which are counted. True rewards without noise; means over seeds
with Student's interval, and the paired difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed

from spannerlm import bundled
from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.backends.oracle import ModelOracle
from spannerlm.bundled.helpdesk.task import SUCCESS, TrueReward
from spannerlm.evaluation import mean_interval
from spannerlm.explorers import explorer_by_name
from spannerlm.features import Concatenation, FeatureMap, HiddenStates, LogprobLength
from spannerlm.ledger import Ledger
from spannerlm.records import DrawRequest, FloatArray, Spec, StepTilt
from spannerlm.rewards import NoisyReward
from spannerlm.run import Driver
from spannerlm.samplers import pool_sample
from spannerlm.stepwise import rolled

TRAIN, HELDOUT = 64, 64
WIDTH = 32
POOL = 160
"""Whole draws per training prompt that `directed` may spend: more tokens than the segments take."""


@dataclass(frozen=True)
class Answers:
    """What one policy answers at one n."""

    reward: float
    """Mean true reward."""
    success: float
    """Share with the valuable sentence and at most one small fault."""
    tokens: float
    """Generated per answer."""


def loaded() -> HuggingFaceModel:
    """The bundled model."""
    task = bundled.load("helpdesk")
    return HuggingFaceModel.load(str(task.model_path), max_new_tokens=task.max_new_tokens)


def features(model: HuggingFaceModel) -> FeatureMap:
    """The map of either level."""
    return Concatenation((HiddenStates(model.hidden_size, project=WIDTH), LogprobLength(typical=12.0)))


def learned(
    model: HuggingFaceModel, segments: int | None, labels: int, beta: float, seed: int
) -> tuple[FloatArray, int]:
    """(theta, tokens to learn): [d] of whole replies, [H, d] of segments of so many tokens."""
    task = bundled.load("helpdesk")
    prompts = task.train_prompts[:: len(task.train_prompts) // TRAIN][:TRAIN]
    oracle = ModelOracle(model, prompts, features(model), segments=segments)
    rho, stepwise = np.full(len(prompts), 1.0 / len(prompts)), segments is not None
    dim = oracle.dim * (oracle.horizon or 1)
    draws = None if stepwise else POOL * len(prompts)
    spec = Spec(rho, dim, labels, draws, 10, beta=beta, horizon=oracle.horizon)
    reward = NoisyReward(TrueReward(), task.noise_std, seed)
    with Ledger.open(None, meta={}, prompts=prompts) as ledger:
        name = "multi-turn-spanner" if stepwise else "directed"
        run = Driver(oracle, explorer_by_name(name), reward, ledger, spec, seed=seed)
        run.explore()
        return np.asarray(run.explorer.policy(run.state).theta), ledger.counts.tokens


def answered(
    model: HuggingFaceModel, segments: int | None, theta: FloatArray, n: int, beta: float, seed: int
) -> Answers:
    """Held-out prompts, one answer each."""
    prompts = bundled.load("helpdesk").heldout_prompts[:HELDOUT]
    oracle, rng = ModelOracle(model, prompts, features(model), segments=segments), np.random.default_rng([seed, n])
    rows = tuple(range(len(prompts)))
    if segments is None:
        found = oracle.draw(rows, n, rng=rng)
        tokens = sum(map(oracle.tokens, found))
        texts = []
        for record in found:
            row = int(pool_sample(record.features @ theta / beta, record.counts, 1, rng, distinct=True)[0])
            texts.append(record.responses[row])
    else:
        drawn = rolled(oracle, DrawRequest(rows, n, StepTilt(theta, beta), prefixes=((),) * len(rows)), rng=rng)
        texts, tokens = [path.response for path in drawn.paths], drawn.tokens
    rewards = np.array(TrueReward()(list(prompts), texts), dtype=np.float64)
    return Answers(float(rewards.mean()), float(np.mean(rewards >= SUCCESS)), tokens / len(prompts))


def one_seed(
    segments: int | None, labels: int, draws: Sequence[int], beta: float, seed: int
) -> tuple[int, list[Answers]]:
    """Tokens to learn, and the answers at each n."""
    model = loaded()
    theta, tokens = learned(model, segments, labels, beta, seed)
    return tokens, [answered(model, segments, theta, n, beta, seed) for n in draws]


def interval(values: Sequence[float]) -> str:
    """Mean over seeds with Student's interval."""
    found = mean_interval(np.array(values))
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]" if len(values) > 1 else f"{found.value:.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--segments", type=int, nargs="+", default=[2, 4, 6], help="tokens per segment")
    parser.add_argument("--draws", type=int, nargs="+", default=[4, 8, 16, 32], help="n")
    parser.add_argument("--beta", type=float, default=0.15)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    args = parser.parse_args(argv)
    levels = [None, *args.segments]
    sizes = (args.labels, args.draws, args.beta)
    jobs = [(level, seed) for seed in range(args.seeds) for level in levels]
    found = Parallel(args.jobs)(delayed(one_seed)(level, *sizes, seed) for level, seed in jobs)
    rows = {level: [got for (other, _), got in zip(jobs, found, strict=True) if other == level] for level in levels}
    print(f"helpdesk, {args.labels} labels, beta = {args.beta:g}, {args.seeds} seeds, {HELDOUT} held-out prompts")
    print("| n | step | reward | less whole replies | success | tokens per answer | tokens to learn |")
    print("|--:|---|---|---|--:|--:|--:|")
    for i, n in enumerate(args.draws):
        for level in levels:
            got = [answers[i] for _, answers in rows[level]]
            base = [answers[i].reward for _, answers in rows[None]]
            less = "–" if level is None else interval([a.reward - b for a, b in zip(got, base, strict=True)])
            name = "whole reply" if level is None else f"{level} tokens"
            good, each = np.mean([a.success for a in got]), np.mean([a.tokens for a in got])
            cells = (interval([a.reward for a in got]), less, f"{good:.3f}", f"{each:.0f}")
            print(f"| {n} | {name} | " + " | ".join(cells) + f" | {np.mean([t for t, _ in rows[level]]):,.0f} |")


if __name__ == "__main__":
    main()
