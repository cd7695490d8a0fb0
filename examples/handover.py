"""From a run to trained weights: explore, export, and let TRL distil the policy, so that no rejection is left.

    OMP_NUM_THREADS=1 python examples/handover.py            # a few minutes on one core
    OMP_NUM_THREADS=1 python examples/handover.py --quick    # smaller in every way, to see that it works

The bundled helpdesk model is explored with 100 labels. Its draws, resampled with the learned policy's weights, go to
TRL's SFTTrainer; pairs of a draw of the policy and a draw of the base model go to DPOTrainer. What comes out is an
ordinary model, one draw an answer. Needs: pip install 'spannerlm[lm,train]'.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import spannerlm
from spannerlm import bundled
from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.backends.oracle import ModelOracle
from spannerlm.evaluation import EvaluationPool
from spannerlm.exporting import Kind, exported
from spannerlm.features import feature_map
from spannerlm.policy import padded
from spannerlm.rewards import NoisyReward, call_reward

TASK = bundled.load("helpdesk")
KL = 2.0
LIMIT: dict[str, Any] = {"max_new_tokens": TASK.max_new_tokens}


@dataclass(frozen=True)
class Measured:
    """A policy on held-out prompts."""

    value: float
    """Mean true reward."""
    kl: float
    """From the base model, in nats."""
    draws: float
    """Base draws, or the trained model's own, of an answer."""


def explored(folder: Path, *, labels: int, draws: int, prompts: int, seed: int, explorer: str = "directed") -> Path:
    """The directory of a run on the bundled model. Cost: ``labels`` labels."""
    spannerlm.explore(
        model=str(TASK.model_path),
        prompts=list(TASK.train_prompts[:prompts]),
        features=list(TASK.features),
        reward=NoisyReward(TASK.reward, TASK.noise_std, seed),
        explorer=explorer,
        labels=labels,
        draws=prompts * draws,
        kl=KL,
        seed=seed,
        run_dir=folder,
        generation=LIMIT,
    )
    return folder


def table(run: Path, kind: Kind, n: int, seed: int) -> datasets.Dataset:
    """Rows of an export as TRL wants them of a model without chat template: a space between prompt and response."""
    rows = [dict(row) for row in exported(run, kind, n=n, seed=seed).rows]
    for row in rows:
        row |= {name: " " + row[name] for name in ("completion", "chosen", "rejected") if name in row}
    return datasets.Dataset.from_list(rows)


def loaded(place: Path) -> tuple[Any, Any]:
    """Model and tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(place)
    return model, transformers.AutoTokenizer.from_pretrained(place)


def distilled(data: datasets.Dataset, out: Path, *, epochs: float, seed: int) -> Path:
    """The base model after supervised fine-tuning on prompt-completion rows."""
    model, tokenizer = loaded(TASK.model_path)
    settings = SFTConfig(
        output_dir=str(out / "log"),
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        num_train_epochs=epochs,
        lr_scheduler_type="cosine",
        max_length=64,
        completion_only_loss=True,
        **quiet(seed),
    )
    trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    return trained(trainer, out)


def preferred(data: datasets.Dataset, out: Path, *, steps: int, seed: int, beta: float = 1.0) -> Path:
    """The base model after direct preference optimisation on pairs.

    At ``beta`` = 1 the optimum of its loss on pairs of (policy, base model) draws is the policy itself: what wins is
    told from what loses by the ratio of the two densities.
    """
    model, tokenizer = loaded(TASK.model_path)
    settings = DPOConfig(
        output_dir=str(out / "log"),
        per_device_train_batch_size=32,
        learning_rate=5e-4,
        max_steps=steps,
        beta=beta,
        max_length=64,
        **quiet(seed),
    )
    trainer = DPOTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    return trained(trainer, out)


def quiet(seed: int) -> dict[str, Any]:
    """Settings of a trainer that trains on a CPU and says nothing."""
    return {
        "use_cpu": True,
        "bf16": False,
        "seed": seed,
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def trained(trainer: Any, out: Path) -> Path:
    """Where the trained model lies."""
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    trainer.save_model(str(out / "model"))
    trainer.processing_class.save_pretrained(str(out / "model"))
    return out / "model"


def of_model(place: Path, prompts: Sequence[str], n: int, seed: int = 5) -> Measured:
    """A trained model as it is, one draw an answer: value, and the mean of log pi - log pi_ref on its own draws."""
    base = HuggingFaceModel.load(str(TASK.model_path), device="cpu", **LIMIT)
    model = HuggingFaceModel.load(str(place), device="cpu", **LIMIT)
    values, gaps = [], []
    for record in model.generate(prompts, n, rng=np.random.default_rng(seed)):
        share = record.counts / record.counts.sum()
        rewards = call_reward(TASK.reward, [record.prompt] * len(share), record.responses, {})
        own, theirs = (m.score(record.prompt, record.responses).logprobs for m in (model, base))
        values.append(float(share @ np.array(rewards, dtype=float)))
        gaps.append(float(share @ (own - theirs)))
    return Measured(float(np.mean(values)), float(np.mean(gaps)), 1.0)


def of_policy(run: Path, prompts: Sequence[str], n: int, seed: int = 6) -> tuple[Measured, Measured]:
    """(base model, learned policy at KL = 2), on ``n`` base draws of each prompt."""
    policy: Any = spannerlm.load_policy(run)
    phi = feature_map(list(TASK.features), policy.model.hidden_size)
    records = ModelOracle(policy.model, prompts, phi).draw(range(len(prompts)), n, rng=np.random.default_rng(seed))
    rewards = padded(
        [
            np.array(call_reward(TASK.reward, [prompts[d.prompt]] * len(d.responses), d.responses, {}), dtype=float)
            for d in records
        ]
    )
    pool = EvaluationPool(records)
    scores = pool.scores(policy.theta)
    base, tilted = pool.at_beta(scores, np.inf), pool.at_kl(scores, KL)
    cost = float(np.mean(tilted.draws_per_answer()))
    return (
        Measured(float(np.mean(base.mean(rewards))), 0.0, 1.0),
        Measured(float(np.mean(tilted.mean(rewards))), tilted.kl, cost),
    )


def main() -> None:
    """Explore, export, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="folder to keep everything in; otherwise a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        small = args.quick
        run = explored(
            folder / "run", labels=100, draws=128 if small else 512, prompts=48 if small else 128, seed=args.seed
        )
        heldout = TASK.heldout_prompts[: 12 if small else 48]
        base, policy = of_policy(run, heldout, 256 if small else 1024)
        sft = distilled(table(run, "sft", 16, args.seed), folder / "sft", epochs=6 if small else 12, seed=args.seed)
        pairs = table(run, "policy-preference", 8, args.seed)
        dpo = preferred(pairs, folder / "dpo", steps=60 if small else 100, seed=args.seed)
        rows = {"base model": base, "learned policy": policy}
        rows |= {"SFT on its draws": of_model(sft, heldout, 64), "DPO on pairs": of_model(dpo, heldout, 64)}
        print(f"{'':18}{'value':>8}{'KL':>8}{'draws an answer':>18}")
        for name, row in rows.items():
            print(f"{name:18}{row.value:8.3f}{row.kl:8.2f}{row.draws:18.0f}")


if __name__ == "__main__":
    main()
