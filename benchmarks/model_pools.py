"""The tasks of `models.py`: real draws of each bundled model, made once and kept, and what a policy is worth on them.

A task's pool is 128 training prompts x 320 draws and 48 held-out prompts x 1024 draws, with every feature block that an
ablation may ask for. It lies in build/pools, named after the model's own bytes, so that a rerun needs no model.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from spannerlm import bundled
from spannerlm.bundled import countdown
from spannerlm.bundled.countdown.task import TrueReward as CountdownReward
from spannerlm.bundled.helpdesk import task as helpdesk
from spannerlm.config import load_config
from spannerlm.evaluation import EvaluationPool
from spannerlm.features import feature_map
from spannerlm.files import durable_write
from spannerlm.measures import TruthMeasure, measure_truth
from spannerlm.records import Draws, FloatArray
from spannerlm.rewards import RewardFunction
from spannerlm.tasks import load_model, load_task

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
TRAIN, HELDOUT, POOL, EVALUATION = 128, 48, 320, 1024
PARTS = ["mean:-1", "before-eos:-1", "logprob-length"]
WIDTH = 96
BLOCKS: dict[str, Any] = {
    "hidden": slice(0, WIDTH),
    "before-eos": slice(WIDTH, 2 * WIDTH),
    "hidden+logprob-length": np.r_[0:WIDTH, 2 * WIDTH : 2 * WIDTH + 2],
    "all": slice(None),
}
"""Name of a feature set -> its columns of a pool."""


@dataclass(frozen=True)
class NeutralReward:
    """Helpdesk's ordinary parts only: the rare sentences change nothing, so nothing rare matters."""

    pure: ClassVar[bool] = True

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:  # noqa: ARG002
        pairs = zip(prompts, completions, strict=True)
        return [sum(w for part, w in helpdesk.WORTH.items() if helpdesk.has(x, y, part)) for x, y in pairs]


@dataclass(frozen=True)
class Bed:
    """A task to explore: a model, its prompts, its true reward."""

    name: str
    base: str
    """The bundled task whose prompts, limits and noise it has."""
    truth: RewardFunction
    kl: float
    """KL budget of the learned policy, in nats."""
    block: str = "hidden"
    """Its own feature set, of `BLOCKS`."""
    recipe: tuple[str, ...] = ()
    """Options of training/helpdesk.py that make the model; empty for a model that is shipped."""

    @property
    def model(self) -> Path:
        """Directory of the model, made by the script where it is missing."""
        if not self.recipe:
            return bundled.load(self.base).model_path
        out = BUILD / self.name
        if not (out / "model" / "README.md").exists():  # the card is the last file that the script writes
            print(f"making {self.name}: a few minutes", file=sys.stderr, flush=True)
            script = ROOT / "training" / "helpdesk.py"
            subprocess.run(
                [sys.executable, str(script), *self.recipe, "--out", str(out)], check=True, stdout=sys.stderr
            )
        return out / "model"


SECOND = "survey"
"""The valuable sentence of the second helpdesk model."""
BEDS = {
    bed.name: bed
    for bed in (
        Bed("helpdesk", "helpdesk", helpdesk.TrueReward(), 2.0),
        Bed("helpdesk-2", "helpdesk", helpdesk.TrueReward(SECOND), 2.0, recipe=("--seed", "1", "--planted", SECOND)),
        Bed("helpdesk-neutral", "helpdesk", NeutralReward(), 2.0),
        Bed("countdown", "countdown", CountdownReward(), countdown.KL, "hidden+logprob-length"),
    )
}


def pool_path(bed: Bed) -> Path:
    """Where the pool of a bed's model lies, made or not; helpdesk and helpdesk-neutral share one."""
    weights = (bed.model / "model.safetensors").read_bytes()
    return BUILD / "pools" / f"{bed.base}-{hashlib.sha256(weights).hexdigest()[:12]}.safetensors"


def make_pool(bed: Bed) -> Path:
    """The pool's file, drawn first where it is missing. Cost: 90,112 draws, about a minute."""
    path = pool_path(bed)
    if path.exists():
        return path
    from spannerlm.backends.oracle import ModelOracle  # a rerun needs no torch

    print(f"drawing from {bed.name}", file=sys.stderr, flush=True)
    config = load_config(None, [f"task={bed.base}", f"model={bed.model}"])
    task = load_task(config)
    model = load_model(config, task)
    oracle = ModelOracle(model, task.prompts, feature_map(PARTS, model.hidden_size))
    rng = np.random.default_rng(2026)
    train = np.sort(rng.choice(len(task.train), TRAIN, replace=False))
    heldout = len(task.train) + np.sort(rng.choice(len(task.heldout), HELDOUT, replace=False))
    draws = [*oracle.draw(train.tolist(), POOL, rng=rng), *oracle.draw(heldout.tolist(), EVALUATION, rng=rng)]
    arrays = {
        "features": np.concatenate([d.features for d in draws]).astype(np.float32),  # exact: features are float32
        "counts": np.concatenate([d.counts for d in draws]),
        "prompts": np.array([d.prompt for d in draws]),
        "sizes": np.array([len(d.responses) for d in draws]),
    }
    texts = {"prompts": json.dumps(task.prompts), "responses": json.dumps([r for d in draws for r in d.responses])}
    path.parent.mkdir(parents=True, exist_ok=True)
    durable_write(path, save(arrays, metadata=texts))
    return path


@dataclass(frozen=True, eq=False)
class Pool:
    """A bed's draws with one feature set."""

    bed: Bed
    prompts: tuple[str, ...]
    """[X] all prompts of the task."""
    train: tuple[Draws, ...]
    """[128] draws to explore."""
    measure: TruthMeasure
    """Values policies by the true reward on the held-out draws."""

    def value(self, scores: FloatArray) -> float:
        """Mean true reward at the bed's KL of the policy tilted by scores [X, n] of the held-out draws."""
        return self.measure.value(self.measure.pool.at_kl(scores, self.bed.kl)).value

    def value_of(self, theta: FloatArray) -> float:
        """The same for the scores <theta, phi>."""
        return self.value(self.measure.pool.scores(theta))

    @property
    def base_value(self) -> float:
        """Mean true reward of the base model."""
        return self.measure.value(self.measure.pool.at_beta(np.zeros_like(self.measure.table), float("inf"))).value

    @property
    def best_value(self) -> float:
        """Value of tilting by the true reward: the most that any policy has at this KL."""
        return self.value(self.measure.table)


@lru_cache(maxsize=2)
def load_pool(name: str, block: str | None = None) -> Pool:
    """The pool of the bed ``name``, which must have been made, with the columns of ``block`` (None: its own)."""
    bed = BEDS[name]
    with safe_open(pool_path(bed), framework="numpy") as file:
        arrays, texts = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    features = np.ascontiguousarray(arrays["features"].astype(np.float64)[:, BLOCKS[block or bed.block]])
    prompts, responses, draws, start = tuple(json.loads(texts["prompts"])), json.loads(texts["responses"]), [], 0
    for prompt, size in zip(arrays["prompts"], arrays["sizes"], strict=True):
        rows = slice(start, start + int(size))
        draws.append(Draws(int(prompt), tuple(responses[rows]), arrays["counts"][rows], features[rows]))
        start += int(size)
    measure = measure_truth(EvaluationPool(draws[TRAIN:]), bed.truth, prompts, {})
    return Pool(bed, prompts, tuple(draws[:TRAIN]), measure)
