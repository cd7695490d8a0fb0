"""The user's own functions: reward and comparison functions good and bad, and those of TRL's users as they are."""

import inspect
import json
import logging
import sys

import pytest

from spannerlm.dialogue import Form
from spannerlm.errors import InputError, RewardError
from spannerlm.functions import combined, handed, load_compare, load_reward
from spannerlm.rewards import call_comparison, call_reward, is_pure


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    return path


REWARDS = """
from dataclasses import dataclass
import beside

def positional(prompts, completions):
    return [float(len(p) - len(c)) for p, c in zip(prompts, completions)]

def swapped(completions, prompts, *, level=()):
    return [float(len(p) - len(c)) + sum(level) for p, c in zip(prompts, completions)]

def trl(completions, **kwargs):
    return [float(len(c)) + len(kwargs["prompts"]) for c in completions]

trl.pure = True

@dataclass
class Scorer:
    bias: float
    def __call__(self, prompts, completions):
        return [self.bias for _ in completions]

scorer = Scorer(2.0)
number = 3
needs = lambda prompts, completions, answer: []
other = lambda x, y: []
first_only = lambda prompts, completions, /: []

async def later(prompts, completions):
    return [float(len(text)) for text in completions]
"""


COMPARISONS = """
def longer(prompts, completions, opponents, level):
    return [0.5 + 0.5 * (len(a) > len(b)) - 0.5 * (len(a) < len(b)) for a, b in zip(completions, opponents)]
longer.pure = True
def swapped(opponents, completions, prompts, **columns):
    return [float(a < b) for a, b in zip(completions, opponents)]
def reward(prompts, completions):
    return []
number = 3
"""


def test_a_comparison_is_called_by_the_names_of_its_arguments(tmp_path):
    path = write(tmp_path, "pairs.py", COMPARISONS)
    longer, swapped = (load_compare(f"{path}:{name}", ["level"]) for name in ("longer", "swapped"))
    assert call_comparison(longer, ["x"] * 3, ["aa", "a", "b"], ["b", "bb", "c"], {"level": [1] * 3}) == [1.0, 0.0, 0.5]
    assert call_comparison(swapped, ["x"] * 2, ["a", "b"], ["b", "a"], {}) == [1.0, 0.0]
    assert is_pure(longer)
    assert list(inspect.signature(swapped).parameters)[:3] == ["opponents", "completions", "prompts"]
    sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("reward", [], "reward: expected a function (prompts, completions, opponents, **columns) -> list of numbers"),
        ("longer", [], "longer: expected the argument 'level' to be a column of the prompts, which have no columns"),
        ("longer", ["level", "opponents"], "expected another name for the column 'opponents'"),
        ("number", [], "expected 'number' to be a function, got 3 (int)"),
        ("lnger", [], "expected a function 'lnger', found none; it has longer, swapped, reward; did you mean 'longer'"),
    ],
)
def test_what_is_no_comparison_is_refused_by_name(tmp_path, name, columns, message):
    path = write(tmp_path, "pairs.py", COMPARISONS)
    with pytest.raises(InputError, match=r"^compare: ") as caught:
        load_compare(f"{path}:{name}", columns)
    assert message in str(caught.value)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


@pytest.fixture
def rewards(tmp_path):
    write(tmp_path, "beside.py", "")
    yield write(tmp_path, "my rewards.py", REWARDS)
    sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"), [("positional", [2.0]), ("swapped", [5.0]), ("trl", [2.0]), ("scorer", [2.0])]
)
def test_a_reward_is_called_by_the_names_of_its_arguments(rewards, name, expected):
    reward = load_reward(f"{rewards}:{name}")
    assert call_reward(reward, ["abc"], ["a"], {"level": [3]}) == expected


def test_an_async_reward_is_awaited(rewards):
    assert call_reward(load_reward(f"{rewards}:later"), ["p"], ["four"], {}) == [4.0]


