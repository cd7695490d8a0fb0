"""Make the helpdesk base model from nothing: corpus, tokenizer, training, measured rates, model card.

    python training/helpdesk.py                                        # remakes the bundled model, in a few minutes
    python training/helpdesk.py --out DIR --seed 1 --planted survey    # a second model with another valuable sentence

The same seed always gives the same corpus; the same model only with the same library versions on the same processor.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import helpdesk_corpus
import torch
from helpdesk_card import Facts, Recipe, card
from helpdesk_measure import measure, rates
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import spannerlm.bundled.helpdesk
from spannerlm.bundled.helpdesk import task

BUNDLED = Path(spannerlm.bundled.helpdesk.__file__).parent
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, split at white space, nothing added: decoding and encoding again changes nothing."""
    words = [*SPECIAL.values(), *helpdesk_corpus.vocabulary()]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of about 343,000 parameters."""
    torch.manual_seed(seed)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
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
        max_new_tokens=task.MAX_NEW_TOKENS,
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


def make(recipe: Recipe, out: Path, draws: int) -> None:
    """Make the model of ``recipe`` in ``out``, with its prompts and its card; ``draws`` per split go into its rates."""
    lines = helpdesk_corpus.corpus(recipe.documents, recipe.seed)
    digest = helpdesk_corpus.digest(lines)
    print(f"corpus {digest}", flush=True)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, recipe.seed)
    loss = train(model, tokenizer, lines, recipe)
    save(model, tokenizer, out / "model")
    measured, counts = {"corpus": rates(*helpdesk_corpus.split(lines), recipe.planted)}, {}
    for seed, name in enumerate(("train", "heldout")):
        prompts = task.prompts_of(task.split_combinations()[seed])
        write_prompts(out / f"prompts_{name}.jsonl", prompts)
        print(f"measuring on {name} prompts", flush=True)
        each = max(2, draws // len(prompts))
        counts[f"draws_{name}"] = each * len(prompts)
        measured[name] = measure(model, tokenizer, prompts, each, seed, recipe.planted)
    facts = Facts(
        parameters=sum(p.numel() for p in model.parameters()),
        megabytes=(out / "model" / "model.safetensors").stat().st_size / 1e6,
        vocabulary=len(tokenizer),
        loss=loss,
        corpus_sha256=digest,
        **counts,
    )
    (out / "model" / "README.md").write_text(card(recipe, facts, model.config, measured), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the model."""
    parser = argparse.ArgumentParser(description="Make a helpdesk base model from nothing.")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="directory to write (default: the bundled model's)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of the corpus and of the training")
    valuable = [name for name in task.RARE if name != task.TrueReward.harmful]
    parser.add_argument("--planted", choices=valuable, default=Recipe.planted, help="the rare sentence worth 1.5")
    parser.add_argument("--documents", type=int, default=Recipe.documents, help="size of the corpus")
    parser.add_argument("--draws", type=int, default=86_400, help="replies drawn to measure the rates, per split")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    make(Recipe(seed=args.seed, planted=args.planted, documents=args.documents), args.out, args.draws)


if __name__ == "__main__":
    main()
