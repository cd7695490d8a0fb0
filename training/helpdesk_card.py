"""The model card of a helpdesk model: ``helpdesk_card.md`` filled in from the recipe and from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from helpdesk_corpus import RARE, corpus
from helpdesk_measure import KL, Figure
from transformers import LlamaConfig

from spannerlm.bundled.helpdesk import task


@dataclass(frozen=True)
class Recipe:
    """All that decides which model comes out."""

    seed: int = 0
    planted: str = "manual"
    documents: int = 120_000
    """Each is seen once, so the model learns the rates of the decks and cannot learn the corpus by heart."""
    batch: int = 48
    """Small: half as many steps at twice the size left half as many malformed replies again."""
    peak_lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.0


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


def cell(figure: Figure) -> str:
    """A figure and its standard error."""
    return f"{figure.value:.4f} ± {figure.se:.4f}"


def rates_table(measured: Mapping[str, Mapping[str, Figure]]) -> str:
    """Markdown table: a row per figure; corpus, training prompts, held-out prompts."""
    corpus_figures, train, heldout = (measured[split] for split in ("corpus", "train", "heldout"))
    known = {name: f"{figure.value:.4f}" for name, figure in corpus_figures.items()}
    rows = [f"| {name} | {known.get(name, '')} | {cell(train[name])} | {cell(heldout[name])} |" for name in heldout]
    return "\n".join(["| per reply | corpus | train prompts | held-out prompts |", "|---|---|---|---|", *rows])


def command(recipe: Recipe) -> str:
    """The command line that remakes the model."""
    own, usual = asdict(recipe), asdict(Recipe())
    options = [f" --{name} {own[name]}" for name in ("seed", "planted", "documents") if own[name] != usual[name]]
    return "python training/helpdesk.py" + "".join(options)


def card(recipe: Recipe, facts: Facts, config: LlamaConfig, measured: Mapping[str, Mapping[str, Figure]]) -> str:
    """The card, in the form that model hubs know."""
    train, heldout = map(task.prompts_of, task.split_combinations())
    reward = task.TrueReward(recipe.planted)
    held = measured["heldout"]
    return (
        (Path(__file__).parent / "helpdesk_card.md")
        .read_text(encoding="utf-8")
        .format(
            **asdict(recipe),
            **asdict(facts),
            prompt=heldout[0],
            words=held["words per reply"].value,
            rare=len(task.RARE),
            rare_rate=100 / sum(RARE.values()),
            valuable=task.RARE[reward.valuable][0],
            harmful=task.RARE[reward.harmful][0],
            products=len(task.PRODUCTS),
            problems=len(task.PROBLEMS),
            templates=len(task.TEMPLATES),
            prompts=len(train) + len(heldout),
            train=len(train),
            heldout=len(heldout),
            examples="\n".join(f"    {line}" for line in corpus(4, recipe.seed)),
            worth=", ".join(f"{weight:+g} {part}" for part, weight in reward.weights().items()),
            noise=task.NOISE_STD,
            command=command(recipe),
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            torch=torch.__version__,
            transformers=transformers.__version__,
            tokenizers=tokenizers.__version__,
            base=held["true reward"].value,
            best=held[f"best true reward at KL {KL:g}"].value,
            kl=KL,
            rates=rates_table(measured),
        )
    )
