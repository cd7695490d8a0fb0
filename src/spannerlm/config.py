"""The configuration of a run: what may be set, what it is checked for, and where in the file a mistake is.

A mistake is named with file, line and dotted key, with what was expected, what came and the nearest valid word; all
mistakes are listed at once. Relative paths in a file are relative to the file, those of ``--set`` to the current
directory; a loaded configuration holds absolute ones, so that it means the same wherever it is read again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from spannerlm import bundled, fields
from spannerlm.errors import ConfigError
from spannerlm.fields import LARGEST_COUNT, Count, File, Positive
from spannerlm.settings import Key, Settings, dump, show
from spannerlm.sourcing import KINDS, AnySource, Price

OWN = ("model", "prompts", "reward", "compare")
"""What a task of the user's own consists of; ``compare`` may take the place of ``reward``."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Generation(_Section):
    """How the model is loaded and draws responses."""

    max_new_tokens: Count | None = None
    """Token limit of a response; None: the bundled task's own, else the model's own."""
    stop: Annotated[tuple[str, ...], BeforeValidator(fields.as_tuple)] = ()
    """Texts that end a response and are no part of it."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """Whether prompts go through the tokenizer's chat template; auto: where it has one."""
    system_prompt: str | None = None
    batch_size: Count | None = None
    """Responses generated at once; None: what fits in memory."""
    device: Annotated[str, BeforeValidator(fields.device)] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""


class Server(_Section):
    """Where ``model`` is served, if it is not loaded here: any OpenAI-compatible server (docs/SERVERS.md)."""

    url: Annotated[str, BeforeValidator(fields.url)] | None = None
    """Such as http://127.0.0.1:8000/v1; None: the model is loaded here."""
    api: Literal["auto", "completions", "chat"] = "auto"
    key_env: str | None = None
    """Environment variable with the API key; None: no key."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 8
    """Requests under way at once, at most."""
    per_request: Annotated[int, Field(ge=1, le=1000)] = 8
    """Draws of a prompt asked for in one request, where the server gives several."""
    timeout_s: Positive = 120.0
    """Seconds for one request."""
    retries: Annotated[int, Field(ge=0, le=100)] = 6
    """How often a request that failed is sent again."""
    price: Price = (0.0, 0.0)
    """Price of 1,000 tokens, of prompt and completion."""


class Evaluation(_Section):
    """What is drawn to measure the policies; these draws are counted apart."""

    draws: Count = 1024
    """Base draws per held-out prompt."""
    max_prompts: Count = 48
    """Held-out prompts that are used at most."""


class Coverage(_Section):
    """What `spannerlm coverage` looks at: whether the model is a good enough foundation."""

    models: Annotated[tuple[Annotated[str, BeforeValidator(fields.model)], ...], BeforeValidator(fields.as_tuple)] = ()
    """Hub ids or directories to look at side by side; none: ``model``."""
    draws: Count = 512
    """Base draws of each prompt."""
    labels: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] = 0
    """Random draws of each model to have rewarded, where the reward costs something; 0: none are."""
    success: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Reward from which a reply counts as a success; None: the upper of two values, else what the optimum earns."""
    parts: Annotated[
        dict[str, Annotated[str, BeforeValidator(fields.function)]], BeforeValidator(fields.json_value)
    ] = Field(default_factory=dict)
    """Name of a part of the reward -> ``path/to/file.py:function`` that gives it, at no cost; each is fitted apart."""
    features: Annotated[tuple[Any, ...] | None, BeforeValidator(fields.several)] = None
    """Feature maps to test; None: the run's own, hidden states two ways, n-grams, and log-probability with length."""
    share: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.9
    """Share of the attainable gain that the forecast is a forecast of."""
    max_draws: Count = 1000
    """Base draws of one answer that are still affordable: what a prompt needs more of is beyond the model."""
    horizon: Count = 500
    """Labels up to which is forecast."""
    simulations: Annotated[int, Field(ge=0, le=1000)] = 8
    """Simulated runs that the forecast of labels rests on; 0: none is made."""
    max_prompts: Count = 64
    """Prompts that are looked at, at most: the first ones of those to explore."""