def test_a_loaded_reward_keeps_its_signature_and_its_word(rewards):
    reward = load_reward(f"{rewards}:swapped")
    assert list(inspect.signature(reward).parameters) == ["completions", "prompts", "level"]
    assert not is_pure(reward)
    assert is_pure(load_reward(f"{rewards}:trl"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "positionl",
            "expected a function 'positionl', found none; it has positional, swapped, trl, needs, other, first",
        ),
        ("number", "expected 'number' to be a function, got 3 (int)"),
        ("Scorer", "expected 'Scorer' to be a function, got <class"),
        (
            "other",
            "other: expected a function (prompts, completions, **columns) -> list of numbers, got the arguments (x",
        ),
        ("first_only", "first_only: expected a function (prompts, completions, **columns)"),
        (
            "needs",
            "needs: expected the argument 'answer' to be a column of the prompts, which have answers; did you mean",
        ),
    ],
)
def test_what_is_no_reward_function_is_refused_by_name(rewards, name, message):
    with pytest.raises(InputError) as caught:
        load_reward(f"{rewards}:{name}", columns=["answers"])
    assert message in str(caught.value)


def test_without_columns_to_compare_with_an_argument_may_be_anything(rewards):
    assert call_reward(load_reward(f"{rewards}:needs"), [], [], {"answer": []}) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\ny = nothing\n", "bad.py:2: the file raised NameError: name 'nothing' is not defined\n    y = nothing"),
        ("import json\njson.loads('{')\n", "bad.py:2: the file raised JSONDecodeError"),
        ("def f(:\n", "bad.py:1: expected Python, but invalid syntax\n    def f(:"),
        ("import no_such_module\n", "bad.py:1: the file raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)\n", "bad.py:1: the file raised SystemExit: 3"),
        ("a = '\0'\n", "bad.py"),
    ],
)
def test_a_file_that_raises_is_named_with_the_line(tmp_path, code, message):
    path = write(tmp_path, "bad.py", code)
    with pytest.raises(RewardError) as caught:
        load_reward(f"{path}:f")
    assert message in str(caught.value).replace(f"{tmp_path}/", "")
    assert "_spannerlm_reward_bad" not in sys.modules
    sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("reward.py", "expected path/to/file.py:function or package.module:function, got 'reward.py'"),
        (":f", "expected path/to/file.py:function"),
        ("{folder}/rewrd.py:f", "expected a Python file, found none; did you mean 'reward.py'"),
        ("{folder}:f", "expected a Python file, found none"),
        ("{folder}/reward.txt:f", "expected the name of a Python file, ending in .py"),
    ],
)
def test_a_reference_that_leads_nowhere(tmp_path, reference, message):
    write(tmp_path, "reward.py", "")
    write(tmp_path, "reward.txt", "")
    with pytest.raises(InputError, match="reward") as caught:
        load_reward(reference.format(folder=tmp_path))
    assert message in str(caught.value)


# --- as TRL's users have them ----------------------------------------------------------------------------------------

TRLS = """
def messages(prompts, completions, **kwargs):
    assert [m["role"] for m in prompts[0]] == ["system", "user"]
    return [float(len(c[0]["content"])) for c in completions]

def logging(completions, log_extra, log_metric, trainer_state, **kwargs):
    assert trainer_state is None
    log_extra("words", [len(c.split()) for c in completions])
    log_metric("longest", max(map(len, completions)))
    return [1.0 for _ in completions]

def open_ended(completions, **kwargs):
    assert set(kwargs) == {"prompts", "answer", "trainer_state", "log_extra", "log_metric"}
    kwargs["log_metric"]("best", 2.5)
    return [None if a is None else float(a) for a in kwargs["answer"]]

async def scheduled(completions, trainer_state=None, **kwargs):
    step = trainer_state.global_step if trainer_state else 0
    return [step + 0.5 for _ in completions]

def tokens(completions, completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def late(completions, **kwargs):
    ids = kwargs["completion_ids"]
    return [float(len(ids[i])) for i in range(len(ids))]

def pairs(prompts, completions, opponents):
    return [float(a[0]["content"] > b[0]["content"]) for a, b in zip(completions, opponents)]
"""


