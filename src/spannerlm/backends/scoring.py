"""Log-probabilities and hidden states of given token sequences, by one plain forward pass without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spannerlm.backends.forward import accepted, left_padded, mask_arguments, tapped
from spannerlm.records import FloatArray


@dataclass(frozen=True)
class Scored:
    """What a forward pass says of one response."""

    logprob: float
    """Nats; the end included where it was asked for."""
    pooled: dict[str, FloatArray]
    """[D] by name."""


def score_rows(
    model: Any,
    prompt: Sequence[int],
    responses: Sequence[Sequence[int]],
    closed: Sequence[bool],
    eos: tuple[int, ...],
    pools: dict[str, tuple[str, int]],
    batch: int,
) -> list[Scored]:
    """One record per response (tokens without end-of-sequence) to the prompt; ``closed``: add the end's probability."""
    out: list[Scored] = []
    layers = sorted({layer for _, layer in pools.values()})
    for start in range(0, len(responses), batch):
        part = responses[start : start + batch]
        with torch.inference_mode(), tapped(model, layers) as states:
            logits = _logits(model, [[*prompt, *row] for row in part])
            for i, (row, end) in enumerate(zip(part, closed[start:], strict=False)):
                own = logits[i, -len(row) - 1 :].double().log_softmax(-1)  # [L + 1, V], from the prompt's end on
                taps = {layer: state[i, -len(row) - 1 :].double() for layer, state in states.items()}
                out.append(Scored(_logprob(own, row, eos if end else ()), _pooled(taps, pools)))
    return out


def _logits(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """[m, T, V] of left-padded rows."""
    ids, mask = left_padded(rows)
    padded = None if bool(mask.all()) else mask.to(model.device)
    arguments = mask_arguments(padded, ids.shape[1], accepted(model))
    logits: torch.Tensor = model(input_ids=ids.to(model.device), use_cache=False, **arguments).logits
    return logits


def _logprob(logprobs: torch.Tensor, row: Sequence[int], eos: tuple[int, ...]) -> float:
    tokens = torch.as_tensor(row, dtype=torch.long, device=logprobs.device)
    total = logprobs[: len(row)].gather(1, tokens[:, None]).sum()
    if eos:
        total = total + logprobs[-1, list(eos)].logsumexp(0)
    return float(total)


def _pooled(states: dict[int, torch.Tensor], pools: dict[str, tuple[str, int]]) -> dict[str, FloatArray]:
    """[D] by name from states [L + 1, D], of which the first is the prompt's end."""
    out = {}
    for name, (pooling, layer) in pools.items():
        state = states[layer]
        mean = pooling == "mean" and len(state) > 1
        out[name] = np.asarray((state[1:].mean(0) if mean else state[-1]).cpu().numpy(), dtype=np.float64)
    return out
