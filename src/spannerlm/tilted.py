"""The learned policy on disk and on a real model: written by a run, loaded by whoever uses it, drawn from.

``policy.json`` says which model, which features and which temperature; ``policy.safetensors`` holds theta. Neither
can run code when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.special import gammainccinv

from spannerlm.backends import load
from spannerlm.backends.conversation import ConversationOracle, User
from spannerlm.backends.oracle import ModelOracle, TextModel
from spannerlm.errors import InputError
from spannerlm.features import FeatureMap, feature_map
from spannerlm.files import durable_write, sync_folder
from spannerlm.oracle import SamplingOracle, TokenOracle
from spannerlm.records import FloatArray
from spannerlm.samplers import adaptive_samples, pool_sample
from spannerlm.segments import Segments
from spannerlm.segments import segments as parsed_segments
from spannerlm.stepwise import walked

FORMAT = 1
"""Version of the two files' layout."""
DELTA = 0.01
"""How far in total variation a sized scan may leave the policy's law."""
MIN_SCAN = 64
"""Draws of a sized scan at least: the coverage of a prompt that was never seen may be larger than the run's."""
UNSIZED = 256
"""Pilot draws where the run left no coverage to size the scan by."""


@dataclass(frozen=True)
class Answer:
    """Responses drawn from the tilted policy for one prompt, and what they cost."""

    prompt: str
    responses: tuple[str, ...]
    """[n]"""
    draws: int
    """Base draws spent."""
    exhausted: bool
    """True where the cap on draws was hit first: the law is then only approximately the tilted one."""
    tokens: int | None = None
    """Tokens generated, where a policy of steps has counted them."""


@dataclass(frozen=True, eq=False)
class TiltedPolicy:
    """pi_ref tilted by exp(<theta, phi> / beta), with the model that it tilts (THEORY 1)."""

    theta: FloatArray
    """[d]"""
    beta: float
    model: TextModel
    features: FeatureMap
    coverage: float | None = None
    """Largest density ratio against pi_ref that the run saw: sizes the scan of one answer. None where it saw none."""

    def base(self, prompts: Sequence[str]) -> SamplingOracle:
        """The base model's responses to these prompts."""
        return ModelOracle(self.model, prompts, self.features)

    def sample(
        self, prompts: Sequence[str], n: int, *, rng: np.random.Generator, max_draws: int = 16_384
    ) -> tuple[Answer, ...]:
        """[m] ``n`` responses of the policy to each prompt, by `adaptive_sampler`.

        Each prompt gets one scan of N base draws, N such that the n responses are within 1 % of the policy's law where
        its density ratio is at most ``coverage``; without that, the sampler sizes the scan itself. Cost: about
        ``coverage`` (n + 4.6) draws a prompt, at least 64 and at most ``max_draws``.
        """
        if n < 1:
            raise InputError(f"n: expected at least one response per prompt, got {n}")
        oracle = self.base(prompts)
        theta, rows = self.theta / self.beta, range(len(prompts))
        if self.coverage is None:
            scores = [lambda phi: phi @ theta] * len(prompts)
            found = adaptive_samples(oracle, rows, scores, k=n, min_draws=UNSIZED, max_draws=max_draws, rng=rng)
            return tuple(Answer(p, a.responses, a.spent, a.exhausted) for p, a in zip(prompts, found, strict=True))
        wanted = int(np.ceil(gammainccinv(n, DELTA) * self.coverage))
        size = min(max(wanted, MIN_SCAN), max_draws)
        answers = []
        for prompt, draws in zip(prompts, oracle.draw(rows, size, rng=rng), strict=True):
            rows_kept = pool_sample(draws.features @ theta, draws.counts, n, rng, distinct=True)
            answers.append(Answer(prompt, tuple(draws.responses[i] for i in rows_kept), size, size < wanted))
        return tuple(answers)


@dataclass(frozen=True, eq=False)
class SteppedPolicy:
    """pi_ref tilted step by step by exp(<theta_h, phi_h> / beta), with the model that it tilts (THEORY 5)."""

    theta: FloatArray
    """[H, d]"""
    beta: float
    oracle: Callable[[Sequence[str]], TokenOracle]
    """The oracle of given prompts: model, features, and what a step is, a segment or a reply of a conversation."""
    levels: FloatArray
    """[H] largest score that the run saw at each step: a step of an answer may end where a key lies above it."""
    model: TextModel

    def base(self, prompts: Sequence[str]) -> SamplingOracle:
        """The base model's whole responses to these prompts."""
        return self.oracle(prompts)

    def sample(
        self, prompts: Sequence[str], n: int, *, rng: np.random.Generator, draws: int = 16, block: int = 4
    ) -> tuple[Answer, ...]:
        """[m] ``n`` responses of the policy to each prompt, put together step by step by `spannerlm.stepwise.walked`.

        A step makes at most ``draws`` segments, ``block`` at a time. Its law is off by at most (1 - 1/C)^draws in total
        variation, C the coverage of that step; ``exhausted`` says that some step ended at the cap. Cost: at most H
        ``draws`` segments per response, about H C where scores at different prefixes are of one scale.
        """
        if n < 1:
            raise InputError(f"n: expected at least one response per prompt, got {n}")
        rows = [x for x in range(len(prompts)) for _ in range(n)]
        walk = walked(
            self.oracle(prompts), rows, self.theta, self.beta, draws, levels=self.levels, block=block, rng=rng
        )
        return tuple(
            Answer(
                prompt,
                tuple(path.response for path in walk.paths[x * n : (x + 1) * n]),
                sum(walk.draws[x * n : (x + 1) * n]),
                any(walk.exhausted[x * n : (x + 1) * n]),
                sum(walk.tokens[x * n : (x + 1) * n]),
            )
            for x, prompt in enumerate(prompts)
        )


