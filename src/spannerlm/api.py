"""`explore`: the plain face of the driver, on an exact environment or on a real model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spannerlm.backends import load
from spannerlm.backends.conversation import ConversationOracle, User
from spannerlm.backends.oracle import ModelOracle
from spannerlm.dialogue import PLAIN, Form
from spannerlm.environments import TabularEnvironment, TokenEnvironment
from spannerlm.errors import InputError
from spannerlm.explorers import EXPLORERS, STEP_EXPLORERS, Explorer, explorer_by_name
from spannerlm.features import FeatureMap, feature_map
from spannerlm.functions import handed, in_messages
from spannerlm.inputs import behind, given_prompts
from spannerlm.ledger import Ledger
from spannerlm.policy import Policy, TruncatedSoftmaxPolicy
from spannerlm.records import Info, Spec
from spannerlm.rewards import CompareFunction, RewardFunction
from spannerlm.run import Driver, Result, check_budget, explorer_meta, result_of, spec_meta
from spannerlm.segments import Segments
from spannerlm.tilted import save_policy

DEFAULT_KL = 2.0
"""KL budget in nats where neither beta nor kl is given."""

Sources = Mapping[str, RewardFunction | CompareFunction | None]
"""What gives labels: ``reward`` of single responses, ``compare`` of pairs."""


def explore(
    env: TabularEnvironment | TokenEnvironment | None = None,
    *,
    labels: int,
    explorer: str | Explorer = "directed",
    seed: int = 0,
    draws: int | None = None,
    batch: int = 20,
    beta: float | None = None,
    kl: float | None = None,
    prompts: Sequence[Any] | None = None,
    model: Any = None,
    features: Any = "hidden",
    reward: RewardFunction | Sequence[RewardFunction] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    generation: Mapping[str, Any] | None = None,
    run_dir: Path | str | None = None,
    in_doubt: Literal["rebuy", "drop"] | None = None,
    feedback: Literal["scalar", "comparison"] = "scalar",
    compare: CompareFunction | None = None,
    scale: float = 1.0,
    target_regret: float | None = None,
    segments: Segments | Any = None,
    horizon: int | None = None,
    turns: User | None = None,
) -> Result:
    """What exploring with ``labels`` reward labels leads to: the policy, its history and its costs.

    On an exact environment: ``explore(env, labels=200)``. On a real model: ``prompts`` [X] (texts, or lists of
    messages as TRL has them; the reward then gets such lists), ``model`` (hub id, path or
    a loaded back end), ``features`` (see `feature_map`), ``reward`` (a TRL reward function, called with ``columns``,
    each [X], by keyword), either ``beta`` or ``kl``, in nats, and ``generation``: options of the back end's ``load``,
    such as ``max_new_tokens``, ``stop``, ``device``.

    A `TokenEnvironment` answers in sequences of H actions: a draw is a complete sequence for most explorers, and the
    next action after some prefix for ``multi-turn-spanner``; the history has a ``tokens`` column, which compares them.

    With ``feedback="comparison"`` a label says which of two responses is preferred (THEORY 6); one comparison is one
    label. ``compare(prompts, completions, opponents, **columns)`` gives them, [k] numbers from 0 to 1 or None; an
    environment brings its own. ``scale`` is s of P(y preferred to y') = sigmoid((r - r') / s), in reward units:
    comparisons tell rewards only in units of it.

    On a real model an explorer of steps needs ``beta`` and ``segments``, what a step is: a number of tokens,
    ``"line"``, ``"sentence"``, a function (see `spannerlm.segments.segments`), and, unless that is a number of tokens,
    ``horizon``, how many a response has at most. ``features`` are then those of a segment, ``draws`` counts segments,
    and ``reward`` is asked for complete responses alone. With ``turns(prompt, replies)``, what a user says next or None
    at the end, a step is a reply, a response a conversation of at most ``horizon`` replies (`ConversationOracle`); any
    explorer may then be chosen, those of whole responses with features of H d.

    All of ``labels`` are spent, where as many distinct responses can be drawn, unless the explorer predicts a regret
    well below ``target_regret``, in reward units, before; ``draws=None`` means no limit on draws.
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
    check_feedback(feedback, compare, scale, target_regret)
    chosen = explorer_by_name(explorer)
    if env is not None:
        extra = {"prompts": prompts, "model": model, "reward": reward, "beta": beta, "kl": kl, "columns": columns}
        extra |= {"compare": compare, "segments": segments, "horizon": horizon, "turns": turns}
        unused = [name for name, value in extra.items() if value is not None]
        if unused:
            raise InputError(f"an environment brings its own {', '.join(unused)}: leave them out")
        spec = Spec(env.prompt_probs, env.dim, labels, draws, batch, beta=env.beta, fresh=True)
        spec = replace(spec, feedback=feedback, scale=float(scale), target_regret=target_regret)
        if isinstance(env, TokenEnvironment):
            spec = replace(spec, horizon=env.horizon)
        return _explore_environment(env, chosen, spec, seed, run_dir)
    source, wanted = (reward, "reward") if feedback == "scalar" else (compare, "compare")
    if prompts is None or model is None or source is None:
        raise InputError(f"expected an environment, or prompts=, model= and {wanted}= for a real model")
    _check_steps(chosen, segments, turns, beta, kl)
    given = asked(model, prompts, generation, run_dir)
    if turns is not None and given.form is not None:
        raise InputError("prompts: expected texts where turns says what the model is given, got lists of messages")
    loaded = given.model
    phi = feature_map(features, getattr(loaded, "hidden_size", None))
    oracle = _oracle(loaded, given.texts, phi, segments, horizon, turns)
    probs = np.full(len(given.texts), 1.0 / len(given.texts))
    spec = Spec(
        probs, oracle.dim, labels, draws, batch, beta, (DEFAULT_KL if kl is None else kl) if beta is None else None
    )
    spec = replace(spec, feedback=feedback, scale=float(scale), target_regret=target_regret)
    if oracle.horizon is not None:
        spec = replace(spec, dim=phi.dim * oracle.horizon, horizon=oracle.horizon)
    local = isinstance(model, str) and Path(model).exists()
    name = str(Path(model).resolve()) if local else model if isinstance(model, str) else None
    described = None if callable(features) and not hasattr(features, "spec") else phi.spec()
    about: dict[str, Any] = {"model": name, "options": given.options, "features": described}
    if isinstance(oracle, ConversationOracle):
        about["turns"] = getattr(turns, "__qualname__", type(turns).__qualname__)
    elif oracle.segments is not None:
        about["segments"] = None if oracle.segments.ends is not None else oracle.segments.spec()
    spelled = getattr(loaded, "completion_ids", None)
    ids = None if spelled is None else lambda *texts: list(map(spelled, *texts))
    sources: Sources = {
        "reward": None if reward is None else handed(reward, columns or (), ids, given.form),
        "compare": None if compare is None else in_messages(compare, given.form),
    }
    result = _drive(oracle, chosen, sources, spec, seed, columns, run_dir, lambda _: {}, about, in_doubt)
    if run_dir is not None:
        if result.levels is not None:
            about["levels"] = [float(level) if np.isfinite(level) else None for level in result.levels]
        save_policy(Path(run_dir), result.theta, getattr(result.policy, "beta", float("nan")), about)
    return result


