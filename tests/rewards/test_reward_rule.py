"""The reward `rule` in whole runs: without a model, beside other sources, bound, refused, killed and gone on with."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_world import square
from given_rule import ANSWERS, RIGHT, SCORES, rule_file, scores
from run_files import hostile_rows, read
from shown import ROOT, SHOWN
from watched_run import described

from data_engine.commands.main import main
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import model_holder, worker


def test_scores_of_ones_own_become_rewards_as_the_page_shows(tmp_path, monkeypatch, signals_as_before):
    answers, _, row, rule, command = [one.text for one in SHOWN if one.page == "docs/given-answers.md"][1:6]
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "pictures"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pictures/cat.jpg").write_bytes(square("red"))
    # A third answer, which has no score, and a question without scores.
    unscored = [
        json.dumps({"idx": idx, "answer": text}) for idx, text in (("cat", "No cat."), ("dog", "A"), ("dog", "B"))
    ]
    (tmp_path / "answers.jsonl").write_text(answers + "\n".join(unscored))
    (tmp_path / "data/scored.jsonl").write_text(row + row.replace('"cat"', '"dog"').split(', "scores"')[0] + "}\n")
    (tmp_path / "scores.py").write_text(rule)
    program, run, *flags = command.split()
    assert (program, main([run, *flags])) == ("data-engine", 0)
    assert scores(tmp_path / "runs/own-scores") == {"cat": [0.9, 0.1, None], "dog": [None, None]}
    [pair] = read(tmp_path / "runs/own-scores/pairs")
    assert (pair["chosen"], pair["rejected"]) == ("A cat on a red chair.", "A dog on a red chair.")


def test_the_row_of_a_rule_has_the_columns_of_the_page(given, tmp_path):
    told = (ROOT / "docs/rules.md").read_text()
    assert "`row` has `idx`, `question` and every column of the dataset that holds no bytes, but `image`," in told
    cell = {"bytes": square("red"), "path": "1.png"}
    more = {"image": cell, "system": "Be brief.", "image_path": "1.png", "ds_name": "d", "sizes": [4, 5], "raw": b"1"}
    messages = [{"role": "user", "content": "How many?"}]
    tables = [{"question": "How many?"} | more, {"messages": messages, "images": [cell]} | more | {"image": None}]
    body = "def mine(row, answers):\n    return [sorted(row) == KEYS and row['sizes'] == [4, 5]] * len(answers)\n"
    rule = rule_file(tmp_path, f"KEYS = {sorted(['idx', 'question', 'image_path', 'ds_name', 'sizes'])}\n{body}")
    for number, row in enumerate(tables):
        rows = [{name: cell for name, cell in row.items() if cell is not None} | {"idx": idx} for idx in ANSWERS]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
        work = tmp_path / f"work-{number}"
        given(f"{rule}:mine", tmp_path / f"{number}.parquet", work_dir=str(work))
        assert scores(work) == {idx: [1] * 4 for idx in ANSWERS}


def test_a_file_that_a_rule_reads_is_warned_of_at_each_start_and_by_validate(given, tmp_path, monkeypatch, capsys):
    table = tmp_path / "scores.json"
    table.write_text("[1, 0, 1, 0]")
    body = f"import json\nFOUND = json.load(open({str(table)!r}))\ndef mine(row, answers):\n    return FOUND\n"
    rule = rule_file(tmp_path, body) + ":mine"
    told = f'reads "{table}", whose content is not bound'
    for _ in range(2):
        capsys.readouterr()
        assert given(rule) == 0
        assert capsys.readouterr().err.count(told) == 1
    flags = ["--dataset_path", "questions.parquet", "--answers", "answers.jsonl", "--work_dir", "new", "--rank", "1"]
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert main(["validate", *flags, "--rewards", "rule", "--rule", rule]) == 0
    assert capsys.readouterr().err.count(told) == 1


def test_a_special_token_in_an_answer_is_known_where_the_model_to_train_is_named(given, goldens, tmp_path):
    lines = [{"idx": 1, "answer": text} for text in ("Final Answer: 4", "Final Answer: 5</s>", "Final Answer: 6")]
    (tmp_path / "answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    all_pairs = {"strategy": "right_wrong", "right": 1.0}
    assert given("final_answer", **all_pairs) == 0
    assert {pair["rejected_index"] for pair in read(tmp_path / "work/pairs")} == {1, 2}
    assert given("final_answer", **all_pairs, instruct_model_path=str(goldens / "llava/instruct")) == 0
    assert {pair["rejected_index"] for pair in read(tmp_path / "work/pairs")} == {2}


def test_answers_without_any_final_answer_are_warned_of_once(given, tmp_path, capsys):
    told = (
        "rule final_answer: none of the first 2 answers has a final answer (Final Answer: ..., \\boxed{} or <answer>)"
    )
    lines = [{"idx": idx, "answer": text} for idx in (1, 2) for text in ("B", "C")]
    (tmp_path / "answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert given("final_answer", unit_size=1) == 4
    found = capsys.readouterr().err
    assert found.count(told) == found.count("has a final answer") == 1
    assert 'the first is "B". Let the questions ask for one' in found
    assert given("contains", unit_size=1, work_dir=str(tmp_path / "other")) in (0, 4)
    assert "final answer" not in capsys.readouterr().err


def test_one_final_answer_is_enough_to_warn_of_nothing(given, capsys):
    assert given("final_answer") == 0
    assert "has a final answer" not in capsys.readouterr().err


def test_a_run_of_given_answers_and_a_rule_needs_no_model(given, tmp_path, capsys):
    assert given("final_answer") == 0
    work = tmp_path / "work"
    assert scores(work) == SCORES
    pairs = read(work / "pairs")
    assert {pair["idx"] for pair in pairs} == {1, 2}
    for pair in pairs:
        right = SCORES[pair["idx"]]
        assert (right[pair["chosen_index"]], right[pair["rejected_index"]]) == (1, 0)
    # Four right answers of eight; the third question has no number.
    told = (
        "rule: 0.5 on average over 8 answers, 1 for the best of a question, 0 for the worst; "
        "one number for all answers: 0 of 2 questions\n"
    )
    printed = capsys.readouterr()
    assert told in printed.out
    # There is no model that pairs of its own answers would teach more.
    assert "off-policy" not in printed.err
    assert "zero3" not in printed.err
    page = (work / "report/index.html").read_text()
    cells = "".join(f"<td>{cell}</td>" for cell in ("8", "+0.5", "+1", "+0", "2", "0"))
    assert cells in page.partition("Rewards of all answers")[2]
    # Of one reward, there is nothing to disagree with; beta is of log-probs alone.
    assert "disagreement of rewards" not in page
    assert ", beta " not in page
    # Nothing to switch on, and what is underlined is explained all the same.
    assert 'hidden><input id="heat"' in page
    assert 'hidden><input id="values"' in page
    assert '<span class="differs">underlined</span>' in page
    assert "rule" in described(work, 0)
    assert {file.stem for file in (work / "rule").glob("*.parquet")} == {"unit-00000", "unit-00001"}


def test_the_best_answers_that_are_exported_can_be_right_ones_alone(given, tmp_path, capsys):
    """Of question 2 all answers are wrong, and one of them is the best all the same."""
    records = [{"idx": idx, "question": "How many?", "answer": right} for idx, right in (RIGHT | {2: "D"}).items()]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "hard.parquet")
    assert given("final_answer", tmp_path / "hard.parquet") == 0
    command = ["export", str(tmp_path / "work"), "--format", "sft", "--output"]
    assert main([*command, str(tmp_path / "all")]) == 0
    assert {row["idx"] for row in read(tmp_path / "all/sft")} == {1, 2}
    assert main([*command, str(tmp_path / "right"), "--min_reward", "1"]) == 0
    assert "1 left out: the best answer has less than 1 of the reward rule" in capsys.readouterr().out
    [row] = read(tmp_path / "right/sft")
    assert (row["idx"], row["completion"][0]["content"][0]["text"]) == (1, ANSWERS[1][0])


def test_a_rule_of_ones_own_gets_all_columns_but_pictures(given, tmp_path):
    picture = b"no column of the engine's"
    records = [{"idx": 1, "question": "How many?", "answer": "4", "tags": ["a", "b"], "level": 2.5, "other": picture},
               {"idx": 2, "question": "Which?", "answer": None, "tags": None, "level": 1.0, "other": picture},
               {"idx": 3, "question": "Why?", "answer": "x", "tags": [], "level": None, "other": None}]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "more.parquet")
    file = rule_file(tmp_path, "def seen(row, answers):\n    return [WANTED[row['idx']] == row] * len(answers)\n")
    wanted = {
        row["idx"]: {name: row[name] for name in ("idx", "question", "answer", "tags", "level")} for row in records
    }
    Path(file).write_text(f"WANTED = {wanted!r}\n{Path(file).read_text()}")
    # 4: all answers have the same reward, and no pair can come of that.
    assert given(f"{file}:seen", tmp_path / "more.parquet") == 4
    assert scores(tmp_path / "work") == {idx: [1.0] * 4 for idx in ANSWERS}


def test_a_float_of_32_bits_is_the_number_that_it_is_written_as(given, tmp_path):
    """As Python's float 0.1 would be 0.10000000149011612, which no answer says."""
    types = {"idx": pa.int64(), "question": pa.string(), "answer": pa.float32(), "several": pa.list_(pa.float32())}
    records = [{"idx": 1, "question": "How much?", "answer": 0.1, "several": [0.1, None, 2.5]},
               {"idx": 2, "question": "How much?", "answer": None, "several": None},
               {"idx": 3, "question": "How much?", "answer": 3.0, "several": []}]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(records, pa.schema(types.items())), tmp_path / "floats.parquet")
    wanted = {row["idx"]: row for row in records}
    body = f"def seen(row, answers):\n    return [{wanted!r}[row['idx']] == row] * len(answers)\n"
    file = rule_file(tmp_path, body)
    assert given(f"{file}:seen", tmp_path / "floats.parquet") == 4
    assert scores(tmp_path / "work") == {idx: [1.0] * 4 for idx in ANSWERS}


