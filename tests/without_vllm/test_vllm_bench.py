"""`data-engine bench --vllm` over the stand-in: the tokens that are timed, what is dropped before, and refusals."""

import multiprocessing
import sys
import time

import pytest
import torch

from data_engine.bench import figures, measure
from data_engine.bench.by_vllm import ByVllm
from data_engine.bench.model import Sizes, Subject
from data_engine.bench.ways import VLLM_WAYS, Ways
from data_engine.commands import bench
from data_engine.errors import LostRankError, UserError
from data_engine.sampling.native.scheduler import SamplingEngine

SMALL = Sizes(k=2, questions=2, drawn_questions=3, answer_tokens=5, new_tokens=3, most_tokens=6, rounds=1)


@pytest.fixture(scope="module")
def subject(folders, one_thread) -> Subject:
    return Subject(folders["instruct"], SMALL, "cpu", "float32")


def test_vllm_draws_as_many_tokens_as_the_engine_behind_prompts_that_it_has_not_kept(subject, vllm):
    by_vllm, ways = ByVllm(subject), Ways(subject, SamplingEngine(subject.engine, 4, 4))
    [engine] = vllm.engines
    for lengths_BK in (ways.fixed_BK, ways.drawn_BK):
        engine.given.clear()
        before = engine.resets
        assert by_vllm.sample(lengths_BK) == ways.sample_by_engine(lengths_BK) == lengths_BK.sum()
        assert engine.resets == [*before, "prefix", "encoder"]
        # No token ends an answer before its length.
        for _, params in engine.given:
            assert not params.stop_token_ids
            assert set(params.logit_bias) == {2, 4}
            assert params.logprobs == 0
    by_vllm.close()
    assert engine.closed


def test_answers_of_one_length_are_one_request_and_others_one_each(subject, vllm):
    by_vllm, ways = ByVllm(subject), Ways(subject, SamplingEngine(subject.engine, 4, 4))
    [engine] = vllm.engines
    engine.given.clear()
    by_vllm.sample(ways.fixed_BK)
    assert [params.n for _, params in engine.given] == [2, 2]
    engine.given.clear()
    by_vllm.sample(ways.drawn_BK)
    wanted = [length for row in ways.drawn_BK.tolist() if len(set(row)) > 1 for length in row]
    assert [params.max_tokens for _, params in engine.given if params.n == 1] == wanted
    by_vllm.close()


def test_vllm_scores_each_answer_behind_its_prompt_that_it_has_not_kept(subject, vllm):
    by_vllm = ByVllm(subject)
    [engine] = vllm.engines
    engine.given.clear()
    before = engine.resets
    assert by_vllm.score() == subject.answers_BKL.numel()
    assert engine.resets == [*before, "prefix", "encoder"]
    answers = [ids for question in subject.answers_BKL.tolist() for ids in question]
    assert [prompt["prompt_token_ids"][-len(answers[0]) :] for prompt, _ in engine.given] == answers
    assert all(params.prompt_logprobs == 0 for _, params in engine.given)
    by_vllm.close()


def test_vllm_has_the_threads_of_the_other_ways_on_a_cpu(subject, vllm, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "auto")
    ByVllm(subject).close()
    told = vllm.started_with["environment"]
    assert (told["OMP_NUM_THREADS"], told["VLLM_CPU_OMP_THREADS_BIND"]) == (str(torch.get_num_threads()), "nobind")
    assert vllm.engines[0].args.kv_cache_memory_bytes == 4 * 1024**3


def test_a_vllm_that_fails_before_the_clock_starts_is_ended_and_the_bench_goes_on_if_it_may(subject, vllm):
    vllm.fails = lambda: RuntimeError("Worker failed with error 'CUDA out of memory.'")
    with pytest.raises(UserError, match="vLLM ran out of memory"):
        measure._by_vllm(subject, measure.Options(vllm=True))
    found, why = measure._by_vllm(subject, measure.Options(vllm_if_there=True))
    assert found is None
    assert why.startswith("vLLM was not timed: vLLM ran out of memory (")
    assert [engine.closed for engine in vllm.engines] == [True, True]


def test_a_start_that_fails_half_way_leaves_its_threads_and_no_process_to_the_bench(subject, vllm, monkeypatch):
    vllm.worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    vllm.refuses_to_start = ValueError("No available memory for the cache blocks.")
    # vLLM leaves the process one.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    found, why = measure._by_vllm(subject, measure.Options(vllm_if_there=True))
    assert found is None
    assert told[-1] == 3
    assert "does not start (No available memory for the cache blocks.)" in why
    assert not vllm.worker.is_alive()


@pytest.mark.parametrize("error", [UserError("vLLM ran out of memory"), LostRankError("a worker of vLLM's has ended")])
def test_a_vllm_that_fails_is_not_asked_again_and_the_other_ways_are_kept(error, caplog):
    asked = []

    def failing() -> int:
        asked.append(1)
        raise error

    timed = {"engine, sampling": lambda: 7, "vllm, sampling": failing, "vllm, drawn lengths": failing}
    assert measure.measure(timed, 2, torch.device("cpu")).keys() == {"engine, sampling"}
    assert len(asked) == 1
    assert str(error) in caplog.text
    with pytest.raises(type(error)):
        measure.measure({"engine, sampling": failing}, 1, torch.device("cpu"))


def test_no_memory_is_told_of_vllm_whose_own_lies_in_other_processes():
    found = measure.measure({"engine, sampling": lambda: 7, "vllm, sampling": lambda: 7}, 1, torch.device("cpu"))
    assert found["engine, sampling"]["peak_bytes"] > 0
    assert found["vllm, sampling"]["peak_bytes"] is None


def test_the_ratio_is_to_the_engine_s_way_of_the_same_work():
    measured = {
        "engine, sampling": {"seconds": [2.0], "tokens": 10},
        "engine, drawn lengths": {"seconds": [3.0], "tokens": 10},
        "engine, scoring": {"seconds": [2.0], "tokens": 10},
        "vllm, prompt_logprobs": {"seconds": [10.0], "tokens": 10},
        "vllm, sampling": {"seconds": [8.0], "tokens": 10},
        "vllm, drawn lengths": {"seconds": [6.0], "tokens": 10},
    }
    ratios = {"vllm, prompt_logprobs": 5.0, "vllm, sampling": 4.0, "vllm, drawn lengths": 2.0}
    assert figures.ratios(measured) == ratios
    assert set(VLLM_WAYS) < set(measured)


def test_a_bench_without_vllm_names_what_is_missing(monkeypatch, folders):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"needs vLLM, which is not installed: pip install 'vlm-data-engine\[vllm\]'"):
        bench.main(["--vllm", "--quick", "--model", str(folders["instruct"])])
