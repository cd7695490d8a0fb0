"""The helpdesk task: a small base model, its prompts, and a true reward with one planted rare skill (TESTBEDS)."""

from __future__ import annotations

import json
from pathlib import Path

from spannerlm.bundled import BundledTask
from spannerlm.bundled.helpdesk.task import MAX_NEW_TOKENS, NOISE_STD, TrueReward

HOME = Path(__file__).parent


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a JSON-lines file with one ``{"prompt": ...}`` per line."""
    return tuple(json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines())


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
    )
