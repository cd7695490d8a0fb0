"""Held-out value of explorers on the bundled models at few labels, beside random labels.

    python benchmarks/models.py [--explorers a,b] [--tasks helpdesk,countdown] [--labels 50,100,200] [--seeds 8]

Tasks: `helpdesk` (a planted rare sentence is worth much), `helpdesk-2` (another training seed, another sentence; not
shipped, made by training/helpdesk.py in build/helpdesk-2 where it is missing, a few minutes), `helpdesk-neutral` (the
draws of helpdesk, nothing rare matters), `countdown` (exploration does not pay). All explorers and seeds share one pool
of real draws per model, kept in build/pools; each seed has its own label noise and choices. A run goes to the largest
budget and is read at all of them: at each the policy is that of its last batch within the budget. Runs are kept in
build/models, one Parquet file each, and never run again unless --again says so, as it must where an explorer's code has
changed. The difference to random-singles is paired by seed, with Student's interval; medians have a bootstrap interval.
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from joblib import Parallel, delayed
from model_pools import BEDS, BUILD, POOL, TRAIN, load_pool, make_pool, pool_path

from spannerlm import bundled
from spannerlm.evaluation import mean_interval
from spannerlm.explorers import EXPLORERS, explorer_by_name
from spannerlm.files import durable_write
from spannerlm.ledger import Ledger
from spannerlm.oracle import RecordedOracle
from spannerlm.records import Spec
from spannerlm.rewards import NoisyReward
from spannerlm.run import Driver

BASELINE = "random-singles"


@dataclass(frozen=True)
class Variant:
    """What an ablation changes: features or label noise for every explorer, or settings of one."""

    block: str | None = None
    """Feature set; None: the task's own."""
    noise: float | None = None
    """Standard deviation of the label noise; None: the task's own."""
    explorer: str | None = None
    """The only explorer that has these settings; None: any."""
    settings: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "default": Variant(),
    "hidden": Variant(block="hidden"),
    "before-eos": Variant(block="before-eos"),
    "hidden+logprob-length": Variant(block="hidden+logprob-length"),
    "all-features": Variant(block="all"),
    "nu-1": Variant(explorer="spanner-sampling", settings={"nu": 1.0}),
    "nu-1.4": Variant(explorer="spanner-sampling", settings={"nu": 1.4}),
    "nu-2.8": Variant(explorer="spanner-sampling", settings={"nu": 2.8}),
    "nu-shrinks-by-half": Variant(explorer="spanner-sampling", settings={"decay": 0.5}),
    "noise-0": Variant(noise=0.0),
    "noise-1": Variant(noise=1.0),
}


@dataclass(frozen=True)
class Job:
    """One run."""

    task: str
    explorer: str
    variant: str
    batch: int
    budget: int
    seed: int

    @property
    def path(self) -> Path:
        """Where its rows are kept; another model of the task, or another KL, has another name."""
        bed = BEDS[self.task]
        model = pool_path(bed).stem.rpartition("-")[2]
        name = f"{self.explorer}--{self.variant}--batch{self.batch}--labels{self.budget}--seed{self.seed}.parquet"
        return BUILD / "models" / f"{self.task}-{model}-kl{bed.kl:g}" / name

    def run(self) -> None:
        """Run and keep its rows: labels, draws and value after each batch."""
        variant, bed = VARIANTS[self.variant], BEDS[self.task]
        pool = load_pool(self.task, variant.block)
        probs = np.zeros(len(pool.prompts))
        probs[[d.prompt for d in pool.train]] = 1.0 / len(pool.train)
        dim = pool.train[0].features.shape[1]
        spec = Spec(probs, dim, self.budget, TRAIN * POOL, batch=self.batch, kl=bed.kl)
        noise = bundled.load(bed.base).noise_std if variant.noise is None else variant.noise
        reward = NoisyReward(bed.truth, noise, self.seed)
        with Ledger.open(None, meta={}, prompts=pool.prompts) as ledger:
            oracle = RecordedOracle(pool.prompts, pool.train)
            run = Driver(
                oracle, explorer_by_name(self.explorer, variant.settings), reward, ledger, spec, seed=self.seed
            )
            run.measure = lambda policy: {"value": pool.value_of(policy.theta)}
            run.explore()
        rows = [{name: row[name] for name in ("labels", "draws", "value")} for row in run.history]
        data = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), data)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        durable_write(self.path, data.getvalue())

    def at(self, labels: int) -> dict[str, float] | None:
        """The last row within ``labels``; None where there was no such run."""
        if not self.path.exists():
            return None
        rows: list[dict[str, float]] = pq.read_table(self.path).to_pylist()
        return [row for row in rows if row["labels"] <= labels][-1]


