"""Rules that cannot be had, that are not steady, that fail: what a run refuses, and what it records and goes on."""

import json
import textwrap
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from given_rule import rule_file, scores
from run_files import read
from validated import checked

from data_engine.errors import UserError
from data_engine.pipeline import rule as rule_stage
from data_engine.pipeline.rule import Ruled
from data_engine.rewards import rule as rewards_rule
from data_engine.rules import BUILT_IN
from data_engine.rules.chosen import Rule
from data_engine.rules.client import Judged
from data_engine.rules.worker import Limits


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("final_anser", r'"final_anser" is neither final_answer, contains, objects nor FILE.py:function; did you'),
        ("gone.py:f", "gone.py cannot be read: No such file or directory; name a file with Python's functions"),
        ("mine.py", "neither final_answer"),
        ("{mine}:", 'the name of a function'),
        ("{mine}:a b", '"a b" cannot be the name of a function'),
        ("{mine}:missing", "the file has no function missing"),
        ("{mine}:scores", r"the file has no function scores; did you mean score\?"),
        ("{mine}:alone", r"alone\(answers\) cannot be called with a row and the list of its answers: too many posit"),
        ("{mine}:more", r"more\(row, answers, images\) cannot be called .*: missing a required argument: 'images'"),
        ("{mine}:Scorer", r"Scorer\(\) cannot be called with a row and the list of its answers: too many positional"),
        ("{mine}:NUMBER", "the file has int, no function, NUMBER"),
        ("{broken}:f", "the file is not Python, line 2: "),
        ("{raising}:f", r"importing the file failed: ZeroDivisionError: division by zero \(line 1\)"),
        ("{missing}:f", r"importing the file failed: ModuleNotFoundError: No module named 'no_such_module' \(line 1\)"),
        ("{leaving}:f", r"importing the file ended its process \(exit code 7\)"),
        ("{latin}:f", "is not text in UTF-8"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_had_is_refused_in_one_sentence(given, tmp_path, rule, told):
    bodies = {
        "mine": "NUMBER = 3\ndef score(row, answers):\n    return [1] * len(answers)\ndef alone(answers): ...\n"
        "def more(row, answers, images): ...\nclass Scorer:\n    def __call__(self, row, answers): ...\n",
        "broken": "x = 1\ndef f(:\n", "raising": "1 / 0\n", "missing": "import no_such_module\n",
        "leaving": "import os\nos._exit(7)\n",
    }  # fmt: skip
    files = {name: rule_file(tmp_path, body, f"{name}.py") for name, body in bodies.items()}
    (tmp_path / "latin.py").write_bytes("# é".encode("latin-1"))
    with pytest.raises(UserError, match=told) as refused:
        given(rule.format(**files, latin=tmp_path / "latin.py"))
    assert str(refused.value).startswith('rule "')
    assert not (tmp_path / "work" / "rule").exists()


UNSTEADY = {
    "random": "import random\ndef f(row, answers):\n    return [random.random() for _ in answers]\n",
    "order of calls": "CALLS = []\ndef f(row, answers):\n    CALLS.append(1)\n    return [len(CALLS)] * len(answers)\n",
    "now and then": "import os\ndef f(row, answers):\n    open(f'/proc/{{os.getppid()}}/status')\n"
    "    path = '{0}'\n    if os.path.exists(path): raise ValueError\n"
    "    open(path, 'w')\n    return [1] * len(answers)\n",
}


@pytest.mark.parametrize("kind", UNSTEADY)
def test_a_rule_that_gives_other_numbers_the_second_time_is_refused(given, tmp_path, kind):
    body = UNSTEADY[kind]
    file = rule_file(tmp_path, body.format(tmp_path / "seen") if "{0}" in body else body)
    with pytest.raises(UserError, match=r"is not deterministic: of the same answers to idx \d it made first .*, then "):
        given(f"{file}:f", unit_size=3)
    assert not list((tmp_path / "work" / "rule").glob("unit-*"))


def test_a_rule_that_depends_on_the_order_of_sets_is_steady(given, tmp_path):
    # Of text, it is another one in each process, unless Python is told otherwise.
    body = "def f(row, answers):\n    return [hash(answer) % 1000 for answer in answers]\n"
    assert given(f"{rule_file(tmp_path, body)}:f") == 0


def test_what_is_wrong_with_an_answer_or_a_question_is_recorded_with_it(given, tmp_path, capsys):
    body = """
        def f(row, answers):
            if row["idx"] == 1:
                return [1, None, "2", float("nan")]
            if row["idx"] == 2:
                raise KeyError("colour")
            return [True, 10 ** 400, 0.5, False]
    """
    assert given(f"{rule_file(tmp_path, textwrap.dedent(body))}:f") == 0
    work = tmp_path / "work"
    found = {(row["idx"], row["sample_index"]): (row["score"], row["reason"]) for row in read(work / "rule")}
    assert found == {
        (1, 0): (1.0, None), (1, 1): (None, None),
        (1, 2): (None, "the rule gave a value of type str, expected a number or None"),
        (1, 3): (None, "the rule gave nan, expected a finite number"),
        (3, 0): (1.0, None), (3, 1): (None, "the rule gave inf, expected a finite number"),
        (3, 2): (0.5, None), (3, 3): (0.0, None),
    }  # fmt: skip
    [told] = [line for line in capsys.readouterr().out.splitlines() if "KeyError" in line]
    assert told.split(maxsplit=3) == ["rule", "1", "2", "f raised KeyError: … (line …)"]


WRONG_CELLS = {
    "vqa": ("contains", [{"answer": "cat", "answer_id": 1}], '"answer" must hold text, .*, got a list of objects'),
    "one": ("final_answer", {"answer": "cat"}, '"answer" must hold text, .*, got an object'),
    "json": ("final_answer", '[{"answer": "cat"}]', '"answer" must hold text, .*, got a list of objects'),
    "bytes": ("contains", b"cat", '"answer" must hold text, .*, got bytes'),
    "named": ("objects", [{"name": "cat"}], '"objects" must hold lists of names, got a list of objects'),
    "numbers": ("objects", 3, '"objects" must hold lists of names, got a number'),
}


@pytest.mark.parametrize("kind", WRONG_CELLS)
def test_a_column_that_a_rule_cannot_compare_with_is_refused_before_any_answer(given, config, tmp_path, kind):
    rule, cell, told = WRONG_CELLS[kind]
    [column] = BUILT_IN[rule].columns
    cells = {1: None, 2: cell, 3: cell}
    records = [{"idx": idx, "question": "How many?", "label": cell} for idx, cell in cells.items()]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "wrong.parquet")
    told = f'^rule {rule}, row idx 2: the column {told}; the dataset calls it "label"$'
    flags = {"columns": f"{column}=label", "answers": str(tmp_path / "answers.jsonl"), "rewards": "rule", "rule": rule}
    flags |= {"instruct_model_path": None, "reward_model_path": None}
    with pytest.raises(UserError, match=told):
        checked(config(tmp_path / "wrong.parquet", **flags))
    with pytest.raises(UserError, match=told):
        given(rule, tmp_path / "wrong.parquet", columns=f"{column}=label")
    assert not (tmp_path / "work" / "sampled_answer").exists()


