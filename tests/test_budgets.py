"""Row counts and token budgets from memory, by hand."""

import subprocess
import sys

import pytest
import torch

from data_engine.sampling.memory import Needs, budgets, memory_bytes
from data_engine.sampling.native.kv_cache import num_slots

GB = 10**9
# LLaVA-1.5-7B in bfloat16: 32 layers x 32 heads x 128 wide, keys and values.
LLAVA = Needs(weights=14 * GB, cached_token=2 * 32 * 4096 * 2, activated_token=48 * 4096 * 2)


def test_a_gpu_of_80_gb_decodes_what_its_memory_holds():
    """A row: two of its four pages, 256 tokens, and its share of a prefix, 2.5 / 10 x 704 = 176; 0.5 MB a token."""
    found = budgets(72 * GB, LLAVA, "cuda", 10, 512)
    assert found["decode_rows"] == int(0.8 * 58 * GB / ((256 + 176) * 524_288)) == 204
    assert found["decode_slots"] == 2.5 * 204 / 10 + 2 == 53
    assert found["score_tokens"] == 16_384


def test_what_no_memory_holds_is_tried_a_row_at_a_time():
    assert budgets(10 * GB, LLAVA, "cuda", 10, 512) == {"decode_rows": 1, "decode_slots": 2, "score_tokens": 0}


def test_small_models_stop_where_more_gains_nothing():
    tiny = Needs(weights=1000, cached_token=100, activated_token=100)
    assert budgets(8 * GB, tiny, "cpu", 4, 64) == {"decode_rows": 160, "decode_slots": 102, "score_tokens": 0}
    assert budgets(8 * GB, tiny, "cuda", 4, 64)["decode_rows"] == 640


def test_a_gpu_gives_the_fraction_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GB, 80 * GB))
    assert memory_bytes(torch.device("cuda"), 0.5) == 30 * GB


@pytest.mark.parametrize(("rows", "k", "slots"), [(80, 10, 22), (1, 10, 2), (10, 1, 27)])
def test_slots_are_two_and_a_half_times_the_questions_that_fill_the_rows(rows, k, slots):
    assert num_slots(rows, k) == slots


def test_the_peak_of_a_process_on_the_cpu_counts_what_it_held_and_let_go():
    code = (
        "import torch; from data_engine.sampling.memory import peak_bytes as peak; cpu = torch.device('cpu'); "
        "before = peak(cpu); torch.ones(50_000_000); print(peak(cpu) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(200_000_000, rel=0.05)
