"""Row counts and token budgets from memory, by hand."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from data_engine.bench.machine import free_bytes
from data_engine.config import RunConfig
from data_engine.job import budgets as job_budgets
from data_engine.models.base import CacheSizes
from data_engine.models.device import Target
from data_engine.models.sharding import placement
from data_engine.processes.ranks import Ranks
from data_engine.sampling.memory import Needs, budgets, rows_without_pages
from data_engine.sampling.native.kv_cache import num_slots

GB = 10**9
# LLaVA-1.5-7B in bfloat16: 32 layers x 32 heads x 128 wide, keys and values.
LLAVA = Needs(weights=14 * GB, cached_token=2 * 32 * 4096 * 2, activated_token=48 * 4096 * 2)


PAGE = 128 * 524_288


def test_a_gpu_of_80_gb_decodes_what_its_memory_holds():
    """Pages of 128 x 0.5 MB. A row takes 3/8 of its four pages and 2.2 / 10 of a prompt's six: 2.82 pages."""
    found = budgets(72 * GB, LLAVA, "cuda", 10, 512)
    assert found["decode_pages"] == int(0.8 * 58 * GB / PAGE) == 691
    assert found["decode_rows"] == found["decode_slots"] == int(691.4 / 2.82) == 245
    assert found["score_tokens"] == 16_384


def test_a_question_of_one_answer_takes_a_prompt_a_row():
    """And an answer of up to 128 tokens its one page: 7 pages."""
    assert budgets(72 * GB, LLAVA, "cuda", 1, 128)["decode_rows"] == int(691.4 / 7)


def test_recurrent_states_of_answers_and_prompts_take_the_place_of_rows_and_pages():
    """50 MB an answer, and 2.2 / 10 as much of its prompt, beside 2.82 pages."""
    hybrid = replace(LLAVA, answer_state=50_000_000)
    found = budgets(72 * GB, hybrid, "cuda", 10, 512)
    assert found["decode_rows"] == int(46.4 * GB / (2.82 * PAGE + 61_000_000)) == 185
    assert found["decode_pages"] == int((46.4 * GB - 185 * 61_000_000) / PAGE)
    # A prompt a row.
    assert budgets(72 * GB, hybrid, "cuda", 1, 128)["decode_rows"] == int(46.4 * GB / (7 * PAGE + 100_000_000))
    # On CPU, half of what is left: 512 + 2.5 / 10 x 704 tokens a row, and 2.5 / 10 of a prompt's state.
    found = budgets(24 * GB, hybrid, "cpu", 10, 512)
    assert found["decode_rows"] == int(5 * GB / (688 * 524_288 + 62_500_000)) == 11


def test_image_states_of_prompts_take_the_place_of_rows_and_bound_the_prompts():
    """Of Llama 3.2 11B Vision: 8 layers x 2 x 8 heads x 128 wide x 6,404 states are 210 MB a prompt, and the other 32
    keep 0.13 MB a token.
    """
    mllama = Needs(21 * GB, 2 * 32 * 8 * 128 * 2, 48 * 4096 * 2, prompt_state=8 * 2 * 8 * 128 * 6404 * 2)
    page = 128 * 131_072
    for k, prompts in ((10, 0.22), (4, 0.55), (1, 1)):
        found = budgets(72 * GB, mllama, "cuda", k, 512)
        rows, slots = found["decode_rows"], found["decode_slots"]
        row = (1.5 + prompts * 6) * page + prompts * mllama.prompt_state
        assert rows == int(0.8 * 51 * GB / row)
        assert prompts * rows <= slots < prompts * rows + 1
        # Pages and prompts fit what caches may take.
        assert 0 <= 0.8 * 51 * GB - found["decode_pages"] * page - prompts * rows * mllama.prompt_state < page
        assert rows_without_pages(rows, slots, found["decode_pages"], k, 512)[1] <= slots
    # On CPU, half of what is left, and 2.5 / 10 of a prompt a row.
    found = budgets(31 * GB, mllama, "cpu", 10, 512)
    assert found["decode_rows"] == int(5 * GB / (688 * 131_072 + mllama.prompt_state / 4))


