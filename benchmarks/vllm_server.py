"""What a model's server honours, and the main job through it beside the same job in process: vLLM, or any other.

    OMP_NUM_THREADS=1 python benchmarks/vllm_server.py --vllm /path/to/bin/vllm   # starts it, in its own environment
    OMP_NUM_THREADS=1 python benchmarks/vllm_server.py --transformers             # starts `transformers serve`
    OMP_NUM_THREADS=1 python benchmarks/vllm_server.py --url http://127.0.0.1:8000/v1 --model helpdesk

Behaviour: plain requests, and what the replies say. Law: replies through `ServerModel` against replies in process, two
chi-squares per prompt: whole replies that are frequent, and the words at each place (the smallest p of the places times
their number); then the mean reward and length with the standard error of the difference, and the largest difference of
log-probabilities where the server tells them. Quality: `directed` on n-grams with equal labels and draws, value at KL =
2 on held-out prompts by the true reward, median over seeds with its bootstrap interval, and the paired difference with
Student's. With ``--segments``, what the coverage report says of going step by step.

``--vllm`` serves the bundled model with wider heads and the same logits (see `servers.pad_heads`), with a template for
chat that puts the prompt's words one after the other.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from models import against, median
from scipy.stats import chi2_contingency
from servers import TASK, pad_heads, transformers_serve

import spannerlm
from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.backends.oracle import ModelOracle
from spannerlm.backends.server import ServerModel
from spannerlm.evaluation import EvaluationPool
from spannerlm.features import feature_map
from spannerlm.policy import padded
from spannerlm.records import FloatArray, Generated
from spannerlm.rewards import NoisyReward, call_reward

KL = 2.0
FEATURES = "ngrams"
FREQUENT = 10
"""Draws, in both samples together, from which on a reply or a word has a cell of its own."""
PROMPT = "my printer is hot ;"
BEGUN = "so sorry please"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{{ ' ' if m['role'] == 'user' }}{% endfor %}"
START_S = 240
"""Seconds that a server may take to start."""


@contextmanager
def vllm_serve(binary: str) -> Iterator[tuple[str, str]]:
    """(address, name) of the bundled model behind ``vllm serve``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        pad_heads(Path(folder) / "model")
        template, log = Path(folder) / "chat.jinja", Path(folder) / "log"
        template.write_text(TEMPLATE)
        command = [binary, "serve", str(Path(folder) / "model"), "--served-model-name", "helpdesk"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "64"]
        command += ["--enforce-eager", "--generation-config", "vllm", "--chat-template", str(template)]
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, **settings}, start_new_session=True
            )
        try:
            for _ in range(START_S):
                if process.poll() is not None:
                    raise RuntimeError(log.read_text()[-4000:])
                if _healthy(port):
                    break
                time.sleep(1.0)
            else:
                raise RuntimeError(f"no answer within {START_S} s: {log.read_text()[-4000:]}")
            yield f"http://127.0.0.1:{port}/v1", "helpdesk"
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait()


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False


def behaviour(url: str, name: str) -> None:
    """Print what plain requests get."""
    ask = {"model": name, "prompt": PROMPT, "max_tokens": 24, "temperature": 1.0, "top_p": 1.0}
    chat = {"model": name, "max_tokens": 24, "temperature": 1.0, "messages": [{"role": "user", "content": PROMPT}]}

    def sent(body: dict[str, Any]) -> tuple[int, Any]:
        route = "/chat/completions" if "messages" in body else "/completions"
        reply = httpx.post(url + route, json=body, timeout=120.0)
        return reply.status_code, reply.json() if reply.status_code == 200 else reply.text[:160]

    def texts(body: dict[str, Any]) -> list[str]:
        status, found = sent(body)
        if status != 200:
            return [f"refused with {status}: {found}"]
        return [c["message"]["content"] if "message" in c else c["text"] for c in found["choices"]]

    four = texts({**ask, "n": 4, "seed": 1})
    found: dict[str, str] = {"n = 4": f"{len(four)} choices, {len(set(four))} different"}
    for wanted in (0, 1):
        status, reply = sent({**ask, "logprobs": wanted, "seed": 1})
        shown = reply["choices"][0].get("logprobs") if status == 200 else None
        count = len(shown["token_logprobs"]) if shown else 0
        spent = reply.get("usage", {}).get("completion_tokens") if status == 200 else reply
        found[f"logprobs = {wanted}"] = f"{count} shown, usage {spent}"
    found["seed twice"] = "the same" if texts({**ask, "seed": 5}) == texts({**ask, "seed": 5}) else "another reply"
    found["no seed twice"] = f"{len({t for _ in range(6) for t in texts(ask)})} different of 6"
    found["echo"] = repr(texts({**ask, "echo": True, "max_tokens": 2, "seed": 1})[0])
    found["stop = please"] = repr(texts({**ask, "stop": ["please"], "seed": 1})[0])
    found["two prompts"] = f"{len(texts({**ask, 'prompt': [PROMPT, PROMPT]}))} choices"
    found["chat"] = repr(texts({**chat, "seed": 1})[0])
    rest = {"messages": [*chat["messages"], {"role": "assistant", "content": BEGUN}], "temperature": 0.0}
    rest |= {"continue_final_message": True, "add_generation_prompt": False}
    found["chat that goes on"] = repr(texts({**chat, **rest})[0])
    found["completion that goes on"] = repr(texts({**ask, "prompt": f"{PROMPT} {BEGUN}", "temperature": 0.0})[0])
    found["greedy, n = 2"] = repr(texts({**ask, "temperature": 0.0, "n": 2})[0])
    found["unknown field"] = repr(texts({**ask, "nonsense": 1, "seed": 1})[0])
    found["unknown model"] = repr(texts({**ask, "model": "none such"})[0])
    found["max_tokens = 1000"] = repr(texts({**ask, "max_tokens": 1000})[0])
    print("| asked | got |\n|---|---|")
    for asked, got in found.items():
        print(f"| {asked} | {got} |")
    print(flush=True)


