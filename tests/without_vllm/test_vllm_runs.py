"""Whole runs with --sampler vllm, without vLLM: what it is given, and what becomes of its answers."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from run_files import read
from vllm_stand_in import LENGTH, NUM_QUESTIONS, K

from data_engine.job import worker
from data_engine.models.prompt_maker import TokenPrompt
from data_engine.sampling import vllm as back_end
from data_engine.sampling.requests import PromptRequest
from data_engine.store import units


@pytest.mark.parametrize("changes", [{}, {"same_pixels": True}])
def test_every_answer_is_published_once_with_its_ids_and_its_end(settings, vllm, tmp_path, model, capsys, changes):
    assert worker.run(settings(**changes)) == 0
    answers = read(tmp_path / "work/sampled_answer")
    assert Counter(row["idx"] for row in answers) == dict.fromkeys((row["idx"] for row in answers), K)
    assert len(answers) == NUM_QUESTIONS * K
    [end] = model.eos_token_ids
    for row in answers:
        assert row["finish_reason"] == ("stop" if row["token_ids"][-1] == end else "length")
        assert row["answer"] == model.text(row["token_ids"])
    scored = read(tmp_path / "work/instruct_logps")
    assert [(row["idx"], row["sample_index"]) for row in scored] == [
        (row["idx"], row["sample_index"]) for row in answers
    ]
    facts, _ = units.read_unit_facts(tmp_path / "work", "sampled_answer", 0)
    assert facts["drawn"]["by"] == "vllm"
    if changes.get("same_pixels"):
        ours = [row["sum"] for row in scored[: 2 * K]]
        assert facts["drawn"]["logps"] == pytest.approx(ours, abs=1e-4)
    # Once, and not for each unit.
    assert capsys.readouterr().err.count("vllm's log-probs of drawn tokens differ by") == 1
    run_file = json.loads((tmp_path / "work/run.json").read_text())
    assert run_file["sampler"]["version"] == "0.32.0"
    assert run_file["sampler"]["same_bytes"] is False
    # The engine is gone before a model is loaded.
    assert [engine.closed for engine in vllm.engines] == [True]


def test_a_question_has_a_seed_of_its_own_and_no_setting_of_the_checkpoint_enters(settings, vllm, model):
    worker.run(settings(stop_after_stage=0, top_k=5, top_p=0.9, temperature=0.5))
    [engine] = vllm.engines
    drawing = [params for _, params in engine.given]
    assert len({params.seed for params in drawing}) == NUM_QUESTIONS
    assert all(0 <= params.seed < 2**63 - K for params in drawing)
    for params in drawing:
        assert (params.n, params.temperature, params.top_k, params.top_p) == (K, 0.5, 5, 0.9)
        assert (params.max_tokens, params.ignore_eos, params.stop_token_ids) == (
            LENGTH,
            True,
            list(model.eos_token_ids),
        )
        assert params.logit_bias == {4: back_end.NEVER}
    args = engine.args
    assert args.distributed_executor_backend == "mp"
    assert (args.generation_config, args.mm_processor_kwargs, args.mm_device_do_normalize) == (
        "vllm", {"use_fast": False}, False,
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{"takes_seeds": False}, {"computes_on": "cpu"}])
def test_where_seeds_are_refused_answers_are_drawn_without_and_the_unit_says_so(
    settings, vllm, tmp_path, capsys, changes
):
    vars(vllm).update(changes)
    assert worker.run(settings(stop_after_stage=0)) == 0
    assert "takes no seed for each question" in capsys.readouterr().err
    assert all(params.seed is None for _, params in vllm.engines[0].given)
    assert units.read_unit_facts(tmp_path / "work", "sampled_answer", 1)[0]["drawn"]["seeded"] is False
    assert len(read(tmp_path / "work/sampled_answer")) == NUM_QUESTIONS * K


def test_a_run_goes_on_where_it_was(settings, vllm, tmp_path):
    assert worker.run(settings(stop_after_stage=0)) == 0
    path = units.unit_path(tmp_path / "work", "sampled_answer", 1)
    kept = units.unit_path(tmp_path / "work", "sampled_answer", 0).read_bytes()
    path.unlink()
    assert worker.run(settings()) == 0
    assert [len(engine.given) for engine in vllm.engines] == [NUM_QUESTIONS, 2]
    assert units.unit_path(tmp_path / "work", "sampled_answer", 0).read_bytes() == kept
    # All is sampled: no engine starts.
    assert worker.run(settings()) == 0
    assert len(vllm.engines) == 2


def test_the_sampler_and_what_shapes_its_answers_are_bound(settings, vllm, refusal):
    args = {"tensor_parallel_size": 1, "max_model_len": 512}
    assert worker.run(settings(stop_after_stage=0, vllm_args=json.dumps(args))) == 0
    assert "sampler was vllm, now native" in refusal(settings(sampler="native"))
    assert "vllm_args was '{\"max_model_len\": 512}', now not set" in refusal(settings())
    faster = {"max_model_len": 512, "max_num_seqs": 2}
    assert worker.run(settings(stop_after_stage=0, vllm_args=json.dumps(faster))) == 0
    assert len(vllm.engines) == 1


def test_another_version_of_vllm_goes_on_with_a_warning(settings, vllm, tmp_path, capsys):
    assert worker.run(settings(stop_after_stage=0)) == 0
    path = tmp_path / "work/run.json"
    path.write_text(path.read_text().replace('"version": "0.32.0"', '"version": "0.31.9"'))
    assert worker.run(settings(stop_after_stage=0)) == 0
    assert "this run was started with other versions (vllm 0.31.9 -> 0.32.0)" in capsys.readouterr().err


def test_a_run_of_the_engine_s_own_sampler_does_not_become_vllms(settings, vllm, refusal):
    assert worker.run(settings(sampler="native", stop_after_stage=0)) == 0
    assert "sampler was native, now vllm" in refusal(settings())


def test_scoring_has_the_threads_that_were_asked_for(settings, vllm):
    """vLLM leaves the process one."""
    before = torch.get_num_threads()
    try:
        assert worker.run(settings(threads=3)) == 0
        assert vllm.engines
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_question_is_taken_as_soon_as_answers_of_another_have_ended():
    """Room for four answers; after a step, one of the first question's four is still drawn."""

    class OneByOne:
        vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=4), device_config=SimpleNamespace(device_type="cuda")
        )
        taken, left = (), 0

        def add_request(self, number, prompt, params) -> None:
            self.taken, self.left = (*self.taken, number), self.left + params

        def get_num_unfinished_requests(self) -> int:
            return self.left

        def step(self) -> list:
            self.left -= 3
            return []

    engine = OneByOne()
    backend = back_end.VllmBackend(SimpleNamespace(vllm=engine, rendered=dict), None, None)
    backend._drawing = lambda request: len(request.keys)
    prompt = TokenPrompt([1], [], [1])
    backend.submit(PromptRequest(prompt, [0] * 4) for _ in range(3))
    backend._fill()
    assert engine.taken == ("0",)
    engine.step()
    backend._fill()
    assert engine.taken == ("0", "1")
