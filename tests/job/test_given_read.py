"""Which answers of a file are used, and how they are read, whatever its layout and size."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answer_files import EMPTY, GOOD, jsonl, parquet, three_questions
from run_files import hostile_rows, read

from data_engine.errors import UserError
from data_engine.job import worker
from data_engine.questions.dataset import load_questions
from data_engine.questions.given_answers import GivenAnswers, check_answers
from data_engine.questions.given_rows import GivenAnswer
from data_engine.store.claims import Claims
from data_engine.store.file_hashes import hash_files


@pytest.fixture
def questions(tmp_path) -> Path:
    return three_questions(tmp_path)


def test_empty_and_repeated_answers_are_not_used_and_counted(config, questions, tmp_path, capsys):
    """As an API gives them: nothing where it failed, and the same where it was asked again."""
    rows = [GOOD[0], *EMPTY, GOOD[0], *GOOD[1:], GOOD[3], {"idx": "c", "answer": "A cat."}]
    file = jsonl(tmp_path, *rows)
    assert worker.run(config(questions, answers=file, rank=1)) == 0
    told = "5 answers to 3 of 3 questions; not used: 3 empty, 2 repeated for their question"
    assert told in capsys.readouterr().err
    found = read(tmp_path / "work/sampled_answer")
    expected = [("a", 0, "A cat."), ("a", 1, "A dog."), ("b", 0, "A cat."), ("b", 1, "A dog."), ("c", 0, "A cat.")]
    assert [(row["idx"], row["sample_index"], row["answer"]) for row in found] == expected


def test_what_is_not_used_counts_for_nothing(questions, tmp_path):
    """By hand, of what stays."""
    rows = [
        {"idx": "a", "answer": "é", "token_ids": [5]},
        {"idx": "a", "token_ids": [5, 6]},
        {"idx": "a", "token_ids": [6, 5]},
        {"idx": "a", "token_ids": [5, 6]},
        # Two of one text make no pair, whatever their ids.
        {"idx": "a", "answer": "é"},
        {"idx": "b", "answer": "of four words, one"},
        {"idx": "b", "answer": "of four words, one"},
    ]
    facts = check_answers(jsonl(tmp_path, *rows), load_questions(str(questions)))
    assert (facts.rows, facts.repeated, facts.empty) == (4, 3, 0)
    assert facts.questions_by_answers == {0: 1, 1: 1, 3: 1}
    assert (facts.text_alone, facts.ids_alone, facts.text_bytes) == (1, 2, 2 + 18)
    assert facts.most_tokens == 1 + 2 + 2 + (18 + 1)


def test_text_of_any_layout_and_ids_of_any_width_are_read(config, questions, tmp_path):
    idx = pa.array(["a", "a", "b", "b"])
    texts = pa.array(["Ä cat.", "A dog.", "One \U0001f600", "Two"])
    ids = pa.array([[5], [6, 7], None, [8]])
    expected = [["Ä cat.", [5]], ["A dog.", [6, 7]], ["One \U0001f600", None], ["Two", [8]]]
    layouts = [
        (idx, texts, ids),
        (idx.dictionary_encode(), texts.dictionary_encode(), ids.cast(pa.large_list(pa.int16()))),
        (idx.cast(pa.large_string()), texts.cast(pa.binary()), ids.cast(pa.list_(pa.uint64()))),
    ]
    for one, two, three in layouts:
        file, work = parquet(tmp_path, idx=one, answer=two, token_ids=three), tmp_path / "copies"
        found = GivenAnswers.of(work, file, load_questions(str(questions)), hash_files, Claims(work, 0))
        assert found.of_rows(range(3)) == [
            [GivenAnswer(*row) for row in expected[:2]], [GivenAnswer(*row) for row in expected[2:]], []
        ]  # fmt: skip
        assert found.of_rows(range(1, 2)) == [[GivenAnswer(*row) for row in expected[2:]]]


def test_whole_numbers_stay_whole_numbers_as_idx(config, tmp_path):
    good = hostile_rows()[0]
    rows = [{"idx": n, "question": good[1], "image": {"bytes": good[2], "path": None}} for n in (3, -4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions.parquet")
    named = load_questions(str(tmp_path / "questions.parquet"))
    with pytest.raises(UserError, match='line 1: idx is "3"; expected a whole number, as the idx of the dataset'):
        check_answers(jsonl(tmp_path, {"idx": "3", "answer": "x"}), named)
    file = tmp_path / "answers.jsonl.gz"
    file.write_bytes(gzip.compress(b"".join(json.dumps({"idx": -4, "answer": a}).encode() + b"\n\n" for a in "xy")))
    assert worker.run(config(tmp_path / "questions.parquet", answers=str(file), rank=1)) == 0
    assert [(row["idx"], row["answer"]) for row in read(tmp_path / "work/sampled_answer")] == [(-4, "x"), (-4, "y")]


@pytest.mark.slow
def test_memory_stays_bounded_whatever_the_size_of_the_file(tmp_path, questions):
    """200 MB of texts are checked and sorted in a tenth of that."""
    import tracemalloc

    named = load_questions(str(questions))
    text = "x" * 100_000
    with open(tmp_path / "answers.jsonl", "w") as file:
        for number in range(2000):
            file.write(json.dumps({"idx": "abc"[number % 3], "answer": f"{number} {text}"}) + "\n")
    work = tmp_path / "copies"
    tracemalloc.start()
    found = GivenAnswers.of(work, str(tmp_path / "answers.jsonl"), named, hash_files, Claims(work, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert [len(answers) for answers in found.of_rows(range(1, 3))] == [667, 666]
