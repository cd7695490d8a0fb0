"""Tokens per CPU-second: spannerlm's sampling against ``model.generate``, in the same run, so that ratios are honest.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--json] [--model DIRECTORY --prompts FILE]

Both sides draw the same number of responses to the same prompts and collect the last layer's hidden states: generate by
a forward hook on the final norm, without pooling, collapsing or decoding; ours with all three (text is decoded, pooled
states are brought home). *flat* is a Llama configuration with random weights (343k parameters), whose replies have 10
tokens on average: the next token is uniform, so no two draws share more than the prompt, the worst case. *peaked* has
about 1.8 nats per token. *helpdesk* is the bundled model. Draws that share their first tokens are computed once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import spannerlm
from spannerlm.backends.huggingface import HuggingFaceModel

LIMIT = 24
PROMPTS = 16
ENDS = 11
"""End-of-sequence ids of the random model: 11 of 114 tokens end a flat reply after 10 tokens on average."""


def random_model(spread: float) -> tuple[Any, Any]:
    """Model and tokenizer; ``spread`` is the standard deviation of the logits, of an output layer of its own."""
    config = transformers.LlamaConfig(
        vocab_size=114,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=spread == 0,
        bos_token_id=None,
        eos_token_id=list(range(ENDS)),
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        if spread:
            model.lm_head.weight.normal_(0.0, spread / 96**0.5)
    vocabulary = {f"w{i}": i for i in range(114)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w113"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return model, transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def ours(model: HuggingFaceModel, prompts: list[str], n: int, batch: int, seed: int) -> tuple[int, int]:
    """(tokens drawn, distinct responses) of one call of our loop."""
    model.batch_size = batch
    found = model.generate(prompts, n, hidden=("mean:-1",), rng=np.random.default_rng(seed))
    return sum(int(r.counts @ r.lengths) for r in found), sum(len(r.responses) for r in found)


def theirs(model: HuggingFaceModel, prompts: list[str], n: int, batch: int, seed: int) -> tuple[int, int]:
    """(tokens drawn, 0) of ``model.generate`` in batches of the same size."""
    rows = [model.codec.prompt_ids(p) for p in prompts for _ in range(n)]
    torch.manual_seed(seed)
    total = 0
    states: list[torch.Tensor] = []
    hook = model.model.model.norm.register_forward_hook(lambda _module, _inputs, output: states.append(output[:, -1]))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(r)) + r for r in part])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in part])
        states.clear()
        out = model.model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=LIMIT, pad_token_id=0
        )[:, width:]
        torch.stack(states)
        ended = torch.isin(out, torch.tensor(model.eos)).int().cumsum(1)
        total += int((ended.cumsum(1) <= 1).sum())
    hook.remove()
    return total, 0


def compare(name: str, model: HuggingFaceModel, prompts: list[str], n: int, batch: int, repeats: int) -> dict[str, Any]:
    """One row: median tokens per CPU-second of both sides, taken in turns; the first turn warms up and is left out."""
    rates: dict[str, list[float]] = {"ours": [], "generate": []}
    distinct = 0
    for seed in range(repeats + 1):
        for side, run in (("ours", ours), ("generate", theirs)):
            start = time.process_time()
            tokens, different = run(model, prompts, n, batch, seed)
            rates[side].append(tokens / (time.process_time() - start))
            distinct = max(distinct, different)
    mine, base = (statistics.median(rates[side][1:]) for side in ("ours", "generate"))
    ratios = [a / b for a, b in zip(rates["ours"][1:], rates["generate"][1:], strict=True)]
    row = {"model": name, "prompts": len(prompts), "draws": n, "batch": batch, "distinct": distinct / n / len(prompts)}
    return {**row, "ours": mine, "generate": base, "ratio": statistics.median(ratios)}


def cases(options: argparse.Namespace) -> Iterator[tuple[str, HuggingFaceModel, list[str]]]:
    """(name, model, prompts): the two random models, then the bundled one or the user's."""
    rng = np.random.default_rng(0)
    prompts = [" ".join(f"w{i}" for i in rng.integers(ENDS, 114, size=6 + k % 4)) for k in range(PROMPTS)]
    for name, spread in (("flat", 0.0), ("peaked", 2.4)):
        yield name, HuggingFaceModel(*random_model(spread), max_new_tokens=LIMIT), prompts
    folder = Path(spannerlm.__file__).parent / "bundled" / "helpdesk"
    lines = (options.prompts or folder / "prompts_train.jsonl").read_text().split("\n")
    texts = [json.loads(line)["prompt"] for line in lines[:PROMPTS]]
    name = str(options.model) if options.model else "helpdesk"
    yield name, HuggingFaceModel.load(str(options.model or folder / "model"), device="cpu", max_new_tokens=LIMIT), texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--model", type=Path, help="directory of a model to measure in place of the bundled one")
    parser.add_argument("--prompts", type=Path, help='its prompts: JSON lines {"prompt": ...}')
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    rows = []
    for name, model, prompts in cases(options):
        for n, batch in ((64, 64), (64, 256), (64, 1024), (256, 4096)):
            rows.append(compare(name, model, prompts, n, batch, options.repeats))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'model':10s} {'draws':>11s} {'batch':>6s} {'distinct':>9s} {'ours tok/s':>11s} {'generate':>9s}  ratio")
    for r in rows:
        line = f"{r['model'][-10:]:10s} {r['prompts']:4d} x {r['draws']:4d} {r['batch']:6d} {r['distinct']:9.2f}"
        print(f"{line} {r['ours']:11,.0f} {r['generate']:9,.0f} {r['ratio']:6.2f}")


if __name__ == "__main__":
    main()