def median(values: np.ndarray) -> str:
    """Median over seeds with its bootstrap interval."""
    rng = np.random.default_rng(0)
    again = np.sort(np.median(values[rng.integers(len(values), size=(2000, len(values)))], axis=1))
    return f"{np.median(values):.3f} [{again[50]:.3f}, {again[1949]:.3f}]"


def against(values: Sequence[float], baseline: Sequence[float | None]) -> str:
    """Mean paired difference with Student's interval over the seeds that both have."""
    pairs = [v - b for v, b in zip(values, baseline, strict=True) if b is not None]
    if not pairs:
        return "–"
    found = mean_interval(np.array(pairs))
    if len(pairs) < 2:
        return f"{found.value:+.3f}"
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def line(jobs: Sequence[Job], labels: int) -> str:
    """A row of the table: the jobs of one explorer, a seed each, at a budget."""
    first, rows = jobs[0], [job.at(labels) for job in jobs]
    values = np.array([row["value"] for row in rows if row is not None])
    same = "default" if VARIANTS[first.variant].explorer else first.variant
    others = [Job(j.task, BASELINE, same, j.batch, j.budget, j.seed).at(labels) for j in jobs]
    pairs = "–"
    if first.explorer != BASELINE:
        pairs = against(values.tolist(), [None if row is None else row["value"] for row in others])
    draws = np.median([row["draws"] for row in rows if row is not None])
    cells = (median(values), f"{values.mean():.3f}", f"{values.min():.3f}", pairs, f"{draws:,.0f}")
    return f"| {labels} | {first.explorer} | {first.variant} | " + " | ".join(cells) + " |"


def names(known: Sequence[str]) -> Any:
    """A parser of lists such as a,b that refuses what is not known."""

    def parse(text: str) -> list[str]:
        found = text.split(",")
        if wrong := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}; got {', '.join(wrong)}")
        return found

    return parse


def budgets(text: str) -> list[int]:
    found = sorted({int(part) for part in text.split(",")})
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"expected budgets of at least 1 label, got {found[0]}")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--explorers", type=names(list(EXPLORERS)), default=[BASELINE, "spanner-sampling"], help=", ".join(EXPLORERS))
    add("--tasks", type=names(list(BEDS)), default=list(BEDS), help=", ".join(BEDS))
    add("--labels", type=budgets, default=[20, 50, 100, 200], help="label budgets")
    add("--seeds", type=int, default=8, help="how many seeds")
    add("--first-seed", type=int, default=0)
    add("--batch", type=int, default=5, help="labels asked for at once, at most")
    add("--variants", type=names(list(VARIANTS)), default=["default"], help=", ".join(VARIANTS))
    add("--ablations", dest="variants", action="store_const", const=list(VARIANTS), help="all variants")
    add("--jobs", type=int, default=2, help="processes")
    add("--again", action="store_true", help="run also what is kept from before")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for task in args.tasks:
        make_pool(BEDS[task])
        groups = [
            [Job(task, explorer, variant, args.batch, args.labels[-1], seed) for seed in seeds]
            for variant, explorer in itertools.product(args.variants, args.explorers)
            if VARIANTS[variant].explorer in (None, explorer)
        ]
        todo = [job for jobs in groups for job in jobs if args.again or not job.path.exists()]
        Parallel(args.jobs)(delayed(Job.run)(job) for job in todo)
        pool, bed = load_pool(task), BEDS[task]
        print(f"\n{task} at KL = {bed.kl:g}: base {pool.base_value:.3f}, true-reward optimum {pool.best_value:.3f}\n")
        print("| labels | explorer | variant | median [95 %] | mean | worst | against random-singles [95 %] | draws |")
        print("|---|---|---|---|---|---|---|---|")
        for labels, jobs in itertools.product(args.labels, groups):
            print(line(jobs, labels), flush=True)


if __name__ == "__main__":
    main()
