"""The main job on a model behind a server, beside the same job in this process: same law, same quality?

    OMP_NUM_THREADS=1 python benchmarks/servers.py --transformers      # starts `transformers serve` itself
    OMP_NUM_THREADS=1 python benchmarks/servers.py --url http://127.0.0.1:8000/v1 --model helpdesk
    OMP_NUM_THREADS=1 python benchmarks/servers.py --padded DIR        # writes a copy that vLLM's build for CPUs serves

Law: replies drawn through the server against replies drawn in process, chi-square over the frequent ones of each
prompt, and the largest difference of log-probabilities where the server tells them. Quality: `directed` on n-grams with
equal labels and draws, value at KL = 2 on held-out prompts by the true reward, median over seeds with its bootstrap
interval, and the paired difference with Student's.

``--padded`` writes the bundled helpdesk model with heads of 32 instead of 24, which vLLM's kernels for CPUs do not
have: the added dimensions are zero, queries and rotary base are rescaled, so that logits are the same up to rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from models import against, median
from scipy.stats import chi2_contingency

import spannerlm
from spannerlm import bundled
from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.backends.oracle import ModelOracle
from spannerlm.backends.server import ServerModel
from spannerlm.evaluation import EvaluationPool
from spannerlm.features import feature_map
from spannerlm.policy import padded
from spannerlm.records import FloatArray
from spannerlm.rewards import NoisyReward, call_reward

TASK = bundled.load("helpdesk")
KL = 2.0
FEATURES = "ngrams"
FREQUENT = 20
"""Draws of a reply, in both samples together, from which on it has a cell of its own."""


@contextmanager
def transformers_serve() -> Iterator[tuple[str, str]]:
    """(address, name) of the bundled model behind ``transformers serve``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(TASK.model_path), "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(TASK.model_path)
    finally:
        process.terminate()
        process.wait()


def pad_heads(folder: Path, width: int = 32) -> None:
    """The helpdesk model with heads of another width, and the same logits."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(TASK.model_path, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    heads, old = config["num_attention_heads"], config["head_dim"]
    at = torch.cat([torch.arange(old // 2), width // 2 + torch.arange(old // 2)])  # rotary pairs are half a head apart
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            wide = torch.zeros(heads, width, value.shape[1])
            wide[:, at] = value.view(heads, old, -1) * ((width / old) ** 0.5 if "q_proj" in name else 1.0)
            weights[name] = wide.reshape(heads * width, -1)
        elif name.endswith("o_proj.weight"):
            wide = torch.zeros(value.shape[0], heads, width)
            wide[:, :, at] = value.view(-1, heads, old)
            weights[name] = wide.reshape(-1, heads * width)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    config["head_dim"] = width
    config["rope_parameters"]["rope_theta"] **= width / old
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def compare_laws(served: ServerModel, here: HuggingFaceModel, prompts: Sequence[str], n: int) -> None:
    """Print, for each prompt, whether both give the same replies as often."""
    there = served.generate(prompts, n, rng=np.random.default_rng(0))
    own = here.generate(prompts, n, rng=np.random.default_rng(1))
    print("| prompt | cells | chi-square p | largest difference of log-probabilities |\n|---|---|---|---|")
    for a, b in zip(there, own, strict=True):
        counts = [dict(zip(map(str.strip, r.responses), r.counts.tolist(), strict=True)) for r in (a, b)]
        logprobs = [dict(zip(map(str.strip, r.responses), r.logprobs.tolist(), strict=True)) for r in (a, b)]
        cells = [t for t in counts[0] | counts[1] if sum(c.get(t, 0) for c in counts) >= FREQUENT]
        table = np.array([[c.get(t, 0) for t in cells] for c in counts])
        table = np.c_[table, n - table.sum(axis=1)]
        p = chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue
        both = [abs(logprobs[0][t] - logprobs[1][t]) for t in logprobs[0].keys() & logprobs[1].keys()]
        gap = "not told" if np.isnan(both).any() else f"{max(both):.1e}"
        print(f"| {a.prompt} | {len(cells)} | {p:.3f} | {gap} |", flush=True)


def value(model: Any, pool: EvaluationPool, rewards: FloatArray, seed: int, args: argparse.Namespace) -> float:
    """Value at KL = 2 of what a run on this model has learned."""
    result = spannerlm.explore(
        model=model,
        prompts=TASK.train_prompts[: args.prompts],
        features=FEATURES,
        reward=NoisyReward(TASK.reward, TASK.noise_std, seed),
        labels=args.labels,
        draws=args.prompts * args.draws,
        kl=KL,
        seed=seed,
    )
    tilted = pool.at_kl(pool.scores(result.theta), KL)
    return float(np.mean(tilted.mean(rewards)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--model", default="helpdesk", help="what the server calls it")
    parser.add_argument("--transformers", action="store_true", help="start `transformers serve`")
    parser.add_argument("--padded", type=Path, help="write the model with wider heads, and end")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--draws", type=int, default=64, help="per prompt")
    parser.add_argument("--law", type=int, default=1000, help="draws of each of four prompts for the law")
    args = parser.parse_args()
    if args.padded is not None:
        pad_heads(args.padded)
    elif args.transformers:
        with transformers_serve() as (url, name):
            measure(url, name, args)
    else:
        measure(args.url, args.model, args)


def measure(url: str, name: str, args: argparse.Namespace) -> None:
    """Law and quality, printed."""
    options: dict[str, Any] = {"max_new_tokens": TASK.max_new_tokens}
    here = HuggingFaceModel.load(str(TASK.model_path), **options)
    served = ServerModel.load(name, base_url=url, api="completions", per_request=64, concurrency=4, **options)
    compare_laws(served, here, TASK.train_prompts[:4], args.law)
    for warning in served.warnings:
        print(f"warning: {warning}")
    phi = feature_map(FEATURES)
    heldout = TASK.heldout_prompts[:24]
    records = ModelOracle(here, heldout, phi).draw(range(len(heldout)), 512, rng=np.random.default_rng(99))
    pool = EvaluationPool(records)
    own = [call_reward(TASK.reward, [heldout[d.prompt]] * len(d.responses), d.responses, {}) for d in records]
    rewards = padded([np.array(row) for row in own])
    found: dict[str, list[float]] = {"server": [], "in process": []}
    for seed in range(args.seeds):
        for where, model in (("server", served), ("in process", here)):
            found[where].append(value(model, pool, rewards, seed, args))
        print(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in found.items() if v), flush=True)
    base, best = (float(np.mean(t.mean(rewards))) for t in (pool.at_beta(rewards, np.inf), pool.at_kl(rewards, KL)))
    print(f"{args.labels} labels, {args.prompts} prompts of {args.draws} draws; base {base:.3f}, optimum {best:.3f}")
    print("| where | value at KL = 2, median [95 %] |\n|---|---|")
    for where in ("server", "in process"):
        print(f"| {where} | {median(np.array(found[where]))} |")
    print(f"difference, paired: {against(found['server'], found['in process'])}")
    print(f"usage: {served.usage}")


if __name__ == "__main__":
    main()
