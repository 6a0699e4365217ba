"""Whole runs in this process: how much goes through the models at a time, and memory that runs out."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_files import hostile_rows, noise, png, read, write

from data_engine.errors import UserError
from data_engine.job import budgets, model_holder, worker
from data_engine.models.checkpoints import checkpoint
from data_engine.models.sharding import placement
from data_engine.pipeline import passes, score
from data_engine.sampling.native import model_runner, scheduler
from data_engine.scoring import logprobs
from data_engine.store import logs, units


def budgets_of(monkeypatch, **changed: int) -> None:
    found = budgets.budgets
    monkeypatch.setattr(budgets, "budgets", lambda *a: found(*a) | changed)


def test_budgets_are_frozen_by_the_first_start(config, tmp_path, monkeypatch):
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])
    worker.run(config(dataset, stop_after_stage=0))
    before = json.loads((tmp_path / "work/run.json").read_text())["frozen"]
    budgets_of(monkeypatch, decode_rows=3, decode_slots=2, score_tokens=7)
    used = []
    init = passes.AnswerRunner.__init__
    monkeypatch.setattr(passes.AnswerRunner, "__init__", lambda *a, **b: used.append(a[2]) or init(*a, **b))
    assert worker.run(config(dataset, memory_fraction=0.3)) == 0
    assert json.loads((tmp_path / "work/run.json").read_text())["frozen"] == before
    assert set(used) == {before["score_tokens"]}


def test_other_budgets_give_the_same_answers_and_log_probs(config, tmp_path, monkeypatch):
    """4 questions x 4 answers, by rows 80, 5 and 1, and scored one question a pass, two, and all."""
    photos = [noise((60, 60), spread) for spread in (20, 40, 60, 80)]
    dataset = write(tmp_path / "questions.parquet", [(f"q{i}", "What is it?", png(p)) for i, p in enumerate(photos)])
    found = []
    for rows, tokens in ((80, 0), (5, 400), (1, 10_000)):
        budgets_of(monkeypatch, decode_rows=rows, decode_slots=3, score_tokens=tokens)
        assert worker.run(config(dataset, work_dir=str(tmp_path / f"{rows}"), stop_after_stage=1)) == 0
        found.append([read(tmp_path / f"{rows}" / stage) for stage in ("sampled_answer", "instruct_logps")])
    for sampled, scored in found[1:]:
        assert sampled == found[0][0]
        for one, other in zip(scored, found[0][1], strict=True):
            assert one["token_logps"] == pytest.approx(other["token_logps"], abs=1e-5)


def test_a_model_whose_modules_hold_each_other_is_gone_before_the_next_is_loaded(config, tmp_path, monkeypatch):
    dataset = write(tmp_path / "questions.parquet", hostile_rows()[:1])
    load, before, returned = model_holder.load_model, [], []
    # Before torch returns memory to the device, where other processes see it.
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: returned.append([layer() for layer in before]))

    def loaded(*given, **options):
        assert [layer() for layer in before] == [None] * len(before)
        model = load(*given, **options)
        [layer, *_] = model.decoder.layers
        layer.itself = [layer]
        before.append(weakref.ref(layer))
        return model

    monkeypatch.setattr(model_holder, "load_model", loaded)
    gc.collect()
    gc.disable()
    try:
        assert worker.run(config(dataset, stop_after_stage=1)) == 0
    finally:
        gc.enable()
    assert len(before) == 2
    assert returned == [[None], [None, None]]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GB"), MemoryError()])
def test_a_model_that_does_not_fit_the_memory_is_told_by_its_flag_with_what_there_is(
    config, tmp_path, monkeypatch, error
):
    """14 GB of weights in a rank's 8 GB: a traceback of torch's would say neither."""
    dataset, load = write(tmp_path / "questions.parquet", hostile_rows()[:1]), checkpoint._placed

    def placed(value, target, *rest):
        if target.endswith("norm.weight"):
            raise error
        return load(value, target, *rest)

    monkeypatch.setattr(checkpoint, "_placed", placed)
    decision = placement.Decision(False, "auto", 14 * 10**9, 8 * 10**9, 8 * 10**9, 1)
    monkeypatch.setattr(placement, "decide", lambda *of: decision)
    with pytest.raises(UserError) as raised:
        worker.run(config(dataset))
    told = str(raised.value)
    assert told.startswith('--instruct_model_path "')
    assert f"memory ran out while the model was loaded ({str(error) or 'MemoryError'}); zero3 auto: each rank" in told
    assert "14.0 GB of weights + 8.0 GB of working room > 8.0 GB of memory a rank" in told
    assert "(--zero3 on)" in told


def test_a_unit_that_ran_out_of_memory_is_done_in_halves_and_says_so(config, tmp_path, monkeypatch):
    """The second pass of each stage does not fit."""
    photos = [noise((60, 60), spread) for spread in (20, 80)]
    dataset = write(tmp_path / "questions.parquet", [(f"q{i}", "What is it?", png(p)) for i, p in enumerate(photos)])
    assert worker.run(config(dataset, work_dir=str(tmp_path / "whole"), stop_after_stage=1)) == 0
    calls = []

    def fails(name, original):
        def call(*arguments):
            calls.append(name)
            if calls.count(name) == 2:
                raise torch.OutOfMemoryError("no room")
            return original(*arguments)

        return call

    monkeypatch.setattr(scheduler.ModelRunner, "next", fails("sample", scheduler.ModelRunner.next))
    monkeypatch.setattr(score, "score_pass", fails("score", score.score_pass))
    assert worker.run(config(dataset, stop_after_stage=1)) == 0
    assert read(tmp_path / "work/sampled_answer") == read(tmp_path / "whole/sampled_answer")
    assert len(read(tmp_path / "work/reward_logps")) == 8
    lines = [line for line in logs.unit_lines(tmp_path / "work")]
    assert [(line["stage"], line.get("out_of_memory")) for line in lines] == [
        ("sampled_answer", 1), ("instruct_logps", 1), ("reward_logps", None)
    ]  # fmt: skip


def test_a_question_that_exceeds_the_memory_alone_is_quarantined(config, tmp_path, monkeypatch):
    """The second of three does not fit where it is sampled, the third where the reward model scores it."""
    photos = [noise((60, 60), spread) for spread in (20, 50, 80)]
    asked = ["What is it?", "What is it, if not a giant?", "What is it then?"]
    rows = [(f"q{i}", text, png(photo)) for i, (text, photo) in enumerate(zip(asked, photos, strict=True))]
    dataset = write(tmp_path / "questions.parquet", rows)

    load, roles = model_holder.load_model, []
    monkeypatch.setattr(
        model_holder, "load_model", lambda name, path, **rest: roles.append(Path(path).name) or load(name, path, **rest)
    )

    def fails(original, text: str, role: str):
        def call(model, prompt):
            if prompt.ids == model.prompt_ids(text) and roles[-1] == role:
                raise torch.OutOfMemoryError("no room")
            return original(model, prompt)

        return call

    monkeypatch.setattr(model_runner, "run_prefix", fails(model_runner.run_prefix, asked[1], "instruct"))
    monkeypatch.setattr(logprobs, "run_prefix", fails(logprobs.run_prefix, asked[2], "reward"))
    assert worker.run(config(dataset)) == 0
    reason = "out of memory, even with one answer at a time"
    assert sorted((row["idx"], row["stage"], row["reason"]) for row in list(units.left_out(tmp_path / "work"))) == [
        ("q1", "sampled_answer", reason), ("q2", "reward_logps", reason)
    ]  # fmt: skip
    assert {row["idx"] for row in read(tmp_path / "work/reward_logps")} == {"q0"}


def test_memory_that_no_question_fits_ends_the_run_and_quarantines_nothing(config, tmp_path, monkeypatch):
    dataset = write(tmp_path / "questions.parquet", [("q0", "What is it?", png(Image.new("RGB", (60, 60))))])

    def fails(*_):
        raise torch.OutOfMemoryError("no room")

    for module in (model_runner, logprobs):
        with monkeypatch.context() as patch:
            patch.setattr(module, "run_prefix", fails)
            work = tmp_path / module.__name__
            with pytest.raises(UserError, match="no room for a single question"):
                worker.run(config(dataset, work_dir=str(work)))
        assert not list(units.left_out(work))