def save_policy(directory: Path, theta: FloatArray, beta: float, about: Mapping[str, Any]) -> None:
    """Write ``policy.safetensors`` and ``policy.json``, atomically. ``about``: model, options, features, coverage."""
    durable_write(directory / "policy.safetensors", save({"theta": np.ascontiguousarray(theta)}))
    document = {"format": FORMAT, "beta": beta if np.isfinite(beta) else None, **about}
    durable_write(directory / "policy.json", json.dumps(document, indent=1, ensure_ascii=False).encode())
    sync_folder(directory)


def load_policy(
    run_dir: Path | str,
    *,
    kl: float | None = None,
    model: TextModel | None = None,
    features: FeatureMap | Any = None,
    segments: Segments | Any = None,
    turns: User | None = None,
) -> TiltedPolicy | SteppedPolicy:
    """The policy that a run has learned, with its model loaded; pass ``model`` or ``features`` to use your own.

    A `SteppedPolicy` where the run learned step by step. ``kl``: at another KL budget than the run's, in nats, such as
    the one that its report recommends. A run whose features, or whose ends of segments, are a Python function needs
    ``features``, or ``segments``; one on conversations needs its ``turns``. Raises `InputError` where the files are
    missing, not of this format, or no safetensors (a pickle is refused).
    """
    directory = Path(run_dir)
    about, theta = _read(directory)
    if model is None:
        if about.get("model") is None:
            raise InputError(f"{directory}: this policy was learned on no real model: pass model= to sample from it")
        name = about["model"]
        local = directory / name
        model = load(str(local.resolve()) if local.exists() else name, about["options"])
    if features is None:
        features = about.get("features")
    if features is None:
        raise InputError(f"{directory}: this policy's features are a Python function: pass features= as in the run")
    phi = feature_map(features, getattr(model, "hidden_size", None))
    if about.get("turns") is not None and theta.ndim == 1:
        raise InputError(
            f"{directory}: this policy tilts whole conversations: draw from the policy of explore's result"
        )
    if phi.dim != theta.shape[-1]:
        raise InputError(
            f"{directory}: theta has {theta.shape[-1]} entries, the features {phi.dim}: not the run's features"
        )
    if theta.ndim == 2:
        return _stepped(directory, about, theta, model, phi, kl, segments, turns)
    if segments is not None or turns is not None:
        raise InputError(f"{directory}: this policy was learned on whole responses: leave segments and turns out")
    theta, beta, coverage = read_policy(directory, kl)
    return TiltedPolicy(theta, beta, model, phi, coverage)


def read_policy(directory: Path, kl: float | None = None) -> tuple[FloatArray, float, float | None]:
    """(theta, beta, coverage) of the policy of a run, at another KL budget where one is given; no model is loaded."""
    about, theta = _read(directory)
    beta, coverage = (about["beta"], about.get("coverage")) if kl is None else _at_kl(about, kl)
    return theta, float("inf") if beta is None else float(beta), coverage


def _stepped(
    directory: Path,
    about: Mapping[str, Any],
    theta: FloatArray,
    model: TextModel,
    features: FeatureMap,
    kl: float | None,
    segments: Segments | Any,
    turns: User | None,
) -> SteppedPolicy:
    """The policy of these files, theta [H, d]."""
    if kl is not None:
        raise InputError(f"kl: expected none for a policy of steps, which has the beta it was learned at, got {kl:g}")
    levels = np.array([np.inf if level is None else level for level in about["levels"]])
    known, user = about.get("segments"), about.get("turns")
    if (turns is None) != (user is None):
        wanted = "no turns=, this run had none" if user is None else f"turns= as in the run, where it was {user!r}"
        raise InputError(f"{directory}: expected {wanted}")
    if turns is None and segments is None and known is None:
        raise InputError(f"{directory}: what ends a segment was a Python function: pass segments= as in the run")
    step = None if turns is not None else parsed_segments(known if segments is None else segments)

    def oracle(prompts: Sequence[str]) -> TokenOracle:
        if turns is not None:
            return ConversationOracle(model, prompts, features, turns, horizon=len(theta))
        return ModelOracle(model, prompts, features, segments=step, horizon=len(theta))

    return SteppedPolicy(theta, float(about["beta"]), oracle, levels, model)


def _at_kl(about: Mapping[str, Any], kl: float) -> tuple[float, float]:
    """(beta, coverage) at a KL budget, between those that the run has stored (log-linear)."""
    rows = about.get("by_kl")
    if not rows:
        raise InputError("kl: expected a run with held-out prompts whose policy is tilted; this one has one KL only")
    kls = [row["kl"] for row in rows]
    if not kls[0] <= kl <= kls[-1]:
        raise InputError(f"kl: expected {kls[0]:g} to {kls[-1]:g} nats, which is what the run has measured, got {kl:g}")
    beta, coverage = (np.exp(np.interp(kl, kls, np.log([row[key] for row in rows]))) for key in ("beta", "coverage"))
    return float(beta), float(coverage)


def _read(directory: Path) -> tuple[dict[str, Any], FloatArray]:
    try:
        about = json.loads((directory / "policy.json").read_text(encoding="utf-8"))
        theta = load_file(directory / "policy.safetensors")["theta"].astype(np.float64)
    except FileNotFoundError as error:
        raise InputError(f"{directory}: expected a finished run, found no {Path(error.filename).name}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError, KeyError) as error:
        raise InputError(f"{directory}: policy files are not what a run writes ({error}): run it again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{directory}: expected policy.json of format {FORMAT}: made by another version?")
    return about, theta