def compare_laws(served: ServerModel, here: HuggingFaceModel, prompts: Sequence[str], n: int) -> None:
    """Print, for each prompt, whether both give the same replies, words, rewards and lengths."""
    there = served.generate(prompts, n, rng=np.random.default_rng(0))
    own = here.generate(prompts, n, rng=np.random.default_rng(1))
    print("| prompt | replies: cells, p | words: cells, p | reward: server − here ± se | length: likewise | log p |")
    print("|---|---|---|---|---|---|")
    for a, b in zip(there, own, strict=True):
        same = [_counted(a), _counted(b)]
        cells, p = _chi_square(same)
        parts = [f"{cells}, {p:.3f}"]
        tests = [_chi_square([_words(count, place) for count in same]) for place in range(max(map(_longest, same)))]
        parts.append(f"{sum(cells for cells, _ in tests)}, {min(1.0, min(p for _, p in tests) * len(tests)):.3f}")
        rewards = [np.array(call_reward(TASK.reward, [r.prompt] * len(r.responses), r.responses, {})) for r in (a, b)]
        for values in (rewards, [r.lengths for r in (a, b)]):
            parts.append(_difference([np.repeat(v, r.counts) for v, r in zip(values, (a, b), strict=True)]))
        logprobs = [dict(zip(map(str.strip, r.responses), r.logprobs.tolist(), strict=True)) for r in (a, b)]
        gaps = [abs(logprobs[0][t] - logprobs[1][t]) for t in logprobs[0].keys() & logprobs[1].keys()]
        parts.append("not told" if np.isnan(gaps).any() else f"{max(gaps):.1e}")
        print(f"| {a.prompt} | {' | '.join(parts)} |", flush=True)
    counted = sum(r.tokens for r in there), sum(int(r.counts @ r.lengths) for r in there)
    print(f"{n} draws of each prompt; tokens: {counted[0]} by the server's count, {counted[1]} by lengths")
    for warning in served.warnings:
        print(f"warning: {warning}")
    print(flush=True)


def _counted(record: Generated) -> Counter[str]:
    out: Counter[str] = Counter()
    for text, count in zip(record.responses, record.counts.tolist(), strict=True):
        out[text.strip()] += count
    return out


def _longest(texts: Counter[str]) -> int:
    return max(len(text.split()) for text in texts)


def _words(texts: Counter[str], place: int) -> Counter[str]:
    """How often each word comes at this place; the empty one behind a response's end."""
    out: Counter[str] = Counter()
    for text, count in texts.items():
        out["".join(text.split()[place : place + 1])] += count
    return out


def _chi_square(samples: Sequence[Counter[str]]) -> tuple[int, float]:
    """Cells of their own, and p; the rest has one cell."""
    cells = [t for t in samples[0] | samples[1] if sum(s[t] for s in samples) >= FREQUENT]
    table = np.array([[s[t] for t in cells] + [s.total() - sum(s[t] for t in cells)] for s in samples])
    table = table[:, table.sum(axis=0) > 0]
    return len(cells), 1.0 if table.shape[1] < 2 else float(chi2_contingency(table).pvalue)