class RunConfig(_Section):
    """All that decides a run. With no file and no overrides: the bundled helpdesk model, prompts and reward."""

    task: str | None = "helpdesk"
    """A bundled task; it supplies whatever of model, prompts, held-out prompts and reward is not given here.

    None where these are the user's own, and that is the default as soon as one of them is given.
    """
    model: Annotated[str | None, BeforeValidator(fields.model)] = None
    """Hub id, or directory as ``save_pretrained`` writes it; None: the bundled task's."""
    prompts: File | None = None
    """Prompts to explore on: .jsonl, .json, .csv, .parquet, .txt, or a folder that `datasets` saved."""
    heldout: File | None = None
    """Prompts to judge on; None: a fraction of ``prompts``."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.2
    """Share of ``prompts`` that is set apart where there is no ``heldout`` file."""
    prompt_column: str = "prompt"
    reward: AnySource | None = None
    """``path/to/file.py:function``, with the signature that TRL users know; or a mapping with its ``kind``: function
    (in a process of its own, with a time limit), exact, regex, numeric, math, judge (`spannerlm.sourcing`)."""
    reward_free: bool | None = None
    """True: the reward costs nothing and always gives the same, so that values are measured by it."""
    reward_noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Noise added to the labels of a free reward (standard deviation); None: the bundled task's, else 0."""
    feedback: Literal["scalar", "comparison"] = "scalar"
    """What a label is: the reward of one response, or which of two responses of a prompt is preferred."""
    compare: AnySource | None = None
    """``path/to/file.py:function`` that compares two responses, or a mapping of kind function or judge; None:
    comparisons are simulated by a free reward."""
    scale: Positive = 1.0
    """s of comparisons, in reward units: y is preferred to y' with probability sigmoid((r - r') / s)."""
    explorer: str = "directed"
    explorer_settings: Annotated[dict[str, Any], BeforeValidator(fields.json_value)] = Field(default_factory=dict)
    """Settings of the explorer that differ from its defaults."""
    labels: Count = 100
    """Reward labels that may be bought in all, those to evaluate included."""
    eval_labels: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] = 0
    """How many of ``labels`` are kept to measure the value of the learned policy."""
    target_regret: Positive | None = None
    """Predicted regret, in reward units, well below which ``directed`` ends before its budget; None: never."""
    draws: Count | None = None
    """Base draws that may be spent in all; None: as many as the run finds useful."""
    batch: Count = 10
    """Labels asked for at once, at most: the fewer, the better each is chosen."""
    kl: Positive = 2.0
    """KL budget of the learned policy in nats; a bundled task may bring its own."""
    beta: Positive | None = None
    """KL temperature; given, it takes the place of ``kl``."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    baselines: bool = True
    """Whether random labelling and the optimum are run for comparison, where the reward is free."""
    features: Annotated[Any, BeforeValidator(fields.features)] = None
    """Feature map: a name, a mapping with its kind, or a list of these; None: the bundled task's, else ``hidden``."""
    max_prompts: Count = 128
    """Prompts that are explored at most."""
    generation: Generation = Generation()
    server: Server = Server()
    evaluation: Evaluation = Evaluation()
    coverage: Coverage = Coverage()

    @model_validator(mode="before")
    @classmethod
    def _own_task(cls, data: Any) -> Any:
        """No bundled task where the user brings a part of their own and names none."""
        if isinstance(data, Mapping) and "task" not in data and any(data.get(key) is not None for key in OWN):
            return {**data, "task": None}
        return data

    @model_validator(mode="before")
    @classmethod
    def _own_kl(cls, data: Any) -> Any:
        """The KL budget of the bundled task that is named, where none is given."""
        named = data.get("task") if isinstance(data, Mapping) else None
        if isinstance(named, str) and named in bundled.MODULES and data.get("beta") is None and "kl" not in data:
            return {**data, "kl": bundled.load(named).kl}
        return data

    @property
    def free(self) -> bool:
        """Whether the true reward may be called at no cost: declared so, or the bundled task's own."""
        if self.reward is not None:
            return bool(self.reward_free)
        bundled = self.task is not None and self.reward_free is not False
        return bundled and (self.compare is None or bool(self.reward_free))  # whose comparisons are not the task's own


SECTIONS: dict[Key, type[BaseModel]] = {
    (): RunConfig,
    ("generation",): Generation,
    ("server",): Server,
    ("evaluation",): Evaluation,
    ("coverage",): Coverage,
}
"""Key -> what may be set below it."""


