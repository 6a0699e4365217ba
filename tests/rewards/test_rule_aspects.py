"""Several rules in one run: a column of rewards each, and their mean."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from export_world import square
from given_rule import ANSWERS, rule_file
from run_files import read
from shown import SHOWN

from data_engine.commands import export, pairs, report
from data_engine.commands.main import main
from data_engine.errors import UserError
from data_engine.exit_codes import NOTHING_WRITTEN
from data_engine.of_pairing import of_pairing
from data_engine.pipeline.export import read_metadata
from data_engine.store import units

RULES = (
    "def length(row, answers): return [len(answer) for answer in answers]\n"
    "def digits(row, answers): return [sum(map(str.isdigit, answer)) or None for answer in answers]\n"
)


@pytest.fixture
def rules(tmp_path) -> str:
    return rule_file(tmp_path, RULES)


def columns(row: dict) -> tuple:
    return row["idx"], row["sample_index"], *(value for name, value in row.items() if name.startswith("score"))


def test_ratings_of_several_aspects_become_rewards_as_the_page_shows(tmp_path, monkeypatch, signals_as_before):
    shown = [one.text for one in SHOWN if one.page == "docs/given-answers.md"]
    at = next(place for place, text in enumerate(shown) if '"ratings"' in text)
    row, rule, command = shown[at : at + 3]
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "pictures"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pictures/cat.jpg").write_bytes(square("red"))
    (tmp_path / "data/rated.jsonl").write_text(row)
    (tmp_path / "ratings.py").write_text(rule)
    # A third answer without ratings.
    (tmp_path / "answers.jsonl").write_text(shown[1] + json.dumps({"idx": "cat", "answer": "No cat."}))
    program, run, *flags = command.split()
    assert (program, main([run, *flags])) == ("data-engine", 0)
    found = read(tmp_path / "runs/ratings/rule")
    assert [(row["score_helpful"], row["score_faithful"]) for row in found] == [(4, 5), (5, 1), (None, None)]
    [pair] = read(tmp_path / "runs/ratings/pairs")
    assert (pair["chosen"], pair["rejected"]) == ("A cat on a red chair.", "A dog on a red chair.")
    assert (pair["chosen_rule_mean"], pair["rejected_rule_mean"], pair["margin"]) == (4.5, 3.0, 1.5)
    assert (pair["chosen_rule_helpful"], pair["rejected_rule_faithful"]) == (4, 1)


def test_each_rule_has_a_column_and_an_answer_that_lacks_a_number_has_no_mean(given, rules, tmp_path, capsys):
    """A built-in one beside one of the user's; the third question has no key, so that no answer to it is right."""
    # No answer is among the best by all three.
    assert given(f"size={rules}:length,right=final_answer,digits={rules}:digits") == NOTHING_WRITTEN
    work = tmp_path / "work"
    found = read(work / "rule")
    assert list(found[0]) == ["idx", "sample_index", "score_digits", "score_right", "score_size", "reason"]
    lengths = {idx: [len(text) for text in texts] for idx, texts in ANSWERS.items()}
    expected = [(1, 0, 1, 1), (1, 1, 1, 0), (1, 2, None, 0), (1, 3, 1, 1), (2, 0, None, 1), (2, 1, None, 1),
                (2, 2, None, 0), (2, 3, None, 0), *((3, index, None, None) for index in range(4))]  # fmt: skip
    assert [columns(row) for row in found] == [(*one, lengths[one[0]][one[1]]) for one in expected]
    assert read_metadata(work)["settings"]["rank_by"] == "rule.size,rule.right,rule.digits"
    flags = ["--name", "mean", "--rank_by", "rule.mean", "--strategy", "best_worst"]
    capsys.readouterr()
    assert pairs.main([str(work), *flags]) == 0
    # The lengths of "one" and of "Final Answer: (B) cat"; digits are one or none.
    told = (
        "rule.mean goes mostly by rule.size, whose numbers are from 3 to 21, where those of rule.right are from 0 to 1"
    )
    assert told in capsys.readouterr().err
    # Of question 1: (1 + 1 + 15) / 3, (1 + 0 + 15) / 3, none, (1 + 1 + 9) / 3.
    [pair] = pq.read_table(work / "pairs/mean.parquet").to_pylist()
    assert (pair["idx"], pair["chosen_index"], pair["rejected_index"]) == (1, 0, 3)
    assert (pair["chosen_rule_mean"], pair["margin"]) == pytest.approx((17 / 3, 2))
    assert read_metadata(work, "mean")["funnel"]["not_ranked"] == {"not_scored": 9}
    totals = json.loads(pq.read_schema(work / "pairs/mean.parquet").metadata[b"reward_totals"])
    # The three answers with a digit, which has one each: those without do not count as 0.
    digits = [totals["rule.digits"][name] for name in ("answers", "questions", "equal", "mean", "best", "worst")]
    assert digits == [3, 1, 1, 1, 1, 1]


