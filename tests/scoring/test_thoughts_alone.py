"""Answers that end with the mark of their thought: no token of them counts, so that they have no log-probs."""

import json

import pyarrow.parquet as pq
import pytest
from run_files import read

from data_engine import load_model
from data_engine.job import worker
from data_engine.preferences.funnel import Funnel
from data_engine.questions.dataset import load_questions

THOUGHT = "<think>All is said.</think>"


@pytest.mark.parametrize("alone", [False, True], ids=["among others", "alone"])
def test_an_answer_that_is_a_thought_alone_has_no_row_of_log_probs(config, goldens, tmp_path, alone):
    dataset = goldens / "llava/dataset/questions.parquet"
    model = load_model(None, str(goldens / "llava/instruct"), device="cpu", dtype="float32")
    question = next(iter(load_questions(str(dataset)).rows(range(1))))
    texts = [THOUGHT, f"Hm. {THOUGHT}"] if alone else [THOUGHT, "A red bus.", f"{THOUGHT}Two dogs.", "One old man."]
    ids = [model.encode_answer(question.conversation, text) for text in texts]
    # As a model may end its answer, without a token behind the mark.
    for one in ids if alone else ids[:1]:
        one.pop()
    assert model.read_answer(question.conversation, ids[0]) == ("", THOUGHT, len(ids[0]))
    lines = (json.dumps({"idx": question.idx, "token_ids": one}) + "\n" for one in ids)
    (tmp_path / "answers.jsonl").write_text("".join(lines))
    settings = config(dataset, answers=str(tmp_path / "answers.jsonl"), limit=1, rewards="implicit,contrast")
    assert worker.run(settings) == (4 if alone else 0)
    finals = ["", ""] if alone else ["", "A red bus.", "Two dogs.", "One old man."]
    assert [row["answer"] for row in read(tmp_path / "work/sampled_answer")] == finals
    for stage in ("instruct_logps", "reward_logps"):
        scored = read(tmp_path / "work" / stage)
        assert [row["sample_index"] for row in scored] == ([] if alone else [1, 2, 3])
        assert all(row["token_logps"] for row in scored)
    if not alone:
        schema = pq.read_schema(tmp_path / "work/pairs/pairs.parquet")
        assert Funnel.from_json(schema.metadata[b"funnel"].decode()).not_ranked == {"empty": 1}