def check_feedback(feedback: str, compare: CompareFunction | None, scale: float, target_regret: float | None) -> None:
    """Raise `InputError` on a feedback that there is not, a number that is not positive, or what has no use."""
    if feedback not in ("scalar", "comparison"):
        raise InputError(f"feedback: expected 'scalar' or 'comparison', got {feedback!r}")
    if feedback == "scalar" and (compare is not None or scale != 1.0):
        given = "compare" if compare is not None else f"scale={scale}"
        raise InputError(f"feedback: expected 'comparison' where {given} is given, got 'scalar': leave {given} out")
    for name, value in (("scale", scale), ("target_regret", target_regret)):
        if value is not None and not 0.0 < value < np.inf:
            raise InputError(f"{name}: expected a positive number of reward units, got {value}")


def _check_steps(explorer: Explorer, segments: Any, turns: User | None, beta: float | None, kl: float | None) -> None:
    """Raise `InputError` where the explorer acts step by step and the rest does not, or the other way round."""
    if segments is not None and turns is not None:
        raise InputError(
            f"segments: expected none where a step is a reply of turns, got {segments!r}: give one of them"
        )
    if explorer.name in EXPLORERS and segments is not None:
        raise InputError(
            f"explorer: expected one that acts step by step where segments={segments!r} is given, "
            f"{' or '.join(STEP_EXPLORERS)}, got {explorer.name!r}: choose another, or leave segments out"
        )
    if explorer.name not in STEP_EXPLORERS:
        return
    if segments is None and turns is None:
        raise InputError(
            f"segments: expected what a step is for explorer {explorer.name!r}, got None: try segments=8, in tokens"
        )
    if beta is None:
        given = "neither beta nor kl" if kl is None else f"kl={kl:g}"
        raise InputError(f"beta: expected a KL temperature for explorer {explorer.name!r}, got {given}: give beta")