def _difference(samples: Sequence[np.ndarray]) -> str:
    error = np.sqrt(sum(np.var(x, ddof=1) / len(x) for x in samples))
    return f"{samples[0].mean() - samples[1].mean():+.3f} ± {error:.3f}"


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


def compare_jobs(served: ServerModel, here: HuggingFaceModel, args: argparse.Namespace) -> None:
    """Print the value of the main job through both, seed by seed and in one table."""
    heldout = TASK.heldout_prompts[:24]
    records = ModelOracle(here, heldout, feature_map(FEATURES)).draw(
        range(len(heldout)), 512, rng=np.random.default_rng(99)
    )
    pool = EvaluationPool(records)
    own = [call_reward(TASK.reward, [heldout[d.prompt]] * len(d.responses), d.responses, {}) for d in records]
    rewards = padded([np.array(row) for row in own])
    found: dict[str, list[float]] = {"server": [], "in process": []}
    for seed in range(args.first, args.first + args.seeds):
        for where, model in (("server", served), ("in process", here)):
            found[where].append(value(model, pool, rewards, seed, args))
        print(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in found.items()), flush=True)
    base, best = (float(np.mean(t.mean(rewards))) for t in (pool.at_beta(rewards, np.inf), pool.at_kl(rewards, KL)))
    print(f"{args.labels} labels, {args.prompts} prompts of {args.draws} draws; base {base:.3f}, optimum {best:.3f}")
    print("| where | value at KL = 2, median [95 %] |\n|---|---|")
    for where, values in found.items():
        print(f"| {where} | {median(np.array(values))} |")
    print(f"difference, paired: {against(found['server'], found['in process'])}")
    print(f"usage: {served.usage}")


def compare_steps(url: str, name: str, seeds: int, length: int) -> None:
    """Print what `spannerlm coverage --segments` says of both: eight prompts, 512 draws each, KL = 2."""
    options: dict[str, Any] = {"max_new_tokens": TASK.max_new_tokens}
    places = [("in process", str(TASK.model_path), options, seed) for seed in range(seeds)]
    places.append(("server", name, {**options, "base_url": url, "api": "completions", "per_request": 64}, 0))
    print("| where | C_cond | C_cov | times fewer tokens an answer | segments |\n|---|---|---|---|---|")
    for where, model, generation, seed in places:
        report = spannerlm.coverage_report(
            model=model,
            generation=generation,
            prompts=TASK.train_prompts[:8],
            features=[FEATURES],
            reward=TASK.reward,
            reward_free=True,
            segments=length,
            draws=512,
            kl=KL,
            simulations=0,
            seed=seed,
        )
        found = report.document["models"][0]["steps"]
        one, all_, fewer = (found[part] for part in ("step", "sequence", "fewer"))
        ends = f" [{fewer['low']:.1f}, {fewer['high']:.1f}]" if found["told"] else ", cannot tell"
        words = f"{one['value']:.0f} | {all_['value']:.0f} | {fewer['value']:.1f}{ends} | {found['draws']:,}"
        print(f"| {where}, seed {seed} | {words} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url")
    where.add_argument("--vllm", help="the program vllm of an environment that has it")
    where.add_argument("--transformers", action="store_true", help="start `transformers serve`")
    parser.add_argument("--model", default="helpdesk", help="what the server at --url calls it")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--draws", type=int, default=64, help="per prompt")
    parser.add_argument("--law", type=int, default=1000, help="draws of each of four prompts for the law")
    parser.add_argument("--segments", type=int, default=0, help="tokens of a step: coverage step by step as well")
    args = parser.parse_args()
    if args.vllm is not None:
        with vllm_serve(args.vllm) as (url, name):
            measure(url, name, args)
    elif args.transformers:
        with transformers_serve() as (url, name):
            measure(url, name, args)
    else:
        measure(args.url, args.model, args)


def measure(url: str, name: str, args: argparse.Namespace) -> None:
    """Behaviour, law and quality, printed; no law or quality where ``--law`` or ``--seeds`` is 0."""
    here = HuggingFaceModel.load(str(TASK.model_path), max_new_tokens=TASK.max_new_tokens)
    served = ServerModel.load(
        name, base_url=url, api="completions", per_request=64, concurrency=4, max_new_tokens=TASK.max_new_tokens
    )
    behaviour(url, name)
    if args.law:
        compare_laws(served, here, TASK.train_prompts[:4], args.law)
    if args.seeds:
        compare_jobs(served, here, args)
    if args.segments:
        compare_steps(url, name, 4, args.segments)


if __name__ == "__main__":
    main()
