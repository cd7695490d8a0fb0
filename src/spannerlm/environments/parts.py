"""What families share: the forty ordinary responses, a generator per family, and checks of parameters (TESTBEDS)."""

from __future__ import annotations

import math
import zlib
from numbers import Integral, Real
from typing import Any

import numpy as np

from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.records import FloatArray

BULK, BULK_DIM = 40, 8
"""Ordinary responses of each prompt, and the dimensions that they live in."""


def generator(name: str, seed: int) -> np.random.Generator:
    """The random stream of a family or modifier: its own, whatever else is made from the same seed."""
    check_count("seed", seed, least=0)
    return np.random.default_rng([int(seed), zlib.crc32(name.encode())])


def bulk_features(prompts: int, rng: np.random.Generator) -> FloatArray:
    """[X, 40, 8] ordinary features: half a random unit vector each."""
    directions = rng.standard_normal((prompts, BULK, BULK_DIM))
    return np.asarray(0.5 * directions / np.linalg.norm(directions, axis=-1, keepdims=True))


def bulk_theta(rng: np.random.Generator) -> FloatArray:
    """[8] theta of the ordinary dimensions: N(0, (.3/sqrt 8)^2)."""
    return rng.normal(0.0, 0.3 / np.sqrt(BULK_DIM), BULK_DIM)


def with_rare(
    bulk: FloatArray, rare: FloatArray, masses: FloatArray, theta: FloatArray, *, beta: float, noise_std: float
) -> TabularEnvironment:
    """The environment of ordinary responses ``bulk`` [X, 40, 8] that share what ``masses`` [X, R] leave, followed by
    rare ones of features ``rare`` [X, R, d]; rewards <theta, phi>, uniform rho."""
    prompts, _, dim = rare.shape
    wide = np.zeros((prompts, BULK, dim))
    wide[..., :BULK_DIM] = bulk
    features = np.concatenate([wide, rare], axis=1)
    rest = (1.0 - masses.sum(axis=1, keepdims=True)) / BULK
    base = np.concatenate([np.repeat(rest, BULK, axis=1), masses], axis=1)
    rho = np.full(prompts, 1.0 / prompts)
    return TabularEnvironment(rho, base, features, features @ theta, beta=beta, noise_std=noise_std)


def check_share(name: str, value: Any) -> None:
    """`InputError` unless ``value`` lies strictly between 0 and 1."""
    if not _is_number(value) or not 0.0 < value < 1.0:
        raise InputError(f"{name}: expected a number strictly between 0 and 1, got {value!r}")


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """`InputError` unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{name}: expected an integer of at least {least}, got {value!r}")


def check_number(name: str, value: Any, *, least: float = 0.0, strictly: bool = False) -> None:
    """`InputError` unless ``value`` is a finite number of at least ``least``, or above it if ``strictly``."""
    if not _is_number(value) or value < least or (strictly and value == least):
        bound = "above" if strictly else "of at least"
        raise InputError(f"{name}: expected a finite number {bound} {least:g}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
