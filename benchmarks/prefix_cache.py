"""Tokens that step-by-step roll-outs of the helpdesk model encode, known prefixes kept or not: counts, no times.

    OMP_NUM_THREADS=1 python benchmarks/prefix_cache.py [--json] [--answers 32]

At each step of an answer ``draws`` segments of ``tokens`` tokens come from the model, and one is kept (THEORY 5).
*generated* are the tokens of all draws; *encoded* those that went through the network, each row's own: the prompt and
what was kept before, and draws that are read for their features, the hidden states at their ends (*no states*: n-grams,
for which only what is kept is read). Everything is per answer. Both sides roll out the same answers from one seed.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from spannerlm.backends.huggingface import PREFIX_CACHE, HuggingFaceModel
from spannerlm.backends.oracle import ModelOracle
from spannerlm.bundled import helpdesk
from spannerlm.features import feature_map
from spannerlm.records import Drawn, DrawRequest, StepTilt
from spannerlm.stepwise import rolled

FEATURES = {"hidden states": "before-eos:-1", "no states": "ngrams"}


def roll(features: str, tokens: int, draws: int, answers: int, cache: int) -> tuple[int, Drawn]:
    """(tokens encoded, outcome) of one request for ``answers`` roll-outs, each of a prompt of its own."""
    task = helpdesk.load()
    model = HuggingFaceModel.load(str(task.model_path), max_new_tokens=task.max_new_tokens, prefix_cache=cache)
    phi = feature_map(features, model.hidden_size)
    oracle = ModelOracle(model, task.train_prompts[:answers], phi, segments=tokens)
    tilt = StepTilt(np.zeros((task.max_new_tokens, phi.dim)), 1.0)
    request = DrawRequest(tuple(range(answers)), draws, tilt, {}, ((),) * answers)
    drawn = rolled(oracle, request, rng=np.random.default_rng(0))
    return model.encoded, drawn


def compare(name: str, tokens: int, draws: int, answers: int) -> dict[str, Any]:
    """One row. RuntimeError where the two sides do not roll out the same answers."""
    plain, without = roll(FEATURES[name], tokens, draws, answers, 0)
    kept, drawn = roll(FEATURES[name], tokens, draws, answers, PREFIX_CACHE)
    if [path.segments for path in drawn.paths] != [path.segments for path in without.paths]:
        raise RuntimeError("the answers differ: float noise moved a draw, choose another number of answers")
    row = {"features": name, "tokens": tokens, "draws": draws, "generated": drawn.tokens / answers}
    return row | {"encoded": plain / answers, "encoded_kept": kept / answers, "ratio": plain / kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--answers", type=int, default=32)
    options = parser.parse_args()
    if not options.json:
        print("features       tokens  draws  generated  encoded  with reuse  ratio")
    for name in FEATURES:
        for tokens in (1, 2, 4):
            for draws in (8, 16):
                row = compare(name, tokens, draws, options.answers)
                if options.json:
                    print(json.dumps(row))
                    continue
                counts = f"{row['generated']:>9.1f}  {row['encoded']:>7.1f}  {row['encoded_kept']:>10.1f}"
                print(f"{name:<13}  {tokens:>6}  {draws:>5}  {counts}  {row['ratio']:>5.2f}")


if __name__ == "__main__":
    main()
