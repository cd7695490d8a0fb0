"""Make the countdown base model from nothing: corpus, tokenizer, training, measured rates, model card.

    python training/countdown.py                         # remakes the bundled model, in a few minutes
    python training/countdown.py --out DIR --seed 1      # another one

The same seed always gives the same corpus; the same model only with the same library versions on the same processor.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import countdown_corpus
import torch
from common import Recipe, build_model, build_tokenizer, facts_of, save, train, write_prompts
from countdown_card import card
from countdown_measure import measure, rates

import spannerlm.bundled.countdown
from spannerlm.bundled.countdown import task

BUNDLED = Path(spannerlm.bundled.countdown.__file__).parent


def make(recipe: Recipe, out: Path, draws: int) -> None:
    """Make the model of ``recipe`` in ``out``, with its prompts and its card; ``draws`` per split go into its rates."""
    lines = countdown_corpus.corpus(recipe.documents, recipe.seed)
    digest = countdown_corpus.digest(lines)
    print(f"corpus {digest}", flush=True)
    tokenizer = build_tokenizer(countdown_corpus.vocabulary())
    model = build_model(tokenizer, recipe.seed, task.MAX_NEW_TOKENS)
    loss = train(model, tokenizer, lines, recipe)
    save(model, tokenizer, out / "model")
    measured, counts = {"corpus": rates(*countdown_corpus.split(lines))}, []
    for seed, (name, prompts) in enumerate(zip(("train", "heldout"), countdown_corpus.shipped_prompts(), strict=True)):
        write_prompts(out / f"prompts_{name}.jsonl", prompts)
        print(f"measuring on {name} prompts", flush=True)
        each = max(2, draws // len(prompts))
        counts.append(each * len(prompts))
        measured[name] = measure(model, tokenizer, prompts, each, seed)
    facts = facts_of(model, tokenizer, out / "model", loss=loss, digest=digest, draws=(counts[0], counts[1]))
    (out / "model" / "README.md").write_text(card(recipe, facts, model.config, measured), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the model."""
    parser = argparse.ArgumentParser(description="Make a countdown base model from nothing.")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="directory to write (default: the bundled model's)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of the corpus and of the training")
    parser.add_argument("--documents", type=int, default=Recipe.documents, help="size of the corpus")
    parser.add_argument("--draws", type=int, default=43_200, help="replies drawn to measure the rates, per split")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    make(Recipe(seed=args.seed, documents=args.documents), args.out, args.draws)


if __name__ == "__main__":
    main()
