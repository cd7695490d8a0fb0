"""The model card of a helpdesk model: ``helpdesk_card.md`` filled in from the recipe and from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import common
from common import Facts, Figure, made_with, rates_table
from helpdesk_corpus import RARE, corpus
from helpdesk_measure import KL
from transformers import LlamaConfig

from spannerlm.bundled.helpdesk import task


@dataclass(frozen=True)
class Recipe(common.Recipe):
    """All that decides which helpdesk model comes out."""

    planted: str = "manual"


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
            **made_with(config),
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
            base=held["true reward"].value,
            best=held[f"best true reward at KL {KL:g}"].value,
            kl=KL,
            rates=rates_table(measured),
        )
    )
