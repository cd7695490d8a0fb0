"""The helpdesk task: a small base model, its prompts, and a true reward with one planted rare skill (TESTBEDS)."""

from __future__ import annotations

from pathlib import Path

from spannerlm.bundled import BundledTask, read_prompts
from spannerlm.bundled.helpdesk.task import MAX_NEW_TOKENS, NOISE_STD, SUCCESS, TrueReward

HOME = Path(__file__).parent


def load() -> BundledTask:
    """The helpdesk task as it is shipped."""
    return BundledTask(
        name="helpdesk",
        model_path=HOME / "model",
        train_prompts=read_prompts(HOME / "prompts_train.jsonl"),
        heldout_prompts=read_prompts(HOME / "prompts_heldout.jsonl"),
        reward=TrueReward(),
        noise_std=NOISE_STD,
        max_new_tokens=MAX_NEW_TOKENS,
        features=("hidden",),
        success=SUCCESS,
        parts=TrueReward().parts(),
    )
