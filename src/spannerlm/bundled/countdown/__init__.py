"""The countdown task: a small base model, its prompts, and a true reward for right answers; nothing rare matters."""

from __future__ import annotations

from pathlib import Path

from spannerlm.bundled import BundledTask, read_prompts
from spannerlm.bundled.countdown.task import MAX_NEW_TOKENS, NOISE_STD, TrueReward

HOME = Path(__file__).parent
KL = 1.0
"""Twice what a policy that knows the true reward needs to be always right: a learned one goes on gaining until here."""
FEATURES = ("hidden", "logprob-length")
"""A search that gives up is long: length is what random labels learn first."""


def load() -> BundledTask:
    """The countdown task as it is shipped."""
    return BundledTask(
        name="countdown",
        model_path=HOME / "model",
        train_prompts=read_prompts(HOME / "prompts_train.jsonl"),
        heldout_prompts=read_prompts(HOME / "prompts_heldout.jsonl"),
        reward=TrueReward(),
        noise_std=NOISE_STD,
        max_new_tokens=MAX_NEW_TOKENS,
        features=FEATURES,
        kl=KL,
        success=1.0,
    )