def test_what_no_memory_holds_is_tried_a_row_at_a_time():
    wanted = {"decode_rows": 1, "decode_slots": 1, "decode_pages": 4 + 6, "score_tokens": 0}
    assert budgets(10 * GB, LLAVA, "cuda", 10, 512) == wanted


def test_small_models_stop_where_more_gains_nothing():
    """On a GPU: 640 answers of one page, each behind a prompt of its own of six."""
    tiny = Needs(weights=1000, cached_token=100, activated_token=100)
    wanted = {"decode_rows": 160, "decode_slots": 102, "decode_pages": 0, "score_tokens": 0}
    assert budgets(8 * GB, tiny, "cpu", 4, 64) == wanted
    found = budgets(8 * GB, tiny, "cuda", 4, 64)
    assert (found["decode_rows"], found["decode_pages"]) == (640, 640 * 7)


def test_a_model_that_keeps_states_alone_has_rows_and_a_pool_that_costs_nothing():
    found = budgets(10 * GB, Needs(weights=GB, cached_token=0, activated_token=10, answer_state=10**8), "cuda", 10, 512)
    assert found["decode_rows"] == int(7.2 * GB / 122_000_000) == 59
    assert found["decode_pages"] <= 59 * 10


def test_without_pages_a_row_keeps_room_for_its_longest_answer():
    """691 pages are 88,448 tokens: 512 for an answer and 2.5 / 10 x 704 for prompts make 128 rows and 34 slots."""
    assert rows_without_pages(245, 245, 691, 10, 512) == (128, 34)
    assert rows_without_pages(20, 2, 691, 10, 512) == (20, 2)
    assert rows_without_pages(160, 102, 0, 10, 512) == (160, 102)


def test_a_gpu_gives_the_fraction_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GB, 80 * GB))
    assert free_bytes(torch.device("cuda"), 0.5) == 30 * GB


@pytest.mark.parametrize(("rows", "k", "slots"), [(80, 10, 22), (1, 10, 2), (10, 1, 27)])
def test_slots_are_two_and_a_half_times_the_questions_that_fill_the_rows(rows, k, slots):
    assert num_slots(rows, k) == slots