@pytest.fixture
def trls(tmp_path):
    return write(tmp_path, "trls.py", TRLS)


def test_conversational_rewards_get_messages(trls):
    reward = load_reward(f"{trls}:messages", form=Form("Be kind."))
    assert call_reward(reward, ["p", "p"], ["four", "a"], {}) == [4.0, 1.0]
    compare = load_compare(f"{trls}:pairs", form=Form())
    assert call_comparison(compare, ["p"], ["b"], ["a"], {}) == [1.0]


def test_what_a_trainer_hands_over_is_there_and_what_is_logged_is_in_the_log(trls, caplog):
    caplog.set_level(logging.INFO, "spannerlm.functions")
    columns = {"answer": [1, None]}
    assert call_reward(load_reward(f"{trls}:logging", ["answer"]), ["p"] * 2, ["x y", "z"], columns) == [1.0, 1.0]
    assert call_reward(load_reward(f"{trls}:open_ended"), ["p"] * 2, ["x", "y"], columns) == [1.0, None]
    assert call_reward(load_reward(f"{trls}:scheduled"), ["p"] * 2, ["x", "y"], columns) == [0.5, 0.5]
    said = [record.getMessage().removeprefix(f"{trls}: ") for record in caplog.records]
    assert said == ["logging: words = [2, 1]", "logging: longest = 3", "open_ended: best = 2.5"]


def test_a_trainers_argument_is_never_a_column(trls):
    """A column of that name can come from elsewhere than a file; the trainer's own wins, as in TRL."""
    assert call_reward(load_reward(f"{trls}:logging"), ["p"], ["x"], {"trainer_state": ["no"]}) == [1.0]


def test_tokens_are_there_where_the_model_is(trls):
    with pytest.raises(InputError, match="needs completion_ids, which only a reward gets, and only where the model is"):
        load_reward(f"{trls}:tokens")
    asked = []

    def ids(prompts, completions):
        asked.append((prompts, completions))
        return [[ord(c) for c in text] + [0] for text in completions]

    for conversational in (False, True):
        reward = load_reward(f"{trls}:tokens", form=Form() if conversational else None, token_ids=ids)
        assert call_reward(reward, ["p", "q"], ["four", "a"], {}) == [5.0, 2.0]
        assert asked.pop() == (["p", "q"], ["four", "a"])
    late = load_reward(f"{trls}:late", token_ids=ids)
    assert call_reward(late, ["p", "q"], ["xy", "z"], {}) == [3.0, 2.0]
    assert asked.pop() == (["p", "q"], ["xy", "z"]), "**kwargs take everything that TRL hands over"
    for name in ("scheduled", "logging"):
        reward = load_reward(f"{trls}:{name}", ["answer"], token_ids=ids)
        assert len(call_reward(reward, ["p"], ["x"], {"answer": [1]})) == 1
    assert asked == [], "made for those that read them"


