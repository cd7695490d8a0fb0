"""TRL's own OnlineDPO as a peer: value against labels on the helpdesk model, beside `directed` and random labels.

    OMP_NUM_THREADS=1 python benchmarks/online_dpo.py [--labels 100 400 1000] [--seeds 3]

`trl.experimental.online_dpo.OnlineDPOTrainer` draws two completions of each prompt of a batch, has both rewarded (two
labels, counted by the reward function itself) and takes a step. Same model, same noisy reward, same label budget; its
learning rate and beta come from a grid, and the best of the grid by the true value is shown, which favours it. A
trained policy has no KL budget: its KL is shown beside its value. `directed` and `passive` are at KL = 2.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from spannerlm.rewards import NoisyReward

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import handover as example

BATCH = 10
"""Prompts of a step, so that a step costs 20 labels."""
RATES, BETAS = (1e-4, 5e-4, 2e-3, 5e-3), (0.1, 1.0)


class Counted:
    """The noisy reward, and how many labels it has given."""

    __name__ = "helpdesk"

    def __init__(self, seed: int) -> None:
        self.reward, self.labels = NoisyReward(example.TASK.reward, example.TASK.noise_std, seed), 0

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        """[k] rewards of these completions: k labels."""
        self.labels += len(completions)
        replicate = list(range(self.labels - len(completions), self.labels))  # fresh noise for each
        return [float(r or 0.0) for r in self.reward(prompts, completions, replicate=replicate)]


def online(labels: int, rate: float, beta: float, seed: int, heldout: tuple[str, ...]) -> example.Measured:
    """OnlineDPO with this many labels."""
    reward = Counted(seed)
    model, tokenizer = example.loaded(example.TASK.model_path)
    tokenizer.padding_side = "left"
    data = datasets.Dataset.from_dict({"prompt": list(example.TASK.train_prompts[:128])}).shuffle(seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = OnlineDPOConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=labels // (2 * BATCH),
            learning_rate=rate,
            beta=beta,
            temperature=1.0,
            max_new_tokens=32,
            dataloader_drop_last=True,  # a smaller batch would leave labels over
            max_length=64,
            **example.quiet(seed),
        )
        trainer = OnlineDPOTrainer(
            model=model, reward_funcs=reward, args=settings, train_dataset=data, processing_class=tokenizer
        )
        place = example.trained(trainer, Path(folder))
        assert reward.labels == labels, (reward.labels, labels)
        return example.of_model(place, heldout, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 400, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=256, help="of each of 128 prompts, for directed and passive")
    args = parser.parse_args()
    heldout = example.TASK.heldout_prompts[:48]
    print("| labels | method | value, median [least, most] | KL from the base model |\n|---|---|---|---|")
    for labels in args.labels:
        for name in ("directed", "passive"):
            rows = []
            for seed in range(args.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    run = example.explored(
                        Path(folder), labels=labels, draws=args.draws, prompts=128, seed=seed, explorer=name
                    )
                    rows.append(example.of_policy(run, heldout, 1024)[1])
            shown(labels, name, rows)
        grid = {
            (rate, beta): [online(labels, rate, beta, seed, heldout) for seed in range(args.seeds)]
            for rate, beta in itertools.product(RATES, BETAS)
        }
        best = max(grid, key=lambda key: float(np.median([row.value for row in grid[key]])))
        shown(labels, f"OnlineDPO (rate {best[0]:g}, beta {best[1]:g}: best of {len(grid)})", grid[best])


def shown(labels: int, name: str, rows: list[example.Measured]) -> None:
    """Print a line of the table."""
    value, kl = np.array([row.value for row in rows]), np.array([row.kl for row in rows])
    cells = f"{np.median(value):.3f} [{value.min():.3f}, {value.max():.3f}] | {np.median(kl):.2f}"
    print(f"| {labels} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
