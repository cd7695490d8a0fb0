"""From labels to trained weights: what of the learned policy's value do TRL's trainers keep?

    OMP_NUM_THREADS=1 python benchmarks/distillation.py [--seeds 3] [--labels 100]

Helpdesk, held-out prompts, true reward, one draw an answer unless told otherwise. `directed` and random labels
(`passive`) have the same number of labels and draws. SFT is on draws of the policy; DPO on pairs of a draw of the
policy and one of the base model, and on the labelled responses themselves, best against worst of a prompt, as many
pairs from random labels as from chosen ones, with the same training steps. Medians over seeds [least, most].
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import handover as example

STEPS = {"policy": 100, "labels": 20}
"""Training steps on pairs of 32: of the policy (about three epochs), and of the few labelled ones."""


def one(seed: int, labels: int, folder: Path, args: argparse.Namespace) -> dict[str, example.Measured]:
    """Every policy of one seed."""
    heldout = example.TASK.heldout_prompts[:48]
    runs = {
        name: example.explored(folder / name, labels=labels, draws=args.draws, prompts=128, seed=seed, explorer=name)
        for name in ("directed", "passive")
    }
    found: dict[str, example.Measured] = {}
    found["base model"], found["directed, tilted"] = example.of_policy(runs["directed"], heldout, 1024)
    found["random labels, tilted"] = example.of_policy(runs["passive"], heldout, 1024)[1]
    pairs = {name: example.table(run, "preference", 1, seed) for name, run in runs.items()}
    size = min(map(len, pairs.values()))
    for name, title in (("directed", "chosen labels"), ("passive", "random labels")):
        place = folder / f"{name}-trained"
        sft = example.distilled(example.table(runs[name], "sft", 16, seed), place / "sft", epochs=12, seed=seed)
        found[f"SFT on the policy's draws, {title}"] = example.of_model(sft, heldout, 64)
        drawn = example.table(runs[name], "policy-preference", 8, seed)
        dpo = example.preferred(drawn, place / "dpo", steps=STEPS["policy"], seed=seed)
        found[f"DPO on {len(drawn):,} pairs of policy and base, {title}"] = example.of_model(dpo, heldout, 64)
        few = pairs[name].shuffle(seed=seed).select(range(size))
        dpo = example.preferred(few, place / "few", steps=STEPS["labels"], seed=seed)
        found[f"DPO on pairs of the labels alone, {title}"] = example.of_model(dpo, heldout, 64)
        print(f"seed {seed}, {name}: {size} pairs of labels", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--draws", type=int, default=256, help="of each of 128 prompts")
    args = parser.parse_args()
    table: dict[str, list[example.Measured]] = defaultdict(list)
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for name, row in one(seed, args.labels, Path(folder), args).items():
                table[name].append(row)
    print(f"{args.labels} labels, {args.seeds} seeds, median [least, most]")
    print("| policy | value | KL from the base model | draws an answer |\n|---|---|---|---|")
    for name, rows in table.items():
        cells = []
        for what, digits in (("value", 3), ("kl", 2), ("draws", 0)):
            values = np.array([getattr(row, what) for row in rows])
            spread = f" [{values.min():.{digits}f}, {values.max():.{digits}f}]" if np.ptp(values) else ""
            cells.append(f"{np.median(values):.{digits}f}{spread}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
