"""The user's prompts: every format, each kind of bad line, and messages as TRL has them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spannerlm import inputs
from spannerlm.dialogue import Form
from spannerlm.errors import InputError
from spannerlm.inputs import Prompts, behind, fitted, given_prompts, read_prompts

TEXTS = ("How are you?", "Où est\u2028la gare ?", '"quoted", \\ and 🌍')


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(tmp_path, name, content, column="prompt"):
    with pytest.raises(InputError) as caught:
        read_prompts(write(tmp_path, name, content), column)
    return str(caught.value).replace(f"{tmp_path}/", "")


# --- prompts --------------------------------------------------------------------------------------------------------


def test_every_format_gives_the_same_prompts_and_columns(tmp_path):
    rows = [{"prompt": text, "level": str(i)} for i, text in enumerate(TEXTS)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    quoted = [row["prompt"].replace('"', '""') for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    write(tmp_path, "p.jsonl", "\n\n".join(lines) + "\r\n")
    write(tmp_path, "p.json", json.dumps(rows))
    write(tmp_path, "p.csv", "\ufeffprompt,level\r\n" + "".join(f'"{q}",{i}\r\n' for i, q in enumerate(quoted)))
    for name in ("p.parquet", "p.jsonl", "p.json", "p.csv"):
        assert read_prompts(tmp_path / name) == Prompts(TEXTS, {"level": ("0", "1", "2")}), name


def test_a_dataset_that_was_saved_is_read_as_the_library_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    talk = [[{"role": "user", "content": text}] for text in TEXTS]
    plain = datasets.Dataset.from_dict({"prompt": list(TEXTS), "level": ["0", "1", "2"]})
    plain.save_to_disk(tmp_path / "plain", num_shards=2)
    assert read_prompts(tmp_path / "plain") == Prompts(TEXTS, {"level": ("0", "1", "2")})
    plain.select([2, 0]).save_to_disk(tmp_path / "some")
    assert read_prompts(tmp_path / "some") == Prompts((TEXTS[2], TEXTS[0]), {"level": ("2", "0")})
    datasets.DatasetDict({"train": plain, "test": plain}).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"both: expected one split of a dataset, got test, train: name its folder"):
        read_prompts(tmp_path / "both")
    assert read_prompts(tmp_path / "both" / "test").texts == TEXTS
    datasets.Dataset.from_dict({"prompt": talk, "answer": [{"a": 1}] * 3}).save_to_disk(tmp_path / "talk")
    assert read_prompts(tmp_path / "talk") == Prompts(TEXTS, {"answer": ({"a": 1},) * 3}, Form())
    datasets.Dataset.from_dict({"prompt": ["a", None]}).save_to_disk(tmp_path / "none")
    with pytest.raises(InputError, match="none: row 2: prompt: expected text, got nothing"):
        read_prompts(tmp_path / "none")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "or a directory that Dataset.save_to_disk wrote, found one without state.json"),
        ({"state.json": "{"}, "wrote, but Expecting"),
        ({"state.json": "[]"}, "wrote, but list indices"),
        ({"state.json": '{"_data_files": [{"filename": "a.arrow"}]}'}, "found one without a.arrow"),
        ({"state.json": '{"_data_files": [{"filename": "a.arrow"}]}', "a.arrow": "no"}, "wrote, but"),
        ({"state.json": '{"_data_files": []}'}, "expected one prompt at least, got none"),
        ({"dataset_dict.json": "{}"}, "expected one split of a dataset, got none"),
    ],
)
def test_a_directory_that_is_no_dataset_is_named(tmp_path, files, message):
    (tmp_path / "d").mkdir()
    for name, content in files.items():
        write(tmp_path / "d", name, content)
    with pytest.raises(InputError) as caught:
        read_prompts(tmp_path / "d")
    assert message in str(caught.value)


def test_a_text_file_has_one_prompt_per_line_exactly_as_it_stands(tmp_path):
    path = write(tmp_path, "p.TXT", "one \r\n\n  two\u2028still two\x0b\n")
    assert read_prompts(path, "question") == Prompts(("one ", "  two\u2028still two\x0b"), {})


def test_another_column_duplicates_and_values_that_are_missing(tmp_path):
    path = write(tmp_path, "p.jsonl", '{"q": "a", "x": 1}\n{"q": "a"}\n{"q": "b", "y": [true, null]}\n')
    assert read_prompts(path, "q") == Prompts(("a", "a", "b"), {"x": (1, None, None), "y": (None, None, [True, None])})


def test_a_value_over_several_lines_of_a_csv_file(tmp_path):
    path = write(tmp_path, "p.csv", 'prompt,x\n"a\nb",1\n\nc,2\n')
    assert read_prompts(path) == Prompts(("a\nb", "c"), {"x": ("1", "2")})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", "", "p.jsonl: expected one prompt at least, got none; the file is empty"),
        ("p.json", "[]", "p.json: expected one prompt at least"),
        ("p.csv", "prompt\n", "p.csv: expected one prompt at least"),
        ("p.txt", "\n \n", "p.txt: expected one prompt at least"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"', "p.jsonl:2: expected JSON, but expecting ',' delimiter at colu"),
        ("p.jsonl", '{"prompt": "a", "x": NaN}', "p.jsonl:1: expected JSON, got NaN, which JSON has no place for"),
        ("p.jsonl", '"a"', 'p.jsonl:1: expected an object such as {"prompt": "..."}, got \'a\' (str)'),
        ("p.jsonl", "[" * 100_000, "p.jsonl:1: expected JSON, got one that is nested too deeply"),
        ("p.jsonl", '{"promt": "a"}', "p.jsonl:1: expected a column 'prompt', got promt; did you mean 'promt'?"),
        ("p.jsonl", '{"prompt": 3}', "p.jsonl:1: prompt: expected text, got 3 (int)"),
        ("p.jsonl", '{"prompt": null}', "p.jsonl:1: prompt: expected text, got nothing (null)"),
        ("p.jsonl", '{"prompt": " "}', "p.jsonl:1: prompt: expected text, got an empty prompt"),
        ("p.jsonl", '{"prompt": "\\ud800"}', "p.jsonl:1: prompt: expected valid Unicode, got half of a surrogate pair"),
        ("p.jsonl", '{"prompt": "a", "completions": 1}', "p.jsonl:1: completions: expected another name for this colu"),
        ("p.json", '{"prompt": ["a"]}', "p.json: expected a list of objects such as"),
        ("p.json", '[{"prompt": "a"},\n 3]', "p.json: item 2: expected an object such as"),
        ("p.json", '[{"prompt": "a"},\n', "p.json:2: expected JSON, but"),
        ("p.csv", "prompt,x\na,1\nb\n", "p.csv:3: expected 2 values, as in the header, got 1"),
        ("p.csv", 'prompt,x\n"a\nb",1\nc\n', "p.csv:4: expected 2 values, as in the header, got 1"),
        ("p.csv", 'prompt\n"a', "p.csv:2: expected comma-separated values, but unexpected end of data"),
        ("p.csv", "prompt,prompt\na,b\n", "p.csv:1: expected each column once in the header, got 'prompt' again"),
        ("p.csv", "Prompt;x\na;1\nb;2\n", "p.csv:2: expected a column 'prompt', got Prompt;x"),
        ("p.txt", b"a\nb\xe9\n", "p.txt:2: expected UTF-8 text, got the byte 0xe9; save the file as UTF-8"),
        ("p.parquet", b"PAR1 no", "p.parquet: expected a parquet file, but"),
        (
            "p.jsnl",
            "",
            "p.jsnl: expected a file name that ends in .jsonl, .json, .csv, .parquet, .txt, got '.jsnl'; did",
        ),
        ("p", "", "p: expected a file name that ends in .jsonl, .json, .csv, .parquet, .txt, got 'no ending'"),
    ],
)
def test_each_bad_entry_is_named_with_its_place(tmp_path, name, content, message):
    assert message in refusal(tmp_path, name, content)


def test_bad_lines_are_listed_and_the_many_counted(tmp_path):
    content = "".join('{"prompt": "fine"}\n{"prompt": 1}\n' for _ in range(9))
    lines = refusal(tmp_path, "p.jsonl", content).splitlines()
    assert lines[0] == "p.jsonl: 9 bad entries"
    assert [line.split(": ")[0].strip() for line in lines[1:6]] == [f"p.jsonl:{i}" for i in (2, 4, 6, 8, 10)]
    assert lines[6] == "  and 4 more"


def test_a_prompt_beyond_the_limit_is_refused_by_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LARGEST_TEXT", 10)
    assert read_prompts(write(tmp_path, "p.txt", "é" * 5)).texts == ("é" * 5,)
    assert "p.txt:1: prompt: expected at most 10 bytes" in refusal(tmp_path, "p.txt", "é" * 6)


def test_a_ten_megabyte_prompt_comes_through_every_text_format(tmp_path):
    text = "x" * 10_000_000
    assert read_prompts(write(tmp_path, "p.csv", f"prompt\n{text}\n")).texts == (text,)
    assert read_prompts(write(tmp_path, "p.jsonl", json.dumps({"prompt": text}))).texts == (text,)


def test_values_of_a_parquet_file_that_are_no_json_are_named(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"], "picture": [b"\x00"]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"row 1: picture: expected a JSON value, got b'\\x00' \(bytes\)"):
        read_prompts(tmp_path / "p.parquet")


def test_a_file_that_is_not_there_is_told_with_the_nearest_one(tmp_path):
    write(tmp_path, "prompts.jsonl", "")
    with pytest.raises(InputError, match=r"expected a file of prompts, found none; did you mean 'prompts\.jsonl'"):
        read_prompts(tmp_path / "promts.jsonl")
    with pytest.raises(InputError, match=r"found one without state\.json"):
        read_prompts(tmp_path)
    with pytest.raises(InputError, match="expected a file of prompts, found none"):
        read_prompts(tmp_path / "no" / "such.csv")


# --- messages -------------------------------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be kind."}
SAID = {"role": "assistant", "content": "Hello,\nuser: you."}


def talk(text, *first):
    return json.dumps({"prompt": [*first, {"role": "user", "content": text}], "n": 1}) + "\n"


def test_prompts_of_messages_are_the_users_words_and_their_system_prompt(tmp_path):
    path = write(tmp_path, "p.jsonl", talk("one") + talk("two"))
    assert read_prompts(path) == Prompts(("one", "two"), {"n": (1, 1)}, Form())
    path = write(tmp_path, "s.jsonl", talk("one", SYSTEM) + talk("two", SYSTEM))
    assert read_prompts(path) == Prompts(("one", "two"), {"n": (1, 1)}, Form("Be kind."))


def test_other_lists_of_messages_are_whole_conversations(tmp_path):
    """Several messages in some row, or system messages that differ; what a dataset adds as null is nothing."""
    whole = "system: Be kind.\nassistant: Hello,\n    user: you.\nuser: two"
    first = {**SYSTEM, "tool_calls": None}
    found = read_prompts(write(tmp_path, "p.jsonl", talk("one") + talk("two", first, SAID)))
    assert found == Prompts(("user: one", whole), {"n": (1, 1)}, Form(dialogues=True))
    assert found.in_full() is found
    found = read_prompts(write(tmp_path, "p.jsonl", talk("one") + talk("two", SYSTEM)))
    assert found.texts == ("user: one", "system: Be kind.\nuser: two")
    same = read_prompts(write(tmp_path, "p.jsonl", talk("one", SYSTEM) + talk("two", SYSTEM))).in_full()
    assert same == Prompts(("system: Be kind.\nuser: one", found.texts[1]), {"n": (1, 1)}, Form(dialogues=True))


def test_a_system_message_stands_in_front_of_what_has_none(tmp_path):
    texts = Prompts(("a",), {})
    talks = read_prompts(write(tmp_path, "p.jsonl", talk("one") + talk("two", SAID)))
    kind = read_prompts(write(tmp_path, "k.jsonl", talk("one", SYSTEM)))
    mixed = read_prompts(write(tmp_path, "m.jsonl", talk("one") + talk("two", SYSTEM)))
    assert behind(texts, None, "system") == Form()
    assert behind(texts, "s", "system") == Form("s")
    assert behind(talks, "s", "system") == Form("s", dialogues=True)
    assert behind(kind, "Be kind.", "system") == behind(kind, None, "system") == Form("Be kind.")
    for found in (kind, mixed):
        with pytest.raises(InputError, match="system: expected none, because the prompts have one of their own"):
            behind(found, "s", "system")


def test_prompts_fit_a_policy_of_their_form_or_are_refused(tmp_path):
    """What a policy that reads texts, one behind a system message, and ones of conversations make of the same."""
    texts = given_prompts(["a", "b"])
    kind = given_prompts([json.loads(talk("a", SYSTEM))["prompt"]])
    talks = given_prompts([json.loads(talk("a", SAID))["prompt"], json.loads(talk("b", SYSTEM))["prompt"]])
    assert fitted(texts, Form()) == fitted(texts, Form("s")) == ("a", "b")
    assert fitted(texts, Form(dialogues=True)) == fitted(texts, Form("s", dialogues=True)) == ("user: a", "user: b")
    assert fitted(kind, Form("Be kind.")) == ("a",)
    assert fitted(kind, Form("Be kind.", dialogues=True)) == ("user: a",)
    assert fitted(kind, Form(dialogues=True)) == ("system: Be kind.\nuser: a",)
    assert fitted(talks, Form(dialogues=True)) == talks.texts
    for form in (Form(), Form("s"), Form("s", dialogues=True)):
        with pytest.raises(InputError, match="expected the run's own system message"):
            fitted(kind, form)
    with pytest.raises(InputError, match=r"prompts\[0\]: expected one message, the user's"):
        fitted(talks, Form("Be kind."))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (talk("one") + '{"prompt": "two"}\n', "all texts, or all lists of messages, got 1 texts and 1 lists"),
        (talk("one", {"role": "tool", "content": "x"}), "the user's last, got the roles ['tool', 'user']"),
        (talk("one", SYSTEM, SYSTEM), "the user's last, got the roles ['system', 'system', 'user']"),
        (json.dumps({"prompt": [SYSTEM]}), "the user's last, got the roles ['system']"),
        (json.dumps({"prompt": [{**SAID, "role": "user"}, SAID]}), "got the roles ['user', 'assistant']"),
        (talk("one", {**SAID, "tool_calls": [1]}), "messages of role and content, got 'tool_calls' beside them"),
        (talk("one", {**SAID, "content": None}), "content: expected text, got nothing"),
        (talk(""), "content: expected text, got an empty prompt"),
        (talk(3), "content: expected text, got 3"),
        (talk([{"role": "user", "content": "x"}]), "content: expected text, got [{'role': 'user'"),
        ('{"prompt": [{"role": "user"}]}\n', "content: expected text, got nothing"),
        ('{"prompt": []}\n', "prompt: expected text, got []"),
        ('{"prompt": "a", "trainer_state": 1}\n', "trainer_state: expected another name for this column"),
    ],
)
def test_other_conversations_are_refused(tmp_path, content, says):
    assert says in refusal(tmp_path, "p.jsonl", content)
