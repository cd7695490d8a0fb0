"""Draws after a prefix, and sequences put together step by step from draws that are tilted (THEORY 5)."""

from __future__ import annotations

import numpy as np

from spannerlm.oracle import TokenOracle
from spannerlm.policy import tilt
from spannerlm.records import Drawn, DrawRequest, Draws, Rollout, StepTilt


def rolled(oracle: TokenOracle, request: DrawRequest, *, rng: np.random.Generator) -> Drawn:
    """The outcome of a request with prefixes: ``n`` next segments after each; with a `StepTilt`, on to the end.

    At each step ``n`` draws come from pi_ref and one is kept, with odds count exp(<theta_h, phi> / beta): the tilted
    law as n grows. Every draw is returned, by step, with its prefix; ``paths`` has what was kept. Cost: n segments
    per step and prompt.
    """
    assert request.prefixes is not None  # the caller has looked
    if request.tilt is None:
        draws = oracle.extend(request.prompts, request.prefixes, request.n, rng=rng)
        return _outcome(oracle, request, draws)
    assert isinstance(request.tilt, StepTilt)  # a Tilt is for whole responses
    paths = list(request.prefixes)
    found: list[Draws] = []
    while rows := [i for i, path in enumerate(paths) if not oracle.complete(request.prompts[i], path)]:
        records = oracle.extend([request.prompts[i] for i in rows], [paths[i] for i in rows], request.n, rng=rng)
        found += records
        for i, record in zip(rows, records, strict=True):
            scores = record.features @ request.tilt.theta[len(paths[i])]
            law = tilt(record.counts / request.n, scores, request.tilt.beta)
            paths[i] = (*paths[i], record.responses[int(rng.choice(len(law), p=law))])
    kept = tuple(Rollout(x, path, oracle.joined(x, path)) for x, path in zip(request.prompts, paths, strict=True))
    return _outcome(oracle, request, tuple(found), kept)


def _outcome(
    oracle: TokenOracle, request: DrawRequest, draws: tuple[Draws, ...], kept: tuple[Rollout, ...] = ()
) -> Drawn:
    tokens = sum(oracle.tokens(record) for record in draws)
    return Drawn(draws, request.n * len(draws), info=request.info, paths=kept, tokens=tokens)