def _oracle(
    model: Any, prompts: Sequence[str], features: FeatureMap, segments: Any, horizon: int | None, turns: User | None
) -> ModelOracle | ConversationOracle:
    """What the explorer draws from. Raises `InputError` where nothing says how many steps there are at most."""
    if turns is not None:
        if horizon is None:
            raise InputError("horizon: expected how many replies a conversation has at most, got None: try horizon=4")
        return ConversationOracle(model, prompts, features, turns, horizon=horizon)
    oracle = ModelOracle(model, prompts, features, segments=segments, horizon=horizon)
    if oracle.segments is not None and oracle.horizon is None:
        raise InputError(f"horizon: expected how many segments ({oracle.segments}) a response has at most, got None")
    return oracle


@dataclass(frozen=True, eq=False)
class Asked:
    """A loaded back end, and prompts as it reads them."""

    model: Any
    texts: tuple[str, ...]
    """[X]"""
    form: Form | None
    """What the texts stand for where they were lists of messages; None: they were texts."""
    options: dict[str, Any]
    """Of the back end's ``load``."""


def asked(
    model: Any, prompts: Sequence[Any], generation: Mapping[str, Any] | None, folder: Path | str | None = None
) -> Asked:
    """The back end of a hub id or path, or ``model`` itself where it is one already, and prompts for it.

    `InputError` where it does not read prompts as these are: it was loaded for others.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise InputError(f"prompts: expected a list of at least one text, got {prompts!r}")
    options, found = dict(generation or {}), given_prompts(prompts)
    form = None if found.form is None else behind(found, options.get("system"), "generation['system']")
    if form is not None:
        options |= {} if form.system is None else {"system": form.system}
        options |= {"dialogues": True} if form.dialogues else {}
    loaded = loaded_model(model, options, folder)
    reads: Form = getattr(loaded, "form", PLAIN)
    if form is not None and (reads.dialogues != form.dialogues or form.system not in (None, reads.system)):
        raise InputError(
            f"model: expected one that was loaded with system={form.system!r} and dialogues={form.dialogues}, as these "
            f"lists of messages need it, got {reads.system!r} and {reads.dialogues}: load it so, or give its name"
        )
    if form is None:
        return Asked(loaded, found.texts, None, options)
    return Asked(loaded, found.texts, reads, options if reads.system is None else {**options, "system": reads.system})


def loaded_model(model: Any, options: Mapping[str, Any], folder: Path | str | None = None) -> Any:
    """The back end of a hub id or path, or ``model`` itself where it is one already."""
    return load(model, options, None if folder is None else Path(folder)) if isinstance(model, str) else model


def _explore_environment(
    env: TabularEnvironment | TokenEnvironment,
    explorer: Explorer,
    spec: Spec,
    seed: int,
    run_dir: Path | str | None,
) -> Result:
    def regret(policy: Policy) -> Info:
        if isinstance(env, TokenEnvironment) and isinstance(policy, TruncatedSoftmaxPolicy):
            table = env.to_table()  # there is no dynamic programme for it
            return {"regret": table.regret(policy.table(table))}
        return {"regret": env.regret(policy.table(env))}

    scalar = spec.feedback == "scalar"  # the one source that was asked for: no explorer falls back on the other
    sources: Sources = {
        "reward": env.reward(seed) if scalar else None,
        "compare": None if scalar else env.comparison(seed, spec.scale),
    }
    return _drive(env, explorer, sources, spec, seed, None, run_dir, regret, {})


def _drive(
    oracle: Any,
    explorer: Explorer,
    sources: Sources,
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
        compare = sources["compare"]
        run = Driver(oracle, explorer, sources["reward"], ledger, spec, seed=seed, compare=compare, columns=columns)
        run.measure = measure
        if in_doubt is not None:
            ledger.settle_in_doubt(in_doubt)
        run.replay()
        run.explore()
        run.stop()
        return result_of(run, folder)
