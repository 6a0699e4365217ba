"""Answers of 8,192 tokens: drawn, scored and paired, on both paths of a model."""

import pytest
import tiny_causal
import torch
from asked import Asked
from checkpoints import Checkpoint
from families import Family
from product import DEVICE
from reference import Stock, token_logps
from runs import Pair, few, read
from thinkers import steer
from tiny_parts import EOS, ids, picture

from data_engine.config import RunConfig
from data_engine.job import worker
from data_engine.models.auto.model import Auto
from data_engine.pipeline import score
from data_engine.scoring import logprobs, self_check

LENGTH = 8192


def endless():
    """LLaVA's kind, with room for long answers, that draws no end."""
    model, processor = tiny_causal.llava()
    model.config.text_config.max_position_embeddings = LENGTH + 512
    steer(model, dict.fromkeys([EOS, *ids(processor.tokenizer, "<s>", "<pad>")], -50))
    return model, processor


def start(folder, **more):
    pair = Pair(Checkpoint("endless", folder, Family("test_long_answers:endless", "no end")), folder)
    flags = {
        "dataset_path": few(folder, 1), "work_dir": str(folder / "work"), "sample_k": 2, "max_new_tokens": LENGTH,
        "rank": 1, "instruct_model_name": "auto", "reward_model_name": "auto", "stop_after_stage": 1,
    }  # fmt: skip
    assert worker.run(RunConfig(**pair.flags(**flags | more))) == 0
    return pair, read(folder / "work/sampled_answer"), read(folder / "work/instruct_logps")


@pytest.mark.slow
@pytest.mark.families
@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
def test_answers_of_8192_tokens_are_drawn_and_scored(tmp_path, monkeypatch, plain):
    if plain:
        monkeypatch.setattr(Auto, "find_layers", lambda model: setattr(model, "why_plain", "it is told so"))
    passes, checked, together = [], [], []
    run_packed = logprobs._run_packed
    monkeypatch.setattr(
        logprobs, "_run_packed", lambda model, asked: together.extend(list(map(len, rows)) for _, rows in asked)
        or run_packed(model, asked),
    )  # fmt: skip
    score_pass = score.score_pass
    monkeypatch.setattr(
        score, "score_pass", lambda model, asked: passes.append([len(one.answers) for one in asked])
        or score_pass(model, asked),
    )  # fmt: skip
    plain_token_logps = self_check.plain_token_logps
    monkeypatch.setattr(
        self_check, "plain_token_logps", lambda model, prompt, answer: checked.append(len(answer))
        or plain_token_logps(model, prompt, answer),
    )  # fmt: skip
    pair, sampled, scored = start(tmp_path)
    assert [(len(row["token_ids"]), row["finish_reason"]) for row in sampled] == [(LENGTH, "length")] * 2
    assert [len(row["token_logps"]) for row in scored] == [LENGTH] * 2
    # One pass of each of the two models, in which both answers run at a time: 16,382 tokens are not too many yet.
    assert passes == [[2]] * 2
    # Beside those by which the path is decided on.
    assert [rows for rows in together if LENGTH - 1 in rows] == ([] if plain else [[LENGTH - 1] * 2] * 2)
    assert plain or max(checked) == 1024
    # Each token against the stock model's forward of the first answer.
    stock = Stock(pair.instruct, pair.checkpoint.processor)
    row = read(tmp_path / "work/sampled_answer")[0]
    asked = Asked(((100, 130),), "What is it?")
    monkeypatch.setattr(Asked, "images", lambda asked: [picture(100, 130, seed=0)])
    expected = token_logps(stock.logits(asked, row["token_ids"]), row["token_ids"])
    torch.testing.assert_close(torch.tensor(scored[0]["token_logps"]), expected, atol=1e-4, rtol=0)
    assert DEVICE != "cpu" or scored[0]["sum"] == pytest.approx(expected.double().sum().item(), abs=0.05)
