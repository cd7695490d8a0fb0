"""What a countdown model does: how often it searches, finds and answers right, and pass@k."""

from __future__ import annotations

from collections.abc import Sequence

import countdown_corpus
import numpy as np
from common import Figure, mean_of, optimum, sample
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from spannerlm.bundled.countdown import task
from spannerlm.coverage import pass_at_k

KL = 0.5
"""KL budget in nats per prompt at which the optimum is quoted: beyond it every reply is right, and nothing is left."""
PASSES = (1, 4, 16, 64)


def attempted(prompt: str, reply: str) -> bool:
    """Whether the answer is an expression over exactly the given numbers, right or wrong."""
    expressions = {a.expression for a in countdown_corpus.attempts(task.problem_of(prompt).numbers)}  # type: ignore[arg-type]
    return " ".join(task.answer_of(reply) or ()) in expressions


def rates(prompts: Sequence[str], replies: Sequence[str]) -> dict[str, Figure]:
    """Figure by name over independent pairs of prompt and reply; a rate's standard error is binomial."""
    pairs = list(zip(prompts, replies, strict=True))
    right = np.array([task.correct(prompt, reply) for prompt, reply in pairs], dtype=float)
    found = np.array(["yes" in reply.split() for reply in replies])
    return {
        "found": mean_of(found.astype(float)),
        "right where found": mean_of(right[found]),
        "right where given up": mean_of(right[~found]),
        "well formed": mean_of(np.array([attempted(*pair) for pair in pairs], dtype=float)),
        "attempts per reply": mean_of(np.array([sum(w in ("yes", "no") for w in y.split()) for y in replies], float)),
        "words per reply": mean_of(np.array([len(reply.split()) for reply in replies], dtype=float)),
        "true reward": mean_of(right),
    }


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], n: int, seed: int
) -> dict[str, Figure]:
    """The rates of a model's replies, pass@k, and the best true reward at ``KL``. Cost: ``n`` draws per prompt.

    The standard errors of pass@k and of the best reward are over prompts.
    """
    replies = sample(model, tokenizer, prompts, n, seed)
    asked = [prompt for prompt in prompts for _ in range(n)]
    flat = [reply for own in replies for reply in own]
    rewards = np.array(task.TrueReward()(asked, flat), dtype=float).reshape(len(prompts), n)
    passed = {
        f"pass@{k}": mean_of(pass_at_k(np.full(len(prompts), n), rewards.sum(axis=1).astype(int), k))
        for k in PASSES
        if k <= n
    }
    return {**rates(asked, flat), **passed, f"best true reward at KL {KL:g}": mean_of(optimum(rewards, KL))}
