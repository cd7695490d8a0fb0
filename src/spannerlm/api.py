"""`explore`: the plain face of the driver, on an exact environment or on a real model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spannerlm.backends import backend
from spannerlm.backends.oracle import ModelOracle
from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.explorers import Explorer, explorer_by_name
from spannerlm.features import feature_map
from spannerlm.ledger import Ledger
from spannerlm.policy import Policy
from spannerlm.records import Info, Spec
from spannerlm.rewards import RewardFunction
from spannerlm.run import Result, Run, check_budget, explorer_meta, result_of, spec_meta
from spannerlm.tilted import save_policy

DEFAULT_KL = 2.0
"""KL budget in nats where neither beta nor kl is given."""


def explore(
    env: TabularEnvironment | None = None,
    *,
    labels: int,
    explorer: str | Explorer = "spanner-sampling",
    seed: int = 0,
    draws: int | None = None,
    batch: int = 20,
    beta: float | None = None,
    kl: float | None = None,
    prompts: Sequence[str] | None = None,
    model: Any = None,
    features: Any = "hidden",
    reward: RewardFunction | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    generation: Mapping[str, Any] | None = None,
    run_dir: Path | str | None = None,
    in_doubt: Literal["rebuy", "drop"] | None = None,
) -> Result:
    """What exploring with ``labels`` reward labels leads to: the policy, its history and its costs.

    On an exact environment: ``explore(env, labels=200)``. On a real model: ``prompts`` [X], ``model`` (hub id, path or
    a loaded back end), ``features`` (see `feature_map`), ``reward`` (a TRL reward function, called with ``columns``,
    each [X], by keyword), either ``beta`` or ``kl``, in nats, and ``generation``: options of the back end's ``load``,
    such as ``max_new_tokens``, ``stop``, ``device``.

    All of ``labels`` are spent, where as many distinct responses can be drawn; ``draws=None`` means no limit on draws.
    With ``run_dir`` everything is kept there, and the same call resumes a run that was cut off. Where it was cut off
    while the reward was being asked, and the reward does not say ``pure = True``, nobody knows whether those labels
    were charged: ``in_doubt`` says whether to ask again, perhaps paying twice, or to go on without them.

    Raises `InputError` on a bad argument, `RewardError` where the reward fails: what was bought until then is in the
    run directory.
    """
    check_budget(labels, draws, batch)
    labels, draws, batch = int(labels), None if draws is None else int(draws), int(batch)
    if beta is not None and (kl is not None or not beta > 0.0):
        raise InputError(f"expected a positive beta or a kl, got beta={beta} and kl={kl}: give one of them")
    if kl is not None and not kl >= 0.0:
        raise InputError(f"kl: expected a budget of at least 0 nats, got {kl}")
    chosen = explorer_by_name(explorer)
    if env is not None:
        extra = {"prompts": prompts, "model": model, "reward": reward, "beta": beta, "kl": kl, "columns": columns}
        unused = [name for name, value in extra.items() if value is not None]
        if unused:
            raise InputError(f"an environment brings its own {', '.join(unused)}: leave them out")
        return _explore_environment(env, chosen, labels, draws, batch, seed, run_dir)
    if prompts is None or model is None or reward is None:
        raise InputError("expected an environment, or prompts=, model= and reward= for a real model")
    loaded = _loaded(model, dict(generation or {}))
    phi = feature_map(features, getattr(loaded, "hidden_size", None))
    oracle = ModelOracle(loaded, prompts, phi)
    probs = np.full(len(prompts), 1.0 / len(prompts))
    spec = Spec(
        probs, phi.dim, labels, draws, batch, beta, (DEFAULT_KL if kl is None else kl) if beta is None else None
    )
    local = isinstance(model, str) and Path(model).exists()
    name = str(Path(model).resolve()) if local else model if isinstance(model, str) else None
    described = None if callable(features) and not hasattr(features, "spec") else phi.spec()
    about = {"model": name, "options": dict(generation or {}), "features": described}
    result = _drive(oracle, chosen, reward, spec, seed, columns, run_dir, lambda _: {}, about, in_doubt)
    if run_dir is not None:
        save_policy(Path(run_dir), result.theta, getattr(result.policy, "beta", float("nan")), about)
    return result


def _loaded(model: Any, options: dict[str, Any]) -> Any:
    """The back end of a hub id or path, or ``model`` itself where it is one already."""
    if not isinstance(model, str):
        return model
    try:
        return backend("huggingface").load(model, **options)
    except TypeError as error:
        unknown = str(error).rpartition("argument ")[2]
        known = "max_new_tokens, stop, batch_size, chat_template, system, device, dtype, revision, trust_remote_code"
        raise InputError(f"generation: expected some of {known}, got {unknown}") from error


def _explore_environment(
    env: TabularEnvironment,
    explorer: Explorer,
    labels: int,
    draws: int | None,
    batch: int,
    seed: int,
    run_dir: Path | str | None,
) -> Result:
    spec = Spec(env.prompt_probs, env.dim, labels, draws, batch, beta=env.beta, fresh=True)

    def regret(policy: Policy) -> Info:
        return {"regret": env.regret(policy.table(env))}

    return _drive(env, explorer, env.reward(seed), spec, seed, None, run_dir, regret, {})


def _drive(
    oracle: Any,
    explorer: Explorer,
    reward: RewardFunction,
    spec: Spec,
    seed: int,
    columns: Mapping[str, Sequence[Any]] | None,
    run_dir: Path | str | None,
    measure: Callable[[Policy], Info],
    about: Mapping[str, Any],
    in_doubt: Literal["rebuy", "drop"] | None = None,
) -> Result:
    folder = None if run_dir is None else Path(run_dir)
    meta = {**spec_meta(spec, seed), **explorer_meta(explorer), **about}
    with Ledger.open(folder, meta=meta, prompts=list(oracle.prompts), columns=columns) as ledger:
        run = Run(oracle, explorer, reward, ledger, spec, seed=seed, columns=columns)
        run.measure = measure
        if in_doubt is not None:
            ledger.settle_in_doubt(in_doubt)
        run.replay()
        run.explore()
        run.stop()
        return result_of(run, folder)
