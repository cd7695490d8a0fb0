"""Configuration: defaults, places of mistakes, nearest words, round trip; and no input that ends in anything else."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spannerlm import bundled
from spannerlm.config import RunConfig, dump_config, load_config
from spannerlm.errors import ConfigError

KNOWN = {"task": bundled.MODULES, "explorer": ("directed", "spanner-sampling", "passive", "random-singles")}


def load(tmp_path, text, *overrides, known=None):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, overrides, known=known)


def refusal(tmp_path, text, *overrides, known=None):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides, known=known)
    return str(caught.value).replace(str(tmp_path) + "/", "")


def test_no_file_and_no_overrides_is_the_bundled_task():
    config = load_config(None, [])
    assert config == RunConfig()
    assert (config.task, config.model, config.labels, config.kl, config.free) == ("helpdesk", None, 100, 2.0, True)


def test_an_empty_file_is_the_default(tmp_path):
    assert load(tmp_path, "") == load(tmp_path, "# nothing\n") == RunConfig()


def test_a_file_and_overrides_in_their_order(tmp_path):
    config = load(
        tmp_path, "labels: 30\ngeneration: {dtype: float32}\n", "labels=40", "labels=50", "generation.stop=[a]"
    )
    assert config.labels == 50
    assert (config.generation.dtype, config.generation.stop) == ("float32", ("a",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labls: 3", "run.yaml:1: labls: unknown key; did you mean 'labels'?"),
        (
            "explorer: passive\ntarget_regret: 0.1",
            "run.yaml:2: target_regret: expected none for explorer passive, which predicts no regret, got 0.1",
        ),
        ("# x\nkl: -1", "run.yaml:2: kl: expected a number above 0, got -1 (a whole number)"),
        ("kl: .inf", "run.yaml:1: kl: expected a finite number, got inf (a number)"),
        ("kl: .nan", "run.yaml:1: kl: expected a finite number, got nan (a number)"),
        ("labels: true", "run.yaml:1: labels: expected a whole number, got true (true or false)"),
        ("labels: 2.0", "run.yaml:1: labels: expected a whole number, got 2.0 (a number)"),
        ("labels: 0", "run.yaml:1: labels: expected a number of at least 1, got 0 (a whole number)"),
        ("labels:", "run.yaml:1: labels: expected a whole number, got nothing (null)"),
        ("baselines: 1", "run.yaml:1: baselines: expected true or false, got 1 (a whole number)"),
        ("heldout_fraction: 1.0", "run.yaml:1: heldout_fraction: expected a number below 1, got 1.0 (a number)"),
        ("prompts: 3", "run.yaml:1: prompts: expected the path of a file, got 3 (a whole number)"),
        ("generation: 3", "run.yaml:1: generation: expected a mapping, got 3 (a whole number)"),
        ("system_prompt: x", "run.yaml:1: system_prompt: unknown key here; did you mean 'generation.system_prompt'?"),
        (
            "features: 3",
            "run.yaml:1: features: expected a name such as hidden or ngrams, a mapping with its kind, or a",
        ),
        ("features: {kind: 2020-01-01}", "expected text, numbers, true, false, lists and mappings, got"),
        ("explorer_settings: {1: 2}", "explorer_settings: expected keys that are text, got the key 1 (a whole number)"),
        ("1: 2", "run.yaml:1: 1: expected a key that is text, got 1 (a whole number)"),
        ("labels: 3\nlabels: 4", "run.yaml:1: labels: expected each key once, got it again in line 2"),
        ("- 3", "run.yaml:1: expected keys and values such as 'labels: 100', got a list of 1"),
        ("a: b: c", "run.yaml:1: expected YAML, but mapping values are not allowed here; put a value with ': ' in it"),
        ("kl: 2\na: [", "run.yaml:2: expected YAML, but"),
        ("a: &x [*x]", "run.yaml:1: expected YAML, but anchors (*name) are not supported"),
        ("[" * 2000, "run.yaml:1: expected YAML, but it is nested deeper than 64 levels"),
        ("a: !!python/object:os.system {}", "run.yaml:1: expected YAML, but could not determine a constructor"),
        ("seed: " + "9" * 5000, "run.yaml:1: expected YAML, but it is no valid value: Exceeds the limit"),
        (b"a: 1\nb: \xff", "run.yaml:2: expected UTF-8 text, got the byte 0xff"),
        ("labels: 5\neval_labels: 5", "run.yaml:2: eval_labels: expected fewer than labels = 5"),
        (
            "prompts: a.txt",
            "run.yaml:1: prompts: without a bundled task, expected model, prompts and reward, got no mo",
        ),
        (
            "task: null",
            "run.yaml:1: task: without a bundled task, expected model, prompts and reward, got no model and",
        ),
        (
            "compare: c.py:f",
            "run.yaml:1: compare: without a bundled task, expected model, prompts and reward, got no mo",
        ),
        ("compare: x.py", "run.yaml:1: compare: expected path/to/file.py:function or package.module:function, got"),
        ("feedback: pairs", "run.yaml:1: feedback: expected scalar or comparison, got 'pairs' (text)"),
        ("scale: 0", "run.yaml:1: scale: expected a number above 0, got 0 (a whole number)"),
        (
            "scale: 2",
            "run.yaml:1: scale: expected none where feedback is scalar, got 2.0; set feedback to comparison, or",
        ),
        ("task: helpdesk\ncompare: c.py:f", "run.yaml:2: compare: expected none where feedback is scalar, got "),
        (
            "task: helpdesk\nreward: r.py:f\nfeedback: comparison",
            "run.yaml:3: feedback: expected compare, a function that compares two responses, or a free reward to",
        ),
        (
            "model: m\nprompts: p.txt\nfeedback: comparison\ncompare: c.py:f\neval_labels: 3",
            "run.yaml:5: eval_labels: expected a reward beside compare, because comparisons do not tell how good a",
        ),
        ("server: {url: 127.0.0.1:1/v1}", "run.yaml:1: server.url: expected http://... or https://..., got '127.0.0.1"),
        ('server: {url: ""}', "run.yaml:1: server.url: expected http://... or https://..., got ''"),
        ("reward: {kind: judge, url: a.b/v1, model: m}", "run.yaml:1: reward.url: expected http://... or https://..."),
        ("reward: x.py", "run.yaml:1: reward: expected path/to/file.py:function or package.module:function, got"),
        ("task: helpdesk\nreward: x.py:f\nreward_noise: 1", "run.yaml:3: reward_noise: expected no noise for a reward"),
        (
            "generation:\n  dtype: float3",
            "run.yaml:2: generation.dtype: expected auto, float32, bfloat16 or float16, got 'float3' (text); did you "
            "mean 'float32'?",
        ),
        (
            "generation: {device: gpu}",
            "run.yaml:1: generation.device: expected auto, cpu, mps, cuda or cuda:0, got 'gpu'",
        ),
        (
            "explorer: passiv",
            "run.yaml:1: explorer: expected one of directed, passive, random-singles, spanner-sampling, got 'pass",
        ),
        (
            "task: helpdsk",
            "run.yaml:1: task: expected one of countdown, helpdesk, got 'helpdsk' (text); did you mean 'helpdesk'?",
        ),
    ],
)
def test_each_mistake_is_named_with_its_place(tmp_path, text, message):
    assert message in refusal(tmp_path, text, known=KNOWN)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels", "--set labels: expected key=value"),
        ("=3", "--set =3: expected key=value"),
        ("a..b=3", "--set a..b=3: expected key=value"),
        ("labls=3", "--set labls: unknown key; did you mean 'labels'?"),
        ("generation.dtyp=x", "--set generation.dtyp: unknown key; did you mean 'dtype'?"),
        ("x.y.z=1", "--set x: unknown key"),
        ("features.kind=ngrams", "--set features.kind: expected features to be a mapping, it is 'hidden' (text)"),
        ("beta=[", "--set beta: expected YAML, but"),
        ("labels=\x1b[31m", "--set labels: expected YAML, but"),
    ],
)
def test_an_override_that_is_wrong_names_its_key(tmp_path, override, message):
    assert message in refusal(tmp_path, "features: hidden", override)


def test_all_mistakes_are_listed_at_once_in_the_order_of_their_lines(tmp_path):
    text = "evaluation: {draws: x}\nlabls: 3\nkl: 0\n"
    lines = refusal(tmp_path, text, "seed=-1").splitlines()
    assert lines[0] == "run.yaml: 4 mistakes"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [*(f"run.yaml:{i}" for i in (1, 2, 3)), "--set seed"]


@pytest.mark.parametrize("name", ["missing.yaml", "folder", "with\x00nul"])
def test_a_file_that_cannot_be_read(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="expected a configuration file in YAML, could not read it"):
        load_config(tmp_path / name, [])


def test_a_file_that_is_too_large(tmp_path):
    assert "at most 262144 bytes" in refusal(tmp_path, "#" * 300_000)


def test_paths_of_a_file_are_relative_to_it_and_those_of_overrides_to_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "there" / "model").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "there" / "run.yaml"
    path.write_text("model: model\nprompts: p.jsonl\nreward: ../r.py:f\n")
    config = load_config(Path("../there/run.yaml"), ["heldout=h.txt"])
    assert config.task is None
    assert config.model == str(tmp_path / "there" / "model")
    assert config.prompts == tmp_path / "there" / "p.jsonl"
    assert config.reward == f"{tmp_path / 'r.py'}:f"
    assert config.heldout == tmp_path / "here" / "h.txt"


def test_a_hub_id_stays_what_it_is(tmp_path):
    text = "model: org/name\nprompts: p.txt\nreward: r.py:f\n"
    assert load(tmp_path, text).model == "org/name"


def test_a_bundled_task_may_have_its_parts_replaced_when_it_is_named(tmp_path):
    config = load(tmp_path, "task: helpdesk\nreward: r.py:f\n", known=KNOWN)
    assert (config.task, config.free) == ("helpdesk", False)
    assert load(tmp_path, "task: helpdesk\nreward: r.py:f\nreward_free: true\nreward_noise: 0.5\n").free


def test_comparisons_may_take_the_place_of_a_reward(tmp_path):
    own = f"model: {tmp_path}\nprompts: p.txt\nfeedback: comparison\ncompare: c.py:f\n"
    config = load(tmp_path, own)
    assert (config.task, config.reward, config.free, config.scale) == (None, None, False, 1.0)
    assert config.compare == f"{tmp_path}/c.py:f"
    both = load(tmp_path, own + "reward: r.py:f\neval_labels: 3\n")
    assert (both.free, both.eval_labels) == (False, 3)
    assert load(tmp_path, own + "reward: r.py:f\nreward_free: true\n").free


def test_comparisons_are_simulated_where_the_reward_is_free(tmp_path):
    assert load(tmp_path, "feedback: comparison\nscale: 0.3\n").free
    assert not load(tmp_path, "task: helpdesk\nfeedback: comparison\ncompare: c.py:f\n").free
    assert load(tmp_path, "task: helpdesk\nfeedback: comparison\ncompare: c.py:f\nreward_free: true\n").free


def test_a_number_with_an_exponent_is_a_number_and_not_yamls_text(tmp_path):
    assert load(tmp_path, "beta: 1e-3\nkl: 2E0\n").beta == 1e-3
    assert load(tmp_path, "generation: {stop: ['1e-3']}").generation.stop == ("1e-3",)


def test_a_loaded_configuration_cannot_be_changed():
    with pytest.raises(ValidationError):
        load_config(None).labels = 3


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(
    data=st.fixed_dictionaries(
        {},
        optional={
            "explorer": TEXT,
            "explorer_settings": st.dictionaries(TEXT, PLAIN, max_size=3),
            "features": st.lists(PLAIN, min_size=1, max_size=3) | st.dictionaries(TEXT, PLAIN, min_size=1, max_size=3),
            "labels": st.integers(2, 10**6),
            "beta": st.none() | st.floats(1e-9, 1e9),
            "prompt_column": TEXT,
            "generation": st.fixed_dictionaries(
                {}, optional={"stop": st.lists(TEXT, max_size=3), "system_prompt": TEXT | st.none()}
            ),
        },
    )
)
def test_what_is_dumped_loads_back_equal(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    config = RunConfig.model_validate(data)
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path, []) == config


def test_the_users_own_task_survives_the_round_trip(tmp_path):
    config = load(tmp_path, "model: ./m\nprompts: p.txt\nheldout: h.txt\nreward: r.py:f\nreward_free: false\n")
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy, []) == config
    assert yaml.safe_load(copy.read_text())["task"] is None


KEYS = st.sampled_from([*RunConfig.model_fields, "generation.stop", "generation.dtype", "x", "", "a.b.c", "<<"])
VALUES = st.text("ab1:-[]{}'\"&*!|>#%@`,? \n\t.~e+\\x00", max_size=12) | TEXT


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(KEYS, VALUES), max_size=4), st.lists(st.tuples(KEYS, VALUES), max_size=2))
def test_whatever_is_written_is_a_configuration_or_a_configuration_error(tmp_path_factory, lines, overrides):
    path = tmp_path_factory.mktemp("fuzz") / "run.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines), encoding="utf-8")
    try:
        config = load_config(path, [f"{key}={value}" for key, value in overrides], known=KNOWN)
    except ConfigError:
        return
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path, []) == config


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_configuration_or_a_configuration_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "run.yaml"
    path.write_bytes(data)
    try:
        found: object = load_config(path, [])
    except ConfigError as error:
        found = str(error)
    assert isinstance(found, RunConfig) or str(path) in str(found)


# --- coverage -------------------------------------------------------------------------------------------------------


def test_a_coverage_report_needs_no_reward_and_may_name_its_models_apart(tmp_path):
    (tmp_path / "ckpt").mkdir()
    text = "prompts: p.txt\ncoverage: {models: [ckpt, org/name], parts: {tone: r.py:tone}, features: hidden}"
    (tmp_path / "run.yaml").write_text(text)
    config = load_config(tmp_path / "run.yaml", rewarded=False)
    assert config.task is None
    assert config.coverage.models == (str(tmp_path / "ckpt"), "org/name")
    assert config.coverage.parts == {"tone": f"{tmp_path}/r.py:tone"}
    assert config.coverage.features == ("hidden",)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml", rewarded=False) == config
    with pytest.raises(ConfigError, match="expected model, prompts and reward, got no model and no reward"):
        load_config(tmp_path / "run.yaml")
    (tmp_path / "less.yaml").write_text("model: org/name")
    with pytest.raises(ConfigError, match="expected model and prompts, got no prompts"):
        load_config(tmp_path / "less.yaml", rewarded=False)


def test_models_beside_the_bundled_task_keep_its_prompts_and_reward():
    config = load_config(None, ["coverage.models=[org/a, org/b]"], rewarded=False)
    assert config.task == "helpdesk"
    assert config.free


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("coverage.drawz=3", "coverage.drawz: unknown key; did you mean 'draws'?"),
        ("coverage.share=1", "expected a number below 1"),
        ("coverage.success=.nan", "coverage.success: expected a finite number"),
        ("coverage.parts={tone: r.py}", "expected path/to/file.py:function"),
        ("coverage.features=[]", "expected a name such as hidden or ngrams"),
        ("max_draws=3", "did you mean 'coverage.max_draws'?"),
    ],
)
def test_mistakes_in_the_coverage_section_are_named(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override], rewarded=False)
    assert message in str(caught.value)