def test_trls_rewards_of_tokens_read_those_of_the_model(tmp_path):
    """A user's file with TRL's own rewards, through a whole run: every label is what TRL gives for the drawn tokens."""
    import numpy as np
    from trl.rewards import get_repetition_penalty_reward

    from spannerlm.backends.huggingface import HuggingFaceModel
    from spannerlm.bundled import load
    from spannerlm.config import load_config
    from spannerlm.job import run_job
    from spannerlm.ledger import Ledger
    from spannerlm.records import Labelled

    write(
        tmp_path,
        "own.py",
        "from trl.rewards import get_repetition_penalty_reward\npenalty = get_repetition_penalty_reward(1)\n",
    )
    task = load("helpdesk")
    lines = [json.dumps({"prompt": prompt}) for prompt in task.train_prompts[:6]]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    given = [f"model={task.model_path}", f"prompts={tmp_path / 'p.jsonl'}", f"reward={tmp_path / 'own.py'}:penalty"]
    given += ["draws=200", "labels=10", "explorer=directed", "generation.max_new_tokens=12"]
    run_job(load_config(None, given), tmp_path / "run", lambda _: None)
    model = HuggingFaceModel.load(str(task.model_path), max_new_tokens=12)
    penalty, seen = get_repetition_penalty_reward(1), 0
    with Ledger.open(tmp_path / "run") as ledger:
        for entry in ledger.replay():
            if isinstance(entry.event, Labelled):
                for label in entry.event.labels:
                    prompt = ledger.prompts[label.prompt]
                    ids = model.completion_ids(prompt, label.response)
                    assert label.value == penalty([ids])[0]
                    seen += 1
    assert seen == 10
    (record,) = model.generate([task.train_prompts[0]], 50, rng=np.random.default_rng(0))
    for text, length, finished in zip(record.responses, record.lengths, record.finished, strict=True):
        ids = model.completion_ids(record.prompt, text)
        assert len(ids) == length
        assert (ids[-1] in model.eos) == finished


def test_rewards_of_installed_modules_are_called_as_they_are():
    """TRL's own, on the messages that its trainers would give."""
    from trl.rewards import think_format_reward

    reward = load_reward("trl.rewards:think_format_reward", [], form=Form())
    texts = ["<think>so</think>yes", "yes", "<think>so"]
    own = think_format_reward([[{"role": "assistant", "content": text}] for text in texts])
    assert call_reward(reward, ["p"] * 3, texts, {}) == own == [1.0, 0.0, 0.0]
    with pytest.raises(InputError, match="expected a module that is installed"):
        load_reward("no_such_module:f")
    with pytest.raises(InputError, match="expected a function 'nothing', found none"):
        load_reward("trl.rewards:nothing")


def test_trls_accuracy_reward_skips_what_it_can_not_read():
    from trl.rewards import accuracy_reward

    reward = load_reward("trl.rewards:accuracy_reward", ["solution"], form=Form())
    texts, solution = [r"\boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}", "x"], [r"\frac{1}{3}", r"\frac{1}{3}", ""]
    own = accuracy_reward([[{"role": "assistant", "content": text}] for text in texts], solution)
    assert call_reward(reward, ["p"] * 3, texts, {"solution": solution}) == own == [1.0, 0.0, None]
    with pytest.raises(InputError, match="expected the argument 'solution' to be a column"):
        load_reward("trl.rewards:accuracy_reward", ["solutions"], form=Form())


# --- several at once -------------------------------------------------------------------------------------------------


def first(prompts, completions, level):
    return [None if k is None else float(k) for k in level]


async def second(completions, **columns):
    return [None if text == "skip" else float(len(text)) for text in completions]


def test_several_rewards_are_the_weighted_sum_that_trl_takes():
    """Against torch's nansum, which is TRL's; a completion without any reward has no label, where TRL has 0."""
    import torch

    texts, level, weights = ["a", "skip", "bcd", "skip"], [1, 2, None, None], [0.5, -2.0]
    reward = combined([first, second], weights)
    found = call_reward(reward, ["p"] * 4, texts, {"level": level})
    table = torch.tensor([[1.0, 1.0], [2.0, torch.nan], [torch.nan, 3.0], [torch.nan, torch.nan]])
    wanted = (table * torch.tensor(weights)).nansum(dim=1).tolist()
    assert found[:3] == wanted[:3] == [-1.5, 1.0, -6.0]
    assert (found[3], wanted[3]) == (None, 0.0)
    assert call_reward(combined([first, second]), ["p"] * 4, texts, {"level": level}) == [2.0, 2.0, 3.0, None]
    assert (reward.__name__, is_pure(reward)) == ("first+second", False)