@pytest.mark.slow
def test_the_peak_of_a_process_on_the_cpu_counts_what_it_held_and_let_go():
    code = (
        "import torch; from data_engine.sampling.memory import peak_bytes as peak; cpu = torch.device('cpu'); "
        "before = peak(cpu); torch.ones(50_000_000); print(peak(cpu) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(200_000_000, rel=0.05)


CONFIG = RunConfig(
    instruct_model_path="instruct", reward_model_path="reward", dataset_path="q.parquet", work_dir="work"
)
ALONE, FOUR = Ranks(), Ranks(0, 4, 0, 4)


class SevenB:
    """What the figures need of a checkpoint of LLaVA-1.5-7B."""

    family, folder, sizes = "llava", None, {"hidden_size": 4096}


@pytest.fixture
def frozen(monkeypatch):
    """The needs that the figures of a GPU with so much memory are made from, and the figures."""

    def of(total, weights, ranks=ALONE, zero3="auto", questions_at_once=10_000, fraction=0.9):
        family = type("Family", (), {"cache_sizes": staticmethod(lambda folder: CacheSizes(2 * 32 * 4096))})
        monkeypatch.setattr(job_budgets, "family_class", lambda name: family)
        monkeypatch.setattr(placement, "total_memory_bytes", lambda device: total)
        seen = []
        found = job_budgets.budgets
        monkeypatch.setattr(job_budgets, "budgets", lambda *a: seen.append(a) or found(*a))
        target = Target(torch.device("cuda:0"), torch.bfloat16)
        decision = placement.decide(zero3, weights, ranks, target.device, fraction)
        figures = job_budgets.frozen_budgets(CONFIG, {"instruct": SevenB()}, target, decision, questions_at_once)
        return decision, seen[0], figures

    return of


@pytest.mark.parametrize("zero3", ["auto", "off"])
@pytest.mark.parametrize("ranks", [ALONE, FOUR])
@pytest.mark.parametrize("fraction", [0.9, 0.8, 1.0])
@pytest.mark.parametrize("total", [24_150_000_000, 40 * GB, 80 * GB])
def test_whole_weights_are_counted_wherever_the_model_is_whole(frozen, total, fraction, ranks, zero3):
    """Of a GPU of 24.15 GB, 14.1 GB of weights and 8.6 of working room once fitted one sum and not the other."""
    weights = 14_100_000_000
    decision, (memory, needs, *_), _ = frozen(total, weights, ranks, zero3, fraction=fraction)
    assert needs.weights == (weights // 2 if decision.split else weights)
    # Both sums are of the same memory.
    assert memory == decision.memory_bytes == int(total * fraction)


def test_no_more_is_kept_than_the_questions_at_hand_can_fill(frozen):
    """Two questions of ten answers."""
    _, _, figures = frozen(80 * GB, 14 * GB, questions_at_once=2)
    assert (figures["decode_rows"], figures["decode_slots"]) == (20, 2)
    assert figures["decode_pages"] > 600, "a prompt of theirs may be long"


class Critic(SevenB):
    """Half as many numbers of a token again, and one and a quarter as wide."""

    family, folder, sizes = "larger", "critic", {"hidden_size": 5120}


def test_pages_and_passes_fit_a_larger_critic_too(monkeypatch):
    """It writes in caches of as many pages, and each of its answers may have a state."""
    sizes = {"llava": CacheSizes(2 * 32 * 4096), "larger": CacheSizes(3 * 32 * 4096, 1000, 700)}
    family = {name: type("Family", (), {"cache_sizes": staticmethod(lambda _, one=one: one)})
              for name, one in sizes.items()}  # fmt: skip
    monkeypatch.setattr(job_budgets, "family_class", family.get)
    seen, found = [], job_budgets.budgets
    monkeypatch.setattr(job_budgets, "budgets", lambda *a: seen.append(a[1]) or found(*a))
    monkeypatch.setattr(placement, "total_memory_bytes", lambda device: 80 * GB)
    target = Target(torch.device("cuda:0"), torch.bfloat16)
    decision = placement.decide("auto", 14 * GB, ALONE, target.device, 0.9)
    for roles in ({"instruct": SevenB()}, {"instruct": SevenB(), "critic": Critic()}, {"critic": Critic()}):
        job_budgets.frozen_budgets(CONFIG, roles, target, decision, 10_000)
    larger = Needs(14 * GB, 3 * 32 * 4096 * 2, 48 * 5120 * 2, 4000, 1400)
    assert seen == [Needs(14 * GB, 2 * 32 * 4096 * 2, 48 * 4096 * 2), larger, larger]


def test_the_figures_are_told_by_prompts_or_by_the_tokens_of_the_pool():
    told = job_budgets.told({"decode_rows": 20, "decode_slots": 3, "decode_pages": 0, "score_tokens": 7})
    assert told.startswith("20 answers at a time, 3 prompts kept, 7 tokens")
    told = job_budgets.told({"decode_rows": 20, "decode_slots": 20, "decode_pages": 10, "score_tokens": 7})
    assert told.startswith("20 answers at a time, 1280 tokens of prompts and answers kept, 7 tokens")
    # As a run that an earlier version began has them.
    assert "3 prompts kept" in job_budgets.told({"decode_rows": 20, "decode_slots": 3, "score_tokens": 7})


def test_memory_that_others_hold_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GB, 80 * GB))
    cuda = torch.device("cuda:0")
    assert placement.taken_by_others(cuda, 60 * GB) is None
    assert placement.taken_by_others(cuda, 72 * GB).startswith("60.0 GB are free on cuda:0, and this run may use 72.0")
    assert placement.taken_by_others(torch.device("cpu"), 72 * GB) is None