LATE_CELLS = {
    "final_answer": ("B", [{}], "text, a number", {2: [1, 1, 0, 0], 3: [0] * 4}),
    "objects": (["cat"], 3, "lists of names", {2: [None, 1, None, None], 3: [None] * 4}),
}


@pytest.mark.parametrize("rule", LATE_CELLS)
def test_a_later_row_that_a_rule_cannot_compare_with_is_left_out_alone(given, tmp_path, rule):
    right, wrong, expected, scored = LATE_CELLS[rule]
    [column] = BUILT_IN[rule].columns
    # Without answers, the first 32 rows, which are read before a run.
    rows = [{"idx": idx, "question": "Which?", column: right} for idx in [*range(4, 36), 2, 3]]
    rows.append({"idx": 1, "question": "How many?", column: wrong})
    (tmp_path / "late.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given(rule, tmp_path / "late.jsonl")
    assert scores(tmp_path / "work") == scored
    left_out = (tmp_path / "work/logs/quarantine.jsonl").read_text()
    assert f'the column \\"{column}\\" must hold {expected}' in left_out


def test_nulls_and_lists_that_pandas_writes_are_read(given, tmp_path):
    """NaN where a DataFrame has nothing; a list as the text that a CSV holds."""
    cells = {1: float("nan"), 2: '["cat", "yes"]', 3: float("nan")}
    rows = [{"idx": idx, "question": "Which?", "answer": cell} for idx, cell in cells.items()]
    (tmp_path / "pandas.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given("contains", tmp_path / "pandas.jsonl")
    assert scores(tmp_path / "work") == {1: [None] * 4, 2: [0, 1, 0, 1], 3: [None] * 4}


def test_a_rule_that_fails_in_the_same_way_for_every_question_is_refused(given, tmp_path):
    body = "def f(row, answers):\n    return answers[0]['text']\n"
    told = r"rule: none of the first 2 rows .* f raised TypeError: .* \(line 2\)\. Mend rule "
    with pytest.raises(UserError, match=told):
        given(f"{rule_file(tmp_path, body)}:f")


def test_a_rule_is_not_blamed_for_what_the_machine_did_to_every_question(given, tmp_path):
    body = "import errno\ndef f(row, answers):\n    raise OSError(errno.ENOSPC, 'No space left on device')\n"
    told = r"rule: none of the first 2 rows .* No space left on device .*\. See to the memory, the disks and the limits"
    with pytest.raises(UserError, match=told):
        given(f"{rule_file(tmp_path, body)}:f")


def test_questions_that_all_hang_are_given_up_at_the_fifth(given, config, tmp_path, monkeypatch):
    monkeypatch.setattr(rewards_rule, "LIMITS", Limits(processor_s=30, clock_s=0.2))
    monkeypatch.setattr(rule_stage, "HOPELESS", 2)
    body = "import time\ndef f(row, answers):\n    time.sleep(100)\n"
    told = r"none of the first 2 questions got a number.*idx 2, because the rule took more than 0.2 s, 2 times"
    with pytest.raises(UserError, match=told):
        given(f"{rule_file(tmp_path, body)}:f", unit_size=3)


@pytest.mark.parametrize(("ends", "given_up"), [("x" * 5, True), (".xxxxx", False), ("xxxx.x", False)])
def test_only_a_rule_of_which_the_first_five_questions_end_at_a_limit_is_given_up(tmp_path, ends, given_up):
    """x: at a limit; a dot: a number. Where one has a number, others may have, too."""
    found = [Judged((1.0,), (None,)) if end == "." else Judged(problem="it hangs", is_limit=True) for end in ends]
    asked = [({"idx": at, "found": one}, ["answer"]) for at, one in enumerate(found)]
    ruled = Ruled.__new__(Ruled)
    ruled._rule, ruled._work_dir = Rule("mine.py:f"), tmp_path
    ruled._process = SimpleNamespace(judge=lambda row, answers: row["found"])
    if given_up:
        with pytest.raises(UserError, match=r"none of the first 5 questions got a number, .* because it hangs"):
            list(ruled._judged(asked))
    else:
        assert list(ruled._judged(asked)) == found
