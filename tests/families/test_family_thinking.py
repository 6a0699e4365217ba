"""A whole run of a model that thinks, on real photographs, held against the stock model's own forward."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import Checkpoint
from comparisons import TOLERANCE
from reference import Stock
from runs import Pair, read
from test_family_photographs import PHOTOS, Photograph
from thinkers import FAMILIES

from data_engine import load_model, sample_answers, score_answers
from data_engine.config import RunConfig
from data_engine.job import worker
from data_engine.preferences.funnel import Funnel

END = "</think>"
LENGTH = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of Qwen3.5's kind on the photographs: its models, and the work_dir."""
    if not PHOTOS.exists():
        pytest.skip("../shared/photos is not here: no photographs")
    folder = tmp_path_factory.mktemp("thinking")
    pair = Pair(Checkpoint("qwen3_5", folder, FAMILIES["qwen3_5"]), folder)
    run(pair, folder / "work")
    return pair, folder / "work"


def run(pair: Pair, work: Path, code: int = 0, **more: object) -> None:
    paths = {"dataset_path": str(PHOTOS), "work_dir": str(work)}
    assert worker.run(RunConfig(**pair.flags(**paths, max_new_tokens=LENGTH, unit_size=8) | more)) == code


@pytest.mark.families
def test_answers_are_cut_behind_their_thoughts_and_the_others_never_rank(made):
    pair, work = made
    tokenizer = pair.checkpoint.processor.tokenizer
    mark = tokenizer.convert_tokens_to_ids(END)
    sampled = read(work / "sampled_answer")
    unfinished = [row for row in sampled if mark not in row["token_ids"]]
    # Both kinds are there, and answers with two thoughts.
    assert 10 < len(unfinished) < len(sampled) - 40
    assert any(row["token_ids"].count(mark) > 1 for row in sampled)
    for row in sampled:
        assert (row["answer"] is None) == (mark not in row["token_ids"])
        behind = row["token_ids"][len(row["token_ids"]) - row["token_ids"][::-1].index(mark) :] \
            if mark in row["token_ids"] else []  # fmt: skip
        assert len(row["token_ids"]) - row["thought_tokens"] == len(behind)
        if row["answer"] is not None:
            assert row["answer"] == tokenizer.decode(behind, skip_special_tokens=True).strip()
    funnel = Funnel.from_json(pq.read_schema(work / "pairs/pairs.parquet").metadata[b"funnel"].decode())
    assert funnel.not_ranked["unfinished_thought"] == len(unfinished)
    assert "marker" not in funnel.not_ranked
    texts = {(row["idx"], row["answer"]) for row in sampled}
    dataset = read(work / "dataset")
    assert dataset
    for row in dataset:
        assert END not in row["chosen"] + row["rejected"]
        assert {(row["idx"], row[side]) for side in ("chosen", "rejected")} <= texts


@pytest.mark.families
@pytest.mark.parametrize("role", ["instruct", "reward"])
def test_log_probs_are_those_of_the_final_tokens_behind_prompt_and_thought(made, role):
    """By one forward of the stock model over prompt, thought and answer."""
    pair, work = made
    stock = Stock(getattr(pair, role), pair.checkpoint.processor)
    scored = {(row["idx"], row["sample_index"]): row for row in read(work / f"{role}_logps")}
    photographs = {row["idx"]: row for row in read(PHOTOS.parent)}
    compared, rows = 0, read(work / "sampled_answer")
    for row in rows:
        key, counted = (row["idx"], row["sample_index"]), len(row["token_ids"]) - row["thought_tokens"]
        assert (key in scored) == (row["answer"] is not None and counted > 0)
        if key not in scored or row["idx"] not in list(photographs)[::6]:
            continue
        found = scored[key]
        expected = stock.score(Photograph(photographs[row["idx"]]), row["token_ids"])[-counted:]
        torch.testing.assert_close(torch.tensor(found["token_logps"]), expected, atol=TOLERANCE, rtol=0)
        assert found["sum"] == pytest.approx(expected.double().sum().item(), abs=1e-3)
        assert found["mean"] == pytest.approx(expected.double().mean().item(), abs=1e-3)
        compared += 1
    assert compared > 8