def load_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    known: Mapping[str, Collection[str]] | None = None,
    rewarded: bool = True,
) -> RunConfig:
    """The configuration of a YAML file (None: the defaults) with ``dotted.key=value`` overrides, values being YAML.

    ``known`` gives the valid names of keys that are open in themselves: ``{"explorer": [...], "task": [...]}``.
    ``rewarded``: whether a source of labels is needed; a coverage report does without, and may name its models apart.
    Raises `ConfigError`, which lists every mistake with its place.
    """
    settings = Settings(str(path) if path is not None else "configuration")
    if path is not None:
        settings.read_file(path, _rooted)
    for override in overrides:
        settings.override(override)
    config = _validate(settings)
    if config is not None:
        settings.problems += _unknown_names(config, known or {}, settings)
        settings.problems += _contradictions(config, settings, rewarded)
    if settings.problems or config is None:
        raise ConfigError(settings.listing())
    return config


def dump_config(config: RunConfig) -> str:
    """YAML text from which `load_config` makes an equal configuration."""
    data = config.model_dump()
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
    plain["generation"] = {**data["generation"], "stop": list(data["generation"]["stop"])}
    tested = data["coverage"]["features"]
    several = {"models": list(data["coverage"]["models"]), "features": None if tested is None else list(tested)}
    plain["coverage"] = {**data["coverage"], **several}
    plain["server"] = {**data["server"], "price": list(data["server"]["price"])}
    for key in ("reward", "compare"):
        if isinstance(data[key], dict):
            plain[key] = {name: list(v) if isinstance(v, tuple) else v for name, v in data[key].items()}
    return dump(plain)


def _rooted(data: dict[Any, Any], folder: Path) -> dict[Any, Any]:
    """The data with paths relative to the folder made absolute; a model's only where it is a directory there."""

    def rooted(key: object, value: object) -> object:
        if not isinstance(value, str) or not value.isprintable() or not value or value.startswith("~"):
            return value
        if key in ("prompts", "heldout"):
            return str(folder / value)
        if key in ("reward", "compare", "parts", "functions"):
            return value if fields.in_module(value) else str(folder / value)
        local = key == "model" and (value.startswith(".") or (folder / value).is_dir())
        return str(folder / value) if local else value

    found = {key: rooted(key, value) for key, value in data.items()}
    for key in ("reward", "compare"):
        source = found.get(key)
        if isinstance(source, dict) and "function" in source:
            found[key] = {**source, "function": rooted(key, source["function"])}
        if isinstance(source, dict) and isinstance(source.get("functions"), list):
            found[key] = {**source, "functions": [rooted("functions", one) for one in source["functions"]]}

    def encoders(value: object) -> object:
        """Features with the directories of their encoders."""
        if isinstance(value, list):
            return [encoders(part) for part in value]
        if isinstance(value, str) and value.startswith("encoder:"):
            return f"encoder:{rooted('model', value.removeprefix('encoder:'))}"
        if isinstance(value, dict):
            own = {"model": rooted("model", value.get("model"))} if value.get("kind") == "encoder" else {}
            return {**value, **own, **({"parts": encoders(value["parts"])} if "parts" in value else {})}
        return value

    if "features" in found:
        found["features"] = encoders(found["features"])
    coverage = found.get("coverage")
    if isinstance(coverage, dict):
        coverage = {**coverage, **({"features": encoders(coverage["features"])} if "features" in coverage else {})}
        models, parts = coverage.get("models"), coverage.get("parts")
        several = {"models": [rooted("model", model) for model in models]} if isinstance(models, list) else {}
        named = {name: rooted("parts", part) for name, part in parts.items()} if isinstance(parts, dict) else None
        found["coverage"] = {**coverage, **several, **({} if named is None else {"parts": named})}
    return found


def _validate(settings: Settings) -> RunConfig | None:
    try:
        return RunConfig.model_validate(settings.data)
    except ValidationError as error:
        found = error.errors(include_url=False)
    for item in found:
        loc, sections = item["loc"], dict(SECTIONS)
        if loc[0] in ("reward", "compare") and loc[1:2]:  # behind the key stands the kind, which is no key
            sections[loc[:1]] = KINDS.get(str(loc[1]), RunConfig)
            loc = (*loc[:1], *loc[2:])
        settings.problems.append(f"{settings.place(loc)}: {_sentence({**item, 'loc': loc}, sections)}")
    return None


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "valid Unicode text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "is_instance_of": "the path of a file",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
}
"""Kind of pydantic's error -> what was expected."""


