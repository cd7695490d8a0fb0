"""What a helpdesk model does: rates of each part of a reply, its true reward, and the best reward at a KL budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import helpdesk_corpus
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from spannerlm.bundled.helpdesk import task

KL = 2.0
"""KL budget in nats per prompt at which the optimum is quoted."""
SHARPEST = 0.02
"""Smallest beta tried: a fifth of the smallest difference of rewards, so only the best draws of a prompt are left."""


@dataclass(frozen=True)
class Figure:
    """A measured mean and its standard error."""

    value: float
    se: float


def mean_of(values: NDArray[np.float64]) -> Figure:
    """The mean [n] and its standard error."""
    return Figure(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    n: int,
    seed: int,
    batch: int = 512,
) -> list[list[str]]:
    """[X][n] replies at temperature 1. Cost: ``n`` draws per prompt."""
    torch.manual_seed(seed)
    asked = [i for i in range(len(prompts)) for _ in range(n)]
    replies: list[list[str]] = [[] for _ in prompts]
    for start in range(0, len(asked), batch):
        chunk = asked[start : start + batch]
        inputs = tokenizer([prompts[i] for i in chunk], padding=True, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=task.MAX_NEW_TOKENS)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chunk, texts, strict=True):
            replies[i].append(text)
    return replies


def optimum(rewards: NDArray[np.float64], kl: float = KL) -> NDArray[np.float64]:
    """[X] value per prompt of pi_ref exp(r/beta) on the draws [X, n], with beta from the mean KL; nan if too few."""

    def tilted(beta: float) -> tuple[NDArray[np.float64], float]:
        logits = (rewards - rewards.max(axis=1, keepdims=True)) / beta
        weights = np.exp(logits)
        log_z = np.log(weights.mean(axis=1))
        weights /= weights.sum(axis=1, keepdims=True)
        return (weights * rewards).sum(axis=1), float(((weights * logits).sum(axis=1) - log_z).mean())

    if tilted(SHARPEST)[1] < kl:
        return np.full(len(rewards), np.nan)
    beta = brentq(lambda b: tilted(b)[1] - kl, SHARPEST, 20.0)
    return tilted(beta)[0]


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
    best = mean_of(optimum(rewards))
    return {**rates(asked, flat, planted), f"best true reward at KL {KL:g}": best}
