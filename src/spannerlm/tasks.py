"""What is explored: a bundled task or the user's own model, prompts and labels, as a configuration names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from spannerlm import bundled, sourcing
from spannerlm.backends import load
from spannerlm.config import RunConfig
from spannerlm.dialogue import PLAIN, Form
from spannerlm.errors import InputError
from spannerlm.features import feature_map
from spannerlm.functions import combined, load_compare, load_reward
from spannerlm.inputs import behind, read_prompts
from spannerlm.rewards import CompareFunction, NoisyComparison, NoisyReward, RewardFunction

DEFAULT_FEATURES = "hidden"
"""Where neither the configuration nor a bundled task says which: mean hidden state of the last layer."""

SERVED_FEATURES = "ngrams"
"""The same for a model behind a server, which shows no hidden states."""


class Tokens:
    """Tokens of responses as TRL's trainers hand them to rewards: the model's own, its end-of-sequence included."""

    def __init__(self) -> None:
        self.model: Any = None
        self.load: Callable[[], Any] = lambda: None
        """Loads the model, should a reward be asked before that has happened."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[list[int]]:
        """[k] token ids of each completion."""
        if self.model is None:
            self.model = self.load()
        return [self.model.completion_ids(*pair) for pair in zip(prompts, completions, strict=True)]


@dataclass(frozen=True)
class Task:
    """What is explored: prompts, and the reward that labels come from."""

    name: str
    model: str
    """Hub id or local path."""
    model_name: str
    """What to call it in a report: the hub id, the directory's name, or the bundled task's."""
    train: tuple[str, ...]
    heldout: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]]
    """[X] per column, train prompts first, then held-out ones."""
    reward: RewardFunction | None
    """Gives rewards; noisy where the true reward is free. None where there are comparisons only."""
    compare: CompareFunction | None
    """Gives comparisons; None where labels are rewards."""
    truth: RewardFunction | None
    """The true mean reward where it is free and pure."""
    reward_name: str
    features: Any
    """Specification of the feature map (`feature_map`)."""
    max_new_tokens: int | None
    stop: tuple[str, ...]
    form: Form = PLAIN
    """What the texts of prompts stand for: the user's words behind a system message, or whole conversations."""
    conversational: bool = False
    """Whether the prompts were lists of messages: then rewards get such lists."""
    tokens: Tokens | None = None
    """Of responses, for rewards that read them; None where the model is behind a server."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """[X] all prompts, train first."""
        return self.train + self.heldout


def load_task(config: RunConfig, directory: Path | None = None, *, rewarded: bool = True) -> Task:
    """The bundled task or the user's own, prompts split and the reward loaded. No draws, no labels.

    ``directory``: of the run, where a judge keeps what it was paid for. ``rewarded``: whether something must give
    labels; `InputError` where it must and nothing does.
    """
    base = bundled.load(config.task) if config.task is not None else None
    split = _prompts(config, base)
    unrewarded = not rewarded and base is None and config.reward is None
    tokens = Tokens() if config.server.url is None else None
    if config.server.url is not None and config.features is not None:
        feature_map(config.features)  # refuses hidden states before anything is made
    function = None if unrewarded else _reward(config, base, split, directory, tokens)
    noise = config.reward_noise
    if noise is None:
        noise = base.noise_std if base is not None and config.reward is None else 0.0
    truth = function if config.free else None
    compare = _compare(config, truth, split, rewarded, directory)
    task = Task(
        name=config.task or "own",
        model=config.model or str(_bundled(base).model_path),
        model_name=Path(config.model).name if config.model is not None else f"{config.task} (bundled)",
        train=split.train,
        heldout=split.heldout,
        columns=split.columns,
        form=split.form,
        conversational=split.conversational,
        reward=function if truth is None else NoisyReward(truth, noise, config.seed),
        compare=compare,
        truth=truth,
        reward_name=_reward_name(config, noise),
        features=config.features or _features(config, base),
        max_new_tokens=config.generation.max_new_tokens or (base.max_new_tokens if base is not None else None),
        stop=config.generation.stop or (base.stop if base is not None else ()),
        tokens=tokens,
    )
    if tokens is not None:
        tokens.load = partial(load_model, config, task)
    return task


def _features(config: RunConfig, base: bundled.BundledTask | None) -> Any:
    """The bundled task's own; where a server hides the hidden states, the text alone."""
    if config.server.url is not None:
        return SERVED_FEATURES
    return list(base.features) if base is not None else DEFAULT_FEATURES