@pytest.mark.families
def test_python_gives_the_answers_of_the_run_and_how_long_their_thoughts_are(made):
    pair, work = made
    model = load_model(None, str(pair.instruct), device="cpu", dtype="float32")
    row = read(PHOTOS.parent)[5]
    image, question = row["image"]["bytes"], row["question"]
    found = sample_answers(model, image, question, k=4, idx=row["idx"], temperature=1.0, max_new_tokens=LENGTH)
    expected = [one for one in read(work / "sampled_answer") if one["idx"] == row["idx"]]
    assert [(one.text, one.token_ids, one.thought_tokens) for one in found] == [
        (one["answer"], one["token_ids"], one["thought_tokens"]) for one in expected
    ]
    scored = {one["sample_index"]: one for one in read(work / "instruct_logps") if one["idx"] == row["idx"]}
    logps = score_answers(model, image, question, [one.token_ids for one in found])
    for index, (answer, one) in enumerate(zip(found, logps, strict=True)):
        if index in scored:
            wanted = torch.tensor(scored[index]["token_logps"])
            torch.testing.assert_close(one[answer.thought_tokens :], wanted, atol=1e-5, rtol=0)


@pytest.mark.families
def test_without_thinking_every_answer_counts_whole(made, tmp_path):
    pair, _ = made
    run(pair, tmp_path / "work", chat_template_kwargs='{"enable_thinking": false}', limit=8, stop_after_stage=1)
    sampled = read(tmp_path / "work/sampled_answer")
    mark = pair.checkpoint.processor.tokenizer.convert_tokens_to_ids(END)
    whole = [row for row in sampled if mark not in row["token_ids"]]
    assert whole
    assert all(row["answer"] is not None for row in sampled)
    scored = {(row["idx"], row["sample_index"]): len(row["token_logps"]) for row in
              read(tmp_path / "work/instruct_logps")}  # fmt: skip
    assert {key: scored[key] for row in whole if (key := (row["idx"], row["sample_index"]))} == {
        (row["idx"], row["sample_index"]): len(row["token_ids"]) for row in whole
    }


@pytest.mark.families
def test_a_run_whose_thoughts_are_all_cut_off_ends_without_a_pair_and_says_why(tmp_path, capsys):
    if not PHOTOS.exists():
        pytest.skip("../shared/photos is not here: no photographs")
    pair = Pair(Checkpoint("qwen3_5_spelled", tmp_path, FAMILIES["qwen3_5_spelled"]), tmp_path)
    run(pair, tmp_path / "work", code=4, limit=4, max_new_tokens=8)
    assert "16 answers not ranked: unfinished_thought" in capsys.readouterr().err


@pytest.mark.families
def test_a_template_whose_thoughts_no_token_ends_is_refused_before_any_work(made, tmp_path, capsys):
    from data_engine.commands.main import main

    pair, _ = made
    for folder in (pair.instruct, pair.reward):
        shutil.copytree(folder, tmp_path / folder.name)
        [template] = (tmp_path / folder.name).glob("chat_template*")
        template.write_text(template.read_text().replace("<think>", "<|think|>").replace(END, "."))
    words = pair.words("run", dataset_path=str(PHOTOS), work_dir=str(tmp_path / "work"))
    words = [str(word).replace(str(pair.instruct.parent), str(tmp_path)) for word in words]
    for command in ("run", "validate"):
        assert main([command, *words[1:]]) == 2
        told = capsys.readouterr().err
        assert "opens a thought with <|think|>, and its tokenizer has no <|/think|> to end it" in told
        assert "Traceback" not in told
    assert not (tmp_path / "work/run.json").exists()
