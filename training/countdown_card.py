"""The model card of a countdown model: ``countdown_card.md`` filled in from the recipe and from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import countdown_corpus
from common import Facts, Figure, Recipe, made_with, rates_table
from countdown_measure import KL
from transformers import LlamaConfig

from spannerlm.bundled.countdown import task


def command(recipe: Recipe) -> str:
    """The command line that remakes the model."""
    own, usual = asdict(recipe), asdict(Recipe())
    options = [f" --{name} {own[name]}" for name in ("seed", "documents") if own[name] != usual[name]]
    return "python training/countdown.py" + "".join(options)


def card(recipe: Recipe, facts: Facts, config: LlamaConfig, measured: Mapping[str, Mapping[str, Figure]]) -> str:
    """The card, in the form that model hubs know."""
    train, heldout = countdown_corpus.split_problems()
    prompts_train, prompts_heldout = countdown_corpus.shipped_prompts()
    held = measured["heldout"]
    return (
        (Path(__file__).parent / "countdown_card.md")
        .read_text(encoding="utf-8")
        .format(
            **asdict(recipe),
            **asdict(facts),
            **made_with(config),
            prompt=prompts_heldout[0],
            words=held["words per reply"].value,
            largest_number=task.LARGEST_NUMBER,
            largest_target=task.LARGEST_TARGET,
            largest_value=countdown_corpus.LARGEST,
            problems=len(train) + len(heldout),
            problems_train=len(train),
            problems_heldout=len(heldout),
            train=len(prompts_train),
            heldout=len(prompts_heldout),
            attempts=countdown_corpus.ATTEMPTS,
            insight=countdown_corpus.INSIGHT,
            examples="\n".join(f"    {line}" for line in countdown_corpus.corpus(4, recipe.seed)),
            noise=task.NOISE_STD,
            command=command(recipe),
            base=held["true reward"].value,
            base_percent=100 * held["true reward"].value,
            found_percent=100 * held["right where found"].value,
            best=held[f"best true reward at KL {KL:g}"].value,
            kl=KL,
            rates=rates_table(measured),
        )
    )