def test_columns_of_another_name_are_named_and_shape_the_rule_alone(given, tmp_path):
    table = pq.read_table(tmp_path / "questions.parquet").rename_columns(["idx", "question", "label"])
    table = table.append_column("topic", pa.array(["x", "y", "z"]))
    pq.write_table(table, tmp_path / "labelled.parquet")
    dataset = tmp_path / "labelled.parquet"
    told = (
        r'rule final_answer needs the column "answer".*columns: idx, question, label, topic; or say --columns answer='
    )
    with pytest.raises(UserError, match=told):
        given("final_answer", dataset)
    # 4: no answer contains its topic, so that none is better than another.
    assert given("contains", dataset, columns="answer=topic") == 4
    sampled = {path: path.stat().st_mtime_ns for path in (tmp_path / "work/sampled_answer").iterdir()}
    with pytest.raises(UserError, match=r"reference_columns was 'answer=topic', now 'answer=label'.*units of rule"):
        given("contains", dataset, columns="answer=label")
    for path in (tmp_path / "work/rule").iterdir():
        path.unlink()
    # The answers do not hang on what is right.
    assert given("final_answer", dataset, columns="answer=label") == 0
    assert scores(tmp_path / "work") == SCORES
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work/sampled_answer").iterdir()} == sampled