def _sentence(item: Mapping[str, Any], sections: Mapping[Key, type[BaseModel]]) -> str:
    """What was expected, what came, and the nearest valid word."""
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(item["loc"], sections)
    if kind == "union_tag_invalid" or kind == "union_tag_not_found":
        given = value.get("kind") if isinstance(value, Mapping) else value
        what = f"path/to/file.py:function, or a mapping whose kind is {', '.join(KINDS)}"
        return f"expected {what}, got {show(given)}{_near(given, KINDS)}"
    if kind == "missing":
        return "expected a value, got none"
    if kind == "invalid_key":
        return f"expected a key that is text, got {show(value)}"
    if kind == "value_error":
        message = str(context["error"])
        return message if ", got " in message else f"{message}, got {show(value)}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"expected {', '.join(choices[:-1])} or {choices[-1]}, got {show(value)}{_near(value, choices)}"
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else str(item["msg"])
    return f"expected {expected}, got {show(value)}"


def _unknown_key(key: Key, sections: Mapping[Key, type[BaseModel]]) -> str:
    """The nearest valid key of the section, or the section that has one of this name, or all keys."""
    names = list(sections[key[:-1]].model_fields)
    for section, model in sections.items():
        if key[-1] in model.model_fields and section != key[:-1]:
            return f"unknown key here; did you mean '{'.'.join(map(str, (*section, key[-1])))}'?"
    return f"unknown key{_near(key[-1], names) or '; expected one of ' + ', '.join(names)}"


def _unknown_names(config: RunConfig, known: Mapping[str, Collection[str]], settings: Settings) -> Iterator[str]:
    for key, names in known.items():
        value = getattr(config, key)
        if value is not None and value not in names:
            listed = ", ".join(sorted(names))
            yield f"{settings.place((key,))}: expected one of {listed}, got {show(value)}{_near(value, names)}"


def _contradictions(config: RunConfig, settings: Settings, rewarded: bool) -> Iterator[str]:
    """What is impossible only together."""
    given = [key for key in OWN if getattr(config, key) is not None]
    named = given if rewarded or not config.coverage.models else [*given, "model"]
    missing = [key for key in ("model", "prompts") if key not in named]
    missing += [] if not rewarded or "reward" in given or "compare" in given else ["reward"]
    if config.task is None and missing:
        wanted = "model, prompts and reward" if rewarded else "model and prompts"
        yield (
            f"{settings.place((given[0],) if given else ('task',))}: without a bundled task, expected {wanted}, "
            f"got no {' and no '.join(missing)}; give what is missing, or set task to have a bundled one's"
        )
    if config.eval_labels >= config.labels:
        yield (
            f"{settings.place(('eval_labels',))}: expected fewer than labels = {config.labels}, because they are "
            f"bought from the same budget, got {config.eval_labels}"
        )
    yield from _feedback_contradictions(config, settings)
    if config.target_regret is not None and config.explorer != "directed":
        yield (
            f"{settings.place(('target_regret',))}: expected none for explorer {config.explorer}, which predicts no "
            f"regret, got {config.target_regret}; leave it out, or set explorer to directed"
        )
    if config.reward_noise is not None and not config.free:
        yield (
            f"{settings.place(('reward_noise',))}: expected no noise for a reward that is not declared free, got "
            f"{config.reward_noise}; set reward_free to true, or leave reward_noise out"
        )


def _feedback_contradictions(config: RunConfig, settings: Settings) -> Iterator[str]:
    """What comparisons and rewards cannot be together."""
    if config.feedback == "scalar":
        for key in ("compare", "scale"):
            if getattr(config, key) != RunConfig.model_fields[key].default:
                yield (
                    f"{settings.place((key,))}: expected none where feedback is scalar, got {getattr(config, key)}; "
                    f"set feedback to comparison, or leave {key} out"
                )
        return
    if config.compare is None and not config.free and (config.reward is not None or config.task is not None):
        yield (
            f"{settings.place(('feedback',))}: expected compare, a function that compares two responses, or a free "
            "reward to simulate it, got neither; set compare, or reward_free to true"
        )
    if config.eval_labels and config.reward is None and not config.free:
        yield (
            f"{settings.place(('eval_labels',))}: expected a reward beside compare, because comparisons do not tell "
            f"how good a response is, got {config.eval_labels} without one; set reward, or leave eval_labels out"
        )


def _near(value: object, choices: Collection[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
