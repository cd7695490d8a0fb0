"""Are the coverage report's verdicts right? The bundled models and three damaged ones, whose truth is known.

    python benchmarks/foundations.py [--seeds 3] [--prompts 32] [--draws 512] [--truth 20000]

The damaged models are made by training/damaged.py in build/damaged where they are missing. First table, the truth, from
`--truth` draws of each model over the training prompts: share of replies at the level of success, mean reward, optimum
at the task's KL (2; countdown: 1; the least KL that all is earned at, where the draws hold too few). Second table: for
each model and seed, a random subset of the prompts, the verdict that is expected and the one that the report gives.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

import spannerlm
from spannerlm import bundled
from spannerlm.backends import backend
from spannerlm.records import FloatArray

ROOT = Path(__file__).parents[1]
DAMAGED = ROOT / "build" / "damaged"
SHARPEST = 0.02
"""Smallest beta tried: only the best draws of a prompt are left."""


@dataclass(frozen=True)
class Foundation:
    """A model and the verdict that is right."""

    name: str
    base: str
    """The bundled task whose prompts and reward it has."""
    expected: str
    level: float
    """Reward from which a reply is a success."""
    kl: float

    @property
    def model(self) -> Path:
        """Directory of the model; a damaged one is made where it is missing."""
        if self.name == self.base:
            return bundled.load(self.base).model_path
        folder = DAMAGED / self.name
        # The card is written last.
        if not (folder / "model" / "README.md").exists():
            script = ROOT / "training" / "damaged.py"
            subprocess.run([sys.executable, script, "--kind", self.name, "--out", folder], check=True)
        return folder / "model"


FOUNDATIONS = (
    Foundation("helpdesk", "helpdesk", "go", 1.2, 2.0),
    Foundation("countdown", "countdown", "go", 1.0, 1.0),
    Foundation("undertrained", "helpdesk", "no foundation", 1.2, 2.0),
    Foundation("forgotten", "helpdesk", "no foundation", 1.2, 2.0),
    Foundation("unrelated", "helpdesk", "no foundation", 1.2, 2.0),
)


def optimum(rewards: FloatArray, kl: float) -> float:
    """Value of pi_ref exp(r/beta) on the draws [X, n], at the beta of this mean KL or at the sharpest one."""

    def tilted(beta: float) -> tuple[float, float]:
        logits = (rewards - rewards.max(axis=1, keepdims=True)) / beta
        weights = np.exp(logits)
        log_z = np.log(weights.mean(axis=1))
        weights /= weights.sum(axis=1, keepdims=True)
        return float((weights * rewards).sum(1).mean()), float(((weights * logits).sum(1) - log_z).mean())

    if tilted(SHARPEST)[1] < kl:
        return tilted(SHARPEST)[0]
    return tilted(brentq(lambda beta: tilted(beta)[1] - kl, SHARPEST, 20.0))[0]


def rewards_of(one: Foundation, total: int) -> FloatArray:
    """[X, n] true rewards of about ``total`` draws over the training prompts. Cost: X n draws."""
    task = bundled.load(one.base)
    prompts = task.train_prompts
    each = -(-total // len(prompts))
    loaded = backend("huggingface").load(str(one.model), max_new_tokens=task.max_new_tokens)
    rng = np.random.default_rng(0)
    found = []
    for prompt in prompts:
        (record,) = loaded.generate([prompt], each, hidden=(), rng=rng)
        graded = task.reward([prompt] * len(record.responses), record.responses)
        found.append(np.repeat(np.array(graded, dtype=float), record.counts))
    return np.array(found)


def print_truth(total: int) -> None:
    """The first table."""
    print(f"{'model':14} {'draws':>7} {'success':>18} {'mean reward':>12} {'optimum':>9}")
    for one in FOUNDATIONS:
        rewards = rewards_of(one, total)
        hits, n = int((rewards >= one.level - 1e-9).sum()), rewards.size
        shown = f"{hits / n:.5f} ({hits})"
        print(f"{one.name:14} {n:>7} {shown:>18} {rewards.mean():>12.3f} {optimum(rewards, one.kl):>9.3f}", flush=True)


def print_verdicts(seeds: Sequence[int], prompts: int, draws: int) -> None:
    """The second table."""
    print(f"{'model':14} {'seed':>4} {'expected':16} {'verdict':16}")
    right = 0
    for one in FOUNDATIONS:
        task = bundled.load(one.base)
        for seed in seeds:
            chosen = np.random.default_rng(seed).choice(len(task.train_prompts), prompts, replace=False)
            report = spannerlm.coverage_report(
                model=str(one.model),
                prompts=[task.train_prompts[i] for i in chosen],
                reward=task.reward,
                reward_free=True,
                reward_noise=task.noise_std,
                success=one.level,
                draws=draws,
                kl=one.kl,
                features=list(task.features),
                generation={"max_new_tokens": task.max_new_tokens},
                seed=seed,
            )
            verdict = report.document["models"][0]["verdict"]["kind"]
            right += verdict == one.expected
            note = "" if verdict == one.expected else "  <- wrong"
            print(f"{one.name:14} {seed:>4} {one.expected:16} {verdict:16}{note}", flush=True)
    print(f"{right} of {len(FOUNDATIONS) * len(seeds)} right")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32, help="size of each seed's subset")
    parser.add_argument("--draws", type=int, default=512, help="per prompt, for each report")
    parser.add_argument(
        "--truth", type=int, default=20_000, help="draws of each model for its truth; 0: no first table"
    )
    args = parser.parse_args()
    if args.truth:
        print_truth(args.truth)
    print_verdicts(range(args.seeds), args.prompts, args.draws)


if __name__ == "__main__":
    main()