def test_a_changed_file_of_a_rule_is_another_run_and_a_moved_one_is_not(given, tmp_path):
    body = "def length(row, answers):\n    return list(map(len, answers))\n"
    assert given(f"{rule_file(tmp_path, body)}:length") == 0
    assert given(f"{rule_file(tmp_path, body, 'moved.py')}:length") == 0
    other = rule_file(tmp_path, body.replace("len,", "hash,"))
    told = r"holds another run: rule was 'length [0-9a-f]{64}', now 'length [0-9a-f]{64}'.* or move \S*/rule away"
    with pytest.raises(UserError, match=told):
        given(f"{other}:length")
    with pytest.raises(UserError, match=r"rule was 'length [0-9a-f]{64}', now 'contains 6'"):
        given("contains")
    # As the message says.
    (tmp_path / "work/rule").rename(tmp_path / "old")
    assert given(f"{other}:length") == 0


def test_pairs_of_a_rule_that_was_changed_since_are_compared_but_not_exported(given, tmp_path, capsys):
    """Formats of answers would have the new rule's numbers, and those of pairs the old one's."""
    work, flags = str(tmp_path / "work"), ("--strategy", "best_worst")
    body = "def length(row, answers):\n    return list(map(len, answers))\n"
    assert given(f"{rule_file(tmp_path, body)}:length") == 0
    assert main(["pairs", work, "--name", "old", *flags]) == 0
    shutil.rmtree(tmp_path / "work/rule")
    file = rule_file(tmp_path, body.replace("list(map(len, answers))", "[-len(answer) for answer in answers]"))
    assert given(f"{file}:length") == 0
    assert main(["report", work, "--compare", "old"]) == 0
    export = ["export", work, "--name", "old", "--format", "scored", "--output", str(tmp_path / "exported")]
    assert main(export) == 2
    assert "made of other rewards: rule has changed since; make it again, by data-engine" in capsys.readouterr().err
    assert main(["pairs", work, "--name", "old", *flags]) == 0
    assert main(export) == 0