def test_a_question_that_one_rule_fails_on_is_left_out_of_all(given, tmp_path):
    body = RULES + "def failing(row, answers): return [1 / (row['idx'] - 2)] * len(answers)\n"
    file = rule_file(tmp_path, body)
    assert given(f"size={file}:length,failing={file}:failing") == 0
    [left_out] = units.left_out(tmp_path / "work")
    assert (left_out["idx"], left_out["missing"]) == (2, False)
    assert left_out["reason"] == "failing raised ZeroDivisionError: division by zero (line 3)"
    assert {row["idx"] for row in read(tmp_path / "work/rule")} == {1, 3}


def test_several_rules_are_bound_by_their_names_and_their_content(given, rules, tmp_path):
    both = f"size={rules}:length,right=final_answer"
    assert given(both, stop_after_stage=1) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/unit-*")}
    moved = shutil.copy(rules, tmp_path / "moved.py")
    assert given(f"right=final_answer,size={moved}:length", stop_after_stage=1) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/unit-*")} == before
    was = "rule was right final_answer [0-9]+, size length [0-9a-f]{12}, now "
    for rule, now in (
        ("final_answer", "'final_answer [0-9]+'"),
        (f"length={rules}:length,right=final_answer", "length length [0-9a-f]{12}, right final_answer [0-9]+"),
        (f"size={rules}:digits,right=final_answer", "right final_answer [0-9]+, size digits [0-9a-f]{12}"),
    ):
        with pytest.raises(UserError, match=f"{was}{now}; units of rule were computed with it"):
            given(rule)


def test_pairs_by_several_rules_are_exported_whatever_a_later_start_rewards_by(given, rules, goldens, tmp_path):
    work = tmp_path / "work"
    assert given(f"size={rules}:length,right=contains", rank_by="rule.mean") == 0
    models = {f"{role}_model_path": str(goldens / f"llava/{role}") for role in ("instruct", "reward")}
    assert given(None, rewards="implicit", stop_after_stage=0, **models) == 0
    assert export.main([str(work), "--format", "scored", "--output", str(tmp_path / "out")]) == 0
    assert report.main([str(work)]) == 0
    rows = pq.read_table(next((tmp_path / "out").rglob("*.parquet"))).to_pylist()
    scores = {(row["idx"], row["sample_index"]): row["score_size"] for row in read(work / "rule")}
    assert {(row["idx"], row["sample_index"]): row["rule_size"] for row in rows} == scores
    assert str(tmp_path) not in next((tmp_path / "out").rglob("README.md")).read_text()


def test_one_rule_of_pairs_is_told_where_a_later_start_has_several():
    several, one = {"right": "contains 6", "size": "length 1234"}, "contains 6"
    for theirs, later, shown in (
        (several, "contains", "right=contains 6,size=length 1234"),
        (one, "right=contains,size=a.py:length", "contains 6"),
        (several, "size=a.py:length,right=contains", "size=a.py:length,right=contains"),
        (one, "contains", "contains"),
    ):
        told = {"rewards": "rule", "same_tokenizer": True, "bound": {"rule": theirs}}
        assert of_pairing({"config": {"rewards": "rule", "rule": later}}, told)["config"]["rule"] == shown


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("right=contains,right=contains", "rule names right twice"),
        ("right=contains,contains", 'rule must be a rule, or several as in faithful=rules.py:faithful,right=contains, '
                                    'got "contains" in "right=contains,contains"'),
        ("my-name=contains", 'rule calls a file "my-name", which is part of the name of a column'),
        ("right=contain", 'rule "contain" is neither final_answer, contains, objects nor FILE.py:function; did you'),
    ],
)  # fmt: skip
def test_a_list_of_rules_that_is_none_is_refused_by_name(given, rule, told):
    with pytest.raises(UserError) as error:
        given(rule)
    assert told in str(error.value)


def test_validate_knows_the_columns_of_several_rules(tmp_path, given, rules, capsys):
    assert given("contains", stop_after_stage=0) == 0
    capsys.readouterr()
    flags = ["--dataset_path", str(tmp_path / "questions.parquet"), "--answers", str(tmp_path / "answers.jsonl")]
    flags += ["--rewards", "rule", "--rule", f"size={rules}:length,right=contains", "--rank_by", "rule.men"]
    assert main(["validate", *flags, "--work_dir", str(tmp_path / "other")]) == 2
    told = 'rank_by names "rule.men", which no source of reward of this run has; did you mean rule.mean?'
    assert f"{told}; known: rule.size, rule.right, rule.mean" in capsys.readouterr().err