def _reward(
    config: RunConfig,
    base: bundled.BundledTask | None,
    split: Split,
    directory: Path | None,
    tokens: Tokens | None,
) -> RewardFunction | None:
    """The user's reward or the bundled one; None where the user compares and has no reward beside it."""
    if config.reward is not None:
        own = config.reward
        if not isinstance(own, str | sourcing.SumSource):
            return cast(RewardFunction, sourcing.build(own, "reward", directory))
        names = (own,) if isinstance(own, str) else own.functions
        parts = [
            load_reward(name, split.columns, form=split.form if split.conversational else None, token_ids=tokens)
            for name in names
        ]
        return parts[0] if isinstance(own, str) else combined(parts, own.weights)
    return None if config.compare is not None and not config.free else _bundled(base).reward


def _compare(
    config: RunConfig,
    truth: RewardFunction | None,
    split: Split,
    rewarded: bool,
    directory: Path | None,
) -> CompareFunction | None:
    """The user's comparisons, or such as the true reward would lead to; None where labels are rewards, or where nothing
    has to give any."""
    if config.feedback == "scalar":
        return None
    if config.compare is not None:
        if isinstance(config.compare, str):
            return load_compare(config.compare, split.columns, form=split.form if split.conversational else None)
        return cast(CompareFunction, sourcing.build(config.compare, "compare", directory))
    if truth is None and not rewarded:
        return None
    if truth is None:
        raise InputError("compare: expected a function, or a free reward to simulate it: set compare or reward_free")
    return NoisyComparison(truth, config.scale, config.seed)


def _reward_name(config: RunConfig, noise: float) -> str:
    """Where labels come from, for a report."""
    own = None if config.reward is None else sourcing.describe(config.reward)
    if config.feedback == "scalar":
        return own or f"{config.task}, label noise {noise:g}"
    if config.compare is not None:
        return sourcing.describe(config.compare)
    return f"{own or config.task}, comparisons at s = {config.scale:g}"


def _bundled(base: bundled.BundledTask | None) -> bundled.BundledTask:
    if base is None:
        raise InputError("expected model, prompts and reward, or a bundled task: set task: helpdesk, or all three")
    return base


@dataclass(frozen=True)
class Split:
    """Prompts to explore and to judge on."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]]
    """One behind the other."""
    form: Form = PLAIN
    conversational: bool = False
    """Whether the file has lists of messages: then rewards get them too."""


def _prompts(config: RunConfig, base: bundled.BundledTask | None) -> Split:
    """Train prompts, held-out prompts, and their columns one behind the other."""
    if config.prompts is None:
        task = _bundled(base)
        return Split(task.train_prompts, task.heldout_prompts, {}, Form(config.generation.system_prompt))
    found = read_prompts(config.prompts, config.prompt_column)
    if config.heldout is not None:
        other = read_prompts(config.heldout, config.prompt_column)
        if other.form != found.form:
            found, other = found.in_full(), other.in_full()
        if other.form != found.form:
            raise InputError(
                f"{config.heldout}: expected prompts of the same form as those of {config.prompts}, texts or lists of "
                "messages, got some of either"
            )
        both_texts = replace(found, texts=found.texts + other.texts)
        form = behind(both_texts, config.generation.system_prompt, "generation.system_prompt")
        shared = [name for name in found.columns if name in other.columns]
        both = {name: found.columns[name] + other.columns[name] for name in shared}
        return Split(found.texts, other.texts, both, form, found.form is not None)
    order = np.random.default_rng([config.seed, 7]).permutation(len(found.texts))
    size = max(1, round(config.heldout_fraction * len(order))) if len(order) > 1 else 0
    size = min(size, len(order) - 1)
    rows = np.sort(order[size:]).tolist() + np.sort(order[:size]).tolist()
    texts = [found.texts[i] for i in rows]
    cut = len(texts) - size
    columns = {name: tuple(column[i] for i in rows) for name, column in found.columns.items()}
    form = behind(found, config.generation.system_prompt, "generation.system_prompt")
    return Split(tuple(texts[:cut]), tuple(texts[cut:]), columns, form, found.form is not None)


def model_options(config: RunConfig, task: Task) -> dict[str, Any]:
    """Keyword arguments of the back end's ``load``."""
    generation, server = config.generation, config.server
    common = {
        "system": task.form.system,
        **({"dialogues": True} if task.form.dialogues else {}),
        "max_new_tokens": task.max_new_tokens,
        "stop": list(task.stop),
    }
    if server.url is not None:
        named = server.model_dump(exclude={"url", "price"})
        return {"base_url": server.url, **named, "price": list(server.price), **common}  # as JSON has it
    return {
        "device": generation.device,
        "dtype": generation.dtype,
        "revision": generation.revision,
        "trust_remote_code": generation.trust_remote_code,
        "chat_template": generation.chat_template,
        "batch_size": generation.batch_size,
        **common,
    }


def load_model(config: RunConfig, task: Task, directory: Path | None = None) -> Any:
    """The loaded back end. ``directory``: of the run, where draws of a server are kept until the ledger has them."""
    model = load(task.model, model_options(config, task), directory)
    if task.tokens is not None:
        task.tokens.model = model
    return model