SEVERAL = """
from spannerlm.functions import combined

def length(completions, **kwargs):
    assert kwargs["trainer_state"] is None
    return [float(len(text)) for text in completions]

async def logged(texts, replies, level, log_metric=None):
    log_metric("seen", 1.0)
    return [float(k) for k in level]

def tokens(completion_ids, **kwargs):
    return [10.0 * len(ids) for ids in completion_ids]

class Plain:
    def __call__(self, completions):
        return [0.25 for _ in completions]

several = combined([length, logged, tokens, Plain()], [1, 100, 1, 1])
"""


def test_several_rewards_of_a_file_get_what_each_takes_of_what_a_trainer_hands_over(tmp_path, caplog):
    caplog.set_level(logging.INFO, "spannerlm.functions")
    path = write(tmp_path, "several.py", SEVERAL)
    reward = load_reward(f"{path}:several", ["level"], token_ids=lambda _, texts: [[0] * (len(t) + 1) for t in texts])
    assert call_reward(reward, ["p", "q"], ["x", "yyy"], {"level": [1, 2]}) == [1 + 100 + 20.25, 3 + 200 + 40.25]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["several: seen = 1.0"]


def test_functions_given_in_python_are_called_as_trainers_call_them(caplog):
    caplog.set_level(logging.INFO, "spannerlm.functions")

    def ids(prompts, completions):
        return [[0] * len(text) for text in completions]

    def everything(completions, **kwargs):
        kwargs["log_metric"]("k", 1.0)
        assert {"prompts", "trainer_state", "log_extra", "level", "completion_ids"} <= set(kwargs)
        return [float(k) + len(kwargs["completion_ids"][i]) for i, k in enumerate(kwargs["level"])]

    async def step(completions, trainer_state):
        return [None if trainer_state is None else 1.0 for _ in completions]

    class Tokens:
        pure = True

        def __call__(self, completion_ids, **kwargs):
            assert "log_metric" not in kwargs or kwargs["log_metric"] is not None
            return [float(len(row)) for row in completion_ids]

    class Judge:
        def __call__(self, prompts, completions, **columns):
            assert set(columns) == {"level"}
            return [7.0 for _ in completions]

    columns = {"level": [1, 2]}
    for function, wanted in (
        (everything, [3.0, 5.0]),
        (step, [None, None]),
        (Tokens(), [2.0, 3.0]),
        (Judge(), [7.0, 7.0]),
    ):
        assert call_reward(handed(function, columns, ids), ["p", "q"], ["ab", "abc"], columns) == wanted
    assert is_pure(handed(Tokens(), (), ids))
    judge = Judge()
    assert handed(judge, columns) is judge
    several = handed([everything, step, Tokens()], columns, ids)
    assert call_reward(several, ["p", "q"], ["ab", "abc"], columns) == [5.0, 8.0]
    assert len(caplog.records) == 2


def test_a_function_given_in_python_that_lacks_a_column_or_tokens_is_refused():
    def needs(completions, answer, **kwargs):
        return []

    with pytest.raises(InputError, match="the argument 'answer' to be a column, got answers; did you mean 'answers'"):
        handed(needs, ["answers"])
    with pytest.raises(InputError, match="the argument 'completion_ids' to be a column"):
        handed(lambda completion_ids, **_: [], [])
    assert handed(lambda texts, replies: [], []) is not None


@pytest.mark.parametrize(("functions", "weights"), [([], None), ([first], [1, 2]), ([first], [float("nan")])])
def test_weights_that_do_not_fit_are_refused(functions, weights):
    with pytest.raises(InputError, match="combined: expected one reward function at least and a finite weight for"):
        combined(functions, weights)


def test_a_mistake_of_one_of_several_is_told():
    def broken(prompts, completions):
        return ["x"]

    with pytest.raises(RewardError, match="reward 0: expected a number or None"):
        call_reward(combined([second, broken]), ["p"], ["a"], {})
