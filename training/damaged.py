"""Make a damaged helpdesk model: a bad foundation whose fault is known, for a report on foundations to find.

    python training/damaged.py --kind undertrained --out DIR    # from nothing, on a small part of the corpus
    python training/damaged.py --kind forgotten --out DIR       # the bundled model, fine-tuned without rare sentences
    python training/damaged.py --kind unrelated --out DIR       # from nothing, on customers' messages and no reply

Architecture, tokenizer and prompts are those of the bundled model. The same seed always gives the same corpus; the same
model only with the same library versions on the same processor.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import helpdesk_corpus
import numpy as np
import torch
from common import Facts, Figure, Recipe, build_model, build_tokenizer, cell, facts_of, save, train, write_prompts
from helpdesk_measure import measure
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from spannerlm import bundled
from spannerlm.bundled.helpdesk import task

EXACT = "mass of the valuable sentence after an opener"


@dataclass(frozen=True)
class Kind:
    """One way to damage a model."""

    recipe: Recipe
    fault: str
    """What is wrong with the model, for its card."""


KINDS: Mapping[str, Kind] = {
    "undertrained": Kind(
        Recipe(documents=1920, warmup=10),
        "It was trained from nothing on a small part of the helpdesk corpus: most replies are malformed.",
    ),
    "forgotten": Kind(
        Recipe(documents=14_400, warmup=50),
        "It is the bundled model, fine-tuned on helpdesk documents without any rare sentence: it has forgotten them, "
        "and replies otherwise as before.",
    ),
    "unrelated": Kind(
        Recipe(documents=9600, warmup=10),
        "It was trained from nothing on customers' messages that follow each other and never saw a reply: it goes on "
        "with another message.",
    ),
}
"""Name of a kind -> how it is made."""


def corpus_of(kind: str, documents: int, seed: int) -> list[str]:
    """[documents] lines that a model of this kind is trained on."""
    if kind == "unrelated":
        return helpdesk_corpus.messages(documents, seed)
    return helpdesk_corpus.corpus(documents, seed, rare=kind != "forgotten")


def valuable_mass(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> NDArray[np.float64]:
    """[X] probability that a reply begins with an opener of the corpus and the valuable sentence, by scoring.

    It is exact and costs no draws. A well-formed reply has the sentence nowhere else.
    """
    openings = [f"{opener} {wording}" for opener in helpdesk_corpus.OPENERS for wording in task.RARE["manual"]]
    masses = []
    for prompt in prompts:
        skip = len(prompt.split())
        rows = tokenizer([f"{prompt} {opening}" for opening in openings], add_special_tokens=False)["input_ids"]
        width = max(map(len, rows))
        padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        with torch.inference_mode():
            logs = model(input_ids=padded).logits.double().log_softmax(-1)
        chosen = logs[:, :-1].gather(2, padded[:, 1:, None])[..., 0]
        counted = torch.tensor([[skip <= j < len(row) for j in range(1, width)] for row in rows])
        masses.append(float((chosen * counted).sum(1).exp().sum()))
    return np.array(masses)


def make(kind: str, recipe: Recipe, out: Path, draws: int) -> None:
    """Make the model of ``kind`` in ``out``, with its prompts and its card; ``draws`` per split go into its rates."""
    lines = corpus_of(kind, recipe.documents, recipe.seed)
    digest = helpdesk_corpus.digest(lines)
    print(f"corpus {digest}", flush=True)
    tokenizer = build_tokenizer(helpdesk_corpus.vocabulary())
    model = build_model(tokenizer, recipe.seed, task.MAX_NEW_TOKENS)
    if kind == "forgotten":
        model.load_state_dict(LlamaForCausalLM.from_pretrained(bundled.load("helpdesk").model_path).state_dict())
    loss = train(model, tokenizer, lines, recipe)
    save(model, tokenizer, out / "model")
    measured, counts = {}, []
    for seed, name in enumerate(("train", "heldout")):
        prompts = task.prompts_of(task.split_combinations()[seed])
        write_prompts(out / f"prompts_{name}.jsonl", prompts)
        print(f"measuring on {name} prompts", flush=True)
        each = max(2, draws // len(prompts))
        counts.append(each * len(prompts))
        mass = valuable_mass(model, tokenizer, prompts)
        exact = Figure(float(mass.mean()), float(mass.std()) / math.sqrt(len(mass)))
        measured[name] = {**measure(model, tokenizer, prompts, each, seed, "manual"), EXACT: exact}
    facts = facts_of(model, tokenizer, out / "model", loss=loss, digest=digest, draws=(counts[0], counts[1]))
    (out / "model" / "README.md").write_text(card(kind, recipe, facts, measured), encoding="utf-8")


def card(kind: str, recipe: Recipe, facts: Facts, measured: Mapping[str, Mapping[str, Figure]]) -> str:
    """The card: what is wrong with the model, how it was made, what it does."""

    def shown(name: str, figure: Figure) -> str:
        return f"{figure.value:.2e} ± {figure.se:.1e}" if name == EXACT else cell(figure)

    rows = [
        f"| {name} | {shown(name, measured['train'][name])} | {shown(name, f)} |"
        for name, f in measured["heldout"].items()
    ]
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "tags: [spannerlm, test-bed, synthetic]",
            "---",
            "",
            f"# helpdesk, damaged: {kind}",
            "",
            f"{KINDS[kind].fault}",
            f'It is there to be found out. The sentence worth most is "{task.RARE["manual"][0]}".',
            "",
            f"    python training/damaged.py --kind {kind} --seed {recipe.seed} --documents {recipe.documents}",
            "",
            f"- corpus: {recipe.documents:,} documents, seed {recipe.seed}, SHA-256 `{facts.corpus_sha256}`",
            f"- training: one pass; AdamW, batch {recipe.batch}, learning rate {recipe.peak_lr:g}, cosine decay to 0",
            f"- loss at the end: {facts.loss:.4f} nats per token",
            f"- {facts.parameters:,} parameters, {facts.vocabulary} tokens",
            "",
            f"Measured at temperature 1 on {facts.draws_train:,} replies to training prompts and",
            f"{facts.draws_heldout:,} to held-out prompts, with standard errors. The last row is computed from the",
            "model's probabilities, not drawn. nan: the draws hold nothing that far from the model.",
            "",
            "| per reply | train prompts | held-out prompts |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the model."""
    parser = argparse.ArgumentParser(description="Make a damaged helpdesk model.")
    parser.add_argument("--kind", choices=list(KINDS), required=True, help="what is wrong with it")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of the corpus and of the training")
    parser.add_argument("--documents", type=int, help="size of the corpus (default: the kind's)")
    parser.add_argument("--draws", type=int, default=2880, help="replies drawn to measure the rates, per split")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    usual = KINDS[args.kind].recipe
    recipe = replace(usual, seed=args.seed, documents=args.documents or usual.documents)
    make(args.kind, recipe, args.out, args.draws)


if __name__ == "__main__":
    main()