def test_a_source_that_is_left_out_of_a_start_keeps_its_units(run, monkeypatch):
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: pytest.fail("no model is needed"))
    file = rule_file(run.folder, "def length(row, answers):\n    return list(map(len, answers))\n")
    assert run.computed_again(rewards="implicit,rule", rule=f"{file}:length") == set()
    lengths = {(row["idx"], row["sample_index"]): len(row["answer"]) for row in run.answers()}
    assert {(row["idx"], row["sample_index"]): row["score"] for row in read(run.work / "rule")} == lengths
    before = {path: path.stat().st_mtime_ns for path in (run.work / "rule").iterdir()}
    # Without the source, its flag and its file, nothing is asked of its units.
    Path(file).unlink()
    assert run.computed_again() == set()
    assert {path: path.stat().st_mtime_ns for path in (run.work / "rule").iterdir()} == before


def test_a_source_that_the_last_start_left_out_is_told_to_be_named_again(run, capsys):
    file = rule_file(run.folder, "def length(row, answers):\n    return list(map(len, answers))\n")
    again = {"rewards": "implicit,rule", "rule": f"{file}:length"}
    assert run.computed_again(**again) == run.computed_again() == set()
    command = ["pairs", str(run.work), "--name", "by-rule", "--rank_by", "rule"]
    capsys.readouterr()
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f'data-engine: error: rank_by names rule, of which "{run.work}" has units of an earlier start: give the '
        "command of the run with --rewards implicit,rule, which computes none of them again\n"
    )
    before = {path: path.stat().st_mtime_ns for path in (run.work / "rule").iterdir()}
    assert run.computed_again(**again) == set()
    assert {path: path.stat().st_mtime_ns for path in (run.work / "rule").iterdir()} == before
    assert main(command) == 0
    # One that no start has computed is unknown, as before.
    assert main([*command[:-1], "contrast.sum"]) == 2
    assert "which no source of reward of this run has" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_rank_leaves_no_worker_and_a_rerun_gives_the_same_bytes(given, goldens, tmp_path, monkeypatch):
    # Hangs in the last unit, for as long as somebody waits for it behind a pipe.
    body = """
        import os, time
        def f(row, answers):
            if row["idx"] == 3 and os.path.exists(PIPE):
                open(PIPE, "w").write(str(os.getpid()))
                time.sleep(1000)
            return [len(answer) for answer in answers]
    """
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    file = rule_file(tmp_path, f"PIPE = {str(pipe)!r}\n{textwrap.dedent(body)}")
    picture = {"bytes": hostile_rows()[0][2], "path": None}
    records = [{"idx": idx, "question": "How many?", "image": picture} for idx in ANSWERS]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "pictures.parquet")
    flags = {"dataset_path": tmp_path / "pictures.parquet", "answers": tmp_path / "answers.jsonl", "rule": f"{file}:f",
             "rewards": "implicit,rule", "unit_size": 1, "rank": 1, "work_dir": tmp_path / "killed", "threads": 1,
             "instruct_model_path": goldens / "llava/instruct",
             "reward_model_path": goldens / "llava/reward"}  # fmt: skip
    command = [sys.executable, "-m", "data_engine", "run", *(f"--{name}={value}" for name, value in flags.items())]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as rank:
        hanging = os.pidfd_open(int(pipe.read_text()))
        pipe.unlink()
        rank.send_signal(signal.SIGKILL)
    # A pidfd can be read from when its process has ended; by itself this one would at its limit, in 60 s.
    assert select.select([hanging], [], [], 30)[0]
    os.close(hanging)
    # The last but one may be on its way to the disk.
    assert (tmp_path / "killed/rule/unit-00000.parquet").exists()
    assert not (tmp_path / "killed/rule/unit-00002.parquet").exists()
    monkeypatch.undo()
    for name in ("killed", "whole"):
        assert (
            worker.run(
                RunConfig(
                    **{flag: str(value) if isinstance(value, Path) else value for flag, value in flags.items()}
                    | {"work_dir": str(tmp_path / name)}
                )
            )
            == 0
        )
    for stage in ("rule", "instruct_logps", "reward_logps"):
        for unit in ("unit-00000.parquet", "unit-00001.parquet", "unit-00002.parquet"):
            killed, whole = (tmp_path / name / stage / unit for name in ("killed", "whole"))
            assert killed.read_bytes() == whole.read_bytes(), (stage, unit)


def test_it_is_told_why_answers_have_no_number(given, tmp_path, capsys):
    body = """
    def mine(row, answers):
        return {1: [1.0, None, "good", 0.0], 2: [1.0, float("nan"), 0.0, "bad"], 3: [1.0, 0.5, 0.5, "bad"]}[row["idx"]]
    """
    assert given(rule_file(tmp_path, textwrap.dedent(body)) + ":mine") == 0
    told = "rule: no number for 4 of 12 answers; most often (3): the rule gave a value of type str, expected a number"
    assert told in capsys.readouterr().err
