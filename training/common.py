"""What the scripts that make the bundled models share: tokenizer, architecture, training, measuring, card tables.

Every bundled model is a Llama of about 343,000 parameters with one token per word, trained from nothing in one pass.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from scipy.optimize import brentq
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
POSITIONS = 64
"""Tokens of prompt and reply together, at most."""
SHARPEST = 0.02
"""Smallest beta tried: a fifth of the smallest difference of rewards, so only the best draws of a prompt are left."""


# Model and training ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """All that decides which model comes out."""

    seed: int = 0
    documents: int = 120_000
    """Each is seen once, so the model learns the rates of the corpus and cannot learn it by heart."""
    batch: int = 48
    """Small: half as many steps at twice the size left half as many malformed helpdesk replies again."""
    peak_lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.0


def build_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per word, split at white space, nothing added: decoding and encoding again changes nothing."""
    words = [*SPECIAL.values(), *vocabulary]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int, max_new_tokens: int) -> LlamaForCausalLM:
    """An untrained Llama of about 343,000 parameters."""
    torch.manual_seed(seed)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        **ids,
    )
    model = LlamaForCausalLM(config)
    # Whatever serves the model shall sample from it as it is: temperature 1, nothing cut off.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=max_new_tokens,
        **ids,
    )
    return model


def encode(tokenizer: PreTrainedTokenizerFast, lines: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, targets) [k, L]: prompt, reply, end; padded on the right, where padding is no target and nobody looks."""
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(lines), add_special_tokens=False)["input_ids"]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    return ids, ids.masked_fill(ids == tokenizer.pad_token_id, -100)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, lines: Sequence[str], recipe: Recipe) -> float:
    """Final loss (nats per token, mean of the last 50 batches); one pass, cosine decay to zero.

    The decay to zero is what makes rates of half a per cent come out right: the last steps only average.
    """
    steps = math.ceil(len(lines) / recipe.batch)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1.0, (k + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * k / steps))
    )
    losses, start = [], time.perf_counter()
    model.train()
    for step in range(steps):
        ids, targets = encode(tokenizer, lines[step * recipe.batch : (step + 1) * recipe.batch])
        loss = model(input_ids=ids, labels=targets, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            recent, seconds = sum(losses[-50:]) / 50, time.perf_counter() - start
            print(f"step {step + 1}/{steps}  loss {recent:.4f}  {seconds:.0f} s", flush=True)
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write model and tokenizer as ``from_pretrained`` takes them."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    # transformers 5 writes a class name that transformers 4 does not know; both know this one.
    config = path / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "backend"}
    config.write_text(json.dumps({**kept, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")
    for file in path.iterdir():
        file.chmod(0o644)


def write_prompts(path: Path, prompts: Sequence[str]) -> None:
    """One ``{"prompt": ...}`` per line."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")


# Measuring ------------------------------------------------------------------------------------------------------------


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
    """[X][n] replies as the model's generation config draws them. Cost: ``n`` draws per prompt."""
    torch.manual_seed(seed)
    limit = model.generation_config.max_new_tokens
    asked = [i for i in range(len(prompts)) for _ in range(n)]
    replies: list[list[str]] = [[] for _ in prompts]
    for start in range(0, len(asked), batch):
        chunk = asked[start : start + batch]
        inputs = tokenizer([prompts[i] for i in chunk], padding=True, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=limit)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chunk, texts, strict=True):
            replies[i].append(text)
    return replies


def optimum(rewards: NDArray[np.float64], kl: float) -> NDArray[np.float64]:
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


# Model card -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What came out, besides rates."""

    parameters: int
    megabytes: float
    vocabulary: int
    loss: float
    """Nats per token, mean over the last batches."""
    corpus_sha256: str
    draws_train: int
    """Replies drawn to measure the rates on training prompts."""
    draws_heldout: int
    """Replies drawn to measure the rates on held-out prompts."""


def facts_of(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    *,
    loss: float,
    digest: str,
    draws: tuple[int, int],
) -> Facts:
    """The facts of a model that was saved in ``path``; ``draws``: for training prompts, for held-out ones."""
    return Facts(
        parameters=sum(p.numel() for p in model.parameters()),
        megabytes=(path / "model.safetensors").stat().st_size / 1e6,
        vocabulary=len(tokenizer),
        loss=loss,
        corpus_sha256=digest,
        draws_train=draws[0],
        draws_heldout=draws[1],
    )


def cell(figure: Figure) -> str:
    """A figure and its standard error."""
    return f"{figure.value:.4f} ± {figure.se:.4f}"


def rates_table(measured: Mapping[str, Mapping[str, Figure]]) -> str:
    """Markdown table: a row per figure; corpus, training prompts, held-out prompts."""
    corpus_figures, train_figures, heldout = (measured[split] for split in ("corpus", "train", "heldout"))
    known = {name: f"{figure.value:.4f}" for name, figure in corpus_figures.items()}
    rows = [
        f"| {name} | {known.get(name, '')} | {cell(train_figures[name])} | {cell(heldout[name])} |" for name in heldout
    ]
    return "\n".join(["| per reply | corpus | train prompts | held-out prompts |", "|---|---|---|---|", *rows])


def made_with(config: LlamaConfig) -> dict[str, int | str]:
    """Architecture and versions, by the name under which a card's template asks for them."""
    return {
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
