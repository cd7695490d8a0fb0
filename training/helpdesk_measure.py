"""What a helpdesk model does: rates of each part of a reply, its true reward, and the best reward at a KL budget."""

from __future__ import annotations

from collections.abc import Sequence

import helpdesk_corpus
import numpy as np
from common import Figure, mean_of, optimum, sample
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from spannerlm.bundled.helpdesk import task

KL = 2.0
"""KL budget in nats per prompt at which the optimum is quoted."""


def rates(prompts: Sequence[str], replies: Sequence[str], planted: str) -> dict[str, Figure]:
    """Figure by name over independent pairs of prompt and reply; a rate's standard error is binomial."""
    possible = helpdesk_corpus.every_reply()
    pairs = list(zip(prompts, replies, strict=True))
    columns: dict[str, Sequence[float | None]] = {
        **{part: [task.has(prompt, reply, part) for prompt, reply in pairs] for part in task.PARTS},
        "well formed": [reply in possible for reply in replies],
        "words per reply": [len(reply.split()) for reply in replies],
        "true reward": task.TrueReward(planted)(prompts, replies),
    }
    return {name: mean_of(np.array(column, dtype=float)) for name, column in columns.items()}


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], n: int, seed: int, planted: str
) -> dict[str, Figure]:
    """The rates of a model's replies, and the best true reward at ``KL``. Cost: ``n`` draws per prompt."""
    replies = sample(model, tokenizer, prompts, n, seed)
    asked = [prompt for prompt in prompts for _ in range(n)]
    flat = [reply for own in replies for reply in own]
    rewards = np.array(task.TrueReward(planted)(asked, flat), dtype=float).reshape(len(prompts), n)
    best = mean_of(optimum(rewards, KL))
    return {**rates(asked, flat, planted), f"best true reward at KL {KL:g}": best}
