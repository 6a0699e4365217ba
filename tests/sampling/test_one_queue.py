"""One queue through all units, as on a GPU: rows that a unit leaves idle start on the next one."""

import pytest
import torch
from run_files import noise, png, read, write

from data_engine.job import worker
from data_engine.pipeline import sample
from data_engine.sampling.native import backend, packing, scheduler
from data_engine.store import logs, units

NUM_QUESTIONS = 12


@pytest.fixture
def dataset(tmp_path):
    photos = [noise((60, 60), 10 * (i + 1)) for i in range(NUM_QUESTIONS)]
    rows = [(f"q{i:02d}", f"What is it, number {i}?", png(photo)) for i, photo in enumerate(photos)]
    # A row that cannot be used comes last in its unit, and a whole unit of such rows comes last of all.
    rows[3:3] = [("bad", "What is it?", b"this is no image")]
    rows += [(f"worse{i}", "What is it?", None) for i in range(3)]
    return write(tmp_path / "questions.parquet", rows)


@pytest.fixture
def sampled(config, dataset, tmp_path, monkeypatch):
    """Run stage 0 in units of two, eight answers at a time; what was sampled and left out, and the decode steps.

    With `one_queue`, the kernels' path runs, by their eager formula.
    """
    steps = []
    advance = scheduler.ModelRunner.next
    monkeypatch.setattr(scheduler.ModelRunner, "next", lambda *arguments: steps.append(None) or advance(*arguments))
    budgets = {"decode_rows": 8, "decode_slots": 5, "score_tokens": 0}
    monkeypatch.setattr("data_engine.job.budgets.frozen_budgets", lambda *_: budgets)

    def run(name: str, one_queue: bool = True, pages: int = 0, **flags):
        steps.clear()
        budgets["decode_pages"] = pages
        monkeypatch.setattr(backend, "uses_kernels", lambda model: one_queue)
        work = tmp_path / name
        settings = {"unit_size": 2, "max_new_tokens": 24, "temperature": 1.0, "stop_after_stage": 0}
        assert worker.run(config(dataset, work_dir=str(work), **settings | flags)) == 0
        return read(work / "sampled_answer"), list(units.left_out(work)), len(steps)

    return run


@pytest.fixture
def most_in_hand(monkeypatch) -> list[int]:
    """How many units were in the making, whenever one was begun."""
    begun, most = [], []
    found = sample._Unit.result

    class Noted(sample._Unit):
        def __init__(self, number, first):
            super().__init__(number, first)
            begun.append(number)
            most.append(len(begun))

        def result(self, *arguments):
            begun.remove(self.number)
            return found(self, *arguments)

    monkeypatch.setattr(sample, "_Unit", Noted)
    return most


def test_it_samples_the_same_answers_in_fewer_steps(sampled, most_in_hand):
    """Eight rows hold two questions of four answers: two units are in the making at most, and the one to come. In plain
    torch, a unit is claimed when the one before it has ended.
    """
    answers, left_out, steps = sampled("plain", one_queue=False)
    assert len(answers) == 4 * NUM_QUESTIONS
    assert {row["idx"] for row in left_out} == {"bad", "worse0", "worse1", "worse2"}
    assert most_in_hand == [1] * 8
    most_in_hand.clear()
    ahead, ahead_left_out, ahead_steps = sampled("ahead")
    assert ahead == answers
    assert ahead_left_out == left_out
    # Rows that wait for the longest answer of each pair of questions work instead.
    assert ahead_steps < 0.9 * steps
    # The questions of the first unit leave no row; from the third on, each is begun beside another one.
    assert 2 <= min(most_in_hand[2:]) <= max(most_in_hand) <= 4


@pytest.mark.slow
def test_prompts_that_run_in_one_pass_change_no_answer_of_any_unit(sampled, monkeypatch):
    """With many pages, and five slots, up to four prompts of three units run together; with few, each alone."""
    passes, run = [], packing.run_prefixes
    monkeypatch.setattr(packing, "run_prefixes", lambda m, each, rows: passes.append(len(each)) or run(m, each, rows))
    answers, left_out, _ = sampled("alone")
    assert set(passes) == {1}
    passes.clear()
    together, together_left_out, _ = sampled("together", pages=200)
    assert sum(number for number in passes if number > 1) > NUM_QUESTIONS / 2
    assert together == answers
    assert together_left_out == left_out


def test_a_unit_is_published_when_it_is_finished_while_the_next_ones_go_on(sampled, monkeypatch):
    events = []
    publish, stream = units.publish, scheduler.SamplingEngine.stream

    def watched(decoder, *arguments, **options):
        try:
            yield from stream(decoder, *arguments, **options)
        finally:
            events.append("drained")

    monkeypatch.setattr(units, "publish", lambda path, *rest: events.append(path.parent.name) or publish(path, *rest))
    monkeypatch.setattr(scheduler.SamplingEngine, "stream", watched)
    sampled("ahead")
    assert events.count("drained") == 1
    assert events.index("sampled_answer") < events.index("drained")
    assert events[: events.index("drained")].count("sampled_answer") >= 4


def test_out_of_memory_ends_with_the_units_in_hand(sampled, tmp_path, monkeypatch):
    answers, _, _ = sampled("plain", one_queue=False)
    calls, prefill = [], scheduler.ModelRunner.prefill_all

    def fails(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no room")
        return prefill(*arguments)

    monkeypatch.setattr(scheduler.ModelRunner, "prefill_all", fails)
    assert sampled("ahead")[0] == answers
    retries = {line["unit"]: line.get("out_of_memory") for line in logs.unit_lines(tmp_path / "ahead")}
    assert retries.pop(1) == 1
    assert set(list(retries.values())[2:]) == {None}


def test_a_row_that_is_an_error_frees_every_claim(sampled, tmp_path):
    with pytest.raises(worker.UserError, match="'bad' cannot be used"):
        sampled("ahead", on_bad_row="error")
    assert not list((tmp_path / "ahead/claims").iterdir())


def test_it_stops_looking_for_units_when_none_is_free(sampled, monkeypatch):
    looked, claim = [], worker.Worker._claim
    monkeypatch.setattr(worker.Worker, "_claim", lambda *arguments: looked.append(None) or claim(*arguments))
    # One unit of 36 answers, eight at a time: the last four leave rows free for many steps.
    sampled("ahead", unit_size=64, sample_k=3)
    # The unit, once in vain, and once more by the loop that waits until it is published.
    assert 1 <= len(looked) <= 3


def test_a_unit_that_runs_out_of_memory_in_plain_torch_costs_the_next_one_nothing(sampled, tmp_path, monkeypatch):
    """Its rows are halved; the next unit has all rows again."""
    sizes, calls = [], []
    prefill, cache = scheduler.ModelRunner.prefill, scheduler.KVCache

    def fails(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no room")
        return prefill(*arguments)

    monkeypatch.setattr(scheduler.ModelRunner, "prefill", fails)
    monkeypatch.setattr(scheduler, "KVCache", lambda m, rows, *a, **b: sizes.append(rows) or cache(m, rows, *a, **b))
    sampled("plain", one_queue=False)
    assert sizes == [8, 4, 8]
    lines = logs.unit_lines(tmp_path / "plain")
    assert [line["unit"] for line in lines if line.get("out_of_memory")] == [1]
